"""Model FLOPs of training, counted from the model's record: without activation recomputation.

A multiplication with weights costs 2 FLOPs per weight and token forward, 2 for the input's gradient, and 2 for the
weight's own gradient where the weight is trained (so 6 in full training, 4 under LoRA). Attention scores depend on
the samples' lengths and are counted apart, per pair of query and key.
"""

from __future__ import annotations

from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.model import Model


def flops_per_token(model: Model, args: TrainArgs) -> float:
    """FLOPs of one real token over all layers and the output matrix, forward and backward, without scores.

    A head in place of the output matrix sees one token of a sequence, and is not counted.
    """
    weights = model.weights_per_token
    if head.replaces_output(args):
        weights -= model.hidden_size * model.vocab_size
    return weights * (4.0 if args.train_type != "full" else 6.0)


def flops_per_pair(model: Model) -> float:
    """FLOPs of one (query, key) pair over all layers and heads, forward and backward: scores, then their values.

    A causal sample of n tokens has n * (n + 1) / 2 pairs. Step FLOPs = tokens * flops_per_token + pairs * this.
    """
    return 3 * 2.0 * len(model.all_layers) * model.num_heads * (model.qk_head_size + model.v_head_size)
