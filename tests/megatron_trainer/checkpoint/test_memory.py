"""What a save holds beside the state that it saves, in layouts that split it."""

import pytest

from tests.support.models import tiny_model
from tests.support.ranks import checkpoint_memory
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments

pytestmark = pytest.mark.dist

ONE_COPY = {"use_distributed_optimizer": False}
WIDE = {"llama": {"intermediate_size": 4096}, "qwen3_moe": {"moe_intermediate_size": 2048}}


@pytest.fixture
def saving(model_root, tmp_path):
    """Takes a model, ranks, whether the optimizer is saved, and arguments; gives the memory of each rank's save."""

    def save(name, ranks, with_optimizer, **given):
        model = tiny_model.make(name, model_root, **WIDE[name])
        mapping = arguments(model, tmp_path / "data.jsonl", tmp_path / "run", **given)
        return gloo_ranks(ranks).run(
            checkpoint_memory.of_saving, mapping, tmp_path / "saved", with_optimizer=with_optimizer
        )

    return save


@pytest.mark.parametrize(
    ("name", "ranks", "with_optimizer", "given"),
    [
        pytest.param("llama", 1, False, ONE_COPY, id="as a conversion saves"),
        pytest.param("llama", 1, True, {}, id="all in one buffer, with the optimizer"),
        pytest.param(
            "llama",
            2,
            True,
            {**ONE_COPY, "tensor_model_parallel_size": 2},
            id="tensor parallel",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "qwen3_moe", 2, False, {"expert_model_parallel_size": 2}, id="spread experts", marks=pytest.mark.slow
        ),
        pytest.param("llama", 1, True, {**ONE_COPY, "async_save": True}, id="into the copy of the save before"),
    ],
)
def test_a_save_holds_at_most_one_tensor_beyond_the_state(saving, name, ranks, with_optimizer, given):
    """Gate and up are parts of one parameter, and a buffer holds all parameters: each is written from where it lies."""
    for memory in saving(name, ranks, with_optimizer, **given):
        assert 0 < memory.peak <= memory.largest
