"""Write docs/api.md from the docstrings of what `import qbench` offers.

    python -m scripts.api_reference [--check]

With --check nothing is written, and the exit code is 1 where the page is not up to date.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import qbench

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
FUNCTIONS = ("load_recipe", "apply", "restore", "measure", "load_results", "load_engine")


def page() -> str:
    parts = [
        "# Python API",
        "Made from the docstrings by `python -m scripts.api_reference`; edit those.",
        _text(qbench.__doc__ or ""),
    ]
    for name in FUNCTIONS:
        function = getattr(qbench, name)
        signature = str(inspect.signature(function)).replace("'", "")
        parts += [f"## `{name}`", f"```python\nqbench.{name}{signature}\n```"]
        parts.append(_text(inspect.getdoc(function) or ""))
    for name in ("InputError", "Unsupported"):
        parts += [f"## `{name}`", _text(inspect.getdoc(getattr(qbench, name)) or "")]
    return "\n\n".join(parts) + "\n"


def _text(doc: str) -> str:
    """Paragraphs; indented examples become code, and described arguments a list."""
    blocks = []
    for block in inspect.cleandoc(doc).split("\n\n"):
        lines = block.splitlines()
        if all(line.startswith("    ") for line in lines):
            code = "\n".join(line[4:] for line in lines)
            blocks.append(f"```python\n{code}\n```")
        elif lines[0].partition(":")[0].isidentifier() and lines[0].partition(":")[2]:
            items: list[str] = []
            for line in lines:
                if line.startswith("    "):
                    items[-1] += " " + line.strip()
                else:
                    name, _, rest = line.partition(":")
                    items.append(f"- `{name}`: {rest.strip()}")
            blocks.append("\n".join(items))
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def main() -> None:
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{PAGE}: not up to date; run python -m scripts.api_reference")


if __name__ == "__main__":
    main()
