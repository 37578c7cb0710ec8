"""Finds settings that fit after an out-of-memory error by trying arguments that trade speed or length for memory.

Each proposal is checked by the estimate and by the rules between arguments, so that none is refused when applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_trainjob.args import derive, head, rules
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.parse import Accepted
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.model import Model
from megatron_trainjob.memory.estimate import estimate
from megatron_trainjob.violation import errors

HEADROOM = 0.9
"""Share of the memory that a proposal may use: the rest is for fragmentation and the error of the estimate."""
SHORTEST_TOKENS = 256
SORTED_LOSSES = frozenset({"aot", "aot_unpaired", "aot_pair"})
"""Losses of pairs that sort what a micro-batch holds."""

Settings = Mapping[str, Any]

ARGUMENTS_TO_TURN = (
    *("micro_batch_size", "recompute_granularity", "exp_avg_dtype", "exp_avg_sq_dtype", "max_length"),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
)
"""Arguments that reduce memory, for a message if no settings can be computed."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Arguments to set, and the estimated bytes of the rank with the highest usage."""

    settings: Settings
    total_bytes: int

    def __str__(self) -> str:
        written = ", ".join(f"{name}: {value}".replace("True", "true") for name, value in self.settings.items())
        return f"{written} (about {self.total_bytes / 1024**3:.1f} GiB)"


def proposals(
    accepted: Accepted,
    shape: Model,
    world_size: int,
    *,
    task: Task,
    available_bytes: int | None,
    hf_config: Mapping[str, Any] | None = None,
) -> tuple[Proposal, ...]:
    """Each change that fits by itself, the cheapest first; else the smallest combination; empty if none fits.

    The current settings have run out of memory. If the estimate says that they fit, it is too low, and the limit for
    proposals is lowered accordingly. Raises ValueError if the layout does not divide evenly.
    """
    args = accepted.args
    now_bytes = estimate(args, shape, world_size, task=task).peak.total
    most_bytes = HEADROOM * min(now_bytes, available_bytes or now_bytes)

    def tried(settings: Settings) -> Proposal | None:
        if not settings or not is_accepted(accepted, settings, world_size, task=task, hf_config=hf_config):
            return None
        total_bytes = estimate(replace(args, **settings), shape, world_size, task=task).peak.total
        return Proposal(settings=settings, total_bytes=total_bytes)

    same = () if depends_on_micro_batches(args, task) else _micro_batches(args)
    kinds = (same, _recomputation(args), _moments(args), _lengths(args, shape))
    alone = [_first_that_fits(kind, tried, most_bytes) for kind in kinds]
    if found := tuple(proposal for proposal in alone if proposal is not None):
        return found
    together = _first_that_fits(_combinations(kinds, tried), tried, most_bytes)
    return () if together is None else (together,)


def is_accepted(
    accepted: Accepted, settings: Settings, world_size: int, *, task: Task, hf_config: Mapping[str, Any] | None
) -> bool:
    """Whether no rule between arguments refuses the settings on top of what was accepted."""
    changed, given = replace(accepted.args, **settings), accepted.given | settings.keys()
    found = rules.check(changed, given, task=task, world_size=world_size, hf_config=hf_config, path="spec.args")
    return not errors(found)


def depends_on_micro_batches(args: TrainArgs, task: Task) -> bool:
    """Whether another micro-batch changes the loss: its rows are negatives, sorted, or averaged by themselves."""
    if task == "rlhf":
        types = derive.preference_losses(args)[0] if args.rlhf_type == "dpo" else ()
        return derive.estimates_divergence(args, task) or bool(SORTED_LOSSES & set(types))
    if args.task_type == "embedding":
        loss = head.group_loss(args)
        return loss == "online_contrastive" or (loss == "infonce" and args.infonce_use_batch)
    return not args.calculate_per_token_loss


def _first_that_fits(
    options: tuple[Settings, ...], tried: Callable[[Settings], Proposal | None], most_bytes: float
) -> Proposal | None:
    judged = (tried(settings) for settings in options)
    return next((proposal for proposal in judged if proposal is not None and proposal.total_bytes <= most_bytes), None)


def _combinations(
    kinds: tuple[tuple[Settings, ...], ...], tried: Callable[[Settings], Proposal | None]
) -> tuple[Settings, ...]:
    """Each kind in turn at its strongest, then ever shorter sequences; disallowed changes are left out."""
    *others, lengths = kinds
    found: list[Settings] = [{}]
    for kind in others:
        together = {**found[-1], **(kind[-1] if kind else {})}
        if tried(together) is not None:
            found.append(together)
    return (*found[1:], *({**found[-1], **length} for length in lengths))


def _micro_batches(args: TrainArgs) -> tuple[Settings, ...]:
    """The smaller divisors, so that the global batch still divides evenly; the step computes the same."""
    size = args.micro_batch_size
    return tuple({"micro_batch_size": part} for part in range(size - 1, 0, -1) if size % part == 0)


def _recomputation(args: TrainArgs) -> tuple[Settings, ...]:
    settings = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return () if all(getattr(args, name) == value for name, value in settings.items()) else (settings,)


def _moments(args: TrainArgs) -> tuple[Settings, ...]:
    """Adam's moments in half the bytes."""
    settings = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
    is_wide = args.optimizer == "adam" and "fp32" in (args.exp_avg_dtype, args.exp_avg_sq_dtype)
    return (settings,) if is_wide else ()


def _lengths(args: TrainArgs, shape: Model) -> tuple[Settings, ...]:
    """Half, a quarter and so on: longer samples are then handled according to truncation_strategy."""
    length = derive.longest_sample(args, shape.max_position_embeddings) or 0
    name = "max_length"
    if args.packing and args.packing_length:
        name, length = "packing_length", args.packing_length
    halves = (length >> times for times in range(1, length.bit_length()))
    return tuple({name: half} for half in halves if half >= SHORTEST_TOKENS)
