"""What test_linear_cross_entropy.py runs on ranks: the loss from hidden states beside torch's own, gradients too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

TOKENS, ROWS, HIDDEN, VOCABULARY, PADDED = 12, 2, 8, 19, 20
SCALE = 0.25
"""Gradient of the sum that comes back, as a loss scale or a division would give it."""


def differences(
    *,
    at_once: int,
    sequence_parallel: bool = False,
    objective: str = "plain",
    width: int = HIDDEN,
    lies_row_by_row: bool = False,
    first_loss: int | None = None,
    is_frozen: bool = False,
) -> dict[str, float]:
    """Largest difference of sum, objectives and gradients from torch's cross entropy of the whole logits; the largest
    gradient of hidden states without a loss, and the rows of logits of this rank's part.

    first_loss: tokens from here on carry a loss, and the host knows which; None if it does not know.
    is_frozen: whether the weight is.
    lies_row_by_row: whether the hidden states [T, B, H] are stored as [B, T, H].
    """
    import torch
    import torch.distributed as dist
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from megatron_trainer import parallel
    from megatron_trainer.losses import token
    from megatron_trainer.models import linear_cross_entropy
    from megatron_trainjob.args.tree import TrainArgs

    size, rank = dist.get_world_size(), dist.get_rank()
    parallel.initialize(TrainArgs(tensor_model_parallel_size=size, sequence_parallel=sequence_parallel))
    hidden, weight, labels, weights = _inputs(width)
    if first_loss is not None:
        weights[:, :first_loss] = 0
    own = hidden.chunk(size)[rank] if sequence_parallel else hidden
    own = (own.transpose(0, 1).contiguous().transpose(0, 1) if lies_row_by_row else own.clone()).requires_grad_()
    layer = _output_layer(weight.chunk(size)[rank], sequence_parallel=sequence_parallel)
    layer.weight.requires_grad_(not is_frozen)
    rows: list[int] = []
    layer.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    function = {"plain": torch.Tensor.float, "dft": token.dynamic_fine_tuning}[objective]
    limit = at_once * PADDED // size * (size if sequence_parallel else 1)
    losses = linear_cross_entropy.LinearCrossEntropy(
        spec=SimpleNamespace(vocab_size=VOCABULARY, padded_vocab_size=PADDED),
        labels_BT=labels,
        weights_BT=weights,
        cross_entropy=vocab_parallel_cross_entropy,
        objective=function,
        has_loss_BT=None if first_loss is None else weights.numpy() != 0,
    )
    with patch.object(linear_cross_entropy, "LOGITS_AT_ONCE", limit):
        total, objectives = losses(hidden_states=own, output_layer=layer, output_weight=None)
    (SCALE * total).backward()
    num_rows = sum(rows)
    with patch.object(linear_cross_entropy, "LOGITS_AT_ONCE", limit), torch.no_grad():
        unlearned, _ = losses(hidden_states=own, output_layer=layer, output_weight=None)
    expected = _reference(hidden, weight, labels, weights, function)
    of_hidden = expected["hidden"].chunk(size)[rank] if sequence_parallel else expected["hidden"]
    has_loss = weights != 0
    own_loss = (has_loss.t().chunk(size)[rank] if sequence_parallel else has_loss.t())[..., None]
    compared = has_loss if first_loss is not None else torch.ones_like(has_loss)
    found = {
        "sum": total - expected["sum"],
        "evaluated": unlearned - expected["sum"],
        "objectives": (objectives - expected["objectives"]) * compared,
        "hidden": own.grad - of_hidden,
        "skipped": own.grad * ~own_loss,
    }
    if not is_frozen:
        found["weight"] = layer.weight.grad - expected["weight"].chunk(size)[rank]
    return {name: float(difference.detach().abs().max()) for name, difference in found.items()} | {"rows": num_rows}


def error_in_float16(*, at_once: int) -> float:
    """Relative error of the weight's gradient, which is in float16's range only after SCALE: all labels are alike."""
    import torch
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from megatron_trainer import parallel
    from megatron_trainer.models import linear_cross_entropy
    from megatron_trainjob.args.tree import TrainArgs

    parallel.initialize(TrainArgs())
    hidden, weight, labels, weights = _inputs(24)
    hidden, weight, labels, weights = torch.full_like(hidden, 4000), weight * 0, labels * 0, weights * 0 + 1
    layer = _output_layer(weight, sequence_parallel=False).half()
    losses = linear_cross_entropy.LinearCrossEntropy(
        spec=SimpleNamespace(vocab_size=VOCABULARY, padded_vocab_size=PADDED),
        labels_BT=labels,
        weights_BT=weights,
        cross_entropy=vocab_parallel_cross_entropy,
    )
    with patch.object(linear_cross_entropy, "LOGITS_AT_ONCE", at_once * PADDED):
        total, _ = losses(hidden_states=hidden.half().requires_grad_(), output_layer=layer, output_weight=None)
    (SCALE * total).backward()
    expected = _reference(hidden, weight, labels, weights, torch.Tensor.float)["weight"]
    assert expected.abs().max() / SCALE > torch.finfo(torch.float16).max
    return float(((layer.weight.grad.float() - expected).abs().max() / expected.abs().max()).detach())


def _inputs(width: int) -> tuple[Any, Any, Any, Any]:
    import torch

    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn(TOKENS, ROWS, width, generator=draw)
    weight = torch.randn(PADDED, width, generator=draw)
    labels = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=draw)
    labels[:, ::5] = -100
    weights = torch.rand(ROWS, TOKENS, generator=draw) * (labels >= 0)
    return hidden, weight, labels, weights


def _output_layer(weight: Any, *, sequence_parallel: bool) -> Any:
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(
        num_layers=1,
        hidden_size=weight.shape[1],
        num_attention_heads=2,
        sequence_parallel=sequence_parallel,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
    )
    layer = ColumnParallelLinear(
        weight.shape[1], PADDED, config=config, init_method=torch.nn.init.zeros_, bias=False, skip_bias_add=False
    )
    layer.weight.data.copy_(weight)
    return layer


def _reference(hidden: Any, weight: Any, labels: Any, weights: Any, objective: Any) -> dict[str, Any]:
    import torch

    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = (hidden @ weight[:VOCABULARY].t()).transpose(0, 1)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.clamp(min=0).flatten(), reduction="none")
    objectives = objective(losses.view(ROWS, TOKENS))
    total = (objectives * weights).sum()
    of_hidden, of_weight = torch.autograd.grad(SCALE * total, [hidden, weight])
    return {"sum": total, "objectives": objectives, "hidden": of_hidden, "weight": of_weight}
