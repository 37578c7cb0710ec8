"""SwiGLU's gradient by our kernel beside autograd's: `python -m tests.support.models.swiglu_gradient [DEVICE]`.

Prints the largest error of each case relative to the largest of the expected. On the CPU Triton interprets the kernel
(TRITON_INTERPRET=1), which must be said before it is imported.
"""

from __future__ import annotations

import json
import sys

import torch

from megatron_trainer.megatron.patches import swiglu

CASES = ((3, 1000), (70, 129), (1, 1024), (5, 2049))
"""Tokens and width, few of them multiples of a block."""


def error(num_rows: int, width: int, device: str, dtype: torch.dtype) -> float:
    torch.manual_seed(5)
    both = (4 * torch.randn(2 * width, num_rows)).to(device, dtype).t()  # in another order in memory
    of_output = torch.randn(num_rows, width).to(device, dtype)
    found = swiglu.gradient(of_output, both).float()
    wide = both.float().requires_grad_()
    first, second = wide.chunk(2, -1)
    (expected,) = torch.autograd.grad(torch.nn.functional.silu(first) * second, wide, of_output.float())
    return ((found - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    dtype = torch.float16 if device == "cpu" else torch.bfloat16
    print(json.dumps([error(*case, device, dtype) for case in CASES]))
