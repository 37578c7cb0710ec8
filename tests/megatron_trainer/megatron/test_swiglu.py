"""SwiGLU's gradient by the kernel, which Triton interprets here; on a GPU: tests/gpu/test_gpu_lora.py."""

import pytest

from tests.support.interpreted import lines_of

pytest.importorskip("triton")


def test_the_kernels_gradient_is_that_of_autograd():
    (errors,) = lines_of("tests.support.models.swiglu_gradient")
    assert max(errors) <= 1e-3, "float16 keeps 11 bits"
