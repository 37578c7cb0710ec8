"""Models with a vision tower against transformers: text, one image, three of odd sizes, a video and both, in one step.

Bounds as in test_models_parity. The samples of a micro-batch are packed into one row here and run one by one there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_trainer.lora.parts import part_of
from megatron_trainjob.families import read
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks import image_models, image_parity
from tests.support.ranks.pool import gloo_ranks

BOUND = 1e-4
BOUNDS = {"gemma4_causal": 2e-4}
"""Of gradients. Its features are neither bounded nor standardized, so that transformers' own gradients in float32
differ from those in float64 by 2.8e-5, where Qwen2.5-VL's differ by 2.1e-6."""
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "padded": (1, {"padding_free": False}),
    "recomputed": (1, {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}),
    "tp2": (2, {"tensor_model_parallel_size": 2}),
    "tp2 sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
    "cp2": (2, {"context_parallel_size": 2}),
    "cp2 padded": (2, {"context_parallel_size": 2, "padding_free": False}),
    "dp2": (2, {}),
    "dp2 overlapped": (2, {"overlap_grad_reduce": True}),
}
OF_EXPERTS: dict[str, tuple[int, dict[str, Any]]] = {
    "ep2": (2, {"expert_model_parallel_size": 2}),
    "tp2 ep2": (
        2,
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "expert_model_parallel_size": 2,
            "expert_tensor_parallel_size": 1,
        },
    ),
}


QUICK_LAYOUTS = ("one rank", "padded", "tp2 sp", "pp2", "cp2", "dp2 overlapped")
QUICK = [
    *(("qwen2_vl", "one rank"), ("qwen3_vl", "tp2 sp"), ("qwen3_vl", "pp2"), ("qwen3_vl_moe", "ep2")),
    *(("qwen3_5", "pp2"), ("qwen3_5_moe", "one rank"), ("glm4v", "cp2"), ("internvl", "tp2 sp")),
    *(("internvl_qwen3", "one rank"), ("internvl_qwen3_moe", "one rank"), ("internvl_gpt_oss", "one rank")),
    *(("glm4v_moe", "one rank"), ("gemma4", "one rank"), ("gemma4", "cp2")),
    *(("llama4", "one rank"), ("llama4", "tp2 ep2")),
]
"""Cases of `make test`, one of each family and of each kind of layout; the others are slow."""
FROZEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, {"llm", "vit", "aligner"}),
    "llm": ({"freeze_llm": True}, {"vit", "aligner"}),
    "vit": ({"freeze_vit": True}, {"llm", "aligner"}),
    "vit and aligner": ({"freeze_vit": True, "freeze_aligner": True}, {"llm"}),
}


def vision_of(directory: Path) -> Any:
    return read(json.loads((directory / "config.json").read_text())).vision


def check(found: Any, bound: float = BOUND) -> None:
    assert found.changed == ()
    assert found.logits <= BOUND
    assert found.loss <= BOUND / 10
    assert found.gradients <= bound, found.worst


def compared(name: str, layout: str, root: Path, adapter: Path | None = None, **settings: Any) -> Any:
    """What the first rank found; the others have found nothing worse. adapter: of peft, in place of the model alone."""
    directory = tiny_model.make(name, root)
    reference = adapter or image_parity.make_reference(directory, vision_of(directory))
    ranks, arguments = {**LAYOUTS, **OF_EXPERTS}[layout]
    every = gloo_ranks(ranks).run(image_parity.compare, directory, {**arguments, **settings}, reference=reference)
    for found in every:
        check(found, BOUNDS.get(name, BOUND))
    return every[0]


@pytest.mark.dist
@pytest.mark.parametrize("layout", mostly_slow(LAYOUTS, QUICK_LAYOUTS))
def test_images_and_videos_give_the_logits_and_gradients_of_transformers(layout: str, model_root: Path):
    found = compared("qwen2_5_vl", layout, model_root)
    assert 0 <= found.tower <= BOUND
    assert any(name.startswith("visual.blocks.0.") for name in found.trained)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "layout"),
    mostly_slow(
        [
            *(("qwen2_vl", layout) for layout in ("one rank", "tp2 sp", "pp2")),
            *(("qwen3_vl", layout) for layout in LAYOUTS),
            *(("qwen3_vl_moe", layout) for layout in ("one rank", "padded", "tp2 sp", "pp2", "cp2", "ep2", "tp2 ep2")),
            *(("qwen3_5", layout) for layout in LAYOUTS if layout not in ("tp2", "cp2", "cp2 padded")),
            *(("qwen3_5_moe", layout) for layout in ("one rank", "padded", "tp2 sp", "pp2", "ep2", "tp2 ep2")),
            *(("glm4v", layout) for layout in LAYOUTS),
            *(("glm4v_moe", layout) for layout in (*LAYOUTS, *OF_EXPERTS) if layout != "tp2"),
            *(("gemma4", layout) for layout in (*LAYOUTS, *OF_EXPERTS) if layout != "tp2"),
            *(("gemma4_causal", layout) for layout in ("one rank", "padded", "tp2 sp", "pp2", "cp2")),
            *(("llama4", layout) for layout in (*LAYOUTS, *OF_EXPERTS) if layout != "tp2"),
            *(("internvl", layout) for layout in LAYOUTS),
            *(("internvl_qwen3", layout) for layout in ("one rank", "tp2 sp", "pp2", "cp2")),
            *(("internvl_qwen3_moe", layout) for layout in ("one rank", "padded", "tp2 sp", "pp2", "ep2", "tp2 ep2")),
            *(("internvl_gpt_oss", layout) for layout in ("one rank", "pp2", "ep2")),
        ],
        QUICK,
    ),
)
def test_every_family_with_images_equals_transformers(name: str, layout: str, model_root: Path):
    """Qwen3-VL adds states of its tower to the outputs of layers, which recomputation and pipelines must not mix up."""
    compared(name, layout, model_root)


@pytest.mark.dist
@pytest.mark.parametrize(
    "frozen", mostly_slow([kind for kind in FROZEN if kind != "nothing"], ("llm", "vit and aligner"))
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str, model_root: Path):
    settings, parts = FROZEN[frozen]
    found = compared("qwen2_5_vl", "one rank", model_root, **settings)
    assert {part_of(name) for name in found.trained} == parts


ADAPTED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    **{frozen: ("qwen2_5_vl", "one rank", frozen, {}) for frozen in FROZEN},
    **{layout: ("qwen2_5_vl", layout, "nothing", {}) for layout in ("tp2", "tp2 sp", "pp2", "cp2", "dp2 overlapped")},
    "reentrant": ("qwen2_5_vl", "one rank", "nothing", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
    "deep features recomputed": ("qwen3_vl", "recomputed", "nothing", {}),
    **{
        f"tiles, {layout}, {frozen}": ("internvl", layout, frozen, {})
        for layout, frozen in (
            *(("one rank", frozen) for frozen in FROZEN),
            *((layout, "nothing") for layout in ("tp2 sp", "pp2", "cp2")),
        )
    },
    **{f"glm4v, {layout}": ("glm4v", layout, "nothing", {}) for layout in ("one rank", "tp2 sp", "pp2", "cp2")},
    **{
        f"{name}, {layout}": (name, layout, "nothing", {})
        for name in ("glm4v_moe", "gemma4", "llama4")
        for layout in ("one rank", "tp2 ep2", "pp2", "ep2")
    },
    "gemma4, cp2": ("gemma4", "cp2", "nothing", {}),
    "llama4, cp2": ("llama4", "cp2", "nothing", {}),
    "llama4, vit": ("llama4", "one rank", "vit", {}),
    "llama4, reentrant": ("llama4", "one rank", "nothing", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
    "gemma4, vit": ("gemma4", "one rank", "vit", {}),
    "gemma4 without bounds": ("gemma4_causal", "one rank", "nothing", {}),
    "gemma4, reentrant": ("gemma4", "one rank", "nothing", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
    "tiles, reentrant": ("internvl", "one rank", "nothing", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
    "tiles before experts": ("internvl_qwen3_moe", "one rank", "nothing", {}),
    "tiles before stacked experts": ("internvl_gpt_oss", "one rank", "nothing", {}),
    "stacked experts": ("qwen3_vl_moe", "one rank", "nothing", {"target_modules": ["all-linear", "all-router"]}),
    "stacked experts over ep2": ("qwen3_vl_moe", "ep2", "nothing", {}),
    **{f"delta nets, {layout}": ("qwen3_5", layout, "nothing", {}) for layout in ("one rank", "tp2 sp", "pp2")},
    **{f"delta nets and experts, {layout}": ("qwen3_5_moe", layout, "nothing", {}) for layout in ("one rank", "ep2")},
    **{
        f"beside a tower in full, {name}, {layout}": (name, layout, "nothing", {"train_type": "lora_llm"})
        for name, layout in (
            ("qwen2_5_vl", "one rank"),
            ("qwen2_5_vl", "tp2 sp"),
            ("qwen3_vl", "one rank"),
            ("qwen3_5_moe", "ep2"),
            ("internvl", "one rank"),
            ("internvl_qwen3", "tp2 sp"),
            ("gemma4", "one rank"),
            ("llama4", "one rank"),
        )
    },
}
"""The model, the layout, what is frozen, and further arguments."""
QUICK_ADAPTED = ("vit", "tp2 sp", "stacked experts", "delta nets, one rank", "tiles, one rank, nothing") + (
    *("glm4v, one rank", "gemma4, one rank", "llama4, one rank", "beside a tower in full, qwen3_vl, one rank"),
)


@pytest.mark.dist
@pytest.mark.parametrize("case", mostly_slow(ADAPTED, QUICK_ADAPTED))
def test_adapters_on_all_linears_are_those_of_peft(case: str, tmp_path: Path, model_root: Path):
    """Adapters of the tower and of experts are random, so that peft has to load them; they and their gradients are
    compared.
    """
    name, layout, frozen, more = ADAPTED[case]
    settings, parts = FROZEN[frozen]
    directory = tiny_model.make(name, model_root)
    (adapted,) = gloo_ranks(1).run(image_models.write_adapter, directory, {**settings, **more}, tmp_path / "adapter")
    reference = image_parity.make_reference(directory, vision_of(directory), tmp_path / "adapter")
    found = compared(name, layout, model_root, reference, **{"train_type": "lora", **settings, **more})
    assert {part_of(name) for name in found.trained} == parts
    assert {part_of(name) for name in adapted} == (parts & {"llm"} if "train_type" in more else parts)
    assert (found.tower >= 0) == bool(parts - {"llm"})


@pytest.mark.dist
@pytest.mark.parametrize(
    "name", mostly_slow(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llama4"], ["qwen2_5_vl", "llama4"])
)
def test_a_tower_in_bfloat16_keeps_its_frequencies_in_float32(name: str, model_root: Path):
    (difference,) = gloo_ranks(1).run(image_models.features_in_half, tiny_model.make(name, model_root))
    assert difference == 0.0


@pytest.mark.dist
def test_image_tokens_without_an_image_are_an_error(model_root: Path):
    (said,) = gloo_ranks(1).run(image_models.refusal_of_lost_images, tiny_model.make("qwen2_5_vl", model_root))
    assert said == "1 tokens stand for images and videos, of which there are features for 0"
