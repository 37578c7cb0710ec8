"""Adam's kernel beside the same in torch: `python -m tests.support.models.one_pass_adam [DEVICE]`.

Prints, for each case, the largest difference of main parameters, and whether moments and weights are rounded to their
types as they should be, to the last bit but one (the interpreter cuts bfloat16 off). On the CPU Triton interprets the
kernel (TRITON_INTERPRET=1), which must be said before it is imported.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch
from torch import Tensor

from megatron_trainer.megatron.patches import one_pass_adam, remainders
from megatron_trainer.megatron.patches.one_pass_adam import Numbers, Settings

SIZES = ((32_784, 16), (13, 32_769))
"""Of parameters: multiples of 16 elements, which are loaded 16 bytes at a time, and others."""
TYPES = (torch.float32, torch.bfloat16)
SETTINGS = Settings(rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1, step=3)
FACTOR = 0.3


def expected(main: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    """Main parameter and moments after the step, in float32."""
    beta1, beta2, count = SETTINGS.beta1, SETTINGS.beta2, SETTINGS.step
    gradient = numbers.gradient.float() * FACTOR
    first = beta1 * numbers.first.float() + (1 - beta1) * gradient
    second = beta2 * numbers.second.float() + (1 - beta2) * gradient**2
    change = (first / (1 - beta1**count)) / ((second / (1 - beta2**count)).sqrt() + SETTINGS.eps)
    return main - SETTINGS.rate * (change + SETTINGS.decay * main), first, second


def numbers_of(main: Tensor, of_gradient: torch.dtype, of_state: torch.dtype, *, is_split: bool) -> Numbers:
    gradient, first = torch.randn_like(main).to(of_gradient), torch.randn_like(main).to(of_state)
    tensors = {"gradient": gradient, "first": first, "second": torch.rand_like(main).to(of_state)}
    if is_split:
        weight, remainder = remainders.split(main, main.bfloat16())
        return Numbers(main=weight, remainder=remainder, **tensors)
    return Numbers(main=main.clone(), weight=torch.empty_like(main, dtype=torch.bfloat16), **tensors)


def main_of(numbers: Numbers) -> Tensor:
    return numbers.main if numbers.remainder is None else remainders.rebuilt(numbers.main, numbers.remainder)


def is_rounded(found: Tensor, exact: Tensor) -> bool:
    """Up to the last bit."""
    return bool(((found.float() - exact).abs() <= torch.finfo(found.dtype).eps * exact.abs() + 1e-7).all())


def case(sizes: tuple[int, ...], *types: torch.dtype, is_split: bool, device: str) -> dict[str, object]:
    torch.manual_seed(5)
    mains = [torch.randn(size, device=device) for size in sizes]
    numbers = [numbers_of(main, *types, is_split=is_split) for main in mains]
    wanted = [expected(main, each) for main, each in zip(mains, numbers, strict=True)]
    factor = torch.tensor([FACTOR], device=device)
    one_pass_adam.step(one_pass_adam.rows_of(numbers, factor), factor, SETTINGS)
    rounded = [
        is_rounded(found, exact)
        for each, (_, first, second) in zip(numbers, wanted, strict=True)
        for found, exact in ((each.first, first), (each.second, second), (each.weight, each.main.float()))
        if found is not None
    ]
    errors = [(main_of(each) - main).abs().max().item() for each, (main, *_) in zip(numbers, wanted, strict=True)]
    return {"case": f"{sizes} {types} {is_split}", "error": max(errors), "is_rounded": all(rounded)}


if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    for sizes, *types, is_split in itertools.product(SIZES, TYPES, TYPES, (False, True)):
        print(json.dumps(case(sizes, *types, is_split=is_split, device=device)))
