"""The vision tower as it is built for training, without ranks."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from megatron_trainer import backend
from megatron_trainer.lora.freeze import frozen_names
from megatron_trainer.lora.inject import notes_about_the_tower
from megatron_trainer.lora.parts import gets_no_adapter
from megatron_trainer.lora.select import kind, saved_modules, targets
from megatron_trainer.models.spec import read_model
from megatron_trainer.models.tower import build_tower, features, layers_and_first
from megatron_trainer.report.flops import flops_per_patch
from megatron_trainjob.args.head import modules_to_save
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES, read
from megatron_trainjob.memory.tower import trained_parameters
from tests.support.models.tiny_model import MODELS, SEEING_MODELS, config_of


def stored_type(name):
    kind = MODELS[name][0]
    return FAMILIES[kind].stored_type or kind


@pytest.mark.parametrize("name", sorted(SEEING_MODELS))
def test_reentrant_recomputation_trains_layers_behind_frozen_patches(tmp_path: Path, name: str):
    """As under LoRA: the input of the first layer has no gradient by itself, and its weights would get none."""
    (tmp_path / "config.json").write_text(
        json.dumps({**config_of(name).to_dict(), "model_type": stored_type(name)}, default=str)
    )
    args = TrainArgs(gradient_checkpointing_kwargs={"use_reentrant": True}, torch_dtype="float32")
    spec = read_model(tmp_path, args)
    tower = build_tower(spec, args, backend.select()).train()
    tower.requires_grad_(False)
    layers, _ = layers_and_first(tower)
    layers[0].requires_grad_(True)
    pixels, grid = picture(spec.model.vision)
    features(tower, spec.model.vision, pixels, grid)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layers[0].parameters())


CHOICES = {
    "frozen": {},
    "tower": {"freeze_vit": False},
    "aligner": {"freeze_aligner": False},
    "chosen parameters": {"trainable_parameters": ("visual.",), "freeze_vit": False},
    "chosen parameters of a frozen tower": {"trainable_parameters_regex": "norm"},
    "frozen by name": {"freeze_vit": False, "freeze_parameters": ("visual.",)},
    "frozen by expression": {"freeze_vit": False, "freeze_parameters_regex": "attn|attention"},
    "LoRA": {"train_type": "lora"},
    "LoRA of the tower": {"train_type": "lora", "freeze_vit": False},
    "LoRA by name": {"train_type": "lora", "target_modules": ("linear_qkv", "proj", "projection_layer")},
    "LoRA by expression": {"train_type": "lora", "target_regex": r"visual\..*(qkv|q_proj)"},
    "LoRA of the decoder by expression": {"train_type": "lora", "target_regex": r"decoder.*", "freeze_vit": False},
    "a module in full": {"train_type": "lora", "modules_to_save": ("merger", "multi_modal_projector")},
    "the tower in full": {"train_type": "lora_llm"},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_the_estimate_counts_what_trains_of_the_tower(tmp_path: Path, name: str, choice: str):
    (tmp_path / "config.json").write_text(
        json.dumps({**config_of(name).to_dict(), "model_type": stored_type(name)}, default=str)
    )
    args = TrainArgs(**CHOICES[choice])
    spec = read_model(tmp_path, args)
    tower = build_tower(spec, args, backend.select())
    sizes = {f"visual.{key}": value.numel() for key, value in tower.named_parameters()}
    if args.train_type == "full":
        trained = sum(sizes[key] for key in sizes.keys() - frozen_names(sizes, args))
    else:
        modules = {f"visual.{key}".rstrip("."): module for key, module in tower.named_modules()}
        whole = saved_modules(modules, modules_to_save(args)).names
        kinds = {key: found for key, module in modules.items() if (found := kind(key, module)) is not None}
        adapted = targets(
            kinds, args.target_modules, args.target_regex, is_left_out=lambda key: gets_no_adapter(key, args)
        ).names
        in_full = {key for key in sizes for module in whole if key.startswith(f"{module}.")}
        trained = sum(sizes[key] for key in in_full)
        trained += args.lora_rank * sum(
            sum(modules[key].weight.shape) for key in adapted if f"{key}.weight" not in in_full
        )
    assert trained_parameters(args, spec.model.vision) == trained
    assert (trained > 0) == (choice not in ("frozen", "frozen by name", "LoRA", "LoRA of the decoder by expression"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("linear_qkv", "gate_proj"), "gate_proj is a module of the vision tower alone; linear_fc1 has it in"),
        (("linear_fc1", "gate_proj"), ""),
        (("all-linear",), ""),
        (("qkv",), ""),
        (("linear_fc2",), "adapts modules of the vision tower too, frozen or not; target_regex: decoder.*linear_fc2"),
    ],
)
def test_names_that_mean_something_in_the_tower_are_told(given, said):
    """The gate of Qwen2.5-VL's tower, which is fused in the decoder, and linear_fc2, which Qwen3-VL's tower has too."""
    layer, block = "decoder.layers.0.mlp.", "visual.blocks.0.mlp."
    names = (f"{layer}linear_fc1", f"{layer}linear_fc2", f"{block}gate_proj", f"{block}linear_fc2")
    kinds = dict.fromkeys(names, "linear")
    messages = list(notes_about_the_tower(kinds, TrainArgs(train_type="lora", target_modules=given)))
    assert [said in message for message in messages] == ([True] if said else [])
    assert not list(notes_about_the_tower(kinds, TrainArgs(target_modules=given, freeze_llm=True)))


def picture(vision):
    """An image of the model: its patches and their grid."""
    grid = (2, 4, 4) if vision.tile else (1, 4, 6)
    return torch.randn(math.prod(grid), vision.patch_values), torch.tensor([grid])


@pytest.mark.parametrize("name", sorted(name for name in SEEING_MODELS if "internvl" not in name))
def test_frequencies_stay_float32_tensors_beside_weights_in_bfloat16(tmp_path: Path, name: str):
    """transformers calls them as tensors, in some versions .float() and in others .to(device=...)."""
    (tmp_path / "config.json").write_text(
        json.dumps({**config_of(name).to_dict(), "model_type": stored_type(name)}, default=str)
    )
    args = TrainArgs(torch_dtype="bfloat16")
    tower = build_tower(read_model(tmp_path, args), args, backend.select())
    before = {key: values.clone() for key, values in tower.named_buffers()}
    tower.bfloat16()
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    frequencies = {key: values for key, values in tower.named_buffers() if key.endswith(("inv_freq", "freqs_ci"))}
    assert frequencies
    for key, values in frequencies.items():
        assert values.dtype in (torch.float32, torch.complex64)
        assert values.equal(before[key])


@pytest.mark.parametrize("name", sorted(SEEING_MODELS))
def test_flops_of_a_patch_are_those_that_torch_counts(name):
    """Forward alone where tower and aligner are frozen, three times that where they train."""
    whole = AutoModelForImageTextToText.from_config(config_of(name), attn_implementation="eager")
    whole = getattr(whole, "model", whole)
    model = read(config_of(name).to_dict())
    patches, grid = picture(model.vision)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features(getattr(whole, "visual", whole), model.vision, patches, grid)
    counted = sum(number for kind, number in counter.get_flop_counts()["Global"].items() if "bmm" not in str(kind))
    count = len(patches)
    assert flops_per_patch(model, TrainArgs()) * count == pytest.approx(counted)
    free = TrainArgs(freeze_vit=False, freeze_aligner=False)
    assert flops_per_patch(model, free) * count == pytest.approx(3 * counted)
    assert flops_per_patch(model, TrainArgs(train_type="lora_llm")) * count == pytest.approx(3 * counted)
    assert flops_per_patch(read({"model_type": "llama"}), free) == 0.0
