"""Nothing crosses a sample's boundary: its loss is the same alone, packed, padded, and split over ranks."""

import json

import pytest

from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks import sample_losses
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import write_data

TOLERANCE = 1e-5  # of a sample's mean loss (nats per token): float32 attention over other shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten conversations, each with its number as its channel."""
    path = write_data(tmp_path_factory.mktemp("isolation") / "train.jsonl", rows=10)
    rows = [json.loads(line) | {"channel": str(number)} for number, line in enumerate(path.read_text().splitlines())]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def alone(llama, data):
    return gloo_ranks(1).run(sample_losses.losses, llama, data, {}, way="alone")[0]


WAYS = {
    "packed": (1, {}, "packed"),
    "all in one row": (1, {}, "row"),
    "padded on the right": (1, {}, "right"),
    "padded on the left": (1, {}, "left"),
    "packed, context parallel": (2, {"context_parallel_size": 2}, "packed"),
    "padded, context parallel": (2, {"context_parallel_size": 2}, "right"),
    "packed, data parallel": (2, {}, "packed"),
    "alone, data parallel": (2, {}, "alone"),
    "packed, pipeline parallel": (2, {"pipeline_model_parallel_size": 2}, "packed"),
    "packed, tensor and sequence parallel": (
        2,
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "packed",
    ),
}


@pytest.mark.dist
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        WAYS, ("packed", "all in one row", "padded on the right", "padded on the left", "packed, context parallel")
    ),
)
def test_the_loss_of_a_sample_does_not_depend_on_its_company(llama, data, alone, name):
    ranks, layout, way = WAYS[name]
    for found in gloo_ranks(ranks).run(sample_losses.losses, llama, data, layout, way=way):
        assert found == pytest.approx(alone, rel=0, abs=TOLERANCE)
    assert len(set(alone)) == 10


@pytest.mark.dist
@pytest.mark.parametrize("name", ["mistral_window", "qwen3_next", "gpt_oss"])
def test_a_window_and_a_state_hold_in_every_kind_of_row(name, model_root, data):
    """The window of 7 tokens is shorter than every conversation: ignored, it changes all losses. So does a state that
    is passed on from one sample, or from padding, to the next.
    """
    model = tiny_model.make(name, model_root)
    alone, packed, right, left = (
        gloo_ranks(1).run(sample_losses.losses, model, data, {}, way=way)[0]
        for way in ("alone", "packed", "right", "left")
    )
    assert packed == pytest.approx(alone, rel=0, abs=TOLERANCE)
    assert right == pytest.approx(alone, rel=0, abs=TOLERANCE)
    assert left == pytest.approx(alone, rel=0, abs=TOLERANCE)
