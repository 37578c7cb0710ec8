"""The fastest settings that fit the memory of a GPU: `mtj plan --fit`.

Every combination of micro-batch, recomputation, moments and offloading is estimated, in bytes and in seconds a step.
The global batch, the data and the layout stay as they are, and the micro-batch where the loss depends on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from megatron_trainjob.args import derive, placement
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.parse import Accepted
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.model import Model
from megatron_trainjob.memory.estimate import estimate
from megatron_trainjob.memory.fitting import HEADROOM, Settings, depends_on_micro_batches, is_accepted
from megatron_trainjob.memory.speed import step_seconds

OFFLOADED_FRACTIONS = (0.5, 1.0)
STEPS_OF_RECOMPUTATION = 8
"""In how many steps the recomputed share of a stage's layers is tried."""
_NO_METHOD: Settings = {"recompute_method": None, "recompute_num_layers": None}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings that differ from the manifest's, the bytes of the rank that needs most, and the seconds of a step.

    `is_rounded`: moments are kept in fewer bits, which changes the numbers of a run a little.
    """

    settings: Settings
    total_bytes: int
    seconds: float
    is_rounded: bool

    def fits(self, available_bytes: int) -> bool:
        """Whether the GPU has room for it, with the share kept back for fragmentation and the estimate's error."""
        return self.total_bytes <= HEADROOM * available_bytes


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found, each None if there is none.

    written: the manifest as it is. fastest: of all that fit. unrounded: the fastest of those with the manifest's own
    moments, if that is another. unlimited: the fastest if memory were no limit.
    """

    written: Candidate
    fastest: Candidate | None
    unrounded: Candidate | None
    unlimited: Candidate
    smallest: Candidate


@dataclass(frozen=True, kw_only=True)
class Search:
    """A manifest's arguments, and what decides about other settings for them."""

    accepted: Accepted
    shape: Model
    world_size: int
    task: Task
    hf_config: Mapping[str, Any] | None = None

    def run(self, available_bytes: int) -> Found:
        """Raises ValueError if the layout does not divide evenly."""
        ranked = sorted(self._candidates, key=lambda each: (each.seconds, each.is_rounded, len(each.settings)))
        fitting = [each for each in ranked if each.fits(available_bytes)]
        fastest = next(iter(fitting), None)
        exact = next((each for each in fitting if not each.is_rounded), None)
        return Found(
            written=self._judged({}),
            fastest=fastest,
            unrounded=None if exact is fastest else exact,
            unlimited=ranked[0],
            smallest=min(ranked, key=lambda each: each.total_bytes),
        )

    @cached_property
    def _candidates(self) -> tuple[Candidate, ...]:
        args = self.accepted.args
        kinds = (
            ({},) if depends_on_micro_batches(args, self.task) else _micro_batches(args, self.world_size),
            _recomputations(args, self.shape),
            _moments(args),
            _offloads(args),
        )
        changes = (
            {name: value for part in parts for name, value in part.items()} for parts in itertools.product(*kinds)
        )
        different = ({name: value for name, value in each.items() if getattr(args, name) != value} for each in changes)
        accepted = (each for each in different if not each or self._is_accepted(each))
        return tuple(map(self._judged, accepted))

    def _is_accepted(self, settings: Settings) -> bool:
        return is_accepted(self.accepted, settings, self.world_size, task=self.task, hf_config=self.hf_config)

    def _judged(self, settings: Settings) -> Candidate:
        args = replace(self.accepted.args, **settings)
        needed = estimate(args, self.shape, self.world_size, task=self.task)
        return Candidate(
            settings=settings,
            total_bytes=needed.peak.total,
            seconds=step_seconds(args, self.shape, self.world_size, needed, task=self.task),
            is_rounded="exp_avg_dtype" in settings or "exp_avg_sq_dtype" in settings,
        )


def _micro_batches(args: TrainArgs, world_size: int) -> tuple[Settings, ...]:
    """All sizes that divide what a rank processes in a step; packed rows and samples alike."""
    of_a_rank = args.global_batch_size // derive.data_parallel_size(args, world_size)
    sizes = [size for size in range(1, of_a_rank + 1) if of_a_rank % size == 0]
    return tuple({"micro_batch_size": size} for size in sizes) or ({},)


def _recomputations(args: TrainArgs, shape: Model) -> tuple[Settings, ...]:
    """The manifest's own, none beyond what is free, single modules, and ever more whole layers of each stage."""
    selective = {"recompute_granularity": "selective", **_NO_METHOD}
    modules = [("core_attn",), ("core_attn", "layernorm"), ("core_attn", "layernorm", "mlp")]
    if shape.num_experts:
        modules += [("core_attn", "moe_act"), ("core_attn", "layernorm", "moe_act"), ("core_attn", "layernorm", "moe")]
    layers = min(sum(map(len, chunks)) for chunks in placement.chunks_of_stages(args, shape.num_layers))
    counts = sorted({-(-layers * part // STEPS_OF_RECOMPUTATION) for part in range(1, STEPS_OF_RECOMPUTATION)} - {0})
    full = {"recompute_granularity": "full", "recompute_modules": ("core_attn",)}
    return (
        {},
        *({**selective, "recompute_modules": each} for each in modules),
        *({**full, "recompute_method": "block", "recompute_num_layers": count} for count in counts),
        {**full, "recompute_method": "uniform", "recompute_num_layers": 1},
    )


def _moments(args: TrainArgs) -> tuple[Settings, ...]:
    """Adam's moments as given, in 16 bits, and the summed gradients in 16 bits too."""
    if args.optimizer != "adam" or "fp32" not in (args.exp_avg_dtype, args.exp_avg_sq_dtype):
        return ({},)
    half = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
    return ({}, half, {**half, "main_grads_dtype": "bf16"})


def _offloads(args: TrainArgs) -> tuple[Settings, ...]:
    """The optimizer as given, or half or all of its state in the host's memory."""
    if args.optimizer_cpu_offload or args.optimizer != "adam":
        return ({},)
    offload = {"optimizer_cpu_offload": True, "use_precision_aware_optimizer": True}
    return ({}, *({**offload, "optimizer_offload_fraction": part} for part in OFFLOADED_FRACTIONS))
