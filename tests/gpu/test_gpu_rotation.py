"""Our kernel of rotary embedding on a GPU: its numbers are megatron-core's and TransformerEngine's, and it runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.models import tiny_model

pytestmark = pytest.mark.gpu

KERNEL = "_fused_rope"
RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
BF16: dict[str, Any] = {"torch_dtype": "bfloat16", "recompute_granularity": "none"}


def test_outputs_and_gradients_are_those_of_megatron_core():
    import torch

    from tests.support.models import rotation_cases

    errors = {
        name: max(rotation_cases.errors(case, "cuda", torch.bfloat16)) for name, case in rotation_cases.CASES.items()
    }
    assert max(errors.values()) <= 1e-2, errors


def test_queries_are_rounded_as_by_transformer_engine():
    import torch
    from megatron.core.extensions.transformer_engine import fused_apply_rotary_pos_emb_thd

    from tests.support.models import rotation_cases

    case = rotation_cases.Case(lengths=(900, 1, 350), groups=8, queries=4, head=128, rotated=128)
    tokens, queries = sum(case.lengths), case.queries * case.head
    mixed = torch.randn(tokens, 1, case.groups, queries + 2 * case.head, device="cuda").bfloat16()
    found = rotation_cases.parts_of(case, mixed)[0][:, 0]
    query = mixed[..., :queries].reshape(tokens, -1, case.head)
    packed, freqs = rotation_cases.packed_of(case), rotation_cases.angles_of(case).cuda()
    assert packed is not None
    wanted = fused_apply_rotary_pos_emb_thd(query, packed.cu_seqlens_q.cuda(), freqs)
    assert ((found != wanted).float().mean() <= 1e-2).item(), "sums may differ in float32's last bit"
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-5)


def test_positions_are_made_without_asking_the_card():
    import torch
    from megatron.core.packed_seq_params import PackedSeqParams

    from megatron_trainer.megatron.patches import rotation

    bounds = torch.tensor([0, 5, 5, 9], dtype=torch.int32).cuda()
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = rotation.positions_in(packed, 11)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "given", [{"padding_free": True}, {}, RECOMPUTED], ids=["padding_free", "padded", "recomputed"]
)
def test_losses_and_gradients_are_those_without_the_kernel(train, model_root, monkeypatch, name, given):
    settings = {**BF16, **given, "model": tiny_model.make(name, model_root), "count_kernels": True}
    ours = train(**settings)
    monkeypatch.setattr("megatron_trainer.megatron.patches.rotation.takes", lambda *_: False)
    theirs = train(**settings)
    counts = [sum(n for kernel, n in run.kernels.items() if kernel.startswith(KERNEL)) for run in (ours, theirs)]
    assert counts[0] > counts[1] == 0
    assert not any("fused_rope_forward" in kernel for kernel in ours.kernels)
    assert ours.losses == pytest.approx(theirs.losses, abs=0.02)
    assert ours.run.column("grad_norm") == pytest.approx(theirs.run.column("grad_norm"), rel=0.05)
