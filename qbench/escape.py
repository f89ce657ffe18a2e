"""Text from outside (names, paths, reasons, prompts) as plain text in whatever shows it.

One function for each target. None of them may let the text become markup, a formula, a link or a
control sequence there; what they return reads as the text did. For a terminal it is
`errors.one_line`, inside `rich.text.Text` where rich prints it.
"""

from __future__ import annotations

import re
import unicodedata

# Control sequences of terminals (ECMA-48): CSI, then the strings OSC, DCS, SOS, PM and APC up to
# their terminator, then what is left of two characters.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_HTML = {"<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"&(?=#?\w{1,32};)")
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto)(?=:)|\b(www)(?=\.)|(?<=\w)(?=@\w)")
_BLOCK = re.compile(r"^(?:[#+=-]|\d{1,9}(?=[.)](?:\s|$)))")
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # what spreadsheets begin a formula with


def plain(text: str) -> str:
    """One line without control characters, terminal sequences and reversals of direction."""
    text = _SEQUENCES.sub("", text)
    # Cc are controls, Cf are formats such as right-to-left overrides, Cs are lone surrogates.
    kept = (
        " " if char in "\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
        else "" if unicodedata.category(char) in ("Cc", "Cf", "Cs")
        else char
        for char in text
    )  # fmt: skip
    return "".join(kept) if not (text.isascii() and text.isprintable()) else text


def markdown(text: str) -> str:
    """For GitHub's Markdown, inside a line, a list item or a cell of a table."""
    text = _ENTITY.sub("&amp;", plain(text).strip())
    text = _MARKUP.sub(lambda found: "\\" + found[0], text)
    text = "".join(_HTML.get(char, char) for char in text)
    text = _ADDRESS.sub(lambda found: found[0] + "\u200b", text)  # bare addresses become links
    return _BLOCK.sub(lambda found: _shielded(found[0]), text)


def _shielded(start: str) -> str:
    """What would begin a heading or a list at the start of an item."""
    return start + "\u200b" if start.isdigit() else "\\" + start


def code(text: str) -> str:
    """For a code span in Markdown, in which only the backtick, and a table's bar, mean anything."""
    return "`" + plain(text).replace("`", "'").replace("|", "\u2502") + "`"


def csv(text: str) -> str:
    """For a cell that a spreadsheet will read: never the beginning of a formula (CWE-1236)."""
    text = plain(text)
    return "'" + text if text.lstrip(" ").startswith(FORMULA) else text


def chart(text: str) -> str:
    """For matplotlib, which reads what stands between two dollars as mathematics."""
    return plain(text).replace("$", r"\$")


def clipped(text: str, width: int) -> str:
    """At most `width` characters, the cut marked."""
    return text if len(text) <= width else text[: width - 1] + "\u2026"
