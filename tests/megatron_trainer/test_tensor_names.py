"""The tensors that a config.json promises are those that transformers stores."""

import json

import pytest

from megatron_trainjob.families import read, shapes, tensors
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks import parity


@pytest.mark.parametrize("name", mostly_slow(tiny_model.MODELS, list(tiny_model.MODELS)[::4]))
def test_a_config_promises_the_tensors_that_transformers_stores(name, model_root):
    folder = tiny_model.make(name, model_root)
    model = read(json.loads((folder / "config.json").read_text()))
    sizes = {name: tuple(tensor.shape) for name, tensor in parity.in_table_names(folder).items()}
    stored = set(sizes)
    assert shapes.shapes(model) == sizes
    assert tensors.names(model) == stored
    assert list(tensors.difference(model, stored)) == []
    lost = "model.layers.1.input_layernorm.weight"
    assert list(tensors.difference(model, {*stored - {lost}, "extra"})) == [
        f"1 tensors that the model needs are missing: {lost}",
        "1 tensors belong to no part of the model; is config.json of another model?: extra",
    ]
