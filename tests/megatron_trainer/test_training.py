"""Whole runs of a tiny model: equal to a loop written with transformers, and exactly resumable."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_trainer.data.ordering.sample import Sampler
from megatron_trainer.train.schedule import Schedule, learning_rate
from megatron_trainjob.checkpoint_folder import checkpoints
from megatron_trainjob.exit_codes import ExitCode
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.models.reference_rows import reference_rows
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import (
    arguments,
    main_rank_on_full_disk,
    train,
    train_counting_batches,
    train_on_late_data,
    train_one_asked,
    train_stopped_in_evaluation,
    train_stopped_in_save,
    train_with_spoiled_gradient,
    write_data,
)

STEPS = 20
pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def llama(model_root):
    """A tiny Llama of two layers: no case here needs more."""
    return tiny_model.make("llama", model_root, num_hidden_layers=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


def test_twenty_steps_equal_a_loop_of_transformers_and_torch(llama, data, tmp_path):
    """Loss per step within 1e-4: both are float32 and differ in the order of sums alone."""
    given = {"train_iters": STEPS, "lr_warmup_iters": 3, "min_lr": 1e-4, "dataset_shuffle": False}
    ours = train(arguments(llama, data, tmp_path / "run", **given)).column("lm loss")
    assert ours == pytest.approx(reference_losses(llama, data), abs=1e-4)
    assert ours[-1] < ours[0] - 0.5, "the model must learn, or the comparison says little"


def reference_losses(directory, data) -> list[float]:
    """The same fine-tuning written with transformers, torch's AdamW and the sampler's order of the rows."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    schedule = Schedule(peak=1e-3, floor=1e-4, warmup_steps=3, decay_steps=STEPS, style="cosine")
    rows = reference_rows(tokenizer, data)
    order = iter(Sampler(num_items=len(rows), micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1))
    losses = []
    for step in range(STEPS):
        batch = [rows[index] for _ in range(4) for index in next(order)]
        count = sum((labels[1:] != -100).sum().item() for _, labels in batch)
        total = sum(
            torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="sum")
            for ids, labels in batch
        )
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / count)
    return losses


@pytest.mark.parametrize(
    ("ranks", "stop_at"),
    mostly_slow([(1, 1), (1, 4), (1, 7), (2, 5)], [(2, 5)]),
    ids=["after the first step", "at the end of an epoch", "inside an epoch", "two ranks inside an epoch"],
)
def test_a_stopped_and_resumed_run_is_bit_identical(llama, data, tmp_path, ranks, stop_at):
    """18 rows in batches of 4: an epoch ends inside the fifth step, whose checkpoint lies on the way."""
    given = {"train_iters": 9, "save_interval": 5, "to_hf": True}
    whole = train(arguments(llama, data, tmp_path / "whole", **given), ranks=ranks)
    stopped = arguments(llama, data, tmp_path / "stopped", **given)
    first = train(stopped, ranks=ranks, stop_at=stop_at, resume="Auto")
    assert (first.exit_code, len(first.column("lm loss"))) == (ExitCode.PREEMPTED, stop_at)
    resumed = train(stopped, ranks=ranks, resume="Auto", attempt=1)
    assert resumed.column("lm loss") == whole.column("lm loss")
    assert equal(resumed.weights(), whole.weights())


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(
            {"train_type": "lora", "lora_dropout": 0.3, "lr": 1e-2, "merge_lora": True}, marks=pytest.mark.slow
        ),
        pytest.param({"torch_dtype": "bfloat16"}, marks=pytest.mark.slow),
        {"train_type": "lora", "lora_dropout": 0.3, "lr": 1e-2, "merge_lora": True, "torch_dtype": "bfloat16"},
    ],
    ids=["LoRA with dropout", "bfloat16", "LoRA with dropout in bfloat16"],
)
def test_dropout_and_half_precision_resume_bit_identically_with_evaluations_between(llama, data, tmp_path, given):
    """Two ranks, and loader workers, which must not draw from the generator that dropout uses."""
    given = {"train_iters": 6, "to_hf": True, "num_workers": 1, "val_dataset": [str(data)], "eval_interval": 2, **given}
    whole = train(arguments(llama, data, tmp_path / "whole", **given), ranks=2)
    stopped = arguments(llama, data, tmp_path / "stopped", **given)
    assert train(stopped, ranks=2, stop_at=3, resume="Auto").exit_code == ExitCode.PREEMPTED
    resumed = train(stopped, ranks=2, resume="Auto", attempt=1)
    assert resumed.column("lm loss") == whole.column("lm loss")
    assert equal(resumed.weights(), whole.weights())


@pytest.mark.parametrize("stop_at", [2, 4], ids=["in the midst", "at the last step"])
def test_an_evaluation_that_a_stop_left_out_is_made_up_for_and_tells_the_best_checkpoint(
    llama, data, tmp_path, stop_at
):
    """In the midst the second checkpoint is the best: the steps after it make the model worse."""
    given = {"val_dataset": [str(data)], "eval_interval": 2, "save_interval": 2, "load_best_model_at_end": True}
    given |= {"lr_warmup_iters": 3, "lr": 0.3, "to_hf": True}
    whole = train(arguments(llama, data, tmp_path / "whole", **given))
    stopped = arguments(llama, data, tmp_path / "stopped", **given)
    train(stopped, stop_at=stop_at, resume="Auto")
    again = train(stopped, resume="Auto", attempt=1)
    assert (whole.exit_code, again.exit_code) == (0, 0)
    found = [
        [(row["iteration"], row["eval_lm loss"]) for row in run.log if "eval_lm loss" in row] for run in (whole, again)
    ]
    assert found[0] == found[1]
    manifests = [
        [(c.iteration, c.manifest.validation_loss, c.manifest.loss) for c in checkpoints(run.folder)]
        for run in (whole, again)
    ]
    assert manifests[0] == manifests[1]
    assert equal(again.weights(), whole.weights())


def test_a_request_to_stop_ends_an_evaluation_which_is_made_up_for_after_the_resume(llama, data, tmp_path):
    """An evaluation may take longer than a pod has to end, and what it evaluates is not saved yet."""
    given = {"val_dataset": [str(data)], "eval_interval": 2, "save_interval": 2}
    whole = train(arguments(llama, data, tmp_path / "whole", **given), ranks=2)
    stopped = arguments(llama, data, tmp_path / "stopped", **given)
    found = gloo_ranks(2).run(train_stopped_in_evaluation, stopped, 2, 1)
    assert [(run.exit_code, rounds) for run, rounds in found] == [(ExitCode.PREEMPTED, 2)] * 2
    assert [each.iteration for each in checkpoints(tmp_path / "stopped")] == [2]
    again = train(stopped, ranks=2, resume="Auto", attempt=1)
    for name in ("lm loss", "eval_lm loss"):
        assert again.column(name) == whole.column(name)


def test_a_run_that_is_asked_to_stop_while_it_saves_stops_there(llama, data, tmp_path):
    """Another step would be saved again, for which the time that a pod has to end may not suffice."""
    given = arguments(llama, data, tmp_path / "run", save_interval=2)
    found = gloo_ranks(2).run(train_stopped_in_save, given, 2, 1)
    assert [run.exit_code for run in found] == [ExitCode.PREEMPTED] * 2
    assert [row["iteration"] for row in found[0].log if "lm loss" in row] == [1, 2]
    assert [each.iteration for each in checkpoints(tmp_path / "run")] == [2]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_started_again_changes_nothing(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", train_iters=2, to_hf=True)
    first = train(given)
    before = first.weights()
    again = train(given, resume="Auto", attempt=1)
    assert again.column("lm loss") == first.column("lm loss")
    assert equal(again.weights(), before)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_stop_that_reaches_one_rank_stops_all_and_none_has_finished(llama, data, tmp_path, asked):
    """As when one node of several is drained: the pods on the others are not signaled."""
    given = arguments(llama, data, tmp_path / "run", to_hf=True)
    found = train_one_asked(given, ranks=2, asked=asked, stop_at=2)
    assert [run.exit_code for run in found] == [ExitCode.PREEMPTED] * 2
    assert [each.iteration for each in checkpoints(tmp_path / "run")] == [2]
    assert not (tmp_path / "run" / "hf").exists()


def test_required_resume_without_a_checkpoint_says_so(llama, data, tmp_path):
    run = train(arguments(llama, data, tmp_path / "run"), resume="Required")
    assert run.exit_code == ExitCode.NO_CHECKPOINT
    assert "has no complete checkpoint" in run.message


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(llama, data, tmp_path):
    given = {"lr": 1e30, "lr_decay_style": "constant", "clip_grad": 1e30}
    given |= {"optimizer": "sgd", "use_distributed_optimizer": False}
    run = train(arguments(llama, data, tmp_path / "run", **given))
    assert run.exit_code == ExitCode.LOSS_NOT_FINITE
    assert re.match(r"step [23]: (lm loss|grad_norm) is nan; ", run.message), run.message


def test_a_gradient_that_is_not_finite_ends_the_run_before_its_weights_are_saved(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", save_interval=1)
    run = gloo_ranks(1).run(train_with_spoiled_gradient, given, 3)[0]
    assert (run.exit_code, run.message.partition(";")[0]) == (ExitCode.LOSS_NOT_FINITE, "step 3: grad_norm is nan")
    assert [each.iteration for each in checkpoints(tmp_path / "run")] == [2, 1]


def test_a_failure_has_its_exit_code_also_where_no_record_of_it_can_be_left(llama, data, tmp_path):
    given = arguments(llama, tmp_path / "missing.jsonl", tmp_path / "run")
    run = gloo_ranks(1).run(main_rank_on_full_disk, given, tmp_path)[0]
    assert run.exit_code == ExitCode.MISSING_INPUT
    assert "cannot leave a record of the failure" in run.output


def test_wrong_arguments_are_all_reported(llama, data, tmp_path):
    run = train(arguments(llama, data, tmp_path, lr=-1, leraning_rate=3, save_interval="often"))
    assert run.exit_code == ExitCode.BAD_ARGUMENTS
    assert all(
        name in run.message for name in ("spec.args.lr:", "spec.args.leraning_rate:", "spec.args.save_interval:")
    )


def test_an_evaluation_holds_no_more_than_two_global_batches_at_once(llama, data, tmp_path):
    """All micro-batches of a long validation set, with their images, would fill a GPU."""
    given = {"train_iters": 1, "global_batch_size": 2, "val_dataset": [str(data)]}
    assert gloo_ranks(1).run(train_counting_batches, arguments(llama, data, tmp_path / "run", **given))[0] <= 4


def test_the_wait_for_data_counts_in_the_rates(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", train_iters=2)
    log = gloo_ranks(1).run(train_on_late_data, given, 0.3)[0].log
    assert [row["iteration"] for row in log if "tokens" in row] == [1, 2]
    for row in (row for row in log if "tokens" in row):
        assert 0.3 <= row["data_wait_s"] < row["elapsed_time_per_iteration"]
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["elapsed_time_per_iteration"])
