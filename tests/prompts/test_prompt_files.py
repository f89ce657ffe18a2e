"""Prompts are what the file says, character for character, or one line says what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import RECIPES

from qbench import prompts
from qbench.errors import InputError
from qbench.pipelines import specs
from qbench.recipe.files import load

GOOD = {
    "lines": (b"a red star\n\n  a blue circle \n", "a.txt", ("a red star", "a blue circle")),
    "BOM and CR LF": (b"\xef\xbb\xbfa star\r\n\r\na ring\r\n", "a.txt", ("a star", "a ring")),
    "BOM before a comment": (b"\xef\xbb\xbf# set 1\na star\n", "a.txt", ("a star",)),
    "comments and what only looks like one": (
        b"# a comment\n#\n#1 dad mug\n#winning\n",
        "a.txt",
        ("#1 dad mug", "#winning"),
    ),
    "UTF-16 with its mark": ("a star\r\nBär\r\n".encode("utf-16"), "a.txt", ("a star", "Bär")),
    "a line separator inside": ("a star\u2028moves".encode(), "a.txt", ("a star moves",)),
    "other scripts": ("一只熊猫\n".encode(), "a.txt", ("一只熊猫",)),
    "brackets that are no JSON": (b"[close-up] a star\n", "a.txt", ("[close-up] a star",)),
    "VBench's list": (
        json.dumps([{"prompt_en": "a star", "dimension": ["color"]}], indent=1).encode(),
        "a.json",
        ("a star",),
    ),
    "JSON lines": (b'{"prompt_en": "a star"}\n{"prompt": "a ring"}\n"a cross"\n', "a.jsonl",
                   ("a star", "a ring", "a cross")),
    "JSON lines without the suffix": (b'{"prompt_en": "a star"}\n', "a.txt", ("a star",)),
    "one object": (b'{\n "prompt": "a star"\n}', "a.json", ("a star",)),
}  # fmt: skip
BAD = {
    "not UTF-8": (b"a star\n\xf0(\x8c(", "a.txt", ":2: not UTF-8"),
    "GBK": ("一只熊猫".encode("gbk"), "a.txt", ":1: not UTF-8"),
    "a control character": (b"a star\na\x1b[31m ring", "a.txt", ":2: U+001B"),
    "nothing": (b"\n# only this\n", "a.txt", "no prompt in it"),
    "an object without a prompt": (
        b'{"prompt": "a"}\n{"text_en": "b"}',
        "a.jsonl",
        ":2: no prompt",
    ),
    "a number": (b"[3]", "a.json", "no prompt in 3"),
    "half of JSON": (b'{"prompt": "a"}\n{"prompt"', "a.jsonl", ":2: not JSON"),
    "deep JSON": (b"[" * 100_000, "a.json", "not JSON"),
    "half a character": (b'["\\ud800"]', "a.json", "is no text"),
    "an endless prompt": (b"x" * 20_000, "a.txt", "more than 10,000 characters"),
}


@pytest.mark.parametrize("case", GOOD)
def test_prompts_of_a_file(case: str, tmp_path: Path) -> None:
    data, name, expected = GOOD[case]
    (tmp_path / name).write_bytes(data)
    assert prompts.load(str(tmp_path / name)).prompts == expected


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_file_of_prompts_is_one_line(case: str, tmp_path: Path) -> None:
    data, name, said = BAD[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        prompts.load(str(tmp_path / name))
    assert said in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_devices_folders_pipes_and_odd_names_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (
        "/dev/zero",
        str(tmp_path),
        str(tmp_path / "pipe"),
        "x" * 5000,
        "a\0b",
        "~nobody/x",
    ):
        with pytest.raises(InputError):
            prompts.load(name)


def test_count_is_the_files_own_unless_it_is_said(tmp_path: Path) -> None:
    model = specs.find("tiny-cogvideox")
    (tmp_path / "two.txt").write_text("a star\na ring\n")
    (tmp_path / "many.txt").write_text("".join(f"star {i}\n" for i in range(20)))

    def count(**overrides: str) -> int:
        changes = {f"prompts.{key}": value for key, value in overrides.items()}
        return len(prompts.chosen(load(RECIPES / "int8.yaml", changes).prompts, model).prompts)

    assert count(set=str(tmp_path / "two.txt")) == 2
    assert count(set=str(tmp_path / "many.txt")) == 20
    assert count(set=str(tmp_path / "many.txt"), count="5") == 5
    assert count() == count(set="world-v1") == 12
    with pytest.raises(InputError, match="the most is 2"):
        count(set=str(tmp_path / "two.txt"), count="3")
