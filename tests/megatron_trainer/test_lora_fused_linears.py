"""Adapters on linears with TransformerEngine's contract, by stand-ins in plain torch; the real ones need a GPU."""

import pytest

from tests.support.models import tiny_model
from tests.support.ranks import lora_stand_ins
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist


def test_an_adapter_beside_a_fused_norm_sees_what_the_norm_puts_out():
    """Sums of 16 products of numbers about 1: an error of some 1e-6."""
    for error in gloo_ranks(1).run(lora_stand_ins.fused_norm_errors)[0]:
        assert error <= 1e-4


def test_grouped_experts_equal_experts_one_by_one_also_without_tokens():
    ((difference, idle),) = gloo_ranks(1).run(lora_stand_ins.grouped_errors)
    assert difference <= 1e-4
    assert idle == 0.0


@pytest.mark.parametrize("layout", [{}, {"expert_model_parallel_size": 2}], ids=["whole", "EP2"])
def test_grouped_experts_lie_in_a_checkpoint_where_experts_one_by_one_do(tmp_path, layout):
    directory = str(tiny_model.make("qwen3_moe", tmp_path))
    for separate, grouped in gloo_ranks(2 if layout else 1).run(lora_stand_ins.grouped_entries, directory, **layout):
        assert len(separate) == (4 if layout else 8)
        assert grouped == separate
