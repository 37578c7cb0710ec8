"""Embedding models and rerankers train as plain transformers does, in every layout, and what they leave loads there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.matrix import mostly_slow
from tests.support.models import classification_truth, tiny_model
from tests.support.models import retrieval_truth as truth
from tests.support.ranks import group_ranks, head_ranks, tiny_run
from tests.support.ranks.head_ranks import ABSOLUTE, LORA
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist

WHOLE = {"micro_batch_size": truth.GLOBAL}
"""All rows of a step are one micro-batch, as in the reference."""
EMBEDDING = {"task_type": "embedding", **WHOLE}
ANSWERS = {"generative_reranker_positive_token": "a", "generative_reranker_negative_token": "t"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("retrieval")


@pytest.fixture(scope="module")
def model(root) -> Path:
    return tiny_model.make("llama", root, num_hidden_layers=2)


@pytest.fixture(scope="module")
def run(root, model):
    """run(layout, **arguments): the run; the same is made once. Labels of online_contrastive are 0 and 1."""

    def write(settings: dict[str, Any]) -> Path:
        is_binary = settings.get("loss_type") == "online_contrastive"
        rows = [{**row, "label": place % 2} if is_binary else row for place, row in enumerate(truth.triplets())]
        return truth.write(root / f"rows-{is_binary}.jsonl", rows)

    runs = head_ranks.Runs(root=root, write=write, defaults=classification_truth.ADAM)

    def make(text: str = "tp1", base: Path = model, **given: Any) -> tiny_run.TinyRun:
        return runs(base, text, **given)

    return make


def load(kind: str, folder: Path) -> tuple[Any, Any]:
    import torch
    import transformers

    found = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return found, transformers.AutoTokenizer.from_pretrained(folder)


def expected_infonce(model: Path, sizes: tuple[int | None, ...] = (None,)) -> tuple[list[float], Any]:
    decoder, tokenizer = load("AutoModel", model)

    def loss(rows: list[Any]) -> Any:
        return sum(truth.infonce([truth.embeddings(decoder, tokenizer, row, size) for row in rows]) for size in sizes)

    return truth.train(decoder, loss), decoder


def test_infonce_is_what_transformers_states_give(model, run):
    expected, decoder = expected_infonce(model)
    found = run(**EMBEDDING, to_hf=True, max_length=128)
    assert found.column("loss") == pytest.approx(expected, abs=ABSOLUTE)
    assert found.column("loss")[-1] < found.column("loss")[0]
    loaded, tokenizer = load("AutoModel", found.folder / "hf")
    row = truth.triplets()[0]
    theirs = truth.embeddings(decoder, tokenizer, row).detach().numpy()
    assert truth.embeddings(loaded, tokenizer, row).detach().numpy() == pytest.approx(theirs, abs=1e-3)
    tensors = found.weights()
    assert not [name for name in tensors if "lm_head" in name]


def test_embeddings_are_trained_at_several_sizes(model, run):
    expected, _ = expected_infonce(model, (8, None))
    size = json.loads((model / "config.json").read_text())["hidden_size"]
    found = run(**EMBEDDING, matryoshka_dims=[8, size])
    assert found.column("loss") == pytest.approx(expected, abs=ABSOLUTE)


def test_similarities_follow_labels(model, run):
    decoder, tokenizer = load("AutoModel", model)

    def loss(rows: list[Any]) -> Any:
        found = [truth.embeddings(decoder, tokenizer, row) for row in rows]
        return sum((one[0] @ one[1] - row["label"]) ** 2 for one, row in zip(found, rows, strict=True)) / len(rows)

    expected = truth.train(decoder, loss)
    found = run(**EMBEDDING, loss_type="cosine_similarity")
    assert found.column("loss") == pytest.approx(expected, abs=ABSOLUTE)
    assert all(-1 <= value <= 1 for value in found.column("pearson_cosine"))


def pointwise(scores: list[Any]) -> Any:
    """The positive first."""
    import torch

    losses = [-torch.log(torch.sigmoid(scores[0])), *(-torch.log(1 - torch.sigmoid(one)) for one in scores[1:])]
    return torch.stack(losses)


def listwise(scores: list[Any]) -> Any:
    import torch

    return -torch.log(torch.exp(scores[0]) / torch.exp(torch.stack(scores)).sum())[None]


def mean_of(loss_of: Any, score: Any) -> Any:
    import torch

    def loss(rows: list[Any]) -> Any:
        documents = [(row["anchor"], [row["positive"], *row["negative"]]) for row in rows]
        return torch.cat([loss_of([score(query, one) for one in many]) for query, many in documents]).mean()

    return loss


@pytest.mark.parametrize("loss_of", [pytest.param(pointwise, marks=pytest.mark.slow), listwise])
def test_a_reranker_is_a_classifier_with_one_score(root, model, run, loss_of):
    base = head_ranks.make_classifier(model, num_labels=1)
    theirs, tokenizer = load("AutoModelForSequenceClassification", base)
    expected = truth.train(theirs, mean_of(loss_of, lambda *texts: truth.score(theirs, tokenizer, *texts)))
    given = {"loss_type": f"{loss_of.__name__}_reranker", "to_hf": True}
    found = run(base=base, task_type="reranker", **WHOLE, **given)
    assert found.column("loss") == pytest.approx(expected, abs=ABSOLUTE)
    assert 0 < found.column("mrr")[0] <= 1
    loaded, tokenizer = load("AutoModelForSequenceClassification", found.folder / "hf")
    texts = ("count to three please", "water")
    ours, after = (float(truth.score(one.eval(), tokenizer, *texts).detach()) for one in (loaded, theirs))
    assert ours == pytest.approx(after, abs=1e-3)


@pytest.mark.parametrize("loss_of", [pointwise, pytest.param(listwise, marks=pytest.mark.slow)])
def test_a_generative_reranker_answers_yes_or_no(model, run, loss_of):
    theirs, tokenizer = load("AutoModelForCausalLM", model)
    tokens = tuple(tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ANSWERS.values())
    judge = truth.JUDGE.replace("yes", "a").replace('"no"', '"t"')

    def score(query: str, document: str) -> Any:
        turns = truth.judged(query, document)
        turns[0]["content"] = judge
        logits = theirs(truth.ids(tokenizer, turns)).logits[0, -1]
        return logits[tokens[0]] - logits[tokens[1]]

    expected = truth.train(theirs, mean_of(loss_of, score))
    given = {"loss_type": f"{loss_of.__name__}_reranker", "max_length": 512, **ANSWERS}
    found = run(task_type="generative_reranker", **WHOLE, **given)
    assert found.column("loss") == pytest.approx(expected, abs=ABSOLUTE)


def test_an_adapter_of_an_embedding_model_loads_in_peft_and_goes_on(model, run):
    """peft finds it below AutoModel, as sentence-transformers loads it; another run begins where it ended."""
    from peft import PeftModel

    first = run(**EMBEDDING, **LORA, lr=1e-2)
    decoder, tokenizer = load("AutoModel", model)
    row = truth.triplets()[0]
    before = truth.embeddings(decoder, tokenizer, row).detach()
    adapted = PeftModel.from_pretrained(decoder, first.folder / "adapter").eval()
    after = truth.embeddings(adapted, tokenizer, row).detach()
    assert (after - before).abs().max() > 1e-3
    rows = truth.triplets()[: truth.GLOBAL]
    expected = truth.infonce([truth.embeddings(adapted, tokenizer, row) for row in rows])
    second = run(**EMBEDDING, **LORA, adapter_load=str(first.folder / "adapter"))
    assert second.column("loss")[0] == pytest.approx(float(expected), abs=ABSOLUTE)


@pytest.mark.slow
def test_texts_without_a_template_are_what_sentence_transformers_embeds(model, run):
    found = run(**EMBEDDING, use_chat_template=False, to_hf=True)
    parts = json.loads((found.folder / "hf" / "modules.json").read_text())
    assert [part["type"].rsplit(".", 1)[1] for part in parts] == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((found.folder / "hf" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_lasttoken"]
    assert not (run(**EMBEDDING, to_hf=True, max_length=128).folder / "hf" / "modules.json").exists()


def test_a_decoder_that_was_stored_by_itself_is_trained_on(root, model, run):
    """As published embedding models are: names without `model.`, and nothing but the decoder."""
    from safetensors import safe_open

    from megatron_trainjob import weight_files
    from megatron_trainjob.families import read

    decoder, tokenizer = load("AutoModel", model)
    alone = root / "decoder"
    decoder.save_pretrained(alone)
    tokenizer.save_pretrained(alone)
    with safe_open(alone / "model.safetensors", framework="pt") as file:
        assert "embed_tokens.weight" in set(file.keys())
    config = json.loads((alone / "config.json").read_text())
    assert list(weight_files.problems(alone, config, read(config), has_scores=True)) == []
    given = {**EMBEDDING, "to_hf": True, "max_length": 128}
    found, expected = run(base=alone, **given), run(**given)
    assert found.column("loss") == pytest.approx(expected.column("loss"), abs=1e-6)
    assert found.weights().keys() == expected.weights().keys()


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        pytest.param(
            {**EMBEDDING, "loss_type": "cosine_similarity", "metric_for_best_model": "pearson_cosine"},
            "all",
            marks=pytest.mark.slow,
        ),
        ({"task_type": "reranker", **WHOLE, "metric_for_best_model": "mrr"}, "all"),
        # Lists of positives alone rank nothing: no checkpoint is the best, and the run goes on.
        pytest.param(
            {"task_type": "reranker", **WHOLE, "metric_for_best_model": "mrr"}, "positives", marks=pytest.mark.slow
        ),
    ],
    ids=["correlation", "rank", "nothing to rank"],
)
def test_the_best_checkpoint_follows_a_metric(root, run, given, rows):
    kept = ("anchor", "positive", "label") if rows == "positives" else ("anchor", "positive", "negative", "label")
    made = [{name: row[name] for name in kept} for row in truth.triplets()[:5]]
    if rows == "positives":
        made = [{"query": row["anchor"], "document": row["positive"], "label": 1} for row in made]
    data = truth.write(root / f"{rows}.jsonl", made)
    found = run(**given, val_dataset=[str(data)], eval_iters=2, eval_interval=2, save_interval=2, train_iters=4)
    metric = f"eval_{given['metric_for_best_model']}"
    assert len(found.column(metric)) == (0 if rows == "positives" else 2)
    assert (found.folder / "best").exists() == (rows != "positives")


UNEVEN: dict[str, dict[str, Any]] = {
    "infonce": {"task_type": "embedding"},
    "infonce of a row": {"task_type": "embedding", "infonce_use_batch": False},
    "cosine": {"task_type": "embedding", "loss_type": "cosine_similarity"},
    "contrastive": {"task_type": "embedding", "loss_type": "contrastive"},
    "online": {"task_type": "embedding", "loss_type": "online_contrastive"},
    "reranker": {"task_type": "reranker", "loss_type": "pointwise_reranker"},
    "listwise": {"task_type": "reranker", "loss_type": "listwise_reranker"},
}


@pytest.mark.parametrize("kind", mostly_slow(UNEVEN, ("infonce", "online", "listwise")))
def test_micro_batches_of_unequal_size_train_on_the_loss_that_is_logged(model, kind):
    """As packed rows are. Of infonce each rank takes only its own share of the gradient of all ranks' loss.

    A loss that is a sum over its micro-batch is averaged over micro-batches, the others over groups.
    """
    found = gloo_ranks(2).run(group_ranks.trained_and_logged, model, UNEVEN[kind])
    factor = 2 if kind == "infonce" else 1
    for trained, logged, plain in found:
        assert logged > 1e-3
        assert trained == pytest.approx(factor * logged, rel=1e-5)
        assert (logged == pytest.approx(plain, rel=1e-5)) == (kind == "online")


KINDS: dict[str, dict[str, Any]] = {
    "embedding": {"task_type": "embedding"},
    "cosine": {"task_type": "embedding", "loss_type": "cosine_similarity"},
    "reranker": {"task_type": "reranker", "loss_type": "listwise_reranker"},
    "generative": {"task_type": "generative_reranker", "max_length": 512, **ANSWERS},
}


ONLINE = {"task_type": "embedding", "loss_type": "online_contrastive", "micro_batch_size": 4, "global_batch_size": 8}
"""A loss of a micro-batch as a whole: runs are alike whose micro-batches are."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "online"])
@pytest.mark.parametrize("text", ["tp2", "tp2 sp", "pp2", "cp2"])
def test_every_layout_learns_the_same(run, text, kind):
    given = {**ONLINE, "train_iters": 2} if kind == "online" else {**KINDS[kind], "micro_batch_size": 2}
    assert run(text, **given).column("loss") == pytest.approx(run(**given).column("loss"), abs=ABSOLUTE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_data_parallel_ranks_learn_what_one_rank_does(root, run, kind):
    """With infonce their documents are each other's negatives, as those of one micro-batch are."""
    data = truth.write(root / "five.jsonl", truth.triplets()[:5])  # the last evaluation step has rows for one rank
    held_out = {"val_dataset": [str(data)], "eval_iters": 2, "eval_interval": truth.STEPS}
    found, alone = (
        run(text, **KINDS[kind], **held_out, micro_batch_size=size)
        for text, size in (("dp2", 2), ("tp1", truth.GLOBAL))
    )
    assert found.column("eval_mean_pos") == pytest.approx(alone.column("eval_mean_pos"), abs=ABSOLUTE)
    for name in ("loss", "mean_pos", "mean_neg"):
        assert found.column(name) == pytest.approx(alone.column(name), abs=ABSOLUTE), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [{"padding_free": False}, LORA], ids=["padded", "lora"])
def test_padded_rows_and_adapters_learn(run, kind, given):
    found, expected = run(**KINDS[kind], **WHOLE, **given), run(**KINDS[kind], **WHOLE)
    if given is LORA:
        assert found.column("loss")[0] == pytest.approx(expected.column("loss")[0], abs=ABSOLUTE)
        assert found.column("loss") != pytest.approx([found.column("loss")[0]] * truth.STEPS, abs=1e-6)
    else:
        assert found.column("loss") == pytest.approx(expected.column("loss"), abs=ABSOLUTE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_are_kept_separate_and_evaluated(root, run, kind):
    """A row that holds exactly the groups of a step gives what these give unpacked."""
    data = truth.write(root / "held-out.jsonl", truth.triplets()[:6])
    given = {"packing": True, "packing_length": 100_000, "global_batch_size": 1, "train_iters": 1}
    found = run(**KINDS[kind], **given, val_dataset=[str(data)], eval_iters=1)
    count = len(truth.triplets())
    alone = run(**KINDS[kind], micro_batch_size=count, global_batch_size=count, train_iters=1)
    assert found.column("loss") == pytest.approx(alone.column("loss"), abs=ABSOLUTE)
    assert found.column("eval_loss")


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"streaming": True}, {"lazy_tokenize": True}], ids=["stream", "lazy"])
def test_rows_that_are_read_while_training_give_the_same(run, given):
    found = run(**KINDS["embedding"], **WHOLE, **given)
    assert found.column("loss") == pytest.approx(run(**KINDS["embedding"], **WHOLE).column("loss"), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"streaming": True}], ids=["stored", "stream"])
def test_packed_rows_of_context_ranks_hold_whole_groups(root, model, run, given):
    """Each sequence of a group is padded for two ranks, which the length of a packed row counts.

    Seven groups of three sequences of 21 tokens fill a row of 441 tokens, or with 24 tokens each one of 504, where
    eight groups would fit without padding.
    """
    rows = [
        {"query": f"{n:02d}", "positive": f"{97 * n % 1000:03d}", "negative": [f"{31 * n:03d}", f"{53 * n:03d}"]}
        for n in range(14)
    ]
    _, tokenizer = load("AutoModel", model)
    lengths = {
        truth.ids(tokenizer, truth.answered(row["query"], document)).shape[1]
        for row in rows
        for document in (row["positive"], *row["negative"])
    }
    assert lengths == {21}
    data = truth.write(root / "alike.jsonl", rows)
    settings = {**KINDS["reranker"], "dataset": [str(data)], "packing": True, "global_batch_size": 1, "train_iters": 2}
    found = run("cp2", **settings, packing_length=504, **given)
    expected = run(**settings, packing_length=441, **given)
    assert len(set(expected.column("loss"))) == 2
    assert found.column("loss") == pytest.approx(expected.column("loss"), abs=ABSOLUTE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedding", "reranker"])
def test_virtual_stages_and_ranks_of_experts_learn_the_same(root, run, kind):
    given = {**KINDS[kind], "base": tiny_model.make("llama", root), "micro_batch_size": 2}
    staged = run("pp2", **given, virtual_pipeline_model_parallel_size=2)
    assert staged.column("loss") == pytest.approx(run(**given).column("loss"), abs=ABSOLUTE)
    base = tiny_model.make("qwen3_moe", root)
    given = {**KINDS[kind], "base": base, "moe_aux_loss_coeff": 0.0}
    found, alone = run("ep2", **given, micro_batch_size=2), run(**given, **WHOLE)
    assert found.column("loss")[0] == pytest.approx(alone.column("loss")[0], abs=1e-5)
    assert found.column("loss") == pytest.approx(alone.column("loss"), rel=5e-3)
