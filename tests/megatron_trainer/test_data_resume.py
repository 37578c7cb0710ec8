"""What a run sees of its data when it is interrupted: the same samples in the same order, none twice, none lost.

Each row has a channel of its own, so that the losses by channel tell which rows each step read.
"""

import json

import pytest

from megatron_trainer.state import TrainState, on_data
from megatron_trainer.train.schedule import Schedule, learning_rate
from megatron_trainjob.exit_codes import ExitCode
from tests.support.models import tiny_model
from tests.support.ranks.tiny_run import QUESTIONS, arguments, train

pytestmark = pytest.mark.dist
NUM_ROWS = 16


@pytest.fixture(scope="module")
def llama(model_root):
    """A tiny Llama of two layers: no case here needs more."""
    return tiny_model.make("llama", model_root, num_hidden_layers=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = []
    for number in range(NUM_ROWS):
        query, response = QUESTIONS[number % len(QUESTIONS)]
        rows.append(json.dumps({"query": query, "response": f"{response} {number}", "channel": f"{number:02d}"}))
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("\n".join(rows))
    return path


STREAM = {"streaming": True, "shuffle_buffer_size": 5, "num_workers": None}
PACKED = {"packing": True, "packing_length": 100, "max_length": 100}


def by_channel(run) -> list[dict[str, float]]:
    """For each step the losses of the rows that it read."""
    return [
        {
            name.removeprefix("loss_"): value
            for name, value in line.items()
            if name.startswith("loss_") and name != "loss_scale"
        }
        for line in run.log
        if "lm loss" in line
    ]


def rows_read(run) -> list[list[str]]:
    """The rows that each step read."""
    return [sorted(losses) for losses in by_channel(run)]


@pytest.mark.parametrize(
    ("given", "ranks", "stop_at"),
    [
        pytest.param({**STREAM}, 1, 3, marks=pytest.mark.slow),
        pytest.param({**STREAM}, 2, 5, marks=pytest.mark.slow),
        ({**STREAM, **PACKED, "global_batch_size": 2}, 2, 4),
        pytest.param({**PACKED, "global_batch_size": 2}, 2, 4, marks=pytest.mark.slow),
        ({"lazy_tokenize": True}, 1, 5),
    ],
    ids=["streaming", "streaming on two ranks", "streaming and packing", "packing", "lazy"],
)
def test_an_interrupted_run_sees_the_samples_of_an_uninterrupted_one(llama, data, tmp_path, given, ranks, stop_at):
    given = {"train_iters": 8, "enable_channel_loss": True, **given}
    whole = train(arguments(llama, data, tmp_path / "whole", **given), ranks=ranks)
    assert (whole.exit_code, whole.message) == (0, "")
    stopped = arguments(llama, data, tmp_path / "stopped", **given)
    assert train(stopped, ranks=ranks, stop_at=stop_at, resume="Auto").exit_code == ExitCode.PREEMPTED
    resumed = train(stopped, ranks=ranks, resume="Auto", attempt=1)
    assert by_channel(resumed) == by_channel(whole)
    assert len(set(map(tuple, rows_read(whole)))) > 3, "steps that read the same rows show nothing"


@pytest.mark.parametrize("given", [{}, pytest.param(STREAM, marks=pytest.mark.slow)], ids=["prepared", "streaming"])
def test_another_layout_reads_what_is_left_of_the_epoch(llama, data, tmp_path, given):
    """Two epochs of 16 rows in batches of 4: one rank, then two, then two with micro-batches of 2, then one again."""
    given = {"train_iters": 8, "enable_channel_loss": True, "save_interval": 1, **given}
    common = arguments(llama, data, tmp_path / "run", **given)
    for attempt, (ranks, micro_batch_size, stop_at) in enumerate([(1, 1, 1), (2, 1, 3), (2, 2, 6), (1, 2, None)]):
        run = train(
            {**common, "micro_batch_size": micro_batch_size},
            ranks=ranks,
            stop_at=stop_at,
            resume="Auto",
            attempt=attempt,
        )
        assert run.exit_code == (0 if stop_at is None else ExitCode.PREEMPTED), run.message
    read = rows_read(run)
    every = [f"{number:02d}" for number in range(NUM_ROWS)]
    assert [len(rows) for rows in read] == [4] * 8
    assert sorted(row for rows in read[:4] for row in rows) == every
    assert sorted(row for rows in read[4:] for row in rows) == every


@pytest.mark.parametrize(
    ("sizes", "stop_at", "steps"),
    [((2, 4), 4, 10), pytest.param((4, 2), 2, 14, marks=pytest.mark.slow)],
    ids=["larger", "smaller"],
)
def test_another_global_batch_size_reads_what_is_left_of_the_epochs(llama, data, tmp_path, sizes, stop_at, steps):
    """Two epochs of 16 rows, 8 rows of them in steps of the first size: the learning rate falls over the true steps."""
    given = {"train_iters": None, "max_epochs": 2, "enable_channel_loss": True, "min_lr": 1e-4}
    common = arguments(llama, data, tmp_path / "run", **given)
    first = train({**common, "global_batch_size": sizes[0]}, stop_at=stop_at, resume="Auto")
    assert first.exit_code == ExitCode.PREEMPTED
    run = train({**common, "global_batch_size": sizes[1]}, resume="Auto", attempt=1)
    assert (run.exit_code, run.message) == (0, "")
    read = [row for rows in rows_read(run) for row in rows]
    assert {row: read.count(row) for row in read} == {f"{number:02d}": 2 for number in range(NUM_ROWS)}
    assert run.column("global_step/max_steps")[stop_at:] == [f"{n}/{steps}" for n in range(stop_at + 1, steps + 1)]
    schedule = Schedule(peak=1e-3, floor=1e-4, warmup_steps=0, decay_steps=steps, style="cosine")
    assert run.column("learning_rate")[-1] == pytest.approx(learning_rate(schedule, steps - 1))


def test_a_stream_ends_after_max_epochs_on_all_ranks_at_once_and_evaluates_and_saves(llama, data, tmp_path):
    """15 rows: the first rank has 8 of them an epoch and the second 7, so that one could go on where the other ends."""
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(data.read_text().splitlines()[:15]))
    given = {**STREAM, "max_epochs": 2, "train_iters": 100, "enable_channel_loss": True, "global_batch_size": 2}
    given |= {"val_dataset": [str(data)], "eval_iters": 1, "eval_interval": 5}
    common = arguments(llama, path, tmp_path / "run", **given)
    run = train(common, ranks=2, resume="Auto")
    assert (run.exit_code, run.message) == (0, "")
    read = rows_read(run)
    assert len(read) == 14
    assert sorted(row for rows in read for row in rows if row in ("00", "02")) == ["00", "00", "02", "02"]
    assert [line["iteration"] for line in run.log if "eval_lm loss" in line] == [5, 10, 14]
    assert (run.folder / "iter_0000014").exists()
    again = train(common, ranks=2, resume="Auto", attempt=1)
    assert (again.exit_code, again.log) == (0, run.log)


def test_a_bad_row_of_a_strict_stream_ends_the_run_with_its_place(llama, data, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*data.read_text().splitlines()[:9], "{", '{"query": "q", "response": "r"}']))
    for way in (STREAM, {"lazy_tokenize": True, "num_workers": 1, "train_iters": 8}):
        run = train(arguments(llama, path, tmp_path / "run", **way, strict=True))
        assert run.exit_code == ExitCode.BAD_DATA
        assert "bad.jsonl:10: not JSON" in run.message


def test_a_checkpoint_of_other_data_is_warned_of(caplog):
    state = TrainState(consumed_samples=8, data="a")
    assert on_data(state, "a", total_iterations=9) == state
    assert on_data(TrainState(), "a", total_iterations=9).data == "a"
    assert caplog.messages == []
    assert on_data(state, "b", total_iterations=9).data == "b"
    assert "the data or its order differs from the checkpoint's: after its consumed_samples=8" in caplog.messages[0]
