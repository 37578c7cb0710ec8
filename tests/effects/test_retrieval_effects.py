"""What the arguments of embedding models and rerankers do: on the first step of a tiny model, in numbers."""

from __future__ import annotations

import json
from functools import cache

import pytest

from tests.effects.registry import effect
from tests.support.models import retrieval_truth
from tests.support.ranks import tiny_run

pytestmark = pytest.mark.dist

RERANKER = {"task_type": "reranker", "loss_type": "listwise_reranker"}
GENERATIVE = {"task_type": "generative_reranker", "max_length": 512}
ANSWERS = {"generative_reranker_positive_token": "a", "generative_reranker_negative_token": "t"}


@pytest.fixture(scope="module")
def embed(llama, tmp_path_factory):
    """embed(**arguments): one step of an embedding model, or as the arguments say; the same run is made once."""
    root = tmp_path_factory.mktemp("retrieval")
    rows = [
        {**row, "positives": [row["positive"], row["negative"][0]], "negatives": row["negative"]}
        for row in retrieval_truth.triplets()[:4]
    ]
    named = {"embedding": ("anchor", "positive", "negative"), "reranker": ("anchor", "positives", "negatives")}

    @cache
    def run(**given):
        kind = "embedding" if given.get("task_type", "embedding") == "embedding" else "reranker"
        data = root / f"{kind}.jsonl"
        data.write_text("".join(json.dumps({name: row[name] for name in named[kind]}) + "\n" for row in rows))
        settings = {
            "task_type": "embedding",
            "train_iters": 1,
            "micro_batch_size": 4,
            "dataset_shuffle": False,
            **given,
        }
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        save = root / f"run{len(list(root.glob('run*')))}"
        made = tiny_run.train(tiny_run.arguments(llama, data, save, **settings))
        assert made.exit_code == 0, made.message
        return made.column("loss")[0], made.column("grad_norm")[0]

    return run


@effect("infonce_temperature")
def test_a_high_temperature_makes_all_documents_alike(embed):
    """Twelve documents: log 12."""
    assert embed(infonce_temperature=1e4)[0] == pytest.approx(2.4849, abs=1e-3)
    assert embed()[0] != pytest.approx(2.4849, abs=1e-3)


@effect("infonce_use_batch")
def test_a_row_alone_has_its_own_documents(embed):
    assert embed(infonce_use_batch=False, infonce_temperature=1e4)[0] == pytest.approx(1.0986, abs=1e-3)


@effect("infonce_hard_negatives")
@pytest.mark.parametrize(("count", "documents"), [(1, 8), (3, 16)])
def test_negatives_are_cut_or_repeated(embed, count, documents):
    import math

    found = embed(infonce_hard_negatives=count, infonce_temperature=1e4)
    assert found[0] == pytest.approx(math.log(documents), abs=1e-3)


@effect("infonce_mask_fake_negative", "infonce_fake_neg_margin")
def test_what_is_more_similar_than_the_positive_is_left_out(embed):
    """Similarities differ by at most 2: a margin below -2 leaves the positive alone, one above 2 leaves out nothing."""
    assert embed(infonce_mask_fake_negative=True, infonce_fake_neg_margin=-3.0)[0] == pytest.approx(0, abs=1e-6)
    assert embed()[0] > 0.1
    assert embed(infonce_mask_fake_negative=True, infonce_fake_neg_margin=3.0) == embed()


@effect("infonce_include_qq", "infonce_include_dd")
def test_other_similarities_stand_in_the_softmax(embed):
    """Three other queries beside twelve documents, or eleven other documents."""
    warm = {"infonce_temperature": 1e4}
    assert embed(infonce_include_qq=True, **warm)[0] == pytest.approx(2.7081, abs=1e-3)
    assert embed(infonce_include_dd=True, **warm)[0] == pytest.approx(3.1355, abs=1e-3)


@effect("matryoshka_dims", "matryoshka_weights")
def test_losses_of_sizes_are_added_with_their_weights(embed):
    warm = {"infonce_temperature": 1e4}
    assert embed(matryoshka_dims=(8, 16), **warm)[0] == pytest.approx(2 * 2.4849, abs=2e-3)
    assert embed(matryoshka_dims=(8, 16), matryoshka_weights=(1.0, 3.0), **warm)[0] == pytest.approx(9.9396, abs=4e-3)


@effect("listwise_reranker_temperature", "max_positive_samples", "max_negative_samples")
def test_a_list_has_so_many_documents(embed):
    """A positive among n negatives costs log(n + 1) when all weigh the same."""
    warm = {**RERANKER, "listwise_reranker_temperature": 1e6}
    assert embed(**warm)[0] == pytest.approx(1.0986, abs=1e-3)
    assert embed(**warm, max_negative_samples=1)[0] == pytest.approx(0.6931, abs=1e-3)
    assert embed(**RERANKER, max_positive_samples=2) != embed(**RERANKER)


@effect("listwise_reranker_min_group_size")
def test_short_lists_are_dropped(embed):
    with pytest.raises(AssertionError, match="no row|no usable|too few"):
        embed(**RERANKER, listwise_reranker_min_group_size=4)


@effect("generative_reranker_positive_token", "generative_reranker_negative_token")
def test_answers_are_read_off_their_tokens(embed):
    first = embed(**GENERATIVE, **ANSWERS)
    assert first != embed(**GENERATIVE, **{**ANSWERS, "generative_reranker_positive_token": "e"})
    assert first != embed(**GENERATIVE, **{**ANSWERS, "generative_reranker_negative_token": "e"})
