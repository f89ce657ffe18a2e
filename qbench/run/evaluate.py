"""The part of a run that quality is judged on: more videos, their errors by step, the figures."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from qbench.quality.outputs import FOLDER, Outputs

if TYPE_CHECKING:
    from qbench.run.session import Run

SAMPLE_VIDEOS = 6  # kept as mp4 and on the contact sheet


def judge(run: Run) -> None:
    """All of it, once the timed videos are kept."""
    _rest_of_the_videos(run)
    _follow_the_error(run)
    _save_samples(run)
    _quality(run)


def _rest_of_the_videos(run: Run) -> None:
    timed = min(run.recipe.measure.repeats, len(run.prompts))
    count = len(run.prompts)
    batch = run.recipe.quality.batch
    if _one_by_one(run):
        batch = 1
    for start in range(timed, count, batch):
        part = list(range(start, min(start + batch, count)))
        run.enter("more videos", video=part[-1] + 1, videos=count)
        # A compiler compiles for each size of a batch, so a last one is filled up to the others'.
        filled = run.recipe.variant.compile is not None and start > timed
        more = range(start - batch + len(part), start) if filled else []
        frames, latents, _, _ = run.video([*part, *more])
        run.outputs.add(start, frames[: len(part)], latents[: len(part)])


def _one_by_one(run: Run) -> bool:
    """A first-block cache decides for a whole batch at once, which users do not generate in."""
    cache = run.recipe.variant.cache
    return cache is not None and cache.by_content


def _follow_the_error(run: Run) -> None:
    """Latents after every step: kept of the reference, compared with its own of a variant."""
    import torch

    from qbench.quality.metrics import trajectory

    count = min(run.recipe.quality.trajectories, len(run.prompts))
    theirs = trajectory.load(run.job.reference) if run.job.reference else None
    if not count or not (run.recipe.is_reference or theirs is not None):
        return
    if _one_by_one(run):
        count = 1
    numbers = list(range(count))
    run.enter("error by step")
    embeddings = run.family.encode(run.pipeline, run.generation, run.prompts[:count])

    def follow(forced: torch.Tensor | None) -> torch.Tensor:
        """(steps, videos, ...), each step from the latents that `forced` gives it, if any."""
        seen: list[torch.Tensor] = []

        def exchange(step: int, latents: torch.Tensor) -> torch.Tensor:
            seen.append(latents.float().cpu().clone())  # a loop may go on in place
            return latents if forced is None else forced[step].to(latents.device, latents.dtype)

        run.denoise(embeddings, run.noise(numbers), lambda _: run.emit("step"), exchange=exchange)
        return torch.stack(seen)

    free = follow(None)
    if run.recipe.is_reference:
        trajectory.save(free, run.job.folder)
    elif theirs is not None and theirs.shape[0] == free.shape[0] and theirs.shape[1] >= count:
        theirs = theirs[:, :count]
        forced = follow(theirs)
        run.facts["error_growth"] = trajectory.ErrorGrowth(
            videos=count,
            free=trajectory.error_by_step(free, theirs),
            forced=trajectory.error_by_step(forced, theirs),
        )
    else:
        run.facts["notes"].append("error by step: the reference has other steps")


def _save_samples(run: Run) -> None:
    """What people look at, and no metric."""
    from qbench import media

    run.enter("save")
    folder = run.job.folder
    kept = min(SAMPLE_VIDEOS, len(run.prompts))
    frames, _ = run.outputs.read(0, kept)
    (folder / "videos").mkdir(exist_ok=True)
    for number in range(kept):
        media.write_mp4(frames[number], folder / "videos" / f"{number:03d}.mp4", fps=8)
    sheet = folder / "contact.png"
    media.contact_sheet(frames, run.prompts[:kept], sheet)
    run.facts["files"] |= {
        "outputs": FOLDER,
        "contact_sheet": sheet.name,
        "videos": "videos",
        "log": "log.txt",
    }
    run.leave("save")


def _quality(run: Run) -> None:
    from qbench.quality import evaluate

    run.enter("quality")
    _let_go(run)
    made = run.generation
    reference = Outputs(run.job.reference / FOLDER) if run.job.reference else None
    found = evaluate.measure(
        run.outputs,
        reference,
        run.prompts,
        (made.frames, 3, made.height, made.width),
        run.model,
        run.recipe.quality,
        run.device,
        progress=lambda done: run.enter("quality", video=done, videos=len(run.prompts)),
    )
    run.facts |= {"videos": len(run.prompts), "quality": found.metrics}
    run.facts["notes"] += found.notes
    if found.faults:
        run.facts["reason"] = "; ".join(found.faults)
    if reference is None and not run.recipe.is_reference:
        run.facts["notes"].append("no finished run of the reference to compare with")
    run.leave("quality")


def _let_go(run: Run) -> None:
    """The metric networks take the denoiser's place in memory."""
    import torch

    released: Any = run.__dict__.pop("pipeline")
    del released
    gc.collect()
    if run.device == "cuda":
        torch.cuda.empty_cache()
