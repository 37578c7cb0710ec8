"""Forward steps of tasks with a loss on whole sequences: on their log-probabilities or the scores of a head.

Shape suffix: S sequences of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from megatron_trainer import model_source, parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.failure import InvalidInput
from megatron_trainer.models.score import SequenceAnswers, SequenceScores, SequenceStates
from megatron_trainer.models.sequence_sums import SequenceSums
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.pipeline import ForwardStep
from megatron_trainer.tasks.forward import cross_entropy, forward
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

SequenceLoss = Callable[[MicroBatch, Tensor], Any]
"""(the whole micro-batch, [2, S] sums or [S, C] scores) -> the result of a forward step's loss function."""


def step_of_sums(loss: SequenceLoss, args: TrainArgs, spec: ModelSpec) -> ForwardStep:
    """The forward step for a loss on `sequence_sums`."""

    def step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Any]:
        whole = next(batches)
        return sequence_sums(args, spec, whole, model), partial(loss, whole)

    return step


def step_of_scores(loss: SequenceLoss) -> ForwardStep:
    """The forward step for a loss on the scores [S, C] that the model's head computes for each sequence."""
    return _step_of(loss, SequenceScores)


def step_of_states(loss: SequenceLoss) -> ForwardStep:
    """The forward step for a loss on the last hidden states [S, H] of sequences."""
    return _step_of(loss, SequenceStates)


def step_of_answers(loss: SequenceLoss, args: TrainArgs, spec: ModelSpec) -> ForwardStep:
    """The forward step for a loss on the difference [S, 1] of the logits of yes and no after each sequence."""
    yes, no = answer_tokens(args, spec)
    return _step_of(loss, partial(SequenceAnswers, positive=yes, negative=no))


def _step_of(loss: SequenceLoss, processor: Callable[..., Callable[..., Tensor]]) -> ForwardStep:
    def step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Any]:
        whole = next(batches)
        batch = parallel.local_part(whole)
        output = forward(model, whole, batch, output_processor=processor(whole=whole, batch=batch))
        return output, partial(loss, whole)

    return step


def answer_tokens(args: TrainArgs, spec: ModelSpec) -> tuple[int, int]:
    """The tokens for yes and no. Raises InvalidInput for a text that is not a single token."""
    tokenizer = model_source.tokenizer(args, spec.directory)
    found, violations = [], []
    for name in ("generative_reranker_positive_token", "generative_reranker_negative_token"):
        ids = tokenizer(getattr(args, name), add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            message = f"is {len(ids)} tokens of this model, but the answer must be a single token; choose another word"
            violations.append(Violation(path=f"spec.args.{name}", value=getattr(args, name), message=message))
        found.append(ids[0] if ids else 0)
    if violations:
        raise InvalidInput(tuple(violations))
    return found[0], found[1]


def sequence_sums(args: TrainArgs, spec: ModelSpec, whole: MicroBatch, model: nn.Module) -> Tensor:
    """On the last stage [2, S]: sums over the tokens of this context rank, see SequenceSums; else hidden states."""
    batch = parallel.local_part(whole)
    sums = SequenceSums(spec=spec, batch=batch, cross_entropy=cross_entropy(args))
    output: Tensor = forward(model, whole, batch, output_processor=sums)
    return output
