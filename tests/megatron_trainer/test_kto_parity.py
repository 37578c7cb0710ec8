"""Ten steps of KTO against TRL's own trainer, on the same model and answers: loss, KL estimate, rewards and the rest.

Both train in float32 with AdamW. 1e-4 leaves room for sums in another order, which Adam's division by small second
moments enlarges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.data import preference_data
from tests.support.models import tiny_model
from tests.support.ranks import ten_steps, tiny_run
from tests.support.ranks.ten_steps import GLOBAL, LORA, STEPS, TRLS

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ABSOLUTE = 1e-4
OF_TASK = {"rlhf_type": "kto"}
COMPARED = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
CASES: dict[str, dict[str, Any]] = {
    "kto": {},
    "weights": {"desirable_weight": 0.6, "undesirable_weight": 1.7, "beta": 0.5},
    "apo": {"loss_type": "apo_zero_unpaired"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return preference_data.write_singles(tmp_path_factory.mktemp("answers") / "answers.jsonl", STEPS * GLOBAL)


def train(model: Path, data: Path, save: Path, **given: Any) -> tiny_run.TinyRun:
    return ten_steps.train(model, data, save, **{**OF_TASK, **given})


def trl_log(
    model: Path, save: Path, *, adapter: Path | None = None, rotates: int | None = None, **given: Any
) -> list[dict[str, float]]:
    trl = pytest.importorskip("trl")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class OnTokens(trl.KTOTrainer):
        """TRL's trainer on tokens that are there already, with the mismatched answers as it makes them itself."""

        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
            def rotated(batch: Any) -> Any:
                answers = batch["completion_ids"]
                return {**batch, "KL_completion_ids": [answers[-1], *answers[:-1]]}

            return dataset.map(rotated, batched=True, batch_size=rotates or args.per_device_train_batch_size)

    config = trl.KTOConfig(
        output_dir=str(save),
        **{**TRLS, **given},
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter, is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    answers = Dataset.from_list(preference_data.single_tokens(STEPS * GLOBAL, tokenizer))
    trainer = OnTokens(model=loaded, args=config, train_dataset=answers, processing_class=tokenizer)
    trainer.train()
    return [line for line in trainer.state.log_history if "rewards/margins" in line]


def check(run: tiny_run.TinyRun, expected: list[dict[str, float]], *names: str) -> None:
    assert len(expected) == STEPS
    for name in (*COMPARED, *names):
        assert run.column(name) == pytest.approx([line[name] for line in expected], abs=ABSOLUTE), name
    margins = run.column("rewards/margins")
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert abs(margins[-1]) > 0.01, "a policy that does not move proves nothing"


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_equal_trls(case, data, tmp_path):
    model = tiny_model.make("llama", tmp_path)
    expected = trl_log(model, tmp_path / "trl", **CASES[case])
    run = train(model, data, tmp_path / "run", **CASES[case])
    if case == "apo":
        check(run, expected)
        assert "kl" not in run.log[0]
    else:
        check(run, expected, "kl")
        assert max(run.column("kl")) > 1e-3, "an estimate that stays 0 proves nothing"


def test_ten_steps_of_lora_equal_trls(data, tmp_path):
    """TRL takes the reference of a trained adapter from its first values, which add nothing: the model without it."""
    model = tiny_model.make("llama", tmp_path)
    first = train(model, data, tmp_path / "first", **LORA, train_iters=1, lr=1e-12)
    expected = trl_log(model, tmp_path / "trl", adapter=first.folder / "adapter")
    check(train(model, data, tmp_path / "run", **LORA), expected, "kl")


@pytest.mark.parametrize("given", [{}, LORA], ids=["full", "lora"])
def test_ten_steps_with_a_kept_reference_equal_trls(data, tmp_path, given):
    """Each answer is then mismatched with the prompt after it in the data set, wherever the two are read."""
    model = tiny_model.make("llama", tmp_path)
    adapter = None
    if given:
        adapter = train(model, data, tmp_path / "first", **LORA, train_iters=1, lr=1e-12).folder / "adapter"
    expected = trl_log(model, tmp_path / "trl", adapter=adapter, rotates=STEPS * GLOBAL)
    run = train(model, data, tmp_path / "run", **given, precompute_ref_log_probs=True)
    check(run, expected, "kl")
    assert max(run.column("kl")) > 1e-3, "an estimate that stays 0 proves nothing"
    [kept] = (tmp_path / "run" / "data_cache" / "reference").glob("*.npy")
    alone = train(model, data, tmp_path / "run", **given, precompute_ref_log_probs=True, micro_batch_size=1, seed=1)
    assert [path for path in kept.parent.glob("*.npy")] == [kept]
    assert max(alone.column("kl")) > 1e-3
