"""Saving in whole tiny runs: in the background of training, on a disk that is full, when asked to stop."""

import shutil
import subprocess

import pytest
import torch

from megatron_trainjob.checkpoint_folder import checkpoints
from megatron_trainjob.exit_codes import ExitCode
from tests.support.ranks import checkpoint_faults
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


def complete(folder) -> list[int]:
    """Iterations, newest first; every checkpoint must be whole."""
    found = checkpoints(folder)
    assert [each.problem for each in found] == [None] * len(found)
    return [each.iteration for each in found]


def order(run) -> list[str]:
    """Steps and checkpoints as they were logged, for example ["1", "2", "saved 1"]."""
    return [f"saved {row['iteration']}" if "checkpoint" in row else str(row["iteration"]) for row in run.log]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_goes_on_while_a_checkpoint_of_the_state_before_is_written(llama, data, tmp_path, ranks):
    """Nothing is written before step 5 has been made; what is written then is the state after step 3."""
    given = {"train_iters": 5, "save_interval": 3}
    whole = train(arguments(llama, data, tmp_path / "whole", **given), ranks=ranks)
    slow = arguments(llama, data, tmp_path / "slow", **given, async_save=True)
    run = gloo_ranks(ranks).run(checkpoint_faults.slow_rank, slow, 5, {})[0]
    assert (run.exit_code, run.message) == (0, "")
    assert order(run) == ["1", "2", "3", "4", "5", "saved 3", "saved 5"]
    assert complete(run.folder) == [5, 3]
    shutil.rmtree(run.folder / "iter_0000005")
    resumed = train(slow, ranks=ranks, resume="Required", attempt=1)
    assert resumed.column("lm loss") == whole.column("lm loss")


def test_a_save_that_comes_too_early_waits_for_the_one_before(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", async_save=True, save_interval=1, train_iters=3)
    run = gloo_ranks(1).run(checkpoint_faults.slow_rank, given, 2, {})[0]
    assert run.exit_code == 0
    assert order(run)[:3] == ["1", "2", "saved 1"]
    assert complete(run.folder) == [3, 2, 1]


def test_a_run_that_is_asked_to_stop_publishes_the_pending_checkpoint_and_the_last_state(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", async_save=True, save_interval=2, train_iters=9)
    run = gloo_ranks(1).run(checkpoint_faults.slow_rank, given, 4, {}, stop_at=4)[0]
    assert run.exit_code == ExitCode.PREEMPTED
    assert order(run) == ["1", "2", "3", "4", "saved 2", "saved 4"]
    assert complete(run.folder) == [4, 2]


def test_a_run_that_must_not_save_when_asked_to_stop_does_not(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", save_interval=2, train_iters=9)
    run = train(given, stop_at=3, save_on_termination=False)
    assert run.exit_code == ExitCode.PREEMPTED
    assert complete(run.folder) == [2]


@pytest.mark.parametrize("async_save", [False, True], ids=["training waits", "in the background"])
@pytest.mark.parametrize("bad_rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_cannot_write_ends_all_with_a_clear_error(llama, data, tmp_path, async_save, bad_rank):
    given = arguments(llama, data, tmp_path / "run", save_interval=1, train_iters=1)
    train(given, ranks=2)
    again = {**given, "train_iters": 4, "lr_decay_iters": 1, "async_save": async_save}
    ends = gloo_ranks(2).run(checkpoint_faults.failing_rank, again, bad_rank, {"resume": "Auto", "attempt": 1})
    assert [end.exit_code for end in ends] == [ExitCode.OUTPUT_NOT_WRITABLE] * 2
    for end in ends:
        assert f"rank {bad_rank}: [Errno 28] No space left on device" in end.message
        assert "earlier ones are untouched" in end.message
    assert complete(ends[0].folder) == [1]
    assert list(ends[0].folder.glob(".iter*")) == [], "what was half written gives its space back"


def test_gpu_memory_that_runs_out_in_a_save_is_no_fault_of_the_disk(llama, data, tmp_path):
    """Of one rank, and all end with the code that says so."""
    given = arguments(llama, data, tmp_path / "run", save_interval=1, train_iters=2)
    fault = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    ends = gloo_ranks(2).run(checkpoint_faults.failing_rank, given, 1, {}, fault)
    assert [end.exit_code for end in ends] == [ExitCode.OUT_OF_DEVICE_MEMORY] * 2
    assert all("rank 1: CUDA out of memory" in end.message for end in ends)


def test_an_index_that_cannot_be_written_ends_all_ranks_too(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", save_interval=1, train_iters=1)
    ends = gloo_ranks(2).run(checkpoint_faults.failing_index_rank, given, {})
    assert [end.exit_code for end in ends] == [ExitCode.OUTPUT_NOT_WRITABLE] * 2
    assert "rank 0: [Errno 28] No space left on device" in ends[1].message
    assert complete(ends[0].folder) == []


def test_a_file_that_cannot_grow_is_a_clear_error_on_every_rank(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", save_interval=1, train_iters=1)
    train(given, ranks=2)
    again = {**given, "train_iters": 4, "lr_decay_iters": 1}
    ends = gloo_ranks(2).run(checkpoint_faults.limited_rank, again, 64 * 1024, {"resume": "Auto", "attempt": 1})
    assert [end.exit_code for end in ends] == [ExitCode.OUTPUT_NOT_WRITABLE] * 2
    assert all("rank 0: [Errno 27] File too large" in end.message for end in ends)
    assert complete(ends[0].folder) == [1]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 5 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_the_run_with_a_clear_error_and_leaves_older_checkpoints_whole(llama, data, small_disk):
    given = arguments(llama, data, small_disk / "run", save_interval=1, train_iters=9)
    run = train(given)
    assert run.exit_code == ExitCode.OUTPUT_NOT_WRITABLE
    assert "No space left on device" in run.message
    left = complete(run.folder)
    assert left
    assert left[0] < 9
    assert train(given, resume="Auto", attempt=1).exit_code == ExitCode.OUTPUT_NOT_WRITABLE
    assert complete(run.folder) == left
