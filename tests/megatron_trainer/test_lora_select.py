"""Selection of modules by name: pure rules, no model."""

import pytest

from megatron_trainer.lora import select

LAYER = "decoder.layers.{}."
KINDS = {
    "embedding.word_embeddings": "embedding",
    **{
        LAYER.format(layer) + name: kind
        for layer in (0, 1, 11)
        for name, kind in (
            ("self_attention.linear_qkv", "linear"),
            ("self_attention.linear_proj", "linear"),
            ("mlp.router", "router"),
            ("mlp.experts.local_experts.0.linear_fc1", "linear"),
            ("mlp.experts.local_experts.0.linear_fc2", "linear"),
            ("mlp.shared_experts.linear_fc1", "linear"),
        )
    },
    "output_layer": "output",
}


def names_with(*endings: str) -> frozenset[str]:
    return frozenset(name for name in KINDS if name.endswith(endings))


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (["all-linear"], names_with("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")),
        (["all-router"], names_with("router")),
        (["all-embedding"], names_with("word_embeddings")),
        (["linear_qkv"], names_with("linear_qkv")),
        (["linear_qkv", "linear_proj"], names_with("linear_qkv", "linear_proj")),
        (["shared_experts.linear_fc1"], names_with("shared_experts.linear_fc1")),
        (["all-linear", "all-router"], names_with("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "router")),
        (["output_layer", "router"], names_with("output_layer", "router")),
        (["decoder.layers.1.self_attention.linear_qkv"], {"decoder.layers.1.self_attention.linear_qkv"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_target_modules_are_keywords_or_the_last_parts_of_names(wishes, expected):
    chosen = select.targets(KINDS, wishes, None)
    assert chosen.names == expected
    assert chosen.unmatched == frozenset()


def test_a_name_has_to_match_whole_parts():
    assert select.targets(KINDS, ["qkv", "_proj"], None).unmatched == {"qkv", "_proj"}


def test_target_regex_matches_whole_names_and_replaces_target_modules():
    chosen = select.targets(KINDS, ["all-linear"], r"decoder\.layers\.1\..*linear_(qkv|proj)")
    assert chosen.names == {
        "decoder.layers.1.self_attention.linear_qkv",
        "decoder.layers.1.self_attention.linear_proj",
    }
    assert select.targets(KINDS, ["all-linear"], "linear_qkv").unmatched == {"linear_qkv"}


def test_every_wish_that_matches_nothing_is_reported_with_what_exists():
    dense = {name: kind for name, kind in KINDS.items() if kind != "router"}
    chosen = select.targets(dense, ["q_proj", "all-router", "linear_qkv"], None)
    problems = select.nothing_matches("target_modules", chosen.unmatched, dense)
    assert [(problem.path, problem.value) for problem in problems] == [
        ("spec.args.target_modules", "all-router"),
        ("spec.args.target_modules", "q_proj"),
    ]
    assert problems[0].message == (
        "matches no module of this model (only mixture-of-experts models have routers); choose from: "
        "linear_fc1, linear_fc2, linear_proj, linear_qkv, output_layer, word_embeddings"
    )
    assert "Hugging Face's q_proj is part of linear_qkv here" in problems[1].message


def test_modules_to_save_are_any_modules_by_the_last_parts_of_their_names():
    modules = [*KINDS, "decoder.final_layernorm", "decoder.layers.0.input_layernorm"]
    saved = select.saved_modules(modules, ["final_layernorm", "word_embeddings", "lm_head"])
    assert saved.names == {"decoder.final_layernorm", "embedding.word_embeddings"}
    assert saved.unmatched == {"lm_head"}
