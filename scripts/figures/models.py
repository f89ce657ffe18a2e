"""docs/models.md and the table that `qbench models` prints, from one set of rows."""

from __future__ import annotations

from collections.abc import Sequence

from qbench import models
from qbench.models import Comparison, Found
from qbench.report import tables
from scripts.figures.values import ROOT, Fault

PAGE = ROOT / "docs" / "models.md"
HEAD = """# CogVideoX-2B, Zeroscope v2 XL, Wan 2.1 1.3B

qbench began with a study log that chose between Zeroscope v2 XL and CogVideoX-2B by a table of
beliefs. Here is that table row by row: what the log held, what was found, and how it is known.
{basis}

`qbench models` prints it, `--json` for programs, `--row NAME` for some of it.
`python -m scripts.figures --write` makes this page and checks it: *measured* is drawn from a
published record, *computed* from configurations without values, *checked* looked up in the
installed libraries, *sourced* has its link. Where nothing was measured it says so, with the command
that does.
"""


def table() -> Comparison:
    from scripts.figures import model_rows, model_support

    return Comparison(
        models=model_rows.MODELS,
        basis=model_rows.basis(),
        rows=(*model_rows.rows(), *model_support.rows()),
    )


def page(whole: Comparison) -> str:
    titles = list(whole.models.values())
    overview = [
        [f"[{row.name}](#{_anchor(row.name)})", row.believed or tables.MISSING]
        + [row.cells[name].short if name in row.cells else tables.MISSING for name in whole.models]
        for row in whole.rows
    ]
    parts = [HEAD.format(basis=whole.basis), tables.grid(["", "believed", *titles], overview)]
    for row in whole.rows:
        parts.append(f"\n## {_heading(row.name)}\n")
        if row.believed:
            parts.append(f"The log believed: {row.believed}.\n")
        for name, cell in row.cells.items():
            parts.append(f"**{whole.models[name]}**: {cell.short}\n")
            if cell.found:
                parts.append("\n".join(_items(cell.found)) + "\n")
        if row.note:
            parts.append(f"{row.note}\n")
    return "\n".join(parts)


def _items(found: Sequence[Found]) -> list[str]:
    lines = []
    for one in found:
        source = one.source if one.basis == "checked" else _linked(one.source)
        known = ", ".join(filter(None, [one.basis, source]))
        lines.append(f"- {one.text} *({known})*")
        if one.command:
            lines.append(f"  `{one.command}`")
    return lines


def _linked(source: str) -> str:
    if source.startswith("https://"):
        return f"[source]({source})"
    if not source:
        return ""
    if not (ROOT / "results" / "published" / source).exists():
        raise Fault(f"there is no results/published/{source}")
    return f"[{source}](../results/published/{source})"


def _heading(name: str) -> str:
    """With a capital, but for a name that has its own: xFormers."""
    return name if name[1:2].isupper() else name[0].upper() + name[1:]


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")


def files() -> dict[str, str]:
    """What the two files should hold, by path from the root."""
    whole = table()
    return {
        str(PAGE.relative_to(ROOT)): page(whole),
        str(models.FILE.relative_to(ROOT)): whole.model_dump_json(indent=1) + "\n",
    }


def draw() -> None:
    for path, text in files().items():
        (ROOT / path).write_text(text, encoding="utf-8")


def faults() -> list[str]:
    """A line for each of the files that holds something else than the records say."""
    wrong = []
    try:
        for path, text in files().items():
            there = ROOT / path
            old = there.read_text(encoding="utf-8") if there.exists() else ""
            pairs = zip(old.splitlines(), text.splitlines(), strict=False)
            if old != text:
                line = next((n for n, (a, b) in enumerate(pairs, 1) if a != b), 1)
                wrong.append(f"{path}:{line}: the records say otherwise; --write draws it anew")
    except Fault as fault:
        wrong.append(f"{PAGE.relative_to(ROOT)}: {fault}")
    return wrong
