"""Work, ceilings, profiles, and the sentences made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, qbench

from qbench import explain
from qbench.explain import bound
from qbench.meters import flops, profile, roofline
from qbench.meters.profile import Kernel, Profile
from qbench.meters.roofline import Ceilings
from qbench.optimizations.caching.computed import Computed
from qbench.recipe.schema import Decode, Variant
from qbench.results import archive, store
from qbench.results.record import SCHEMA, Record
from qbench.run.failures import memory_reason, needed_bytes


def _denoiser(**sizes: int) -> Any:
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        return CogVideoXTransformer3DModel(**sizes)


def _count(module: Any, frames: int, height: int, width: int, text: int) -> flops.Work:
    with torch.device("meta"):
        latents = torch.empty(2, frames, 16, height, width)
        embeddings = torch.empty(2, text, module.config.text_embed_dim)
        names = ("hidden_states", "encoder_hidden_states", "timestep")
        inputs = (latents, embeddings, torch.full((2,), 500))
        return flops.count(module, [dict(zip(names, inputs, strict=True))], 2)


def test_work_of_cogvideox_2b_is_what_its_shapes_say() -> None:
    """Closed form: 30 blocks, width 1920, 17,776 tokens, a batch of two."""
    found = _count(_denoiser(), 13, 60, 90, 226)
    tokens, width, layers = 226 + 13 * 30 * 45, 1920, 30
    assert found.attention_flop == 4 * 2 * layers * tokens**2 * width
    blocks = 2 * 2 * tokens * layers * (4 * width**2 + 2 * 4 * width**2)
    rest = 2 * 2 * (226 * 4096 + 17_550 * 2 * 64) * width  # text, patches in, patches out
    assert found.product_flop == pytest.approx(blocks + rest, rel=1e-3)
    assert found.weights_bytes == pytest.approx(2 * 1.69e9, rel=0.01)
    feed_forward = {name for name in found.linear_flop if ".ff." in name}
    share = 2 * 2 * tokens * layers * 8 * width**2 / found.flop
    assert found.share(feed_forward) == pytest.approx(share)


def test_traffic_does_not_write_out_the_scores() -> None:
    sizes = {"num_layers": 1, "num_attention_heads": 2}
    found = _count(_denoiser(**sizes), 13, 60, 90, 226)
    tokens = 226 + 13 * 30 * 45
    assert found.traffic_bytes < 2 * 2 * 2 * tokens**2  # what the scores alone would be


def test_ceilings_are_measured_once_and_kept(tmp_path: Path) -> None:
    first = roofline.kept(tmp_path, "cpu")
    assert first is not None
    assert 1e9 < first.product_flop_per_s["fp32"] < 1e14
    assert 1e8 < first.copy_bytes_per_s < 1e13
    path = tmp_path / roofline.FILE
    path.write_text(path.read_text().replace('"cpu"', '"kept"'))
    again = roofline.kept(tmp_path, "cpu")
    assert again is not None
    assert again.device_name == "kept"


def test_a_calibration_that_a_run_beats_is_made_anew(finished: Path, tmp_path: Path) -> None:
    """As one made while the machine was busy: no share is shown, and the best of two is kept."""
    made = store.read(next(finished.glob("*/fp32-*/record.json")))
    assert made.ceilings is not None
    assert not made.beats_peak()
    busy = made.ceilings.model_copy(update={"product_flop_per_s": {"fp32": 1e6, "bf16": 1e15}})
    beaten = made.model_copy(update={"ceilings": busy})
    assert beaten.beats_peak()
    assert beaten.mfu() is None
    (tmp_path / roofline.FILE).write_text(busy.model_dump_json())
    again = roofline.kept(tmp_path, "cpu", again=True)
    assert again is not None
    assert again.product_flop_per_s["fp32"] > 1e9
    assert again.product_flop_per_s["bf16"] == 1e15
    assert roofline.kept(tmp_path, "cpu") == again


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "gemm"),
        ("void fp8_marlin::Marlin<__nv_bfloat16, 8, 128, 4, 8, 4, 4, -1>(int4 const*)", "gemm"),
        ("triton_tem_fused__scaled_mm_3", "gemm"),
        ("aten::addmm", "gemm"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("attend", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("triton_poi_fused__scaled_mm__to_copy_clamp_div_gelu_t_7", "pointwise"),
        ("void at::native::vectorized_layer_norm_kernel<c10::BFloat16>", "pointwise"),
        ("Memcpy DtoD (Device -> Device)", "movement"),
        ("aten::cat", "movement"),
    ],
)
def test_kernels_are_sorted_by_what_they_do(name: str, kind: str) -> None:
    assert profile.classify(name) == kind


def test_profile_of_a_matmul_is_gemm() -> None:
    a = torch.randn(600, 600)
    found = profile.take(lambda: [a @ a for _ in range(5)], "cpu").seconds()
    assert found["gemm"] > 0.8 * sum(found.values())


def _reference(finished: Path) -> Record:
    found = next(path for path in store.find([finished]) if "fp32" in str(path))
    made = store.read(found)
    counted = flops.Work(product_flop=4e12, attention_flop=6e12, weights_bytes=1, traffic_bytes=1)
    rates = {"fp32": 1e13, "bf16": 1e13, "fp8": 2e13}
    limits = Ceilings(device_name="x", torch="x", product_flop_per_s=rates, copy_bytes_per_s=1)
    return made.model_copy(update={"work": counted, "ceilings": limits})


@pytest.mark.parametrize(
    ("variant", "share", "expected"),
    [
        ({}, 0.0, 1.0),
        # Products take 0.5 s of 2; all of them in FP8 could take 0.2 s.
        ({"quantize": {"backend": "torchao", "scheme": "fp8_dynamic_row"}}, 0.4, 2 / 1.7),
        # Half of them: 0.1 s for those, 0.25 s for the others.
        ({"quantize": {"backend": "torchao", "scheme": "fp8_dynamic_row"}}, 0.2, 2 / 1.85),
        ({"quantize": {"backend": "torchao", "scheme": "fp8_weight_only"}}, 0.4, 1.0),
        ({"attention": "fp8"}, 0.0, 2 / 1.3),
        ({"compile": {}}, 0.0, 2 / 1.5),
        ({"compile": {}, "cache": {"kind": "taylorseer", "interval": 2}}, 0.0, 4 / 1.5),
    ],
)
def test_bound_is_amdahls(
    variant: dict[str, Any], share: float, expected: float, finished: Path
) -> None:
    seen = Profile(
        wall_s=2.0,
        kernels=(
            Kernel(name="aten::mm", calls=1, seconds=0.5),
            Kernel(name="attend", calls=1, seconds=1.0),
            Kernel(name="aten::gelu", calls=1, seconds=0.3),
            Kernel(name="aten::cat", calls=1, seconds=0.2),
        ),
    )
    chosen = Variant.model_validate(variant)
    assert bound(seen, _reference(finished), chosen, share) == pytest.approx(expected)
    # On a GPU half of a step waits for the host, which a CUDA graph takes away and nothing else.
    plain = _reference(finished)
    there = plain.environment.model_copy(update={"device": "cuda"})
    waits = plain.model_copy(
        update={
            "environment": there,
            "step": plain.step and plain.step.model_copy(update={"median": 4.0}),
        }
    )
    graph = chosen.model_copy(update={"cuda_graph": True})
    assert bound(seen, waits, chosen, share) == pytest.approx(expected)
    assert bound(seen, waits, graph, share) == pytest.approx(2 * expected)


def test_what_inductor_fused_is_named_in_words(finished: Path) -> None:
    hashed = "## Call CompiledFxGraph f5agovy4d5zv6fxh2qanvoyte7pakthejt4br4q5n7gpzkst2flz ##"
    seen = Profile(wall_s=1.0, kernels=(Kernel(name=hashed, calls=1, seconds=1.0),))
    said = explain._shares(_reference(finished), seen)
    assert "The longest part is inductor's compiled code (100%)." in said
    assert "##" not in said


def test_explain_says_where_the_time_goes_and_draws_it(finished: Path, tmp_path: Path) -> None:
    run = next(path.parent for path in store.find([finished]) if "int8" in str(path))
    done = qbench("explain", str(run), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for words in ("A denoise step of int8 takes", "GEMM", "gained", "Memory peaks in"):
        assert words in done.stdout
    assert (tmp_path / "step-by-work.png").stat().st_size > 5000
    # From inside the run's folder the reference beside it is found too.
    inside = qbench("explain", ".", "--out", str(tmp_path), cwd=run)
    assert inside.returncode == 0, inside.stderr
    assert "gained" in inside.stdout


def test_explain_of_what_did_not_run_says_why(finished: Path, tmp_path: Path) -> None:
    run = next(path.parent for path in store.find([finished]) if "tensorrt" in str(path))
    done = qbench("explain", str(run), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "did not finish: skipped" in done.stdout
    missing = qbench("explain", str(tmp_path))
    assert missing.returncode == 2
    assert "name the folder of one run" in missing.stderr


def test_out_of_memory_says_what_it_needed() -> None:
    told = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has 139.80 GiB. "
        "Of the allocated memory 7.50 GiB is allocated by PyTorch, and 1 MiB is reserved by "
        "PyTorch but unallocated."
    )
    found = needed_bytes(told)
    assert found == {"needed_bytes": 8 * 2**30, "fragments_bytes": 2**20}
    assert "fragments" not in memory_reason(told, found)
    pieces = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 338.00 MiB. GPU 0 has a total capacity of 79.18 GiB "
        "of which 71.12 GiB is free. Including non-PyTorch memory, this process has 7.97 GiB in "
        "use. 7.30 GiB allowed; Of the allocated memory 4.96 GiB is allocated by PyTorch, and "
        "2.00 GiB is reserved by PyTorch but unallocated. If reserved but unallocated"
    )
    reason = memory_reason(pieces, needed_bytes(pieces))
    assert reason.startswith("needed 5.29 GiB at once, with 2 GiB more lost to fragments: CUDA")
    assert needed_bytes(RuntimeError("something else")) == {}


def test_what_was_lost_to_fragments_comes_first_in_what_would_help(finished: Path) -> None:
    run = next(path for path in store.find([finished]) if "tensorrt" in str(path))
    lost = {"needed_bytes": 16.2 * 2**30, "fragments_bytes": 8.4 * 2**30}
    died = store.read(run).model_copy(
        update={
            "status": "oom",
            "stage": "decode",
            "reason": "needed 16.20 GiB",
            "facts": lost,
            "generation": {"scheduler": "CogVideoXDDIMScheduler"},
        }
    )
    told = explain._failure(died)
    assert told.index("expandable_segments") < told.index("strips") < told.index("vae_tiling")
    assert "oom in decode: needed 16.20 GiB." in told
    whole = died.model_copy(update={"facts": lost | {"fragments_bytes": 0.0}})
    assert "expandable_segments" not in explain._failure(whole)
    hopper = died.environment.model_copy(update={"compute_capability": "9.0"})
    there = explain._failure(died.model_copy(update={"environment": hopper}))
    assert "decode.fused" in there
    assert "decode.strips" not in there
    other = {"scheduler": "DDIMScheduler"}  # a UNet's, with another VAE
    unet = explain._failure(whole.model_copy(update={"generation": other}))
    assert unet.endswith(f"What lowers it: {explain.SLICES}, or {explain.TILES}.")
    for decode in (Decode(strips=True), Decode(fused=True)):
        variant = whole.recipe.variant.model_copy(update={"decode": decode})
        tried = whole.model_copy(
            update={"recipe": whole.recipe.model_copy(update={"variant": variant})}
        )
        assert "What lowers it: memory.vae_tiling" in explain._failure(tried)


def test_records_of_the_first_schema_are_still_read(finished: Path, tmp_path: Path) -> None:
    facts = json.loads(store.find([finished])[0].read_text())
    for name in ("work", "ceilings", "gauges", "paired_reference_s", "step_host_s"):
        del facts[name]
    path = tmp_path / store.FILE
    path.write_text(json.dumps(facts | {"schema_version": 1}))
    assert store.read(path).work is None
    path.write_text(json.dumps(facts | {"schema_version": SCHEMA + 1}))
    with pytest.raises(store.Unreadable, match="this qbench reads 1, 2, 3, 4"):
        store.read(path)


def test_what_lowers_memory_names_nothing_that_the_recipe_has_already() -> None:
    runs = ROOT / "results/published"

    def last_of(matrix: str, recipe: str) -> str:
        packed = runs / matrix / archive.FILE
        [run] = [name for name in archive.runs(packed) if name.rpartition("-")[0] == recipe]
        return next(t for t in explain.explain(packed / run)[0] if t.startswith("Memory peaks"))

    assert "FP8 or INT8 weights" in last_of("h200/steps", "bf16")
    assert last_of("h200/steps", "fast").endswith("What lowers it: " + explain.STREAM + ".")
    assert last_of("h100/videos", "bf16").endswith(f"{explain.TILES}.")
    assert "What lowers" not in last_of("h200/memory", "offload-tiling").partition("decode")[2]


def test_what_a_cache_computed_is_said(finished: Path) -> None:
    found, _ = store.read_all(store.find([finished]))
    record = next(record for _, record in found if record.recipe.name == "int8")
    shares = [1.0, 1.0, 0.125, 1.0]
    computed = Computed(
        videos=2, steps=3.125, least=3, most=3.25, by_step=shares, blocks=3.125, library="it 1.0"
    )
    cached = record.model_copy(update={"computed": computed})
    said = explain._computed(cached)
    assert "(it 1.0) left 3.12 of 4 denoise steps" in said
    assert "from 3 to 3.25 of a video; in full: 1, 2, 4." in said
    assert explain._computed(record) == ""
    assert Record.model_validate_json(cached.model_dump_json()) == cached
