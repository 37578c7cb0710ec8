"""Linears that keep TransformerEngine's contract towards adapters, in plain torch, and what ranks check on them.

They stand in for classes that need a GPU: TELayerNormColumnParallelLinear (the norm is inside, so the adapter needs its
output) and TEColumnParallelGroupedLinear (one weight per local expert).
"""

from types import SimpleNamespace
from typing import Any

import torch

from megatron_trainer import parallel
from megatron_trainer.lora.attach import attach, train_biases_of_frozen_weights
from megatron_trainer.lora.grouped import GroupedAdapter
from megatron_trainer.lora.layer import LinearAdapter, Settings
from megatron_trainer.lora.placement import placement
from megatron_trainjob.args.tree import TrainArgs
from tests.support.ranks.lora_ranks import build, randomise

SETTINGS = Settings(rank=4, alpha=8, dropout=0.0, rank_stabilized=False, seed=1)
CONFIG = SimpleNamespace(sequence_parallel=False, gated_linear_unit=True)
LAYER = "decoder.layers.0.mlp.experts."


class FusedNormLinear(torch.nn.Module):
    """LayerNormLinear as Megatron wraps it: (y, bias), and with the normed input ((y, n), None) or (y, bias, n)."""

    def __init__(self, *, te_return_bias: bool, bias: bool) -> None:
        super().__init__()
        self.layer_norm_weight = torch.nn.Parameter(torch.rand(16))
        self.weight = torch.nn.Parameter(torch.randn(24, 16))
        self.bias = torch.nn.Parameter(torch.randn(24)) if bias else None
        self.te_return_bias = self.return_bias = te_return_bias
        self.return_layernorm_output = False

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (16,)) * self.layer_norm_weight

    def forward(self, x: torch.Tensor) -> Any:
        normed = self.normed(x)
        inside = None if self.return_bias else self.bias
        y = torch.nn.functional.linear(normed, self.weight, inside)
        extra = (normed,) if self.return_layernorm_output else ()
        if self.te_return_bias:
            return (y, self.bias, *extra)
        return ((y, *extra) if extra else y), None


class GroupedLinear(torch.nn.Module):
    """GroupedLinear as Megatron wraps it: rows sorted by expert, a weight for each."""

    def __init__(self, num_experts: int, rows: int, columns: int) -> None:
        super().__init__()
        self.num_gemms = num_experts
        for index in range(num_experts):
            self.register_parameter(f"weight{index}", torch.nn.Parameter(torch.randn(rows, columns)))

    def forward(self, x: torch.Tensor, m_splits: list[int]) -> tuple[torch.Tensor, None]:
        parts = x.split(m_splits)
        weights = [getattr(self, f"weight{index}") for index in range(self.num_gemms)]
        return torch.cat([part @ weight.t() for part, weight in zip(parts, weights, strict=True)]), None


def fused_norm_errors() -> list[float]:
    """For each form of the contract: how far y + bias is from the plain formula with the norm's output."""
    parallel.initialize(TrainArgs())
    torch.manual_seed(0)
    x = torch.randn(5, 1, 16)
    errors = []
    for bias, te_return_bias, outside in (
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, False, True),
    ):
        linear = FusedNormLinear(te_return_bias=te_return_bias, bias=bias)
        if outside:
            linear.weight.requires_grad_(False)
            train_biases_of_frozen_weights([_Chunk(linear)])
        adapter = LinearAdapter("linear_qkv", placement("linear_qkv", linear.weight, CONFIG), SETTINGS)
        torch.nn.init.normal_(adapter.B)
        attach(linear, adapter)
        for active in (True, False):
            adapter.active = active
            y, left = linear(x)
            merged = linear.weight + (2.0 * adapter.B @ adapter.A if active else 0)
            expected = linear.normed(x) @ merged.t() + (0 if linear.bias is None else linear.bias)
            errors.append((y + (0 if left is None else left) - expected).abs().max().item())
        if outside:
            linear(x)[0].sum().backward()
            errors.append((linear.bias.grad - 5).abs().max().item())
    return errors


class _Chunk(torch.nn.Module):
    """A model with one linear."""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear


def grouped_errors() -> list[float]:
    """How far grouped experts are from the same experts one by one, with an expert without tokens; merged, too."""
    parallel.initialize(TrainArgs())
    torch.manual_seed(0)
    linear = GroupedLinear(3, 24, 16)
    names = [f"{LAYER}local_experts.{index}.linear_fc1" for index in range(3)]
    adapter = GroupedAdapter(names, placement(f"{LAYER}linear_fc1", linear.weight0, CONFIG), SETTINGS)
    for index in range(3):
        torch.nn.init.normal_(adapter.pair(index)[1])
    attach(linear, adapter)
    x, counts = torch.randn(7, 16), [4, 0, 3]
    y, _ = linear(x, counts)
    pairs = list(adapter.pairs(linear))
    merged = [pair.weight + pair.delta(SETTINGS.scale) for pair in pairs]
    expected = torch.cat([part @ weight.t() for part, weight in zip(x.split(counts), merged, strict=True)])
    y.sum().backward()
    idle = adapter.pair(1)[1].grad.abs().max().item()
    return [(y - expected).abs().max().item(), idle]


def grouped_entries(directory: str, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Places in a checkpoint of each expert's A and B, kept one by one and in one grouped linear: layer 0, fc1."""
    model = build(directory, **given)
    randomise(model)
    (chunk,) = model.chunks
    separate = {
        key.removeprefix(f"{LAYER}local_experts.").replace(".linear_fc1.lora.", ""): _place(entry)
        for key, entry in chunk.sharded_state_dict().items()
        if key.startswith(f"{LAYER}local_experts.") and ".linear_fc1.lora." in key
    }
    first = chunk.decoder.layers[0].mlp.experts.local_experts[0].linear_fc1
    num_local = len(chunk.decoder.layers[0].mlp.experts.local_experts)
    adapter = GroupedAdapter([str(index) for index in range(num_local)], first.lora.place, first.lora.settings)
    entries = adapter.sharded_state_dict("lora.")
    grouped = {f"{key[-1]}{key.removeprefix('lora.')[0]}": _place(entry) for key, entry in entries.items()}
    return separate, grouped


def _place(entry: Any) -> tuple[Any, ...]:
    pieces = entry.build() if hasattr(entry, "build") else [entry]
    return tuple((piece.global_shape, piece.global_offset, piece.replica_id) for piece in pieces)
