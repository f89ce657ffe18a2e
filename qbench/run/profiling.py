"""One more denoise step under a profiler, for `qbench explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from qbench.meters.profile import Profile
    from qbench.run.session import Session

PROFILE = "profile.json"


def profile(session: Session) -> None:
    """Write the profile beside the record: by torch's profiler, or by an engine's own."""
    if not session.recipe.measure.profile:
        return
    from qbench.meters import profile as meter

    session.stages.enter("profile")
    conditioning = session.encode([0])

    def step() -> None:
        session.denoise(conditioning, [0], steps=1)

    engine = session.recipe.variant.left_python
    taken = _of_engine(session, step) if engine else meter.take(step, session.device)
    if taken is None:
        return
    (session.job.folder / PROFILE).write_text(taken.model_dump_json(indent=1) + "\n")
    session.recorder.files(profile=PROFILE)


def _of_engine(session: Session, step: Callable[[], None]) -> Profile | None:
    """By the runtime's own profiler, and on a GPU by torch's, which sees the kernels of any."""
    import time

    from qbench.engines.denoiser import EngineDenoiser
    from qbench.meters import profile as meter

    seconds: list[float] = []

    def timed() -> None:
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)

    engine = session.pipeline.denoiser
    assert isinstance(engine, EngineDenoiser)
    layers = engine.layers(timed)
    if session.device == "cuda":
        longest = meter.longest_layers(layers)
        return meter.take(step, session.device).model_copy(update={"layers": longest})
    return meter.of_layers(layers, seconds[-1]) if layers else None
