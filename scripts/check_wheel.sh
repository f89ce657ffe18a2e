#!/usr/bin/env bash
# Builds the wheel, installs it alone into a fresh environment, and uses it from an empty folder.
# What it depends on is taken from PYTHON's environment, so nothing large is installed twice.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Of tracked files alone, in a folder of its own: a build leaves files beside what it reads.
mkdir "$work/source" "$work/empty"
git ls-files -z | tar --null --files-from=- --create | tar --extract --directory "$work/source"
isolation=$("$PYTHON" -c "
import importlib.metadata as m
print('--no-build-isolation' if int(m.version('setuptools').split('.')[0]) >= 77 else '')" \
    2> "$work/log" || true)
# shellcheck disable=SC2086  # empty is no argument
"$PYTHON" -m pip wheel --quiet --no-deps $isolation --wheel-dir "$work" "$work/source"

"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-deps --no-index "$work"/qbench-*.whl
"$PYTHON" -c "import site; print(*site.getsitepackages(), sep='\n')" > "$work/paths"
"$work/venv/bin/python" - "$work/paths" << 'END'
import site, sys
from pathlib import Path
Path(site.getsitepackages()[0], "dependencies.pth").write_text(Path(sys.argv[1]).read_text())
END

cd "$work/empty"
qbench=$work/venv/bin/qbench
where=$("$work/venv/bin/python" -c "import qbench; print(qbench.__file__)")
[[ $where == "$work"/venv/* ]] || { echo "not the wheel's: $where" >&2; exit 1; }
"$qbench" --version
"$qbench" ls > ls.txt
grep -q "attention/fp8" ls.txt
"$qbench" validate cache attention/fp8 > validated.txt
"$qbench" recipes copy own
"$qbench" validate own/int8.yaml
"$qbench" run int8 --device cpu --set generation.steps=2 --set prompts.count=2 \
    --set measure.repeats=1 --set measure.warmup=0
"$qbench" report
grep -q "int8" report/report.md
grep -q "leeoniya/uPlot" report/index.html  # the page has its library
"$PYTHON" -m zipfile --list "$work"/qbench-*.whl > contents.txt
grep -q "vendor/uplot/LICENSE" contents.txt
echo "the wheel works by itself: $(ls -s --block-size=KiB "$work"/qbench-*.whl | cut -d' ' -f1)"
