"""Does qbench's way of measuring cost anything? Its latency against a bare loop.

Both drive the same live pipeline with the same prompts and noise, turn by turn so that drift hits
both alike: once in qbench's stages with all meters running, once as one plain call of the pipeline.
Prints both medians, the paired difference with its interval, and n.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from qbench import prompts
from qbench.meters import environment
from qbench.pipelines import specs
from qbench.quality.statistics import summarise
from qbench.recipe import schema
from qbench.results.record import Fingerprints, Record
from qbench.run.events import NoLink
from qbench.run.job import Job
from qbench.run.prepare import prepare
from qbench.run.recorder import Recorder
from qbench.run.session import Session
from qbench.run.stages import Stages
from scripts import bench


def lone_session(wanted: schema.Recipe, device: str, folder: Path) -> Session:
    """A prepared session that belongs to no sweep."""
    blank = Fingerprints(recipe="", settings="", prompts="", model="", hardware="", software="")
    draft = Record(
        run=wanted.name,
        recipe=wanted,
        environment=environment.read(device),
        fingerprints=blank,
    )
    texts = prompts.chosen(wanted.prompts, specs.find(wanted.model)).prompts
    job = Job(draft=draft, folder=folder, prompts=tuple(texts))
    return prepare(job, Stages(Recorder(draft), NoLink()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--out", type=Path, help="write the samples as JSON")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = schema.Recipe.model_validate(
        {"name": "overhead", "reference": None, "variant": {"dtype": arguments.dtype}}
    )
    run = lone_session(wanted, device, Path("."))
    video, generation = run.pipeline, run.generation
    pipeline = video.pipe
    text = prompts.load(specs.find("tiny-cogvideox").prompts).prompts

    def bare(number: int) -> float:
        latents = video.noise(generation, number).to(device, pipeline.transformer.dtype)
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            embeds = video.encode(generation, [text[number]])
            final = pipeline(
                prompt_embeds=embeds.positive,
                negative_prompt_embeds=embeds.negative,
                latents=latents,
                num_inference_steps=generation.steps,
                guidance_scale=generation.guidance,
                output_type="latent",
            ).frames
            shown = pipeline.decode_latents(final.to(pipeline.vae.dtype))
            (shown.float() / 2 + 0.5).clamp(0, 1)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def ours(number: int) -> float:
        return sum(run.video([number]).seconds.values())

    for _ in range(2):
        bare(0), ours(0)
    pairs: list[tuple[float, float]] = []
    for i in range(arguments.n):
        # Who goes first changes every turn.
        number = i % len(run.prompts)
        first = bare(number) if i % 2 else None
        own = ours(number)
        pairs.append((own, first if first is not None else bare(number)))
    mine, plain = ([pair[k] for pair in pairs] for k in (0, 1))
    overhead = summarise([100 * (a - b) / b for a, b in pairs], of="median")
    figures = {
        "machine": run.job.draft.environment.machine(),
        "torch": torch.__version__,
        "n": len(pairs),
        "qbench_median_s": summarise(mine, of="median").median,
        "bare_median_s": summarise(plain, of="median").median,
        "overhead_percent_median": overhead.median,
        "overhead_percent_low": overhead.low,
        "overhead_percent_high": overhead.high,
    }
    print(json.dumps(figures, indent=1))
    if arguments.out:
        samples = {"qbench_s": mine, "bare_s": plain}
        bench.save(arguments.out, figures | samples)


if __name__ == "__main__":
    main()
