"""Names, paths, reasons and prompts are text wherever they are shown, whatever they hold."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from qbench import escape

HOSTILE = (
    "<script>alert(1)</script>",
    "</td><img src=x onerror=alert(1)>",
    "![x](http://example.org/a.png)",
    "[x](javascript:alert(1))",
    "<http://example.org>",
    "http://example.org/a www.example.org me@example.org",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "> quote",
    "=====",
    "a | b | c",
    "| a |\n| --- |\n| b |",
    "`code` ``more``",
    "**bold** _it_ __it__ ~~gone~~ *x*",
    "&lt;b&gt; &#60;",
    "a\\",
    "$\\frac$ and $x^2$",
    "[red]x[/red] x[/y]",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J\x1b",
    "line\u2028break\x85\r\nmore",
    "\u202eright to left\u2066",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "\t=1",
    "  =1+1",
    "\uff1d1+1",
    "\ud800",
)
TEXT = {"text", "text_special", "softbreak", "inline"}


def _inside(tokens: list[object]) -> list[str]:
    found = []
    for token in tokens:
        children = getattr(token, "children", None)
        found += _inside(children) if children else [getattr(token, "type")]  # noqa: B009
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_holds_nothing_but_text(text: str) -> None:
    """By another implementation of Markdown, in a heading, an item and a cell."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = escape.markdown(text)
    assert "\n" not in shown
    for document, frame in (
        (f"## {shown}", ["heading_open", "heading_close"]),
        (f"- {shown}", ["bullet_list_open", "list_item_open", "paragraph_open"]),
        (f"| a | b |\n| --- | --- |\n| {shown} | 2 |", ["table_open", "thead_open", "tr_open"]),
    ):
        kinds = _inside(parser.parse(document))
        tags = [kind for kind in kinds if kind not in TEXT]
        assert all(tag.endswith(("_open", "_close")) for tag in tags), (document, tags)
        assert "link_open" not in kinds
        assert not any(kind.startswith(("em_", "strong_", "s_", "html", "image")) for kind in kinds)
        assert kinds.count("heading_open") == ("heading_open" in frame)
        assert kinds.count("bullet_list_open") == ("bullet_list_open" in frame)
        assert kinds.count("ordered_list_open") == kinds.count("blockquote_open") == 0
        if "table_open" in frame:
            assert kinds.count("td_open") == 2


def test_markdown_reads_as_the_text_did() -> None:
    for text in ("a_b of measure.timeout_s = 200 s", "8 < 12 & x", "a | b", "$x$ *y* [z]"):
        parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        html = parser.render(f"- {escape.markdown(text)}")
        shown = html.removeprefix("<ul>\n<li>").removesuffix("</li>\n</ul>\n")
        for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            shown = shown.replace(entity, char)
        assert shown == text


@pytest.mark.parametrize("text", HOSTILE)
def test_code_spans_end_where_they_should(text: str) -> None:
    shown = escape.code(text)
    assert shown.count("`") == 2
    assert "|" not in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_begins_a_formula(text: str) -> None:
    shown = escape.csv(text)
    assert not shown.lstrip().startswith(escape.FORMULA)
    assert "\n" not in shown
    assert escape.csv("fp8-dynamic") == "fp8-dynamic"


@pytest.mark.parametrize("text", HOSTILE)
def test_charts_read_no_mathematics(text: str) -> None:
    from matplotlib import cbook

    assert not cbook.is_math_text(escape.chart(text))


def test_sequences_of_terminals_leave_nothing_behind() -> None:
    assert escape.plain("a\x1b[31;1mb\x1b[0mc\x1b]8;;http://x\x07d\x9b2Je") == "abcde"
    assert escape.plain("a\u202eb\x00c\x7f") == "abc"
