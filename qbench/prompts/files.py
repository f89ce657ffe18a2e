"""Files of prompts: one a line, or JSON and JSON lines as VBench ships them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from qbench import textfile
from qbench.errors import InputError, brief

MAX_BYTES = 2**26
MAX_CHARACTERS = 10_000  # of a prompt; text encoders see a few hundred words
MAX_PROMPTS = 100_000
FIELDS = ("prompt_en", "prompt", "caption", "text")  # of a JSON object, the first that it has
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def read(path: Path) -> tuple[str, ...]:
    """The prompts of a file, in its order.

    Text has one prompt a line; empty lines, and lines that begin with '# ', are left out. JSON is
    a list, JSON lines are one value a line; each value is a prompt, or an object with one of
    `FIELDS`. Raises InputError with the line of what is none.
    """
    text = textfile.read(path, MAX_BYTES)
    prompts: list[str] = []
    for line, value in _values(text, path):
        if not isinstance(value, str):
            value = _of_object(value, path, line)
        prompt = " ".join(value.split())
        if prompt:
            prompts.append(_checked(prompt, path, line))
        if len(prompts) > MAX_PROMPTS:
            raise InputError(f"{path}:{line}: more than {MAX_PROMPTS:,} prompts")
    if not prompts:
        raise InputError(f"prompts {path}: no prompt in it")
    return tuple(prompts)


def _values(text: str, path: Path) -> Iterator[tuple[int, object]]:
    """Each value with the line that it stands on."""
    # Not splitlines: a line separator of Unicode may stand in a prompt.
    lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    by_name = path.suffix.lower() in JSON_SUFFIXES
    if not by_name and not (lines and _is_json(lines[0][1], text)):
        for i, line in lines:
            if not (line == "#" or line.startswith(("# ", "#\t"))):
                yield i, line
        return
    if text.lstrip().startswith("["):
        whole = _parsed(text, path, 1)
        for item in whole if isinstance(whole, list) else [whole]:
            yield 1, item
        return
    if len(lines) > 1 and not _parses(lines[0][1]):  # one object over several lines
        yield 1, _parsed(text, path, 1)
        return
    for i, line in lines:
        yield i, _parsed(line, path, i)


def _is_json(first: str, text: str) -> bool:
    """Whether a file without a suffix of JSON is JSON all the same, not a prompt in brackets."""
    if first.startswith("{"):
        return _parses(first) or _parses(text)
    return first.startswith("[") and _parses(text)


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{line}: not JSON: {error}") from None


def _of_object(value: object, path: Path, line: int) -> str:
    fields = value if isinstance(value, dict) else {}
    found = next((fields[name] for name in FIELDS if isinstance(fields.get(name), str)), None)
    if isinstance(found, str):
        return found
    told = ", ".join(FIELDS)
    raise InputError(f"{path}:{line}: no prompt in {brief(value)}; it has to be one of: {told}")


def _checked(prompt: str, path: Path, line: int) -> str:
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(f"{path}:{line}: a prompt of more than {MAX_CHARACTERS:,} characters")
    try:
        prompt.encode()
    except UnicodeEncodeError:  # half a character, which JSON can escape
        raise InputError(f"{path}:{line}: {brief(prompt)} is no text") from None
    odd = next((c for c in prompt if unicodedata.category(c) == "Cc"), None)
    if odd:
        raise InputError(f"{path}:{line}: U+{ord(odd):04X} is a control character")
    return prompt
