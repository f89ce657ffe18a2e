"""What a random denoiser has in common with one that is loaded from a checkpoint."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

from qbench.pipelines import random_weights


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_tables_that_no_checkpoint_holds_are_those_of_a_cpu() -> None:
    config = {"num_layers": 1, "num_attention_heads": 2}
    make = functools.partial(CogVideoXTransformer3DModel.from_config, config)
    here, there = (random_weights.module(make, torch.bfloat16, on) for on in ("cuda", "cpu"))
    name = "patch_embed.pos_embedding"
    assert torch.equal(here.get_buffer(name).cpu(), there.get_buffer(name))


def test_what_stays_in_fp32_is_what_stays_so_in_a_loaded_checkpoint(tmp_path: Path) -> None:
    """Tables of the rotary embedding too: in BF16 they would be others, and cheaper to read."""
    config = {"num_layers": 1, "num_attention_heads": 1, "ffn_dim": 8, "text_dim": 8}
    make = functools.partial(WanTransformer3DModel.from_config, config)
    made = random_weights.module(make, torch.bfloat16, "cpu")
    made.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for of in ("named_parameters", "named_buffers"):
        mine, theirs = ({n: x.dtype for n, x in getattr(m, of)()} for m in (made, loaded))
        assert mine == theirs
    assert torch.equal(made.rope.freqs_cos, loaded.rope.freqs_cos)
