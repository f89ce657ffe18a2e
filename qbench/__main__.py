from qbench.cli import main

if __name__ == "__main__":  # processes of runs import this module too
    main()
