"""Fixtures that several packages' tests share."""

from pathlib import Path

import pytest

from tests.support.models import tiny_model


@pytest.fixture(scope="session")
def model_root(tmp_path_factory) -> Path:
    """The folder of this session's tiny models: tiny_model.make(name, model_root)."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def llama(model_root) -> Path:
    """A tiny random Llama in float32."""
    return tiny_model.make("llama", model_root)
