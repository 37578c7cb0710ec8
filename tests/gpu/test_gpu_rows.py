"""What takes a shorter way on a GPU has the numbers of the longer one: rows of one sample each, a tower's windows."""

from __future__ import annotations

from copy import deepcopy

import pytest

pytestmark = pytest.mark.gpu

SHORTER_THAN_ALL = 32
"""Tokens: to these, all samples are cut."""


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_samples_of_one_length_have_the_losses_that_they_have_packed(train, monkeypatch, dtype, tolerance):
    from megatron_trainer import parallel

    are_rows: list[bool] = []
    parameters = parallel.packed_sequence_parameters

    def noted(batch):
        are_rows.append(batch.cu_seqlens is None)
        return parameters(batch)

    monkeypatch.setattr(parallel, "packed_sequence_parameters", noted)
    given = {
        "torch_dtype": dtype,
        "padding_free": True,
        "max_length": SHORTER_THAN_ALL,
        "truncation_strategy": "right",
        "micro_batch_size": 2,
    }
    rows = train(**given)
    assert are_rows
    assert all(are_rows)
    monkeypatch.setattr("megatron_trainer.train.setup.takes_whole_rows", lambda *_: False)
    are_rows.clear()
    packed = train(**given)
    assert not any(are_rows)
    assert rows.losses == pytest.approx(packed.losses, abs=tolerance)


def test_windows_joined_in_one_call_have_the_features_and_gradients_of_one_call_each():
    import torch
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl as configuration
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    from megatron_trainer.models import joined_attention

    assert joined_attention.is_available(torch.device("cuda"), torch.bfloat16)
    config = configuration.Qwen2_5_VLVisionConfig(
        depth=2,
        hidden_size=160,
        num_heads=2,
        intermediate_size=128,
        out_hidden_size=64,
        fullatt_block_indexes=[1],
        window_size=56,
    )
    torch.manual_seed(1)
    tower = modeling.Qwen2_5_VisionTransformerPretrainedModel._from_config(
        config, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).cuda()
    joined = deepcopy(tower)
    joined_attention.join(joined)
    assert type(joined.blocks[0].attn) is not type(tower.blocks[0].attn)
    grid = torch.tensor([[1, 8, 12], [1, 16, 4]], device="cuda")
    pixels = torch.randn(160, 3 * 2 * 14 * 14, device="cuda", dtype=torch.bfloat16)
    found = []
    for model in (tower, joined):
        output = model(pixels, grid_thw=grid)
        features = getattr(output, "pooler_output", output)
        features.float().square().sum().backward()
        found.append([features.detach(), *(parameter.grad for parameter in model.parameters())])
    for expected, own in zip(*found, strict=True):
        scale = expected.float().norm().clamp(min=1e-6)
        assert ((own.float() - expected.float()).norm() / scale).item() <= 3e-2
