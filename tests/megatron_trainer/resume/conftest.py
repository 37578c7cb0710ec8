"""Runs of a tiny model from whose checkpoint the tests of a file continue."""

import pytest

from tests.support.models import tiny_model
from tests.support.ranks.resumed_runs import LORA, base


@pytest.fixture(scope="module")
def llama(model_root):
    """A tiny Llama of two layers: no case here needs more."""
    return tiny_model.make("llama", model_root, num_hidden_layers=2)


@pytest.fixture(scope="module")
def full(llama, tmp_path_factory):
    return base(llama, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def undistributed(llama, tmp_path_factory):
    given = {"optimizer": "sgd", "sgd_momentum": 0.0, "use_distributed_optimizer": False}
    return base(llama, tmp_path_factory.mktemp("undistributed"), **given)


@pytest.fixture(scope="module")
def lora(llama, tmp_path_factory):
    return base(llama, tmp_path_factory.mktemp("lora"), **LORA)
