"""Effects of the arguments of LoRA and of freezing, on a tiny model without a training run."""

import pytest
import torch

from tests.effects.registry import effect
from tests.support.models import tiny_model
from tests.support.ranks import lora_behavior
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist

LAYERS = [f"decoder.layers.{number}." for number in range(4)]


@pytest.fixture(scope="module")
def biased_llama(tmp_path_factory):
    return str(tiny_model.make("llama_bias", tmp_path_factory.mktemp("models")))


@pytest.fixture
def facts(biased_llama):
    """facts(**arguments): what the adapters look like and do."""
    return lambda **given: gloo_ranks(1).run(lora_behavior.adapter_facts, biased_llama, **given)[0]


@pytest.fixture
def adapted(biased_llama):
    """adapted(**arguments): names of the modules that got an adapter."""

    def of(**given):
        (shapes,) = gloo_ranks(1).run(lora_behavior.trainable_with_adapters, biased_llama, **given)
        return {name.split(".lora.")[0] for name in shapes if ".lora." in name}

    return of


@pytest.fixture(scope="module")
def trainable(tmp_path_factory):
    """trainable(**arguments): names of the parameters that train in full training, in model order."""
    directory = str(tiny_model.make("llama", tmp_path_factory.mktemp("models")))

    def of(**given):
        return gloo_ranks(1).run(lora_behavior.trainable_after_freeze, directory, **given)[0]

    return of


@effect("target_modules")
def test_target_modules_names_the_linears_that_get_adapters(adapted):
    some = adapted(target_modules=("linear_qkv",))
    assert some == {f"{layer}self_attention.linear_qkv" for layer in LAYERS}
    every = adapted()
    assert every == {
        layer + name
        for layer in LAYERS
        for name in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
    }
    assert adapted(target_modules=("all-embedding",)) == {"embedding.word_embeddings"}


@effect("target_regex")
def test_target_regex_chooses_by_whole_names_and_replaces_target_modules(adapted):
    found = adapted(target_modules=("linear_fc1",), target_regex=r"decoder\.layers\.2\..*linear_qkv")
    assert found == {"decoder.layers.2.self_attention.linear_qkv"}


@effect("modules_to_save")
def test_modules_to_save_train_in_full(facts):
    without, with_output = facts(), facts(modules_to_save=("output_layer",))
    assert with_output["trainable"].keys() - without["trainable"].keys() == {"output_layer.weight"}


@effect("lora_rank")
def test_lora_rank_is_the_width_of_an_adapter(facts):
    for rank in (4, 6):
        shapes = facts(lora_rank=rank, target_modules=("linear_proj",))["trainable"]
        assert set(shapes.values()) == {(rank, 64), (64, rank)}


@effect("lora_alpha")
def test_lora_alpha_scales_what_an_adapter_adds(facts):
    torch.testing.assert_close(facts(lora_alpha=24)["added"], 3 * facts(lora_alpha=8)["added"])


@effect("use_rslora")
def test_use_rslora_divides_alpha_by_the_root_of_the_rank(facts):
    """alpha/sqrt(4) is twice alpha/4."""
    torch.testing.assert_close(facts(use_rslora=True)["added"], 2 * facts()["added"])


@effect("lora_dropout")
def test_lora_dropout_drops_inputs_in_training_alone(facts):
    without, dropping = facts(lora_dropout=0.0), facts(lora_dropout=0.5)
    assert torch.equal(without["trained"][0], without["added"])
    assert not torch.equal(*dropping["trained"])
    assert torch.equal(dropping["added"], without["added"])


@effect("lora_bias")
def test_lora_bias_trains_every_bias_of_the_model(facts):
    none, every = facts(lora_bias="none"), facts(lora_bias="all")
    assert not any(name.endswith("bias") for name in none["trainable"])
    assert every["trainable"].keys() - none["trainable"].keys() == {
        f"{layer}{linear}.bias"
        for layer in LAYERS
        for linear in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
    }


@effect("freeze_parameters")
def test_freeze_parameters_freezes_by_the_beginning_of_names(trainable):
    frozen = set(trainable()) - set(trainable(freeze_parameters=("embedding", "decoder.layers.1.")))
    assert {name for name in trainable() if name.startswith(("embedding", "decoder.layers.1."))} == frozen
    assert len(frozen) == 1 + 6


@effect("freeze_parameters_regex")
def test_freeze_parameters_regex_freezes_where_it_is_found(trainable):
    frozen = set(trainable()) - set(trainable(freeze_parameters_regex="layernorm"))
    assert frozen == {name for name in trainable() if "layernorm" in name}


@effect("freeze_parameters_ratio")
def test_freeze_parameters_ratio_freezes_from_the_bottom(trainable):
    """The embedding's 320 x 64 of 188,992 elements are 0.1084 of all, and with the norm after it 0.1087."""
    every = trainable()
    assert every[0] == "embedding.word_embeddings.weight"
    assert trainable(freeze_parameters_ratio=0.1083) == every
    assert trainable(freeze_parameters_ratio=0.1085) == every[1:]
    half = trainable(freeze_parameters_ratio=0.5)
    assert 0 < len(half) < len(every) - 1
    assert half == every[-len(half) :]


@effect("trainable_parameters")
def test_trainable_parameters_train_although_frozen(trainable):
    given = {"freeze_parameters_ratio": 1.0, "trainable_parameters": ("output_layer",)}
    assert trainable(**given) == ["output_layer.weight"]


@effect("trainable_parameters_regex")
def test_trainable_parameters_regex_trains_what_it_finds_although_frozen(trainable):
    given = {"freeze_parameters_ratio": 1.0, "trainable_parameters_regex": r"layers\.3\..*fc2"}
    assert trainable(**given) == ["decoder.layers.3.mlp.linear_fc2.weight"]
