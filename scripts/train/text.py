"""Tokenizers of the rendered world: whole words, since its vocabulary is forty of them."""

from __future__ import annotations

from typing import Any

from qbench import world

TEXT_TOKENS = 24


def words() -> list[str]:
    """Every word of every caption, sorted."""
    found = {
        word
        for scene in world.scenes()
        for template in (0, 1)
        for word in scene.caption(template).split()
    }
    return sorted(found)


def t5_tokenizer() -> Any:
    """Unigram pieces: the world's words, and single letters for whatever else a prompt holds."""
    from transformers import T5Tokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -1.0) for word in words() if len(word) > 1]
    pieces += [("▁a", -1.0)]
    pieces += [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_TOKENS)


def clip_tokenizer() -> Any:
    """One token a word between a start and an end token, as CLIP has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<start>", "<end>"]
    vocabulary = {word: i for i, word in enumerate(special + words())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[("<start>", vocabulary["<start>"]), ("<end>", vocabulary["<end>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=TEXT_TOKENS,
    )
