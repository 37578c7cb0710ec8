"""The order of the freezing rules on names and sizes alone."""

import pytest

from megatron_trainer.lora.freeze import frozen_names
from megatron_trainjob.args.tree import TrainArgs

SIZES = {
    "embedding.word_embeddings.weight": 40,
    "decoder.layers.0.linear.weight": 20,
    "decoder.layers.1.linear.weight": 20,
    "decoder.layers.10.linear.weight": 20,
    "output_layer.weight": 0,
}
EMBEDDING, FIRST, SECOND, ELEVENTH, OUTPUT = SIZES


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.0, set()),
        (0.39, set()),
        (0.4, {EMBEDDING}),
        (0.79, {EMBEDDING, FIRST}),
        (1.0, {EMBEDDING, FIRST, SECOND, ELEVENTH, OUTPUT}),
    ],
)
def test_a_ratio_freezes_whole_parameters_from_the_bottom(ratio, expected):
    """40 of 100 elements are the embedding's: it fits into 0.40 and not into 0.39."""
    assert frozen_names(SIZES, TrainArgs(freeze_parameters_ratio=ratio)) == expected


def test_prefixes_freeze_by_the_beginning_of_a_name_alone():
    assert frozen_names(SIZES, TrainArgs(freeze_parameters=("decoder.layers.1.",))) == {SECOND}
    assert frozen_names(SIZES, TrainArgs(freeze_parameters=("decoder.layers.1",))) == {SECOND, ELEVENTH}
    assert frozen_names(SIZES, TrainArgs(freeze_parameters=("linear",))) == frozenset()


def test_a_regex_freezes_where_it_is_found():
    assert frozen_names(SIZES, TrainArgs(freeze_parameters_regex=r"layers\.\d\.")) == {FIRST, SECOND}


def test_freezing_rules_add_up_and_training_rules_have_the_last_word():
    args = TrainArgs(
        freeze_parameters_ratio=0.4,
        freeze_parameters=("decoder.layers.0",),
        freeze_parameters_regex="output",
        trainable_parameters=("embedding",),
        trainable_parameters_regex=r"layer\.weight$",
    )
    assert frozen_names(SIZES, args) == {FIRST}


def test_everything_frozen_but_what_is_named_trains():
    args = TrainArgs(freeze_parameters_ratio=1.0, trainable_parameters=("output_layer", "decoder.layers.10"))
    assert frozen_names(SIZES, args) == {EMBEDDING, FIRST, SECOND}


@pytest.mark.parametrize(
    "name",
    ["local_experts.{n}.linear_fc{m}.weight", "linear_fc{m}.weight{n}"],
    ids=["modules of their own", "in one module"],
)
def test_a_ratio_takes_the_experts_of_a_layer_together(name):
    """Two experts of 10 + 10 elements: neither one of them alone nor their first weights alone."""
    experts = {f"decoder.layers.0.mlp.experts.{name.format(n=n, m=m)}": 10 for n in (0, 1) for m in (1, 2)}
    sizes = {"embedding.word_embeddings.weight": 20, **experts, "output_layer.weight": 40}
    assert frozen_names(sizes, TrainArgs(freeze_parameters_ratio=0.59)) == {"embedding.word_embeddings.weight"}
    assert frozen_names(sizes, TrainArgs(freeze_parameters_ratio=0.6)) == set(sizes) - {"output_layer.weight"}
