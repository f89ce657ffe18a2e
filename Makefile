# Two commands: `make demo` and `make test`. Both set up .venv first where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types layers figures wheel setup clean

demo: $(INSTALLED)
	$(BIN)/qbench run recipes --set measure.interleave=true --set measure.warm_start=false
	$(BIN)/qbench report --out report

test: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Any by name is for the border of libraries without types.
types: $(INSTALLED)
	$(BIN)/mypy
	@count=$$($(BIN)/mypy --disallow-any-explicit --package qbench | grep -c explicit-any); \
	if [ $$count -gt 36 ]; then echo "explicit Any in $$count places, at most 36"; exit 1; fi

layers: $(INSTALLED)
	$(BIN)/lint-imports --no-cache

figures: $(INSTALLED)
	$(BIN)/python -m scripts.figures

wheel: $(INSTALLED)
	PYTHON=$(BIN)/python scripts/check_wheel.sh

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('qbench needs Python 3.11 to 3.13, not %d.%d' % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] < (3, 14) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[onnx,quanto,ray,dev]'
	touch $@

clean:
	rm -rf $(VENV) report results/runs
