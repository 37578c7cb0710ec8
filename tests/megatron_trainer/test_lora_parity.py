"""Adapters equal PEFT's: same logits, same gradients, same files, in every layout."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny_model
from gang import gang
from lora_ranks import LAYOUTS, token_ids

pytestmark = pytest.mark.dist

TOLERANCE = 1e-4
"""float32 sums of up to 128 products in another order differ by some 1e-6; logits here are about 1."""

DENSE = ["llama", "llama_tied", "llama_bias", "mistral", "qwen2", "qwen2_odd", "qwen3", "glm4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def reference(root):
    """reference(model, **arguments): the model's folder, a random adapter for it, and PEFT's logits and gradients."""
    known = {}

    def make(name, **given):
        key = (name, str(given))
        if key not in known:
            directory = tiny_model.make(name, root)
            adapter = root / f"adapter-{len(known)}"
            gang(1).run("lora_ranks:make_adapter", str(directory), str(adapter), **given)
            known[key] = (directory, adapter, *with_peft(directory, adapter))
        return known[key]

    return make


def with_peft(directory, adapter):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
    ids = token_ids()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    gradients = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def by_shared_a(gradients):
    """The gradient of an A that several linears share is the sum over them; PEFT has one for each."""
    shared = {}
    for name, gradient in gradients.items():
        name = name.replace(".modules_to_save", "")
        for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            group = [name.replace(part, other) for part in parts if f".{part}.lora_A" in name for other in parts]
            if group:
                gradient = sum(gradients[other] for other in group)
        shared[name] = gradient
    return shared


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-6)
        assert (actual[name] - value).abs().max().item() <= TOLERANCE * scale, name


def check(reference, tmp_path, name, layout, **given):
    directory, adapter, logits, gradients = reference(name, **given)
    ranks = 1 if layout == "TP1" else 2
    settings = {**given, **LAYOUTS[layout]}
    results = gang(ranks).run("lora_ranks:use_adapter", str(directory), str(adapter), str(tmp_path), **settings)
    for result in results:
        assert result["restored"]
        assert result["replicated"] == 0.0
        if result["logits"] is not None:
            assert (result["logits"] - logits).abs().max().item() <= TOLERANCE
            assert result["merged"] <= 1e-5
    assert_files_equal(tmp_path / "again", adapter)
    assert_same(load_file(tmp_path / "gradients" / "adapter_model.safetensors"), by_shared_a(gradients))


def assert_files_equal(folder, other):
    assert (folder / "adapter_config.json").read_text() == (other / "adapter_config.json").read_text()
    one, two = (load_file(f / "adapter_model.safetensors") for f in (folder, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", DENSE)
def test_adapters_of_every_dense_family_equal_pefts(reference, tmp_path, name):
    check(reference, tmp_path, name, "TP1")


@pytest.mark.parametrize("layout", ["TP2", "TP2+SP", "PP2"])
def test_adapters_equal_pefts_in_every_layout(reference, tmp_path, layout):
    check(reference, tmp_path, "llama", layout)
