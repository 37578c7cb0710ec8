"""Adam's kernel, which Triton interprets here; on a GPU, and in a training: tests/gpu/test_gpu_update.py."""

import pytest

from tests.support.interpreted import lines_of

pytest.importorskip("triton")


def test_a_step_is_that_of_torch_in_every_combination_of_types():
    lines = lines_of("tests.support.models.one_pass_adam")
    assert len(lines) == 16
    for line in lines:
        assert line["error"] <= 1e-6, line
        assert line["is_rounded"], line


def test_a_parameter_has_a_row_for_each_piece():
    import torch

    from megatron_trainer.megatron.patches.one_pass_adam import Numbers, rows_of

    main, gradient, first, second = torch.zeros(4, 40_000)
    (rows,) = rows_of([Numbers(main=main, gradient=gradient, first=first, second=second)], torch.ones(1)).values()
    assert rows.shape == (2, 6)
    assert rows[:, 5].tolist() == [32_768 // 16, (40_000 - 32_768) // 16]
    assert (rows[1, :4] - rows[0, :4]).tolist() == [32_768 * 4 // 16] * 4
