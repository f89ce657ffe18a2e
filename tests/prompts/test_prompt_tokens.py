"""Notes on prompts that a model cannot read whole, with the bundled model's own tokenizer."""

from __future__ import annotations

from transformers import AutoTokenizer

from qbench.pipelines.known import BUNDLED
from qbench.prompts import load, tokens


def test_unknown_and_cut_prompts_get_a_note_and_others_none() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "tiny-cogvideox" / "tokenizer")
    known = load("world-v1").prompts
    assert tokens.notes(tokenizer, known, 24) == []
    told = tokens.notes(tokenizer, [known[0], "xyzzy plugh", "red " * 40, "一只熊猫"], 24)
    assert len(told) == 2
    assert "knows no word of 2 of 4 prompts (numbers 1, 3)" in told[0]
    assert "24 tokens" in told[1]
    assert "1 of 4 prompts (number 2)" in told[1]
