"""An adapter's sum in the kernel of SwiGLU, beside float32 and beside a kernel each: `python -m
tests.support.models.gated_products`.

Prints one JSON line a case, and one line for a feed-forward block of megatron-core. Triton interprets its kernels here
(TRITON_INTERPRET=1), which must be said before it is imported.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from megatron_trainer.lora import fused, gated
from megatron_trainer.lora.layer import LinearAdapter
from megatron_trainer.megatron.patches import swiglu


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tokens, width behind SwiGLU, rank; few of them multiples of a block."""

    tokens: int
    width: int
    rank: int


CASES = (
    Case(tokens=70, width=200, rank=8),
    Case(tokens=3, width=129, rank=3),
    Case(tokens=130, width=128, rank=32),
)
NAMES = ("output", "y", "low", "b")


def given(case: Case, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(7)
    shapes = {
        "y": (case.tokens, 1, 2 * case.width),
        "low": (case.tokens, 1, case.rank),
        "b": (2 * case.width, case.rank),
        "of_output": (case.tokens, 1, case.width),
    }
    return {name: torch.randn(shape).to(device, dtype) for name, shape in shapes.items()}


def errors(case: Case, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Of output and gradients against the same in float32, relative to the largest of the expected."""
    values = given(case, device, dtype)
    found = _results(values, gated.add_swiglu)
    expected = _results({name: value.float() for name, value in values.items()}, _plain)
    return {
        name: ((mine.float() - theirs).abs().max() / theirs.abs().max()).item()
        for name, mine, theirs in zip(NAMES, found, expected, strict=True)
    }


def differing_bits(case: Case, device: str, dtype: torch.dtype) -> dict[str, int]:
    """How many elements differ from those of separate kernels."""
    values = given(case, device, dtype)
    found, separate = (_results(values, function) for function in (gated.add_swiglu, _separate))
    return {name: int((mine != theirs).sum()) for name, mine, theirs in zip(NAMES, found, separate, strict=True)}


def _results(values: dict[str, Tensor], function: Any) -> tuple[Tensor, ...]:
    """The output, and the gradients of y, low and b."""
    leaves = [values[name].clone().requires_grad_() for name in ("y", "low", "b")]
    y, low, b = leaves
    output = function(y * 1, low, b)  # y is overwritten
    return output, *torch.autograd.grad(output, leaves, values["of_output"])


def _plain(y: Tensor, low: Tensor, b: Tensor) -> Tensor:
    first, second = (y + low @ b.t()).chunk(2, -1)
    return torch.nn.functional.silu(first) * second


def _separate(y: Tensor, low: Tensor, b: Tensor) -> Tensor:
    output: Tensor = _SwiGLU.apply(fused.add_up(y, low, b))
    return output


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return swiglu.product(both.flatten(0, -2)).view(*both.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        return swiglu.gradient(of_output.flatten(0, -2), both.flatten(0, -2)).view(both.shape)


def block_errors(*, dropout: float, recompute: bool, active: bool = True) -> dict[str, float]:
    """How far output and gradients of a block with an adapter are from those of the same block that adds apart."""
    block, adapter = _adapted_block(dropout)
    adapter.active = active
    torch.manual_seed(11)
    x = torch.randn(20, 2, 32, dtype=torch.float16)
    gated.fuse_activation(block)
    runs = []
    for fits in (True, False):
        with patch.object(gated, "fits", lambda *_, fits=fits: fits), _count(gated) as calls:
            runs.append(_run(block, x.clone().requires_grad_(), adapter, recompute=recompute))
        assert calls.count == (fits and active) * (1 + recompute), calls
    relative = [
        ((mine.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-3)).item()
        for mine, theirs in zip(*runs, strict=True)
    ]
    return dict(zip(("output", "x", "a", "b"), relative, strict=False))


def is_fused(*, of: type | None = None, **change: object) -> bool:
    """Whether a block of this class and with SwiGLU's configuration, changed so, adds in SwiGLU's kernel."""
    from megatron.core.transformer.mlp import MLP

    plain: dict[str, object] = {
        "gated_linear_unit": True,
        "bias_activation_fusion": True,
        "use_te_activation_func": False,
        "add_bias_linear": False,
        "activation_func_fp8_input_store": False,
        "cpu_offloading": False,
        "activation_func": "silu",
    }
    config = SimpleNamespace(**plain | change)
    block: Any = torch.nn.Module.__new__(of or MLP)
    torch.nn.Module.__init__(block)
    block.config, block.activation_func = config, getattr(torch.nn.functional, config.activation_func)
    block.linear_fc1 = torch.nn.Linear(1, 1)
    adapter = torch.nn.Module.__new__(LinearAdapter)
    torch.nn.Module.__init__(adapter)
    block.linear_fc1.lora = adapter
    gated.fuse_activations({"mlp": block}, ["mlp.linear_fc1"])
    return type(block) is not (of or MLP)


def _run(block: Any, x: Tensor, adapter: Any, *, recompute: bool) -> list[Tensor]:
    torch.manual_seed(13)  # of the mask
    output = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)[0] if recompute else block(x)[0]
    leaves = [x, adapter.A, adapter.B] if adapter.active else [x]
    return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def _adapted_block(dropout: float) -> tuple[Any, Any]:
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.mlp import MLP, MLPSubmodules

    from megatron_trainer.lora.attach import attach
    from megatron_trainer.lora.layer import Settings
    from megatron_trainer.lora.placement import placement

    sizes = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 80}
    config = TransformerConfig(
        **sizes, gated_linear_unit=True, activation_func=torch.nn.functional.silu, add_bias_linear=False,
        bias_activation_fusion=True, use_cpu_initialization=True, params_dtype=torch.float16,
    )  # fmt: skip
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    block = MLP(config, linears, ffn_hidden_size=80)
    block.requires_grad_(False)
    numbers = Settings(rank=4, alpha=8, dropout=dropout, rank_stabilized=False, seed=1)
    place = placement("mlp.linear_fc1", block.linear_fc1.weight, config)
    adapter = LinearAdapter("mlp.linear_fc1", place, numbers)
    torch.manual_seed(17)
    torch.nn.init.normal_(adapter.B)
    attach(block.linear_fc1, adapter)
    return block, adapter


@contextmanager
def _count(module: Any) -> Iterator[SimpleNamespace]:
    """Counts the calls of add_swiglu."""
    calls, function = SimpleNamespace(count=0), module.add_swiglu

    def counted(*args: Tensor) -> Tensor:
        calls.count += 1
        result: Tensor = function(*args)
        return result

    with patch.object(module, "add_swiglu", counted):
        yield calls


def _blocks() -> Iterator[dict[str, float]]:
    from megatron_trainer import parallel
    from megatron_trainjob.args.tree import TrainArgs
    from tests.support.ranks import gpu_training

    swiglu.install()
    always = {"fits": lambda *_: True}
    with (
        tempfile.TemporaryDirectory() as folder,
        gpu_training.single_rank(Path(folder) / "store"),
        patch.multiple(fused, **always),
        patch.multiple(swiglu, **always),
    ):
        parallel.initialize(TrainArgs())
        yield block_errors(dropout=0.0, recompute=False)
        yield block_errors(dropout=0.3, recompute=True)
        yield block_errors(dropout=0.0, recompute=False, active=False)


def main() -> None:
    for case in CASES:
        found = {"errors": errors(case, "cpu", torch.float16), "bits": differing_bits(case, "cpu", torch.float16)}
        print(json.dumps({"case": asdict(case), **found}))
    for line in _blocks():
        print(json.dumps({"block": line}))


if __name__ == "__main__":
    sys.exit(main())
