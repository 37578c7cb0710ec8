"""Multi-token prediction: losses and all gradients beside the formulas in plain torch, in every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_trainer.failure import InvalidInput
from megatron_trainer.models.prediction import further_targets
from megatron_trainer.models.spec import read_model
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read
from tests.support.matrix import mostly_slow
from tests.support.models import layouts, prediction_model, tiny_model
from tests.support.ranks import image_prediction, prediction_ranks
from tests.support.ranks.parity import micro_batch
from tests.support.ranks.pool import gloo_ranks

BOUND = 1e-4
LAYOUTS = (
    "tp1",
    "packed",
    "tp2 sp etp1",
    "pp2 packed",
    "pp2 vpp2",
    "cp2",
    "cp2 packed",
    "ep2 packed",
    "tp2 sp pp2 packed",
)


def reference(directory: Path, *, packed: bool) -> Path:
    path = directory / f"prediction-{packed}.pt"
    if not path.exists():
        ids, lengths, weights = prediction_ranks.rows(packed=packed, vocab_size=320)
        torch.save(prediction_model.truth(directory, ids, lengths, weights), path)
    return path


def check(name: str, text: str, root: Path, *, number: int = 2, **settings: object) -> None:
    directory = prediction_model.make(name, root, number=number)
    layout = layouts.read(text)
    layout["arguments"] |= settings
    ranks = gloo_ranks(layouts.num_ranks(layout["arguments"])).run(
        prediction_ranks.compare,
        directory,
        reference(directory, packed=layout["packed"]),
        layout["arguments"],
        packed=layout["packed"],
        virtual=layout["virtual"],
    )
    for found in ranks:
        assert found.changed == ()
        assert found.missing == ()
        assert list(found.logged) == ["lm loss", "mtp_1 loss", "mtp_2 loss"][: 1 + number]
        assert found.losses <= BOUND
        assert found.gradients <= BOUND, found.worst


@pytest.mark.dist
@pytest.mark.parametrize("text", mostly_slow(LAYOUTS, ("packed", "pp2 vpp2", "cp2 packed")))
def test_losses_and_gradients_equal_the_formulas(text: str, model_root: Path):
    check("deepseek_v3", text, model_root)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("text", "placed"), [pytest.param("pp2 packed", "Et|ttt,mmL", marks=pytest.mark.slow), ("pp2 vpp2", "Et|t|t|t,mmL")]
)
def test_a_layout_places_the_layers(text: str, placed: str, model_root: Path):
    check("deepseek_v3", text, model_root, pipeline_model_parallel_layout=placed)


@pytest.mark.dist
@pytest.mark.parametrize("text", ["packed", pytest.param("tp2 sp pp2 packed", marks=pytest.mark.slow)])
def test_another_family_does_the_same(text: str, model_root: Path):
    check("glm4_moe", text, model_root)


@pytest.mark.dist
@pytest.mark.parametrize("text", mostly_slow(["tp1", "packed", "tp2 sp etp1", "pp2 packed", "ep2 packed"], ("packed",)))
def test_the_layer_beside_qwen3_nexts_decoder_does_the_same(text: str, model_root: Path):
    check("qwen3_next", text, model_root, number=1)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "text"), [("qwen3_5_text", "packed"), pytest.param("qwen3_5_moe_text", "ep2", marks=pytest.mark.slow)]
)
def test_the_layer_of_a_text_decoder_of_qwen3_5_does_the_same(name: str, text: str, model_root: Path):
    check(name, text, model_root, number=1)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3_5", "tp1"),
        pytest.param("qwen3_5", "tp2 sp", marks=pytest.mark.slow),
        pytest.param("qwen3_5_moe", "ep2", marks=pytest.mark.slow),
    ],
)
def test_the_layer_of_qwen3_5_is_that_of_qwen3_next_and_sees_images(name: str, text: str, model_root: Path):
    directory = prediction_model.make_seeing(name, model_root)
    vision = read(json.loads((directory / "config.json").read_text())).vision
    layout = layouts.read(text)["arguments"]
    ranks = gloo_ranks(layouts.num_ranks(layout))
    for found in ranks.run(image_prediction.compare, directory, image_prediction.truth(directory, vision), layout):
        assert found.changed == ()
        assert found.missing == ()
        assert list(found.logged) == ["lm loss", "mtp_1 loss"]
        assert found.losses <= BOUND
        assert found.gradients <= BOUND, found.worst


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("llama", 1, "a model of type llama has no multi-token-prediction layers"),
        ("deepseek_v3", 3, "the model has 2 multi-token-prediction layers"),
        ("qwen3_next", 2, "the model has 1 multi-token-prediction layers"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(name: str, number: int, said: str, model_root: Path):
    make = prediction_model.make if name == "deepseek_v3" else tiny_model.make
    directory = make(name, model_root)
    with pytest.raises(InvalidInput, match=said):
        read_model(directory, TrainArgs(model=str(directory), mtp_num_layers=number))


def test_packed_targets_stay_in_their_sequence():
    batch = replace(micro_batch(torch.arange(8), (5, 3), packed=True), has_loss_BT=np.ones((1, 8), dtype=bool))
    found = further_targets(batch, 2)
    assert found.labels_BT.tolist() == [[3, 4, 5, -100, -100, 0, -100, -100]]
    assert found.loss_weight_BT.tolist() == [[1, 1, 1, 0, 0, 1, 0, 0]]
    assert found.has_loss_BT.tolist() == (found.loss_weight_BT != 0).tolist()
