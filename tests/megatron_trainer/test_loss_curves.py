"""The same twenty losses in every layout, full and LoRA: a whole training run each, compared step by step.

Four steps of the small layouts run with every change in tests/effects/test_layout_effects.py and test_moe_effects.py.
Of four and eight ranks three steps are compared, and the norm of the gradients, which is wrong where any gradient is;
benchmarks/gpu/several_cards.py runs the same layouts on GPUs.

Every run reads the same rows in the same order (`dataloader_type: single`: a shuffle depends on the number of ranks).
Twenty steps of Adam with a learning rate of 1e-3 halve the loss, so a wrong gradient shows; 2e-4 relative leaves room
for float32 sums in another order, which Adam's division by small second moments enlarges in the first steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import layouts, tiny_model
from tests.support.ranks import tiny_run
from tests.support.ranks.tiny_run import TinyRun

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 20
RELATIVE = 2e-4
DTYPES = {"float32": RELATIVE, "bfloat16": 5e-3}
"""Of a model's numbers -> relative difference of a loss; a norm of the gradients differs by more."""
DENSE = ("tp2", "tp2 sp", "pp2", "cp2", "tp2 pp2")
EXPERTS = ("pp2", "cp2", "ep2", "tp2 sp ep2 etp1", "tp2 sp pp2 etp1")
CASES = {"llama": DENSE, "qwen3_moe": EXPERTS, "deepseek_v3": EXPERTS}
TUNERS: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-3},
    "lora": {"train_type": "lora", "lr": 3e-3, "lora_dropout": 0.0},
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """train(model, tuner, layout): the run; the same is made once. shape: changes of the model's config.json."""
    root: Path = tmp_path_factory.mktemp("curves")
    data = tiny_run.write_data(root / "train.jsonl", rows=4 * STEPS)
    done: dict[tuple[str, ...], TinyRun] = {}

    def run(model: str, tuner: str, text: str, *, shape: dict[str, Any] | None = None, **given: Any) -> TinyRun:
        key = (model, tuner, text, str(given), str(shape))
        if key not in done:
            chosen, ranks = layouts.of_run(text)
            settings = {"train_iters": STEPS, "dataloader_type": "single", **TUNERS[tuner], **chosen, **given}
            save = root / f"run{len(done)}"
            made = tiny_model.make(model, root, **(shape or {}))
            done[key] = tiny_run.train(tiny_run.arguments(made, data, save, **settings), ranks=ranks)
            assert done[key].exit_code == 0, done[key].message
        return done[key]

    return run


@pytest.fixture(scope="module")
def losses(train):
    """losses(model, tuner, layout): of each step."""
    return lambda *case, **given: train(*case, **given).column("lm loss")


def check(losses: Any, model: str, tuner: str, text: str) -> None:
    expected = losses(model, tuner, "tp1")
    assert len(expected) == STEPS
    assert expected[-1] < 0.9 * expected[0], "a model that learns nothing proves nothing"
    assert losses(model, tuner, text) == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize(
    ("model", "text"), [(model, text) for model, texts in CASES.items() for text in (*texts, "dp2")]
)
def test_every_layout_learns_the_same(losses, model, text, tuner):
    check(losses, model, tuner, text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("model", "text", "tuner"),
    [
        (model, text, tuner)
        for model, texts in layouts.OF_FOUR_AND_EIGHT.items()
        for text in texts
        for tuner in TUNERS
        if tuner == "full" or layouts.takes_adapters(text)
    ],
)
def test_layouts_of_four_and_eight_ranks_learn_the_same(train, model, text, tuner, dtype):
    given = {"train_iters": 3, "global_batch_size": 8, "no_save_optim": True, "torch_dtype": dtype}
    given["shape"] = layouts.LARGE_MODELS[model]
    expected, run = (train(model, tuner, layout, **given) for layout in ("tp1", text))
    assert len(expected.column("lm loss")) == 3
    assert run.column("lm loss") == pytest.approx(expected.column("lm loss"), rel=DTYPES[dtype])
    assert run.column("grad_norm") == pytest.approx(expected.column("grad_norm"), rel=20 * DTYPES[dtype])


def multiples_of_four(path: Path) -> Path:
    """The usual rows with marks after the answers, until each is rendered to a multiple of four tokens."""
    tokenizer = tiny_model.tokenizer()
    lines = []
    for line in tiny_run.write_data(path, rows=4 * STEPS).read_text().splitlines():
        turns = json.loads(line)["messages"]
        while len(tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]) % 4:
            turns[-1]["content"] += "!"
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("tuner", TUNERS)
def test_packed_rows_learn_the_same_in_every_layout(losses, tuner, tmp_path_factory):
    """Under context parallelism a sample counts as a multiple of four tokens: one of another length may go into another
    row, which is then another batch. Samples of such lengths go into the same rows everywhere."""
    data = multiples_of_four(tmp_path_factory.getbasetemp() / "packed.jsonl")
    packed = {"packing": True, "max_epochs": None, "dataset": [str(data)]}
    expected = losses("llama", tuner, "tp1", **packed)
    for text in ("cp2", "tp2 sp", "pp2"):
        assert losses("llama", tuner, text, **packed) == pytest.approx(expected, rel=RELATIVE)
