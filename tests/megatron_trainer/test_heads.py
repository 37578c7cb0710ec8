"""Heads that score whole sequences are transformers' own: scores, loss, gradients and files, in every layout."""

from __future__ import annotations

import pytest

from tests.support.matrix import mostly_slow
from tests.support.models import layouts, tiny_model
from tests.support.ranks import head_ranks
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist

SCORES = 2e-5
"""Absolute; scores reach about 3 and both sides compute in float32, in another order."""
GRADIENTS = 1e-4
"""Relative to a tensor's largest gradient."""
LAYOUTS = ("tp1", "packed", "tp2", "tp2 sp", "tp2 sp packed", "pp2 packed", "pp2 vpp2", "cp2", "cp2 packed")
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "qwen3_moe")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("heads")


def differences(root, family: str, text: str) -> head_ranks.Differences:
    layout = layouts.read(text)
    classifier = head_ranks.make_classifier(tiny_model.make(family, root))
    head_ranks.reference(classifier, packed=layout["packed"])
    settings = {"packed": layout["packed"], "virtual_stages": layout["virtual"]}
    ranks = gloo_ranks(layouts.num_ranks(layout["arguments"]))
    results = ranks.run(head_ranks.compare, classifier, layout["arguments"], **settings)
    return results[0]


def check(found: head_ranks.Differences) -> None:
    assert found.scores < SCORES
    assert found.loss < 1e-5
    assert found.gradients < GRADIENTS, found.worst
    assert found.score_gradient < GRADIENTS
    assert found.changed == ()


@pytest.mark.parametrize("text", mostly_slow(LAYOUTS, ("packed", "tp2 sp", "pp2 vpp2", "cp2 packed")))
def test_scores_of_a_layout_are_transformers_own(root, text):
    check(differences(root, "llama", text))


@pytest.mark.parametrize("text", mostly_slow(["packed", "tp2 sp"], ["packed"]))
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_scores_of_a_family_are_transformers_own(root, family, text):
    text = "tp2 sp etp1" if family == "qwen3_moe" and text == "tp2 sp" else text
    check(differences(root, family, text))
