"""The model of the tests of checkpoints."""

from pathlib import Path

import pytest

from tests.support.models import tiny_model


@pytest.fixture(scope="session")
def llama(model_root) -> Path:
    """A tiny random Llama with two layers: runs here are many, and one alone needs more (test_layouts.py)."""
    return tiny_model.make("llama", model_root, num_hidden_layers=2)
