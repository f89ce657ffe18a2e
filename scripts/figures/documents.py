"""The marks in the documents: tables and inline figures, drawn anew from their records."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qbench.report import tables
from scripts.figures.values import FIGURES, PUBLISHED, ROOT, Fault, evaluate, row_of

INLINE = re.compile(r"<!--= *(?P<expression>[^>]*?) *-->(?P<text>[^<]*)<!--/-->")
BLOCK = re.compile(
    r"^<!-- figures\n(?P<spec>.*?)^-->\n(?P<text>.*?)^<!-- /figures -->$", re.M | re.S
)
GIVEN = re.compile(r"<!--: *[^>]*-->[^<]*<!--/-->")
ALL = "<!-- figures: all -->"
BEGINNING = re.compile(r"[ \t]*(?:(?:[-*+>]|\d+[.)])[ \t]+)*")  # of a line, of a list's too
COMMENT = re.compile(r"<!--.*?-->", re.S)
CODE = re.compile(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", re.M | re.S)
LINK = re.compile(r"\]\([^)]*\)")
UNITS = r"ms|s|min|minutes|hours|GiB|MiB|GB|MB|dB|TFLOP/s|TFLOP|MHz|W|J"
MEASUREMENT = re.compile(rf"(?<![\w.])\d[\d,.]*(?<![,.])(?:x| ?(?:{UNITS}))(?![\w/])")


class Table(BaseModel):
    """What a block says: whose records, which columns, which rows, each with its words."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: str = Field("", alias="from")
    first: str = "variant"  # the heading of the first column
    columns: dict[str, str]  # heading: figures, or a folder and a figure, joined by blanks
    # Recipes, with a folder before where it is another and fields behind; the words that are shown.
    rows: list[str] | dict[str, str]

    def markdown(self) -> str:
        named = self.rows if isinstance(self.rows, dict) else {name: name for name in self.rows}
        lines = [
            [words, *(self._cell(name, column) for column in self.columns.values())]
            for name, words in named.items()
        ]
        return tables.grid([self.first, *self.columns], lines) + "\n"

    def _cell(self, name: str, column: str) -> str:
        """One cell; a `-` where its record has no such figure."""
        words = column.split()
        fields = [word for word in name.split() if "=" in word]
        *folders, recipe = [word for word in name.split() if "=" not in word]
        folder = folders[0] if folders else self.folder
        if words[0] not in FIGURES:
            folder = words.pop(0)
        row = row_of(folder, recipe, dict(field.split("=", 1) for field in fields))
        shown = []
        for word in words:
            if word not in FIGURES:
                raise Fault(f"{word!r} is not a figure; there are {', '.join(FIGURES)}")
            try:
                shown.append(FIGURES[word](row).text)
            except Fault:
                shown.append("")
        return " ".join(filter(None, shown)) or tables.MISSING


class ScriptTable(BaseModel):
    """A table drawn by the script that wrote the JSON file: its `table` of the file's `rows`.

    Of another list in the file, `of: convolutions`, the script has a `convolutions_table`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    script: Literal[
        "separation",
        "confusion",
        "attention_inputs",
        "bench_attention",
        "bench_decode",
        "bench_ray",
        "bench_sparse_attention",
        "bench_weight_values",
        "bench_xdit",
        "calibration_limits",
        "plan_sweep",
        "ray_faults",
    ]
    file: str  # below results/published
    of: str = "rows"

    def markdown(self) -> str:
        script = importlib.import_module(f"scripts.{self.script}")
        draw = getattr(script, "table" if self.of == "rows" else f"{self.of}_table")
        try:
            rows = json.loads((PUBLISHED / self.file).read_text(encoding="utf-8"))[self.of]
        except (OSError, ValueError, KeyError) as error:
            raise Fault(f"results/published/{self.file}: {error}") from None
        return str(draw(rows)) + "\n"


class Output(BaseModel):
    """What a qbench command prints when it is run in the repository's root."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    command: str  # 'qbench pick ...', on one line or folded

    def markdown(self) -> str:
        from typer.testing import CliRunner

        from qbench.cli import app
        from qbench.errors import InputError

        program, *words = shlex.split(self.command)
        if program != "qbench":
            raise Fault(f"{program!r} is not qbench")
        with contextlib.chdir(ROOT):
            done = CliRunner().invoke(app, words)
        if isinstance(done.exception, InputError):
            raise Fault(f"{self.command}: {done.exception}")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return f"```console\n$ {_folded(self.command)}\n{done.stdout.rstrip()}\n```\n"


def _folded(command: str) -> str:
    """On lines of about a hundred characters, as a shell takes them."""
    lines = [""]
    for word in re.findall(r'"[^"]*"|\S+', command):
        if lines[-1] and len(lines[-1]) + len(word) > 92:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n    ".join(lines)


def drawn(document: Path) -> tuple[str, list[str]]:
    """The document with its figures drawn anew, and a line for each mark that cannot be."""
    text, name = document.read_text(encoding="utf-8"), name_of(document)
    faults: list[str] = []

    def fail(at: re.Match[str], why: object) -> str:
        line = text.count("\n", 0, text.find(at.group())) + 1
        faults.append(f"{name}:{line}: {why}")
        return at.group()

    def inline(at: re.Match[str]) -> str:
        try:
            figure = evaluate(at["expression"])
        except Fault as fault:
            return fail(at, fault)
        # A line that begins with a comment, in a list too, is taken for HTML and not rendered.
        if BEGINNING.fullmatch(at.string[: at.start()].rpartition("\n")[2]):
            return fail(at, "a mark may not begin a line")
        return f"<!--= {at['expression']} -->{figure.text}<!--/-->"

    def block(at: re.Match[str]) -> str:
        try:
            spec = yaml.safe_load(at["spec"])
            kind = _kind(spec)
            drawn_anew = kind.model_validate(spec).markdown()
            return f"<!-- figures\n{at['spec']}-->\n\n{drawn_anew}\n<!-- /figures -->"
        except Fault as fault:
            return fail(at, fault)
        except (ValidationError, yaml.YAMLError) as error:
            return fail(at, " ".join(str(error).split()))

    new = INLINE.sub(inline, BLOCK.sub(block, text))
    if ALL in text:
        faults += [f"{name}:{line}" for line in _unmarked(new)]
    return new, faults


def _kind(spec: object) -> type[Table | ScriptTable | Output]:
    named = spec if isinstance(spec, dict) else {}
    return ScriptTable if "script" in named else Output if "command" in named else Table


def _unmarked(text: str) -> list[str]:
    """Measurements outside of marks, with their line numbers."""

    def blank(at: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", at.group())

    for pattern in (BLOCK, INLINE, GIVEN, COMMENT, CODE, LINK):
        text = pattern.sub(blank, text)
    return [
        f"{number}: {found.group()!r} is not drawn from a record"
        for number, line in enumerate(text.splitlines(), 1)
        for found in MEASUREMENT.finditer(line)
    ]


def name_of(document: Path) -> Path:
    return document.relative_to(ROOT) if document.is_relative_to(ROOT) else document


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "results/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
