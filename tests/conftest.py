"""Fixtures that several packages' tests share."""

import gc
from pathlib import Path

import pytest

from tests.support.models import tiny_model

gc.disable()  # while tests are collected; what they import is never garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start ranks come first, so that two workers that take a file each end with short ones."""
    starts_ranks = {item.path for item in items if item.get_closest_marker("dist")}
    items.sort(key=lambda item: item.path not in starts_ranks)


def pytest_collection_finish() -> None:
    """Takes the half million objects of imported modules out of every collection; each walked over them for 0.3 s."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Lets libraries free what they hold at exit; they complain of a leak otherwise."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def model_root(tmp_path_factory) -> Path:
    """The folder of this session's tiny models: tiny_model.make(name, model_root)."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def llama(model_root) -> Path:
    """A tiny random Llama in float32."""
    return tiny_model.make("llama", model_root)
