"""The format qbench: weights as they are stored, and the denoiser itself when they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors.torch import load_file, save_file

import qbench
from qbench.engines import export, prepared, weights
from qbench.engines.manifest import Wrong
from qbench.engines.verify import verify
from qbench.pipelines import specs
from qbench.recipe.files import load, overrides

RECIPE = Path(qbench.__file__).parent.parent / "recipes" / "fast.yaml"
# What a CPU can run of it: FP8 linears in plain operations.
HERE = ["variant.attention=auto", "variant.compile=null", "variant.decode={}"]
SHARED = ["generation.steps=4", "variant.step_share=0.5", *HERE]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> export.Exported:
    out = tmp_path_factory.mktemp("engines") / "fast"
    return export.export(load(RECIPE, overrides(SHARED)), out)


def test_it_is_the_variant_bit_for_bit_and_holds_fp8(exported: export.Exported) -> None:
    written = exported.manifest
    assert written.format == "qbench"
    assert written.variant.relative_l2 == 0
    assert 1e-4 < written.fp32.relative_l2 < 0.1
    stored = load_file(exported.folder / weights.FILE)
    kinds = {tensor.dtype for tensor in stored.values()}
    assert torch.float8_e4m3fn in kinds
    # A byte a weight of linears, two of the rest.
    model = specs.find("tiny-cogvideox")
    plain = specs.load(model, "bf16", "cpu").denoiser
    size = sum(p.numel() * p.element_size() for p in plain.parameters())
    assert written.files[weights.FILE].size_bytes < 0.6 * size
    assert verify(exported.folder).exit_code == 0


def test_apply_puts_the_engine_and_what_is_not_inside_into_a_pipeline(
    exported: export.Exported,
) -> None:
    assert exported.manifest.not_inside == ["step_share"]
    source = specs.find("tiny-cogvideox").source
    pipe = CogVideoXPipeline.from_pretrained(source, torch_dtype=torch.bfloat16)
    own = pipe.transformer
    noise = torch.randn(exported.manifest.inputs[0].shape, generator=torch.manual_seed(1))[:1]
    call = {
        "prompt": "a red star moves left", "max_sequence_length": 24, "guidance_scale": 3.0,
        "latents": noise.bfloat16(), "output_type": "latent",
    }  # fmt: skip

    def latents(**more: object) -> torch.Tensor:
        made = pipe(**call, **more).frames
        assert isinstance(made, torch.Tensor)
        return made

    qbench.apply(pipe, exported.folder)
    engine = pipe.transformer
    by_recipe = latents()
    assert qbench.restore(pipe) == []
    assert pipe.transformer is own
    # Half of the recipe's four steps, by hand.
    pipe.transformer = engine
    by_hand = latents(num_inference_steps=2)
    assert torch.equal(by_recipe, by_hand)
    pipe.transformer = own
    assert not torch.equal(by_hand, latents(num_inference_steps=2))


def test_weights_of_another_denoiser_are_refused(exported: export.Exported, tmp_path: Path) -> None:
    stored = load_file(exported.folder / weights.FILE)
    name = next(iter(stored))
    for damaged in (
        {key: value for key, value in stored.items() if key != name},
        {**stored, name: stored[name][:-1].clone()},
    ):
        save_file(damaged, tmp_path / weights.FILE)
        shell = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu").denoiser.to("meta")
        with pytest.raises(Wrong, match=name):
            prepared.open(tmp_path, shell, exported.manifest)
