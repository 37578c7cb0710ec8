"""The kernel of rotary embedding, which Triton interprets here; on a GPU: tests/gpu/test_gpu_rotation.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]


def run(module: str) -> dict[str, float]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "MTJ_DEVICE": "cpu"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    errors: dict[str, float] = json.loads(done.stdout)
    return errors


def test_outputs_and_gradients_are_those_of_megatron_core():
    errors = run("tests.support.models.rotation_cases")
    assert errors
    assert max(errors.values()) <= 1e-3, "float16 keeps 11 bits"


def test_attention_has_the_same_outputs_and_gradients_and_unusual_layers_are_left_alone():
    errors = run("tests.support.models.rotation_layer")
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
