"""TransformerEngine's layers and the local ones against transformers on one GPU: logits, gradients, exported weights.

float32 without TF32 differs by the order of sums only, so the bound is that of the CPU (1e-4; gradients relative to the
tensor's largest). bfloat16 keeps 8 bits: four layers may move a logit of size 10 by some 1e-2 of it, and a gradient by
as much again; both implementations are held to the same distance from the float32 truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.models import tiny_model
from tests.support.ranks import parity

pytestmark = pytest.mark.gpu

BOUND = 1e-4
BOUND_BF16 = {"logits": 0.15, "gradients": 0.08}
PACKED = ("llama", "qwen2", "glm4", "qwen3_moe", "deepseek_v3", "gpt_oss")
EXPERTS = ("qwen3_moe", "qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss")
FULL = {"recompute_granularity": "full", "recompute_num_layers": 1, "recompute_method": "uniform"}
RECOMPUTED: dict[str, dict[str, Any]] = {
    "full": FULL,
    **{name: {"recompute_modules": (name,)} for name in ("core_attn", "mlp", "moe", "layernorm", "mla_up_proj")},
    "moe_act": {"recompute_modules": ("moe_act",), "moe_grouped_gemm": True},
}


def compare(directory: Path, record: Any, *, packed: bool = False, **settings: Any) -> parity.Differences:
    parity.make_reference(directory, packed=packed)
    found = parity.compare(directory, settings, packed=packed)
    for name in ("logits", "gradients", "worst"):
        record(name, getattr(found, name))
    return found


def check(directory: Path, record: Any, *, packed: bool = False, **settings: Any) -> None:
    found = compare(directory, record, packed=packed, **settings)
    assert found.changed == ()
    assert found.no_gradient == ()
    assert found.logits <= BOUND
    assert found.gradients <= BOUND, found.worst


@pytest.mark.parametrize("name", sorted(tiny_model.MODELS))
def test_every_family_on_transformer_engine_equals_transformers(name: str, model_root: Path, record_property):
    if not tiny_model.is_known_to_transformers(name):
        pytest.skip(f"this version of transformers has no code for {name}")
    check(tiny_model.make(name, model_root), record_property)


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_on_transformer_engine_equal_transformers(name: str, model_root: Path, record_property):
    check(tiny_model.make(name, model_root), record_property, packed=True)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_local_layers_on_a_gpu_equal_transformers(name: str, packed: bool, model_root: Path, record_property):
    check(tiny_model.make(name, model_root), record_property, packed=packed, transformer_impl="local")


@pytest.mark.parametrize("implementation", ["transformer_engine", "local"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "glm4"])
def test_both_implementations_are_as_near_to_the_truth_in_bfloat16(
    name: str, packed: bool, implementation: str, model_root: Path, record_property
):
    directory = tiny_model.make(name, model_root, dtype="bfloat16")
    settings = {"transformer_impl": implementation, "torch_dtype": "bfloat16"}
    found = compare(directory, record_property, packed=packed, **settings)
    assert found.changed == (), "weights come out of an export bit by bit"
    assert found.no_gradient == ()
    assert found.logits <= BOUND_BF16["logits"]
    assert found.gradients <= BOUND_BF16["gradients"], found.worst


@pytest.mark.parametrize("settings", [{}, {"moe_permute_fusion": True}], ids=["plain", "permute-fusion"])
@pytest.mark.parametrize("name", EXPERTS)
def test_grouped_experts_equal_transformers_as_sequential_ones_do(
    name: str, settings: dict[str, Any], model_root: Path, record_property
):
    check(tiny_model.make(name, model_root), record_property, moe_grouped_gemm=True, **settings)


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_overlapped_shared_experts_equal_transformers(name: str, model_root: Path, record_property):
    check(tiny_model.make(name, model_root), record_property, moe_shared_expert_overlap=True)


@pytest.mark.parametrize("settings", RECOMPUTED.values(), ids=RECOMPUTED.keys())
def test_recomputed_activations_give_the_same_gradients(settings, model_root: Path, record_property):
    given = {"recompute_granularity": "selective", **settings}
    check(tiny_model.make("deepseek_v3", model_root), record_property, **given)
