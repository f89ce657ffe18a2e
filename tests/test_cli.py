from __future__ import annotations

import subprocess
import sys

from conftest import qbench


def test_help_loads_nothing_heavy() -> None:
    """What makes `qbench --help` slow is an import of torch or its like, so none may happen."""
    code = (
        "import sys\n"
        "sys.argv = ['qbench', '--help']\n"
        "from qbench.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'matplotlib', 'diffusers', 'pydantic'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "validate" in done.stdout


def test_validate_names_every_recipe() -> None:
    done = qbench("validate", "recipes")
    assert done.returncode == 0, done.stderr
    assert "int8-dynamic: ok" in done.stdout
    assert "base" not in done.stdout


def test_ls_says_what_is_not_here_and_why() -> None:
    done = qbench("ls")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert lines["fp32"].split()[0] == "+"
    assert "GPU" in lines["tensorrt"]
    assert "ships with the package" in lines["tiny-cogvideox"]
    assert "dB" in lines["psnr"]
    assert "256 prompts" in lines["world-v1"]


def test_doctor_shows_machine_versions_and_reasons() -> None:
    done = qbench("doctor", "--device=cpu")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout
    assert "TensorRT needs an NVIDIA GPU" in done.stdout
    assert "threads" in done.stdout
