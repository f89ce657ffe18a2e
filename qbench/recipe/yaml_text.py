"""YAML as recipes use it: plain values and the line of each. No tags, no aliases, no dates.

A recipe may come from anybody, so its size, its depth and its characters have limits, and a value
that YAML would make an object of (a date, a merge key) stays the text that was written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qbench.errors import InputError, Mistakes, brief

if TYPE_CHECKING:
    import yaml

MAX_CHARACTERS = 65536  # a recipe is a page; anything larger is not one
MAX_DEPTH = 12  # the schema's own depth is four

EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # 1e-3, to YAML 1.1 a word
UNUSUAL = re.compile(r"[-+]?(0[0-7_]+|[0-9_.]+(:[0-9_.]+)+)")  # 010, 1:30
SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a character, as in names that are not UTF-8

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]
Place = tuple[str | int, ...]


def parse(text: str, name: str, mistakes: Mistakes | None = None) -> tuple[Value, dict[Place, int]]:
    """The value, and the line on which each part of it begins, by its path.

    Raises InputError, whose lines begin with `name:line`: the first mistake of syntax, or all that
    is wrong with fields and values, unless `mistakes` is there to keep that. Nothing at all is the
    value None, whose place is missing.
    """
    import yaml

    wrong = mistakes or Mistakes()
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{name}: larger than {MAX_CHARACTERS:,} characters, which no recipe is")
    try:
        _refuse(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{name}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        at = text[: error.position].count("\n") + 1
        raise InputError(
            f"{name}:{at}: not YAML: U+{int(error.character):04X} is no printable character"
        ) from None
    places: dict[Place, int] = {}
    value = None if node is None else _plain(node, (), name, places, wrong)
    if mistakes is None:
        wrong.tell()
    return value, places


def _refuse(text: str, name: str) -> None:
    """Find what is not accepted by tokens alone, before anything is built from them."""
    import yaml

    words = {
        yaml.TagToken: "YAML tags are",
        yaml.AliasToken: "YAML aliases are",
        yaml.AnchorToken: "YAML anchors are",
    }
    opens = (
        yaml.BlockMappingStartToken,
        yaml.BlockSequenceStartToken,
        yaml.FlowMappingStartToken,
        yaml.FlowSequenceStartToken,
    )
    closes = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
    depth = 0
    for token in yaml.scan(text):
        line = token.start_mark.line + 1
        if kind := words.get(type(token)):
            raise InputError(f"{name}:{line}: {kind} not accepted; write the value plainly")
        depth += isinstance(token, opens) - isinstance(token, closes)
        if depth > MAX_DEPTH:
            raise InputError(f"{name}:{line}: nested more than {MAX_DEPTH} deep, as no recipe is")


def _plain(
    node: yaml.Node, at: Place, name: str, places: dict[Place, int], mistakes: Mistakes
) -> Value:
    import yaml

    places.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*at, i), name, places, mistakes) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Value] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            with mistakes.kept():  # and without the field, of which no more is to be said
                if not isinstance(key_node, yaml.ScalarNode):
                    raise InputError(f"{name}:{line}: the name of a field is a word")
                key = whole(str(key_node.value), f"{name}:{line}")
                if key in found:
                    raise InputError(f"{name}:{line}: {key!r} stands twice")
                places[*at, key] = line
                found[key] = _plain(value_node, (*at, key), name, places, mistakes)
        return found
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, name)


def _scalar(node: yaml.ScalarNode, name: str) -> Value:
    import yaml

    text = str(node.value)
    place = f"{name}:{node.start_mark.line + 1}"
    kind = node.tag.rpartition(":")[2]
    if kind not in ("null", "bool", "int", "float"):
        plain = node.style is None and EXPONENT.fullmatch(text)
        return float(text) if plain else whole(text, place)
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (ValueError, OverflowError):  # '0b_' is a number to YAML's grammar and to nobody else
        raise InputError(f"{place}: {text[:40]!r} is not a number") from None
    assert value is None or isinstance(value, bool | int | float)
    if kind in ("int", "float") and UNUSUAL.fullmatch(text):
        way = "sixties" if ":" in text else "eights"
        read = f"{text[:40]} is {value} to YAML, which counts by {way}"
        raise InputError(f"{place}: {read}: write that, or text in quotes")
    return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0, by its digest too


def whole(text: str, place: str) -> str:
    """The text, once it is known to be some: no record could hold half of a character."""
    if SURROGATE.search(text):
        raise InputError(f"{place}: {brief(text)} is not UTF-8, as text and names of files must be")
    return text
