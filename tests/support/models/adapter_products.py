"""An adapter's fused products beside the same in float32: `python -m tests.support.models.adapter_products [DEVICE]`.

Prints one JSON line a case: largest errors of output and gradients, relative to the largest of the expected. On the CPU
Triton interprets its kernels (TRITON_INTERPRET=1), which must be said before it is imported.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from megatron_trainer.lora import fused, kernels

SCALE = 1.7


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tokens, inputs, outputs, rank; none of them a multiple of a block."""

    tokens: int
    inputs: int
    outputs: int
    rank: int
    dropout: float


CASES = (
    Case(tokens=70, inputs=200, outputs=40, rank=8, dropout=0.0),
    Case(tokens=33, inputs=129, outputs=72, rank=20, dropout=0.3),
    Case(tokens=130, inputs=300, outputs=16, rank=16, dropout=0.05),
)


def errors(case: Case, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Of output, the layer's own share of x's gradient included, and of every gradient."""
    torch.manual_seed(3)
    shapes = {
        "x": (case.tokens, 1, case.inputs),
        "y": (case.tokens, 1, case.outputs),
        "a": (case.rank, case.inputs),
        "b": (case.outputs, case.rank),
        "of_x": (case.tokens, 1, case.inputs),
        "of_y": (case.tokens, 1, case.outputs),
    }
    given = {name: torch.randn(shape).to(device, dtype) for name, shape in shapes.items()}
    x, a, b = (given[name].requires_grad_() for name in "xab")
    passed, low = fused.branch(x, a, scale=SCALE, dropout=case.dropout)
    kept = _mask_of(low.grad_fn, case).to(device)
    result = fused.add_up(given["y"].clone(), low, b)
    ours = torch.autograd.grad([result, passed], [x, a, b], [given["of_y"], given["of_x"]])
    truth = {name: value.detach().float().requires_grad_() for name, value in given.items()}
    low_truth = (truth["x"] * kept[:, None]) @ truth["a"].T * SCALE
    result_truth = truth["y"] + low_truth @ truth["b"].T
    expected = torch.autograd.grad(result_truth, [truth[name] for name in "xab"], truth["of_y"])
    expected = (expected[0] + truth["of_x"], *expected[1:])
    found = zip(("output", "x", "a", "b"), (result, *ours), (result_truth, *expected), strict=True)
    return {name: _relative(mine, theirs) for name, mine, theirs in found}


def kept_fraction(num_rows: int, width: int, dropout: float, device: str) -> float:
    """Of a drawn mask."""
    mask = kernels.packed_mask(torch.empty(num_rows, width, device=device), dropout, torch.tensor([11], device=device))
    return _unpacked(mask, width).mean().item()


def _mask_of(node: object, case: Case) -> Tensor:
    """[N, I]: what each element was multiplied with."""
    mask = node.saved_tensors[2]  # type: ignore[attr-defined]
    if mask is None:
        return torch.ones(case.tokens, case.inputs)
    return _unpacked(mask, case.inputs).cpu() / kernels.kept_fraction(case.dropout)


def _unpacked(mask: Tensor, width: int) -> Tensor:
    bits = (mask[:, :, None].int() >> torch.arange(8, device=mask.device)) & 1
    return bits.flatten(1)[:, :width].float()


def _relative(ours: Tensor, expected: Tensor) -> float:
    return ((ours.float() - expected).abs().max() / expected.abs().max()).item()


def main(device: str) -> None:
    dtype = torch.float16 if device == "cpu" else torch.bfloat16
    for case in CASES:
        print(json.dumps({"case": asdict(case), "errors": errors(case, device, dtype)}))
    print(json.dumps({"kept": {dropout: kept_fraction(512, 500, dropout, device) for dropout in (0.05, 0.3)}}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
