"""Preference training in every layout, packed and padded, in chunks, stopped and resumed: the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import preference_data
from tests.support.models import layouts, tiny_model
from tests.support.ranks import preference_ranks, tiny_run
from tests.support.ranks.pool import gloo_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 6
RELATIVE = 2e-4
COMPARED = ("loss", "rewards/margins", "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected")
DENSE = ("tp2", "tp2 sp", "pp2", "cp2", "dp2")
SINGLES = ("loss", "rewards/margins", "kl", "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected")
KTO: dict[str, Any] = {"rlhf_type": "kto", "micro_batch_size": 2, "lr": 1e-4}
FAR_SEED = 6
"""Of a reference from which four answers in one micro-batch estimate a divergence above 0."""
FAR_SEED_OF_BOTH = 43
"""Of one from which both micro-batches of a step do, so that nothing is cut at 0."""
TUNERS: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-4},
    "lora": {"train_type": "lora", "lr": 1e-3, "lora_dropout": 0.0},
}


def settings(**given: Any) -> dict[str, Any]:
    return {"train_iters": STEPS, "dataloader_type": "single", "dataset_shuffle": False, **given}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return preference_data.write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 4 * STEPS)


@pytest.fixture(scope="module")
def prefer(tmp_path_factory, data):
    """prefer(model, layout, **arguments): the run; the same is made once."""
    root: Path = tmp_path_factory.mktemp("layouts")
    done: dict[str, tiny_run.TinyRun] = {}

    def run(model: str, text: str = "tp1", **given: Any) -> tiny_run.TinyRun:
        key = f"{model} {text} {given}"
        if key not in done:
            chosen, ranks = layouts.of_run(text)
            arguments = settings(**chosen, **given)
            made = tiny_model.make(model, root)
            arguments = tiny_run.arguments(made, data, root / f"run{len(done)}", **arguments)
            done[key] = tiny_run.train(arguments, ranks=ranks, task="rlhf")
            assert done[key].exit_code == 0, done[key].message
        return done[key]

    return run


def check(run: tiny_run.TinyRun, expected: tiny_run.TinyRun, *names: str) -> None:
    for name in names or COMPARED:
        assert len(run.column(name)) == STEPS
        assert run.column(name) == pytest.approx(expected.column(name), rel=RELATIVE, abs=RELATIVE), name


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("text", DENSE)
def test_every_layout_learns_the_same(prefer, text, tuner):
    check(prefer("llama", text, **TUNERS[tuner]), prefer("llama", **TUNERS[tuner]))


@pytest.mark.parametrize("text", ["ep2", "tp2 sp ep2 etp1"])
def test_experts_in_every_layout_learn_the_same(prefer, text):
    check(prefer("qwen3_moe", text, **TUNERS["full"]), prefer("qwen3_moe", **TUNERS["full"]))


@pytest.mark.parametrize("tuner", TUNERS)
def test_virtual_stages_learn_the_same(prefer, tuner):
    given = {"virtual_pipeline_model_parallel_size": 2, **TUNERS[tuner]}
    check(prefer("llama", "pp2", **given), prefer("llama", **TUNERS[tuner]))


def test_single_answers_in_virtual_stages_learn_the_same(prefer, answers):
    check(
        prefer("llama", "pp2", virtual_pipeline_model_parallel_size=2, **answers), prefer("llama", **answers), *SINGLES
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, Any]:
    path = preference_data.write_singles(tmp_path_factory.mktemp("answers") / "answers.jsonl", 4 * STEPS)
    return {**KTO, "dataset": [str(path)]}


@pytest.fixture(scope="module")
def doubled(answers, tmp_path_factory) -> dict[str, Any]:
    """Answers of which every two come twice, so that all micro-batches of a step estimate the same divergence."""
    lines = Path(answers["dataset"][0]).read_text().splitlines()
    twice = [line for start in range(0, len(lines), 2) for _ in range(2) for line in lines[start : start + 2]]
    path = tmp_path_factory.mktemp("doubled") / "answers.jsonl"
    path.write_text("".join(f"{line}\n" for line in twice))
    return {**answers, "dataset": [str(path)]}


def elsewhere(answers: dict[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """One step against a reference that is another model, from which the policy diverges at once."""
    return {**answers, "train_iters": 1, "ref_load": str(tiny_model.make("llama", folder, seed=seed))}


@pytest.mark.parametrize("text", ["tp2 sp", "pp2", "cp2"])
def test_single_answers_in_every_layout_learn_the_same(prefer, answers, text):
    check(prefer("llama", text, **answers), prefer("llama", **answers), *SINGLES)
    assert max(prefer("llama", **answers).column("kl")) > 1e-4


def test_single_answers_of_several_ranks_learn_the_same(prefer, doubled):
    check(prefer("llama", "dp2", **doubled), prefer("llama", **doubled), *SINGLES)
    check(prefer("qwen3_moe", "ep2", **doubled), prefer("qwen3_moe", **doubled), *SINGLES)


def test_ranks_estimate_one_divergence(prefer, answers, tmp_path):
    """That of a step of two micro-batches on one rank is the mean of theirs, that of two ranks the one of both."""
    given = elsewhere(answers, tmp_path, FAR_SEED_OF_BOTH)
    alone, both = prefer("llama", **given), prefer("llama", "dp2", **given)
    assert both.column("kl")[0] == pytest.approx(alone.column("kl")[0], rel=RELATIVE)
    assert both.column("kl")[0] > 0.1
    assert both.column("loss")[0] != pytest.approx(alone.column("loss")[0], rel=1e-5), "micro-batches have their own"


def test_padded_and_packed_single_answers_learn_the_same(prefer, answers, tmp_path):
    """The answers of a step in one packed row are one micro-batch; another reference gives it a divergence."""
    padded = prefer("llama", padding_free=False, **answers)
    check(padded, prefer("llama", **answers), *SINGLES)
    given = elsewhere(answers, tmp_path, FAR_SEED)
    expected = prefer("llama", **{**given, "micro_batch_size": 4})
    four = tmp_path / "four.jsonl"
    four.write_text("".join(f"{line}\n" for line in Path(answers["dataset"][0]).read_text().splitlines()[:4]))
    row = {"micro_batch_size": 1, "global_batch_size": 1, "packing": True, "packing_length": 4096, "max_length": 512}
    packed = prefer("llama", **{**given, **row, "dataset": [str(four)]})
    assert expected.column("kl")[0] > 0.1
    for name in (*SINGLES, "grad_norm"):
        assert packed.column(name) == pytest.approx(expected.column(name), rel=RELATIVE, abs=RELATIVE), name


def test_single_answers_stream_and_are_evaluated(prefer, answers):
    run = prefer("llama", val_dataset=answers["dataset"], eval_interval=3, eval_iters=2, **answers)
    lines = [line for line in run.log if "eval_rewards/margins" in line]
    assert [line["iteration"] for line in lines] == [3, 6]
    assert lines[-1]["eval_kl"] >= 0
    check(prefer("llama", streaming=True, **answers), prefer("llama", **answers), *SINGLES)


def test_padded_pairs_learn_the_same(prefer):
    padded = prefer("llama", padding_free=False, micro_batch_size=2, **TUNERS["full"])
    check(padded, prefer("llama", micro_batch_size=2, **TUNERS["full"]))


def test_packed_pairs_learn_the_same_where_all_pairs_weigh_the_same(prefer, data, tmp_path):
    """One row of all pairs a step is the same batch as its pairs one by one; a mean of rows of several sizes would not
    be. Steps of four pairs: each file of four is its own epoch."""
    first = tmp_path / "four.jsonl"
    first.write_text("".join(line + "\n" for line in data.read_text().splitlines()[:4]))
    given = {
        "calculate_per_token_loss": True,
        "dataset": [str(first)],
        "dataloader_type": "cyclic",
        "max_epochs": STEPS,
        **TUNERS["full"],
    }
    expected = prefer("llama", **given)
    check(prefer("llama", packing=True, packing_length=4096, global_batch_size=1, max_length=512, **given), expected)
    # Two rows, of three pairs and of one: the same only because pairs weigh the same.
    lengths = [
        sum(len(row[f"{name}_ids"]) + len(row["prompt_ids"]) + 1 for name in ("chosen", "rejected"))
        for row in preference_data.tokens(4, tiny_model.tokenizer())
    ]
    room = sum(sorted(lengths)[1:])
    uneven = {"packing": True, "packing_length": room, "max_length": 200, "global_batch_size": 2}
    check(prefer("llama", **uneven, **given), expected)
    by_rows = prefer("llama", **uneven, **{**given, "calculate_per_token_loss": False})
    assert by_rows.column("rewards/margins")[-1] != pytest.approx(expected.column("rewards/margins")[-1], rel=1e-3)


def test_logits_in_chunks_give_the_same(prefer, data, tmp_path):
    expected = prefer("llama", **TUNERS["full"])
    for ranks, text in ((1, "tp1"), (2, "tp2 sp")):
        given = settings(**layouts.read(text)["arguments"], **TUNERS["full"])
        arguments = tiny_run.arguments(tiny_model.make("llama", tmp_path), data, tmp_path / text, **given)
        run, most = gloo_ranks(ranks).run(preference_ranks.in_chunks, arguments)[0]
        assert run.exit_code == 0, run.message
        assert most <= 8
        check(run, expected)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_stopped_run_goes_on_bit_by_bit(data, tmp_path, tuner):
    model = tiny_model.make("llama", tmp_path)

    def train(name: str, **options: Any) -> tiny_run.TinyRun:
        given = settings(**TUNERS[tuner], save_interval=3)
        return tiny_run.train(tiny_run.arguments(model, data, tmp_path / name, **given), task="rlhf", **options)

    whole = train("whole")
    assert train("cut", stop_at=3).exit_code != 0
    resumed = train("cut", resume="IfPresent")
    for name in COMPARED:
        assert resumed.column(name) == whole.column(name), name


def test_evaluation_streams_and_cached_data_have_pairs_too(prefer, data, tmp_path):
    run = prefer("llama", val_dataset=[str(data)], eval_interval=3, eval_iters=2, **TUNERS["full"])
    lines = [line for line in run.log if "eval_rewards/accuracies" in line]
    assert [line["iteration"] for line in lines] == [3, 6]
    assert lines[-1]["eval_rewards/margins"] > 0
    streamed = prefer("llama", streaming=True, **TUNERS["full"])
    check(streamed, prefer("llama", **TUNERS["full"]))
    lazy = prefer("llama", lazy_tokenize=True, **TUNERS["full"])
    check(lazy, prefer("llama", **TUNERS["full"]))


def test_progress_has_the_rewards(prefer):
    metrics = json.loads((prefer("llama", **TUNERS["full"]).folder / "progress.json").read_text())["metrics"]
    assert {"loss", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= set(metrics)
