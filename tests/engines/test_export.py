"""What is exported loads without qbench, computes the same, and is refused where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from conftest import RECIPES
from conftest import qbench as program
from exporting import SHORT, append, damage_graphs, exported
from onnx.numpy_helper import from_array
from pipelines import tiny

import qbench
from qbench.engines import aoti, evidence, export, folder, formats, loading, manifest
from qbench.engines.manifest import Manifest
from qbench.engines.verify import verify
from qbench.errors import InputError, Unsupported
from qbench.pipelines import known, specs
from qbench.recipe.files import load

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.slow


def test_a_checkpoint_is_the_variant_bit_for_bit_in_plain_diffusers(
    checkpoint: export.Exported,
) -> None:
    """In a process that cannot import qbench."""
    code = (
        "import sys, torch; sys.modules['qbench'] = None\n"
        "from diffusers import CogVideoXPipeline\n"
        "from safetensors.torch import load_file\n"
        "pipe = CogVideoXPipeline.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
        "stored = load_file(sys.argv[1] + '/captured.safetensors')\n"
        "given = {k[7:]: v for k, v in stored.items() if k.startswith('000/in/')}\n"
        "with torch.no_grad():\n"
        "    made = pipe.transformer(**given, return_dict=False)[0].float()\n"
        "assert torch.equal(made, stored['000/variant'])\n"
        "assert type(pipe.transformer.proj_out.weight).__name__ == 'Int8Tensor'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(checkpoint.folder)], check=True, timeout=300)


def test_the_manifest_says_what_was_exported(checkpoint: export.Exported) -> None:
    written = checkpoint.manifest
    assert (written.format, written.dtype) == ("diffusers", "bfloat16")
    assert [spec.name for spec in written.inputs] == [
        "hidden_states", "encoder_hidden_states", "timestep",
    ]  # fmt: skip
    assert written.batched == {"hidden_states", "encoder_hidden_states", "timestep"}
    assert written.base_model.licence == "Apache-2.0"
    assert written.variant.relative_l2 == 0
    # INT8 weights and BF16: not FP32, and no other model either.
    assert 1e-4 < written.fp32.relative_l2 < 0.05
    assert written.variant.calls == export.PROMPTS * export.TIMESTEPS
    assert verify(checkpoint.folder).exit_code == 0


def test_an_engine_makes_videos_in_a_pipeline_with_and_without_guidance(
    graph: export.Exported,
) -> None:
    model = specs.find("tiny-cogvideox")
    video = specs.load(model, "fp32", "cpu")
    run = video.resolve(model, load(RECIPES / "onnx.yaml", SHORT).generation)
    prompts = ["a red star moves left on a navy background"] * 2
    for guidance in (run.guidance, 1.0):
        changed = run.__class__(**{**vars(run), "guidance": guidance})
        conditioning = video.encode(changed, prompts)
        noise = torch.cat([video.noise(changed, seed) for seed in (1, 2)])
        made = []
        for denoiser in (video.denoiser, loading.load_engine(graph.folder)):
            video.denoiser = denoiser
            own = video.generators([1, 2])
            made.append(video.denoise(changed, conditioning, noise, lambda _: None, generators=own))
            video.denoiser = specs.load(model, "fp32", "cpu").denoiser
        error = (made[1] - made[0]).norm() / made[0].norm()
        assert error < 1e-4


def test_callbacks_change_the_latents_that_an_engine_is_given(graph: export.Exported) -> None:
    """In the pipeline's own call, as a deployment makes it; two videos, guidance switched off."""
    from diffusers import CogVideoXPipeline

    def halved(_: object, step: int, __: object, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": given["latents"] * (0.5 if step == 0 else 1)}

    given = {
        "prompt": ["a red star moves left"] * 2, "max_sequence_length": 24,
        "num_inference_steps": 3, "num_frames": 17, "height": 64, "width": 64,
        "output_type": "latent",
    }  # fmt: skip
    made: list[Tensor] = []
    for engine in (False, True):
        model = known.BUNDLED / "tiny-cogvideox"
        more = {"transformer": loading.load_engine(graph.folder)} if engine else {}
        pipe = CogVideoXPipeline.from_pretrained(model, torch_dtype=torch.float32, **more)
        for guidance in (6.0, 1.0):
            own = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
            called = given | {"generator": own, "guidance_scale": guidance}
            made.append(pipe(**called, callback_on_step_end=halved).frames)
    for ours, theirs in zip(made[2:], made[:2], strict=True):
        assert ours.shape[0] == 2
        assert (ours - theirs).norm() / theirs.norm() < 1e-4


def test_a_pipeline_with_an_engine_offloads_its_other_models(graph: export.Exported) -> None:
    """As a deployment does it, call after call; the hooks that bring models are accelerate's."""
    from accelerate import cpu_offload
    from diffusers import CogVideoXPipeline

    engine = loading.load_engine(graph.folder)
    model = known.BUNDLED / "tiny-cogvideox"
    pipe = CogVideoXPipeline.from_pretrained(model, torch_dtype=torch.float32, transformer=engine)

    def latents() -> Tensor:
        found: Tensor = pipe(
            "a red star", max_sequence_length=24, num_inference_steps=2, output_type="latent",
            num_frames=17, height=64, width=64, generator=torch.manual_seed(1),
        ).frames  # fmt: skip
        return found

    plain = latents()
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(latents(), plain)
    pipe("a red star", max_sequence_length=24, num_inference_steps=1)  # the decoder comes after it
    assert torch.equal(latents(), plain)
    pipe.remove_all_hooks()
    cpu_offload(engine, "cpu", offload_buffers=True)  # as sequential offload does it
    assert torch.equal(latents(), plain)
    assert engine.stored_bytes == loading.load_engine(graph.folder).stored_bytes


def test_an_engine_refuses_another_dtype_in_a_line(graph: export.Exported) -> None:
    """Without a dtype the text encoder, and with it the latents, are in FP16 as they are stored."""
    from diffusers import CogVideoXPipeline

    engine = loading.load_engine(graph.folder)
    pipe = CogVideoXPipeline.from_pretrained(known.BUNDLED / "tiny-cogvideox", transformer=engine)
    with pytest.raises(Unsupported, match=r"hidden_states in float32, .* passes float16"):
        pipe("a red star", max_sequence_length=24, num_inference_steps=1)


def test_a_wrong_engine_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted scale; tests/test_proof.py plants a transpose."""
    scale = from_array(np.float32(1.1), "scale")
    damage_graphs(monkeypatch, lambda graph: append(graph, "Mul", scale))
    with pytest.raises(export.Differs, match="something else: relative L2"):
        exported("onnx", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
    kept = tmp_path / "engine.failed"
    assert (kept / export.PARITY).is_file()
    assert not list(kept.glob("*.onnx"))


def test_verify_tells_an_engine_that_computes_something_else(
    graph: export.Exported, tmp_path: Path
) -> None:
    """Its files are those of the manifest, and its predictions are not."""
    import shutil

    place = tmp_path / "engine"
    shutil.copytree(graph.folder, place)
    calls = [
        evidence.Call(call.inputs, call.fp32, 2 * call.variant) for call in evidence.load(place)
    ]
    evidence.store(calls, place)
    files = manifest.stored_files(place)
    changed = graph.manifest.model_copy(update={"files": files})
    (place / manifest.FILE).write_text(Manifest.model_dump_json(changed))
    found = verify(place)
    assert found.exit_code == 1
    assert "computes something else" in found.checks[-1].said


@pytest.mark.parametrize(
    ("recipe", "form", "said"),
    [
        ("onnx", "diffusers", "leaves no weights"),
        ("fast", "diffusers", "fuse_qkv changes the layers"),
        ("int8", "onnx", "engine: onnxruntime"),
        ("parallel/fast-cfg", "qbench", "parallel has several processes"),
    ],
)
def test_what_a_format_cannot_hold_is_told_before_anything_is_loaded(
    tmp_path: Path, recipe: str, form: manifest.Format, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        exported(recipe, tmp_path / "engine", form)
    assert list(tmp_path.iterdir()) == []


def test_the_denoiser_alone_is_a_choice_of_checkpoints(tmp_path: Path) -> None:
    recipe = load(RECIPES / "onnx.yaml", SHORT)
    with pytest.raises(InputError, match="onnx holds the denoiser alone"):
        export.export(recipe, tmp_path / "engine", denoiser_only=True)


@pytest.mark.parametrize("place", ["/proc/engines/int8", "/sys/engine"])
def test_a_place_that_lets_nobody_write_is_a_line(place: str) -> None:
    with pytest.raises(InputError, match="cannot be written"), folder.written_beside(Path(place)):
        pass


def test_integers_in_half_precision_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    recipe = load(RECIPES / "onnx-int8.yaml", {**SHORT, "variant.dtype": "fp16"})
    with pytest.raises(InputError, match="choose fp32"):
        export.export(recipe, tmp_path / "engine")


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'onnx'"):
        formats.named("onx")


def test_a_package_of_machine_code_computes_the_variant_without_a_compiler(tmp_path: Path) -> None:
    made = exported("engine/aoti-blocks", tmp_path / "engine")
    assert made.manifest.variant.relative_l2 < export.FAITHFUL
    assert made.manifest.target.bound.cpu_isa
    nothing = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")}
    line = [sys.executable, "-m", "qbench", "verify", str(made.folder)]
    done = subprocess.run(line, env={**os.environ, **nothing}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_compiler_that_links_its_runtime_statically_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = tmp_path / "g++"
    static.write_text('#!/bin/sh\nexec g++ "$@" -static-libstdc++\n')
    static.chmod(0o755)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: str(static))
    assert aoti.compiler.__wrapped__() == "g++"


def test_a_package_with_a_runtime_of_its_own_is_refused_unloaded(tmp_path: Path) -> None:
    """A C++ compiler that links libstdc++ statically makes packages that die as they load."""
    path = tmp_path / aoti.PACKAGE
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data/aotinductor/model/x.wrapper.so", b"\x7fELF libtorch.so libc.so.6")
        archive.writestr("m/data/aotinductor/model/x.wrapper_metadata.json", "{}")
    with pytest.raises(Unsupported, match="links libstdc"):
        aoti.metadata(path)


def test_what_this_machine_cannot_run_is_a_line_before_anything_is_loaded(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = program("export", "attention/cudnn", "--out", str(tmp_path / "engine"))
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "qbench: this attention kernel needs an NVIDIA GPU; on a CPU there are math and flash"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_compared_without_the_attention_kernel_that_it_does_not_hold(
    tmp_path: Path,
) -> None:
    made = exported("attention/fp8-reference", tmp_path / "engine")
    assert made.manifest.not_inside == ["attention"]
    assert made.manifest.variant.relative_l2 == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wan", "this is WanTransformer3DModel of a WanPipeline, not CogVideoXTransformer3DModel"),
        ("cogvideox", "its .* is "),
    ],
)
def test_an_engine_is_not_put_into_a_pipeline_of_another_model(
    graph: export.Exported, tmp_path: Path, name: str, said: str
) -> None:
    video = tiny.build(name, tmp_path)
    before = video.denoiser
    with pytest.raises(InputError, match=f"exported of tiny-cogvideox, .* is another: {said}"):
        qbench.apply(video.pipe, graph.folder)
    assert video.denoiser is before


def test_a_pipeline_with_an_engine_in_effect_refuses_another_size(graph: export.Exported) -> None:
    """Told of the video, before anything is computed, and not of the latents at the first step."""
    pipe = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu").pipe
    qbench.apply(pipe, graph.folder)
    said = r"engine is for videos of 17x64x64, and this call asks for 33x64x128"
    with pytest.raises(InputError, match=said):
        pipe("a red star", num_frames=33, width=128)
    assert pipe("a red star", num_frames=17, num_inference_steps=1, output_type="latent")


@pytest.mark.parametrize("form", ["onnx", "qbench"])
def test_an_engine_of_wan_makes_the_videos_of_its_pipeline(
    form: manifest.Format, tmp_path: Path
) -> None:
    pipe = tiny.build("wan", tmp_path).pipe
    pipe.save_pretrained(tmp_path / "model")
    size = {"frames": tiny.FRAMES, "height": tiny.HEIGHT, "width": tiny.WIDTH, "steps": 2}
    wanted = {f"generation.{name}": str(value) for name, value in size.items()}
    wanted |= {"model": str(tmp_path / "model"), "prompts.set": "world-v1"}
    recipe = load(RECIPES / ("onnx.yaml" if form == "onnx" else "fp32.yaml"), wanted)
    made = export.export(recipe, tmp_path / "engine", form)

    def latents() -> Tensor:
        found: Tensor = pipe(
            "a cat", num_frames=size["frames"], height=size["height"], width=size["width"],
            num_inference_steps=2, output_type="latent", generator=torch.manual_seed(1),
        ).frames  # fmt: skip
        return found

    plain = latents()
    pipe.transformer = loading.load_engine(made.folder)
    error = (latents() - plain).norm() / plain.norm()
    assert error < 1e-5


def test_what_the_model_cannot_have_is_a_line(tmp_path: Path) -> None:
    """Groups of 64 in linears of 48 inputs."""
    tiny.build("wan", tmp_path).pipe.save_pretrained(tmp_path / "model")
    size = ("frames=9", "height=32", "width=48", "steps=2")
    given = [f"--set=generation.{one}" for one in size] + ["--set=prompts.set=world-v1"]
    done = program(
        "export", "calibrated/packed-int4", f"--model={tmp_path / 'model'}", *given,
        f"--out={tmp_path / 'engine'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "which divides the width of every linear but some of this model's" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("engine*"))
