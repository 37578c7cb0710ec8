"""Ten steps of DPO against TRL's own trainer, on the same model and pairs: loss, rewards, margins, log-probabilities.

Both train in float32 with AdamW. 1e-4 leaves room for sums in another order, which Adam's division by small second
moments enlarges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.data import preference_data
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run
from tests.support.ranks.ten_steps import GLOBAL, LORA, STEPS, TRLS, train

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ABSOLUTE = 1e-4
COMPARED = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
OF_TOKENS = ("logits/chosen", "logits/rejected")
"""TRL averages the means of micro-batches, where tokens weigh the same here; with one micro-batch a step both agree."""
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {}),
    "ipo": (
        {"loss_type": "ipo", "micro_batch_size": GLOBAL},
        {"loss_type": ["ipo"], "per_device_train_batch_size": GLOBAL, "gradient_accumulation_steps": 1},
    ),
    "rpo": ({"rpo_alpha": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    "several losses": (
        {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 0.5]},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 0.5]},
    ),
    "divergence": (
        {"loss_type": "hinge", "f_divergence_type": "js_divergence", "beta": 0.5},
        {"loss_type": ["hinge"], "f_divergence_type": "js_divergence", "beta": 0.5},
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return preference_data.write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", STEPS * GLOBAL)


def trl_log(model: Any, tokenizer: Any, save: Path, **given: Any) -> list[dict[str, float]]:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    class InOrder(trl.DPOTrainer):
        """TRL's trainer on tokens that are there already, one after the other."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    config = trl.DPOConfig(
        output_dir=str(save),
        **{**TRLS, **given},
    )
    pairs = Dataset.from_list(preference_data.tokens(STEPS * GLOBAL, tokenizer))
    trainer = InOrder(model=model, args=config, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    return [line for line in trainer.state.log_history if "rewards/margins" in line]


def load(model: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter, is_trainable=True)
    return loaded, AutoTokenizer.from_pretrained(model)


def check(run: tiny_run.TinyRun, expected: list[dict[str, float]], *, with_logits: bool = False) -> None:
    assert len(expected) == STEPS
    for name in (*COMPARED, *(OF_TOKENS if with_logits else ())):
        assert run.column(name) == pytest.approx([line[name] for line in expected], abs=ABSOLUTE), name
    margins = run.column("rewards/margins")
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert abs(margins[-1]) > 0.01, "a policy that does not move proves nothing"


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_equal_trls(case, data, tmp_path):
    ours, theirs = CASES[case]
    model = tiny_model.make("llama", tmp_path)
    expected = trl_log(*load(model), tmp_path / "trl", **theirs)
    run = train(model, data, tmp_path / "run", **ours)
    check(run, expected, with_logits=ours.get("micro_batch_size") == GLOBAL)


def test_ten_steps_of_lora_equal_trls(data, tmp_path):
    """TRL takes the reference of a trained adapter from its first values, which add nothing: the model without it."""
    model = tiny_model.make("llama", tmp_path)
    first = train(model, data, tmp_path / "first", **LORA, train_iters=1, lr=1e-12)
    expected = trl_log(*load(model, first.folder / "adapter"), tmp_path / "trl")
    check(train(model, data, tmp_path / "run", **LORA), expected)


def test_ten_steps_from_a_reference_adapter_equal_trls(data, tmp_path):
    """Both go on with an adapter that does something, and compare with what it was."""
    model = tiny_model.make("llama", tmp_path)
    trained = train(model, data, tmp_path / "first", **LORA, lr=3e-3, train_iters=4).folder / "adapter"
    expected = trl_log(*load(model, trained), tmp_path / "trl")
    named = {"adapter_load": str(trained), "ref_adapter_load": str(trained), "finetune": True}
    check(train(model, data, tmp_path / "run", **LORA, **named), expected)
