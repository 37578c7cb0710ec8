"""Ten steps of a reward model against TRL's own trainer: loss, scores, accuracy; and the exported model's scores.

Both train in float32 with AdamW. 1e-4 leaves room for sums in another order, which Adam's division by small second
moments enlarges.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import preference_data
from tests.support.models import layouts, tiny_model
from tests.support.ranks import head_ranks, ten_steps, tiny_run
from tests.support.ranks.ten_steps import GLOBAL, LORA, OURS, STEPS, TRLS

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ABSOLUTE = 1e-4
OF_TASK = {"rlhf_type": "rm", "center_rewards_coefficient": 0.01}
OF_TRL = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pairs of which every second has a margin."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{**row, "margin": 0.3 * (n % 2)} for n, row in enumerate(preference_data.rows(STEPS * GLOBAL))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A model that scores already, so that both sides begin with one head."""
    model = tiny_model.make("llama", tmp_path_factory.mktemp("model"))
    made = head_ranks.make_classifier(model, num_labels=1)
    for path in model.glob("chat_template*"):
        shutil.copy(path, made)
    return made


def train(model: Path, data: Path, save: Path, **given: Any) -> tiny_run.TinyRun:
    return ten_steps.train(model, data, save, **{**OF_TASK, **given})


def sequences(model: Path) -> list[dict[str, Any]]:
    """Both conversations of each pair whole, as tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    made = []
    for number, row in enumerate(preference_data.rows(STEPS * GLOBAL)):
        answers = {"chosen": row["messages"][1]["content"], "rejected": row["rejected_response"]}
        found: dict[str, Any] = {"margin": 0.3 * (number % 2)}
        for name, answer in answers.items():
            turns = [row["messages"][0], {"role": "assistant", "content": answer}]
            found[f"{name}_ids"] = tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
        made.append(found)
    return made


def trl_log(model: Path, save: Path, adapter: Path | None = None) -> list[dict[str, float]]:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer

    class InOrder(trl.RewardTrainer):
        """TRL's trainer on tokens that are there already, one after the other."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    config = trl.RewardConfig(
        output_dir=str(save),
        center_rewards_coefficient=0.01,
        **TRLS,
        remove_unused_columns=False,
    )
    loaded = load(model, adapter)
    trainer = InOrder(
        model=loaded,
        args=config,
        train_dataset=Dataset.from_list(sequences(model)),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "margin" in line]


def load(model: Path, adapter: Path | None = None) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    loaded.config.pad_token_id = tokenizer.pad_token_id
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter, is_trainable=True)
    return loaded


def check(run: tiny_run.TinyRun, expected: list[dict[str, float]]) -> None:
    assert len(expected) == STEPS
    for name, theirs in OF_TRL.items():
        assert run.column(name) == pytest.approx([line[theirs] for line in expected], abs=ABSOLUTE), name
    mean = [(c + r) / 2 for c, r in zip(run.column("rewards/chosen"), run.column("rewards/rejected"), strict=True)]
    assert mean == pytest.approx([line["mean_reward"] for line in expected], abs=ABSOLUTE)
    assert abs(mean[-1] - mean[0]) > 0.1, "a model that does not move proves nothing"


def test_ten_steps_equal_trls_and_transformers_loads_the_result(data, scored, tmp_path):
    run = train(scored, data, tmp_path / "run", to_hf=True)
    check(run, trl_log(scored, tmp_path / "trl"))
    import torch

    exported = load(tmp_path / "run" / "hf").eval()
    assert exported.config.num_labels == 1
    again = train(tmp_path / "run" / "hf", data, tmp_path / "again", train_iters=1, micro_batch_size=4)
    with torch.no_grad():
        scores = [exported(torch.tensor([row["chosen_ids"]])).logits.item() for row in sequences(scored)[:4]]
    assert again.column("rewards/chosen")[0] == pytest.approx(sum(scores) / 4, abs=1e-5)


def test_ten_steps_of_lora_equal_trls(data, scored, tmp_path):
    first = train(scored, data, tmp_path / "first", **LORA, train_iters=1, lr=1e-12)
    check(train(scored, data, tmp_path / "run", **LORA), trl_log(scored, tmp_path / "trl", first.folder / "adapter"))


@pytest.mark.parametrize("text", ["tp2 sp", "pp2", "pp2 vpp2", "cp2", "dp2"])
def test_every_layout_learns_the_same(data, scored, tmp_path, text):
    chosen, ranks = layouts.of_run(text)
    expected = train(scored, data, tmp_path / "one")
    found = train(scored, data, tmp_path / "two", ranks=ranks, **chosen)
    for name in ("loss", "rewards/margins", "rewards/chosen", "grad_norm"):
        assert found.column(name) == pytest.approx(expected.column(name), rel=2e-4, abs=2e-4), name


def test_a_stopped_run_goes_on_bit_by_bit(data, scored, tmp_path):
    whole = train(scored, data, tmp_path / "whole", save_interval=5)
    settings = {**OURS, **OF_TASK, "save_interval": 5}
    arguments = tiny_run.arguments(scored, data, tmp_path / "cut", **settings)
    assert tiny_run.train(arguments, task="rlhf", stop_at=5).exit_code != 0
    resumed = tiny_run.train(arguments, task="rlhf", resume="IfPresent")
    for name in ("loss", "rewards/margins", "grad_norm"):
        assert resumed.column(name) == whole.column(name), name
