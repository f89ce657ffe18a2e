"""What a random denoiser has in common with one that is loaded from a checkpoint."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from qbench.pipelines import random_weights


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_tables_that_no_checkpoint_holds_are_those_of_a_cpu() -> None:
    config = {"num_layers": 1, "num_attention_heads": 2}
    make = functools.partial(CogVideoXTransformer3DModel.from_config, config)
    here, there = (random_weights.module(make, torch.bfloat16, on) for on in ("cuda", "cpu"))
    name = "patch_embed.pos_embedding"
    assert torch.equal(here.get_buffer(name).cpu(), there.get_buffer(name))
