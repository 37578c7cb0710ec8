"""What preference training adds to a run: the reference model, and the weighting of micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from megatron_trainer.backend import Backend
from megatron_trainer.data.collate import RowShape
from megatron_trainer.data.prepare import Prepared
from megatron_trainer.engine import Engine
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks import TASKS, Task
from megatron_trainer.tasks.divergence import with_divergence
from megatron_trainer.tasks.reference import Reference, with_reference
from megatron_trainer.train.reference_cache import with_known_reference
from megatron_trainer.train.reference_source import frozen_model, open_reference
from megatron_trainjob.args import derive, field, head
from megatron_trainjob.args.tree import TrainArgs


def engine_and_reference(
    args: TrainArgs,
    spec: ModelSpec,
    task: field.Task,
    backend: Backend,
    data: Prepared,
    shape: RowShape,
    cache: Path,
    *,
    build: Callable[..., Engine],
) -> tuple[Engine, Reference | None, Prepared]:
    """The engine that `build` makes; for preference training also the reference, or data with cached log-probabilities.

    shape: of the rows in which the reference scores single items. cache: folder of tokenized data. Collective.
    """
    if task != "rlhf":
        by_sequence = replace(args, calculate_per_token_loss=False) if head.is_of_sequences(args) else args
        return build(by_sequence, spec, backend), None, data
    if args.rlhf_type == "rm":
        return build(replace(args, calculate_per_token_loss=False), spec, backend), None, data
    alone = replace(shape, mismatched_length=None)
    know = partial(
        with_known_reference,
        args,
        spec,
        shape=alone,
        cache=cache,
        backend=backend,
        mismatched_length=shape.mismatched_length,
    )
    is_known_first = args.precompute_ref_log_probs and not args.reference_free and args.train_type == "full"
    if is_known_first:  # the reference model is freed before the policy is built
        data = know(data=data, open_reference=partial(frozen_model, args, spec, backend))
    # Micro-batches are weighted by pairs; Megatron weights by tokens, which pairs do not have.
    engine = build(replace(args, calculate_per_token_loss=False), spec, backend, keep_originals=True)
    if is_known_first:
        return engine, None, data
    reference = open_reference(args, spec, engine, backend)
    if not args.precompute_ref_log_probs or reference is None:
        return engine, reference, data
    return engine, None, know(data=data, open_reference=lambda: reference)


def task_of(args: TrainArgs, spec: ModelSpec, task: field.Task, engine: Engine, reference: Reference | None) -> Task:
    """The task of a run; in preference training it runs the reference before its own forward passes."""
    made = TASKS[task](args, spec)
    if task != "rlhf":
        return made
    if not derive.estimates_divergence(args, task):
        return replace(made, prepare=partial(with_reference, args, reference))
    policy = Reference(args=args, spec=spec, chunks=engine.chunks)
    return replace(made, prepare=partial(with_divergence, args, policy, reference))
