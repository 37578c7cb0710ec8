"""Classifiers train as transformers and peft train them, in every layout, and what they leave is loaded there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import classification_truth as truth
from tests.support.models import tiny_model
from tests.support.ranks import head_ranks
from tests.support.ranks.head_ranks import ABSOLUTE, LORA

pytestmark = pytest.mark.dist

SINGLE = "single_label_classification"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def classify(root):
    """classify(model, layout, problem_type=..., **arguments): the run; the same is made once."""

    def write(settings: dict[str, Any]) -> Path:
        return truth.write(root / f"{settings['problem_type']}.jsonl", settings["problem_type"])

    defaults = {**truth.ADAM, "task_type": "seq_cls", "num_labels": 3, "problem_type": SINGLE}
    return head_ranks.Runs(root=root, write=write, defaults=defaults)


def classifier(root: Path, family: str = "llama") -> Path:
    return head_ranks.make_classifier(tiny_model.make(family, root, num_hidden_layers=2))


@pytest.mark.parametrize("problem", truth.LABELS)
def test_losses_are_transformers_own(root, classify, problem):
    model = classifier(root)
    run = classify(model, problem_type=problem, to_hf=True)
    losses, _ = truth.train(model, root / f"{problem}.jsonl", problem)
    assert run.column("loss") == pytest.approx(losses, abs=ABSOLUTE)
    quality = run.column("mse" if problem == "regression" else "accuracy")
    assert len(quality) == truth.STEPS
    if problem == "regression":
        assert quality == pytest.approx(losses, abs=ABSOLUTE)


def test_what_a_run_leaves_is_the_classifier_of_transformers(root, classify):
    from transformers import AutoModelForSequenceClassification

    model, data = classifier(root), root / f"{SINGLE}.jsonl"
    run = classify(model, problem_type=SINGLE, to_hf=True)
    _, trained = truth.train(model, data, SINGLE)
    config = json.loads((run.folder / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == SINGLE
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert config["pad_token_id"] == 0
    loaded = AutoModelForSequenceClassification.from_pretrained(run.folder / "hf").eval()
    expected = truth.scores(trained, model, data)
    assert truth.scores(loaded, model, data).numpy() == pytest.approx(expected.numpy(), abs=1e-3)


def test_an_adapter_trains_and_leaves_what_peft_does(root, classify):
    from peft import AutoPeftModelForSequenceClassification

    model, data = classifier(root), truth.write(root / f"{SINGLE}.jsonl", SINGLE)
    adapter = truth.make_adapter(model, root / "adapter")
    run = classify(model, adapter_load=str(adapter), **LORA)
    losses, trained = truth.train(model, data, SINGLE, adapter)
    assert run.column("loss") == pytest.approx(losses, abs=ABSOLUTE)
    settings = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["modules_to_save"] == ["score"]
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(run.folder / "adapter", num_labels=3).eval()
    expected = truth.scores(trained, model, data)
    assert truth.scores(loaded, model, data).numpy() == pytest.approx(expected.numpy(), abs=1e-3)


LAYOUTS = ("tp2", "tp2 sp", "pp2", "cp2", "dp2")


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("text", LAYOUTS)
def test_every_layout_learns_the_same(root, classify, text, tuner):
    given = LORA if tuner == "lora" else {}
    model = tiny_model.make("llama", root, num_hidden_layers=2)
    run, expected = classify(model, text, **given), classify(model, **given)
    assert run.column("loss") == pytest.approx(expected.column("loss"), abs=ABSOLUTE)
    assert run.column("accuracy") == expected.column("accuracy")


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"packing": True, "packing_length": 256, "global_batch_size": 1}, {"padding_free": False, "micro_batch_size": 2}],
)
def test_rows_packed_and_padded_learn(root, classify, given):
    model = classifier(root)
    run = classify(model, **given)
    if "packing" in given:
        assert run.column("loss")[-1] < run.column("loss")[0]
    else:
        assert run.column("loss") == pytest.approx(classify(model).column("loss"), abs=ABSOLUTE)


@pytest.mark.slow
def test_experts_learn_as_in_transformers(root, classify):
    """A router is not continuous: a token that changes its expert changes a loss by some thousandths."""
    model = classifier(root, "qwen3_moe")
    run = classify(model, moe_aux_loss_coeff=0.0)
    losses, _ = truth.train(model, root / f"{SINGLE}.jsonl", SINGLE)
    assert run.column("loss")[0] == pytest.approx(losses[0], abs=1e-5)
    assert run.column("loss") == pytest.approx(losses, rel=2e-3)
