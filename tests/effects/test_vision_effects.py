"""Effects of the arguments about the parts of a model with images, on real tiny runs over pictures."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from megatron_trainer.lora.parts import part_of
from megatron_trainjob.families.weights import in_table
from tests.effects.registry import effect
from tests.support.models import seeing_model
from tests.support.ranks import image_models, parity, tiny_run
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist

FREE = {"freeze_vit": False, "freeze_aligner": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return seeing_model.make("qwen2_5_vl", tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return seeing_model.write_rows(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def train(model, rows, tmp_path):
    count = iter(range(100))

    def run(*, name: str = "", stop_at: int | None = None, **given: object) -> Any:
        folder = tmp_path / (name or f"run{next(count)}")
        env = {key: given.pop(key) for key in ("resume", "attempt") if key in given}
        ranks = int(given.pop("ranks", 1))  # type: ignore[call-overload]
        settings = {"to_hf": True, "max_length": 512, "train_iters": 2, **given}
        run = tiny_run.train(tiny_run.arguments(model, rows, folder, **settings), ranks=ranks, stop_at=stop_at, **env)
        assert run.exit_code == 0 or stop_at, run.message
        return run

    return run


def moved(run: Any, model: Path) -> set[str]:
    """The parts of which a tensor is another than before training."""
    before, after = parity.in_table_names(model), run.weights()
    return {part_of(name) for name, t in after.items() if not torch.equal(t, before[in_table(name)])}


@effect("freeze_llm", "freeze_vit", "freeze_aligner")
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        pytest.param({}, {"llm"}, marks=pytest.mark.slow),
        ({"freeze_vit": False}, {"llm", "vit"}),
        pytest.param({"freeze_aligner": False}, {"llm", "aligner"}, marks=pytest.mark.slow),
        ({"freeze_llm": True, "freeze_aligner": False}, {"aligner"}),
    ],
    ids=["language model", "tower", "aligner", "aligner alone"],
)
def test_only_what_is_not_frozen_moves(train, model, given, parts):
    assert moved(train(**given), model) == parts


@effect("vit_lr", "aligner_lr")
def test_the_tower_and_the_aligner_may_have_rates_of_their_own(train, model):
    """A rate that rounds to nothing leaves its part, and nothing else, as it was."""
    assert moved(train(**FREE, vit_lr=1e-30), model) == {"llm", "aligner"}
    assert moved(train(**FREE, aligner_lr=1e-30), model) == {"llm", "vit"}
    assert moved(train(**FREE, lr=1e-30, vit_lr=1e-3), model) == {"vit"}


@effect("vit_gradient_checkpointing", "gradient_checkpointing_kwargs")
def test_layers_of_the_tower_run_again_in_the_backward_pass(model):
    def runs(**given: object) -> tuple[int, bool]:
        (found,) = gloo_ranks(1).run(image_models.runs_of_a_layer, model, {**FREE, **given})
        return found

    assert runs(vit_gradient_checkpointing=False) == (1, False)
    assert runs() == (2, False)
    assert runs(gradient_checkpointing_kwargs={"use_reentrant": True}) == (2, True)


@pytest.mark.parametrize(
    "settings", [FREE, pytest.param({**FREE, "train_type": "lora"}, marks=pytest.mark.slow)], ids=["full", "lora"]
)
def test_a_resumed_run_has_the_losses_and_weights_of_an_unbroken_one(train, settings):
    """It goes on with the images that come next; the tower's parameters and the state of the optimizer for them are in
    the checkpoint.
    """
    settings = {**settings, "train_iters": 4, "merge_lora": "train_type" in settings}
    whole = train(**settings)
    train(name="broken", stop_at=2, **settings)
    resumed = train(name="broken", resume="Auto", attempt=1, **settings)
    for column in ("lm loss", "grad_norm"):
        assert len(set(whole.column(column))) == 4
        assert resumed.column(column)[-2:] == whole.column(column)[-2:], column
    before, after = whole.weights(), resumed.weights()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_two_ranks_go_on_from_a_checkpoint_of_one_with_its_steps(train, tmp_path):
    """The norm of all gradients counts the tower once, and its state in the optimizer fits every layout."""
    settings = {**FREE, "vit_lr": 5e-4, "train_iters": 4, "to_hf": False, "dataloader_type": "single"}
    one = train(**settings)
    train(**settings, name="stopped", stop_at=2)
    for name, layout in {
        "tp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "pp": {"pipeline_model_parallel_size": 2},
        "dp": {},
    }.items():
        copytree(tmp_path / "stopped", tmp_path / name)
        two = train(**settings, **layout, name=name, ranks=2, resume="Auto", attempt=1)
        for column in ("lm loss", "grad_norm"):
            assert two.column(column)[-2:] == pytest.approx(one.column(column)[-2:], rel=1e-3), (name, column)


@pytest.mark.slow
def test_adapters_beside_a_tower_in_full_are_saved_resumed_and_loaded(train, model):
    """The adapter of the language model and the whole tower: as a folder for peft, and as a merged model."""
    settings = {"train_type": "lora_llm", "train_iters": 4, "merge_lora": True, "vit_lr": 1e-3}
    whole = train(name="whole", **settings)
    train(name="broken", stop_at=2, **settings)
    resumed = train(name="broken", resume="Auto", attempt=1, **settings).weights()
    merged = whole.weights()
    assert [name for name in merged if not torch.equal(merged[name], resumed[name])] == []
    assert moved(whole, model) == {"llm", "vit", "aligner"}
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(whole.folder / "adapter")).merge_and_unload().state_dict()
    theirs = {in_table(name): tensor for name, tensor in loaded.items()}
    ours = {in_table(name): tensor for name, tensor in merged.items()}
    assert ours.keys() <= theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6


@pytest.mark.parametrize(
    ("given", "warns"),
    [({"target_modules": ["qkv"], "freeze_vit": False}, True), ({"target_modules": ["linear_qkv"]}, False)],
    ids=["the tower alone", "the language model"],
)
def test_adapters_of_the_tower_alone_are_a_warning(model, given, warns):
    (said,) = gloo_ranks(1).run(image_models.warnings_of_adapters, model, {"train_type": "lora", **given})
    assert any("the language model trains nothing" in each for each in said) == warns


@pytest.mark.slow
def test_packed_rows_of_pictures_are_trained(train):
    run = train(**FREE, packing=True, max_length=256)
    assert len(run.column("lm loss")) == 2
