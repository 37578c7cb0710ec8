"""The kernel of rotary embedding, which Triton interprets here; on a GPU: tests/gpu/test_gpu_rotation.py."""

import pytest

from tests.support.interpreted import lines_of

pytest.importorskip("triton")


def test_outputs_and_gradients_are_those_of_megatron_core():
    (errors,) = lines_of("tests.support.models.rotation_cases")
    assert errors
    assert max(errors.values()) <= 1e-3, "float16 keeps 11 bits"


def test_attention_has_the_same_outputs_and_gradients_and_unusual_layers_are_left_alone():
    (errors,) = lines_of("tests.support.models.rotation_layer")
    assert errors
    assert max(errors.values()) <= 1e-5, errors


def test_positions_start_anew_with_every_sequence_and_are_made_once():
    import torch
    from megatron.core.packed_seq_params import PackedSeqParams

    from megatron_trainer.megatron.patches import rotation

    bounds = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    found = rotation.positions_in(packed, 9)
    assert found.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    assert found.dtype == torch.int32
    assert rotation.positions_in(packed, 9) is found


def test_a_table_is_made_once_for_the_same_angles_also_of_a_recomputed_layer():
    import torch

    from megatron_trainer.megatron.patches import rotation

    freqs = torch.rand(5, 1, 1, 8)
    first = rotation._table(freqs, False)
    assert rotation._table(freqs.detach(), False) is first
    freqs.mul_(2)
    assert rotation._table(freqs, False) is not first
