"""Model FLOPs of training, counted from the model's record: without activation recomputation.

A multiplication with weights costs 2 FLOPs per weight and token forward, 2 for the input's gradient, and 2 for the
weight's own gradient where the weight is trained (so 6 in full training, 4 under LoRA). Attention scores depend on
the samples' lengths and are counted apart, per pair of query and key; the output matrix per token with a loss, since
others need no logits, and what computes theirs all the same is no work of the model.
"""

from __future__ import annotations

from math import prod

from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import score_widths
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.vision import MERGING, OF_PATCHES, PREFIX, Vision, is_aligner, is_looked_up


def flops_per_token(model: Model, args: TrainArgs) -> float:
    """FLOPs of one real token over all layers, forward and backward, without scores and the output matrix."""
    weights = model.weights_per_token - _output_weights(model)
    return weights * _flops_per_weight(args) + 6.0 * model.state_products


def flops_per_target(model: Model, args: TrainArgs) -> float:
    """FLOPs of one token with a loss in the output matrix, forward and backward.

    A head in place of the output matrix sees one token of a sequence, and is not counted.
    """
    return 0.0 if head.replaces_output(args) else _output_weights(model) * _flops_per_weight(args)


def _flops_per_weight(args: TrainArgs) -> float:
    return 4.0 if args.train_type != "full" else 6.0


def _output_weights(model: Model) -> int:
    """Those that a token is multiplied with: once, and once more after each layer that predicts further on."""
    return model.hidden_size * model.vocab_size * (1 + model.trained_predictions)


def flops_per_patch(model: Model, args: TrainArgs) -> float:
    """FLOPs of one patch of an image in the vision tower and the aligner, forward and, as far as they train, backward;
    without the scores of the tower's attention. 0 for a text model.

    The aligner sees merge_size x merge_size patches at once. A part that does not train runs forward only.
    """
    vision = model.vision
    if vision is None:
        return 0.0
    of_aligner, of_tower = (_matrices(vision, of_aligner=each) for each in (True, False))
    whole = args.train_type == "full"
    in_full = whole or head.TOWER in head.modules_to_save(args)
    frozen = (args.freeze_aligner, args.freeze_vit) if whole or not in_full else (False, False)
    passes = [2.0 if each else 6.0 if in_full else 4.0 for each in frozen]
    return passes[0] * of_aligner / vision.merge_size**2 + passes[1] * of_tower


def _matrices(vision: Vision, *, of_aligner: bool) -> float:
    """Multiplications of a patch with the matrices of the aligner or of the rest; kernels see patches alone, and that
    which merges patches sees each once.
    """
    return sum(
        prod(shape)
        * (1.0 if of_aligner or len(shape) > 2 or name.startswith(OF_PATCHES) else vision.states_per_patch)
        / (vision.merge_size**2 if name.startswith(MERGING) else 1)
        for name, shape in vision.tensors.items()
        if len(shape) > 1 and not is_looked_up(name) and is_aligner(PREFIX + name) == of_aligner
    )


def flops_per_pair(model: Model) -> float:
    """FLOPs of one (query, key) pair over the heads of all layers without a window, forward and backward: scores, then
    their values.

    A causal sample of n tokens has n * (n + 1) / 2 pairs. Step FLOPs = tokens * flops_per_token + tokens with a loss *
    flops_per_target + pairs * this + near pairs * flops_per_near_pair.
    """
    return 3 * 2.0 * score_widths.of_far_pairs(model)


def flops_per_near_pair(model: Model) -> float:
    """The same over the layers in which a token attends to the last `window` tokens: pairs in that reach."""
    return 3 * 2.0 * score_widths.of_near_pairs(model)
