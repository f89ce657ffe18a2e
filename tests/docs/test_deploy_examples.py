"""The examples of docs/deploy run as they stand there, where nothing of qbench can be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RECIPES

from qbench.engines import export
from qbench.engines.verify import verify
from qbench.pipelines import known, specs
from qbench.recipe.files import load

PAGES = Path(__file__).parent.parent.parent / "docs" / "deploy"
MODEL = known.BUNDLED / "tiny-cogvideox"


def example(name: str) -> str:
    pages = "".join(page.read_text() for page in sorted(PAGES.glob("*.md")))
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", pages, re.DOTALL)
    assert found is not None
    return found[1]


def _run(name: str, folder: Path, work: Path, without: tuple[str, ...], guidance: float) -> None:
    barred = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    program = work / "example.py"
    program.write_text(barred + example(name))
    words = [str(folder), str(MODEL), "4", str(guidance)]
    subprocess.run([sys.executable, program, *words], cwd=work, check=True, timeout=300)


@pytest.mark.parametrize("name", ["onnx", "aoti", "diffusers", "quanto", "tensorrt"])
def test_examples_are_short(name: str) -> None:
    assert len(example(name).strip().splitlines()) <= 32


@pytest.mark.slow
def test_the_loop_in_numpy_makes_the_latents_of_diffusers(
    graph: export.Exported, tmp_path: Path
) -> None:
    from qbench import prompts

    recipe, model = graph.manifest.recipe, specs.find("tiny-cogvideox")
    video = specs.load(model, "fp32", "cpu")
    run = video.resolve(model, recipe.generation)
    prompt = prompts.chosen(recipe.prompts, model).prompts[0]
    expected = video.denoise(
        run,
        video.encode(run, [prompt]),
        video.noise(run, run.seed),
        lambda _: None,
        generators=video.generators([0]),
    )
    _run("onnx", graph.folder, tmp_path, ("qbench", "torch", "diffusers"), run.guidance)
    found = torch.from_numpy(np.load(tmp_path / "latents.npy"))
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4


def test_the_lines_of_a_manifest_load_a_pipeline_that_makes_a_video(
    checkpoint: export.Exported,
) -> None:
    """In one dtype throughout: diffusers' own is FP32, beside which BF16 layers fail."""
    names: dict[str, Any] = {"FOLDER": str(checkpoint.folder)}
    exec("\n".join(checkpoint.manifest.load), names)
    pipe = names["pipe"]
    assert {part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder)} == {
        torch.bfloat16
    }
    made = pipe(
        "a red star", num_inference_steps=1, num_frames=9, height=32, width=32, output_type="np",
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
    ).frames  # fmt: skip
    assert np.isfinite(made).all()


@pytest.mark.slow
def test_a_checkpoint_makes_a_video(checkpoint: export.Exported, tmp_path: Path) -> None:
    _run("diffusers", checkpoint.folder, tmp_path, ("qbench",), 6.0)


@pytest.mark.slow
def test_weights_of_quanto_reload_bit_for_bit_and_make_a_video(tmp_path: Path) -> None:
    recipe = load(RECIPES / "int8-quanto.yaml", {"generation.steps": "4"})
    made = export.export(recipe, tmp_path / "engine")
    assert made.manifest.variant.max_abs == 0
    assert verify(made.folder).exit_code == 0
    _run("quanto", made.folder, tmp_path, ("qbench",), 6.0)
