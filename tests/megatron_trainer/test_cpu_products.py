"""backend/cpu_products.py: bfloat16 products through float32, forward and backward, in a process of their own."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from megatron_trainer.backend import cpu_products


def operands(*shapes, dtype):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def results(dtype):
    """Each kind of product, and the gradients of everything that went into one."""
    x, w, bias, left, right, added = given = operands(
        (7, 33), (5, 33), (5,), (3, 4, 9), (3, 9, 6), (3, 4, 6), dtype=dtype
    )
    linear = torch.nn.functional.linear
    outputs = [linear(x, w), linear(x, w, bias), left @ right, torch.baddbmm(added, left, right, beta=0.5, alpha=2.0)]
    sum((each.float() ** 2).sum() for each in outputs).backward()
    return [each.detach() for each in (*outputs, *(each.grad for each in given))]


def before_and_after():
    before = {dtype: results(dtype) for dtype in (torch.bfloat16, torch.float32)}
    cpu_products.replace()
    cpu_products.replace()
    x, w = (each.detach() for each in operands((7, 33), (5, 33), dtype=torch.bfloat16))
    rounded_once = torch.equal(x @ w.T, (x.float() @ w.float().T).bfloat16())
    return before, {dtype: results(dtype) for dtype in before}, rounded_once


def test_products_are_those_of_float32_rounded_once():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        before, after, rounded_once = process.submit(before_and_after).result(timeout=120)
    assert rounded_once
    for was, now in zip(before[torch.bfloat16], after[torch.bfloat16], strict=True):
        assert now.dtype is torch.bfloat16
        torch.testing.assert_close(now, was, rtol=0.02, atol=0.02)
    assert all(map(torch.equal, before[torch.float32], after[torch.float32])), "other types are as they were"
