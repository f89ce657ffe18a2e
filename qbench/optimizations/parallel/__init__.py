"""One video on several GPUs: the halves of guidance, tokens and the decode, each split or not.

Ranks are processes that `qbench run` (or torchrun) starts, each with the whole pipeline and its own
loop. `join` makes the groups in which they exchange; the others split the denoiser's calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.optimizations.caching import CACHES
from qbench.optimizations.changes import Changes
from qbench.optimizations.rules import Rule, always, clash, never
from qbench.recipe.schema import Parallel, Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from qbench.optimizations.parallel.groups import Ranks
    from qbench.optimizations.parallel.rows import Rows
    from qbench.optimizations.parallel.tokens import Attention
    from qbench.pipelines.base import VideoPipeline


@dataclass(frozen=True)
class Shared:
    """What the ranks share.

    attention: over the tokens of all, where tokens are split. rows: of the decode, where that is.
    total: adds up over the ranks that have parts of one batch of the denoiser.
    """

    ranks: Ranks
    attention: Attention | None
    rows: Rows | None
    total: Callable[[Tensor], Tensor]


def join(wanted: Parallel, video: VideoPipeline, device: str) -> Shared:
    """Meet the other ranks: each must call this at the same point, with the same weights.

    Raises Unsupported where they are not there or the model cannot be split so, and RuntimeError
    where they hold other weights.
    """
    from qbench.optimizations.parallel.groups import Ranks
    from qbench.optimizations.parallel.rows import Rows
    from qbench.optimizations.parallel.tokens import Attention, check

    if wanted.tokens > 1:
        check(video, wanted)
    ranks = Ranks(wanted, device)
    ranks.check_alike(video.denoiser)
    # Halves of guidance in calls of their own are decided about by themselves, as on one GPU.
    batch = ranks.tokens if video.separate_guidance else ranks.everyone
    return Shared(
        ranks,
        Attention(ranks) if wanted.tokens > 1 else None,
        Rows(ranks.everyone) if wanted.decode else None,
        batch.total,
    )


def split_tokens(video: VideoPipeline, shared: Shared) -> Changes:
    """Split each call of the denoiser by tokens, where they are to be."""
    from qbench.optimizations.parallel import tokens

    changes = Changes("parallel")
    if shared.attention:
        tokens.apply(video, shared.attention, changes)
    return changes


def split_guidance(video: VideoPipeline, shared: Shared) -> Changes:
    """Split it by halves of guidance, where they are to be: around what `split_tokens` did."""
    from qbench.optimizations.parallel import guidance

    changes = Changes("parallel")
    if shared.ranks.cfg.size > 1:
        guidance.apply(video, shared.ranks.cfg, changes)
    return changes


def _splits_tokens(variant: Variant) -> bool:
    return variant.parallel is not None and variant.parallel.tokens > 1


def _rings(variant: Variant) -> bool:
    return variant.parallel is not None and variant.parallel.ring > 1


def _splits_guidance(variant: Variant) -> bool:
    return variant.parallel is not None and variant.parallel.cfg > 1


WITH_LSE = ("auto", "math", "flash", "efficient", "cudnn")  # kernels that tell the log-sum-exp
RULES: tuple[Rule, ...] = (
    Rule(
        "GPUs for ranks",
        lambda v: v.parallel is not None,
        always,
        "variant.parallel takes a GPU a rank (cfg x ulysses x ring), and this machine has fewer",
        room=lambda v, m: not m.cuda or v.parallel is None or v.parallel.ranks <= m.devices,
    ),
    Rule(
        "halves of guidance",
        _splits_guidance,
        always,
        "variant.parallel.cfg: 2 splits guidance, and at this scale there is none",
        fits=lambda _, model: model.guided,
    ),
    clash(
        "several GPUs and offload",
        lambda v: v.parallel is not None and v.memory.offload is not None,
        "offload brings weights from the host again and again, and every rank would bring all of "
        "them over the same bus: choose one of memory.offload and parallel",
    ),
    clash(
        "several GPUs and tiles",
        lambda v: v.parallel is not None and v.parallel.decode and v.memory.vae_tiling,
        "parallel.decode gives each rank rows of whole frames, vae_tiling tiles that differ at "
        "their borders: choose one of the two",
    ),
    clash(
        "several GPUs and a model compiled whole",
        lambda v: v.parallel is not None and v.compile is not None and v.compile.scope == "model",
        "ranks exchange tensors between blocks, which one compiled program cannot: compile with "
        "scope blocks",
    ),
    clash(
        "tokens on several GPUs and CUDA graphs",
        lambda v: _splits_tokens(v) and v.compile is not None and v.compile.captures_graphs,
        "with tokens split, ranks exchange tensors inside of blocks, which a captured graph would "
        "replay on its own: compile with mode default, and set cuda_graph",
    ),
    Rule(
        "ring and attention kernels",
        lambda v: _rings(v) and v.attention not in WITH_LSE,
        never,
        "parallel.ring merges parts by their log-sum-exp, which these attention kernels tell: "
        f"{', '.join(WITH_LSE)}; parallel.ulysses takes any",
    ),
    clash(
        "FasterCache and halves of guidance",
        lambda v: _splits_guidance(v) and v.cache is not None and CACHES[v.cache.kind].guided,
        "FasterCache predicts one half of guidance from the other, which parallel.cfg: 2 has on "
        "another GPU: choose one of the two, or split tokens",
    ),
)
