"""What test_attention.py runs on gloo ranks: our core attention beside one written out in full."""

from __future__ import annotations

from typing import Any

HEADS, GROUPS, SIZE, VALUE_SIZE = 4, 2, 8, 6


def _config(**settings: Any) -> Any:
    import torch
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * SIZE,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        params_dtype=torch.float32,
        **{"attention_dropout": 0.0, "hidden_dropout": 0.0, **settings},
    )


def _attention(**settings: Any) -> Any:
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_trainer.models.local_attention import CoreAttention

    return CoreAttention(_config(**settings), 1, AttnMaskType.causal, "self", k_channels=SIZE, v_channels=VALUE_SIZE)


def _inputs(num_tokens: int, batch: int) -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(3)
    shapes = ((HEADS, SIZE), (GROUPS, SIZE), (GROUPS, VALUE_SIZE))
    return tuple(torch.randn(num_tokens, batch, *shape, generator=generator, requires_grad=True) for shape in shapes)


def _written_out(query: Any, key: Any, value: Any, forbidden: Any) -> Any:
    """softmax(q k / sqrt(D)) v with every score there; forbidden [B or 1, T, T]."""
    import torch

    k, v = (t.repeat_interleave(HEADS // GROUPS, dim=2) for t in (key, value))
    scores = torch.einsum("qbnd,kbnd->bnqk", query, k) / SIZE**0.5
    weights = scores.masked_fill(forbidden[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bnqk,kbnd->qbnd", weights, v).flatten(2)


def _forbidden(lengths: list[int], window: int | None) -> Any:
    """[T, T]: other sequences, the future, and what lies before the window."""
    import torch

    sequence = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    distance = torch.arange(len(sequence))[:, None] - torch.arange(len(sequence))[None]
    forbidden = (sequence[:, None] != sequence[None]) | (distance < 0)
    return forbidden if window is None else forbidden | (distance >= window)


def differences(lengths: list[int], *, packed: bool, window: int | None = None) -> tuple[float, float]:
    """Largest differences of outputs and of input gradients; over all context ranks."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.packed_seq_params import PackedSeqParams

    from megatron_trainer.parallel import bounds, context_positions

    size = dist.get_world_size()
    parallel_state.initialize_model_parallel(context_parallel_size=size)
    rank = parallel_state.get_context_parallel_rank()
    settings: dict[str, Any] = {"context_parallel_size": size}
    if window is not None:
        settings |= {"window_size": (window - 1, 0)}
    attention = _attention(**settings)
    inputs = _inputs(sum(lengths), 1 if packed else 2)
    expected = _written_out(*inputs, _forbidden(lengths, window)[None])
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    parameters = None
    if packed:
        parameters = PackedSeqParams(qkv_format="thd", cu_seqlens_q=starts, cu_seqlens_kv=starts)
    positions = context_positions(bounds(starts if packed else None, sum(lengths)), rank=rank, size=size)
    local = [t[positions].squeeze(1) if packed else t[positions] for t in inputs]
    output = attention(*local, None, packed_seq_params=parameters)
    output = output.unsqueeze(1) if packed else output
    found = torch.autograd.grad((output * weight[positions]).sum(), inputs)
    for gradient in found:
        dist.all_reduce(gradient)
    gradients = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    return float((output - expected[positions]).abs().max()), gradients


def with_padding(side: str, window: int | None) -> tuple[float, bool]:
    """Rows padded by two and by three tokens: the difference at real tokens, and whether gradients are numbers."""
    import torch
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel()
    inputs = _inputs(8, 2)
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[0, 6:] = padding[1, 5:] = True
    padding = padding.flip(1) if side == "left" else padding
    hidden = padding[:, None, :] | padding[:, :, None]
    settings = {} if window is None else {"window_size": (window - 1, 0)}
    output = _attention(**settings)(*inputs, (torch.ones(8, 8).triu(1).bool() | hidden)[:, None])
    expected = _written_out(*inputs, (_forbidden([8], window) | hidden) & ~torch.eye(8).bool())
    gradients = torch.autograd.grad(output.sum(), inputs)
    real = ~padding.t()
    difference = float((output - expected)[real].abs().max())
    return difference, all(bool(gradient.isfinite().all()) for gradient in gradients)


def dropped(seed: int) -> tuple[Any, Any]:
    """(output with attention dropout, torch's random state afterwards)."""
    import torch
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=torch.distributed.get_world_size())
    torch.manual_seed(1)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    attention = _attention(attention_dropout=0.5).train()
    return attention(*_inputs(16, 1), None).detach(), torch.get_rng_state()
