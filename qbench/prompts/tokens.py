"""What a model's tokenizer makes of prompts: words that it does not know, ends that are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

SHOWN = 5  # numbers of prompts in a note


class Tokenizer(Protocol):
    """What is used of transformers' tokenizers."""

    unk_token_id: int | None
    all_special_ids: list[int]

    def encode(self, text: str) -> list[int]: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...


def notes(tokenizer: Tokenizer, prompts: Sequence[str], most: int) -> list[str]:
    """A note each on prompts without a known word and on prompts past `most` tokens, if any."""
    unknown, long = [], []
    wordless = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    for number, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt)
        known = tokenizer.convert_ids_to_tokens([t for t in tokens if t not in wordless])
        if not any(map(_is_word, known)):
            unknown.append(number)
        if len(tokens) > most:
            long.append(number)
    found = []
    if unknown:
        found.append(
            f"the model's tokenizer knows no word of {_which(unknown, prompts)}: what these videos "
            "show is chance"
        )
    if long:
        found.append(
            f"the text encoder sees {most} tokens, so the end of {_which(long, prompts)} is cut"
        )
    return found


def _is_word(token: str) -> bool:
    """Whether a token is a word or a piece of one: vocabularies spell the rest letter by letter."""
    word = token.strip("▁Ġ")
    return bool(word) and (len(word) > 1 or word != token or not word.isascii())


def _which(numbers: list[int], prompts: Sequence[str]) -> str:
    """'2 of 12 prompts (numbers 0, 7)'."""
    shown = ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
    return f"{len(numbers)} of {len(prompts)} prompts (number{'s'[: len(numbers) > 1]} {shown})"
