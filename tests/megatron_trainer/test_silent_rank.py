"""A rank that stays away from a collective ends the run within ddp_timeout; a slow one does not. Both are named."""

import pytest

from megatron_trainer import silent_rank
from megatron_trainjob import progress
from megatron_trainjob.exit_codes import ExitCode, retry_class
from tests.support.matrix import mostly_slow
from tests.support.ranks import silent_runs
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, write_data


@pytest.mark.dist
@pytest.mark.parametrize("away", mostly_slow([0, 1], [1]))
def test_a_rank_that_skips_a_collective_is_named(llama, tmp_path, away):
    data = write_data(tmp_path / "train.jsonl")
    given = arguments(llama, data, tmp_path / "run", ddp_timeout=10)
    (code, record), (other_code, other) = gloo_ranks(2).run(silent_runs.skip, given, away, tmp_path)[
        :: 1 if away else -1
    ]
    assert (code, record.reason) == (ExitCode.COLLECTIVE_TIMEOUT, "COLLECTIVE_TIMEOUT")
    assert record.iteration == 1
    assert f"a collective after step 1 timed out (ddp_timeout, 10 s): missing was rank {away}." in record.message
    assert "Waited in " in record.message
    assert (other_code, other.message) == (ExitCode.ERROR, "ValueError: was elsewhere")
    assert retry_class(code) == "retry"


@pytest.mark.slow
@pytest.mark.dist
def test_what_a_rank_is_late_by_does_not_add_up_over_an_evaluation(llama, tmp_path):
    """Half a second in each of 24 global batches, 12 s in all, and a limit of 8 s."""
    data = write_data(tmp_path / "train.jsonl", rows=48)
    given = arguments(
        llama,
        data,
        tmp_path / "run",
        val_dataset=[str(data)],
        train_iters=1,
        global_batch_size=2,
        eval_iters=24,
        eval_interval=1,
        ddp_timeout=8,
    )
    for run in gloo_ranks(2).run(silent_runs.slow_to_evaluate, given, 1, 0.5):
        assert (run.exit_code, run.message) == (0, "")


@pytest.mark.dist
def test_a_rank_that_computes_slowly_is_named_in_the_progress_record(llama, tmp_path):
    """Its own time is counted, not that of the rank which waits for it."""
    given = arguments(llama, write_data(tmp_path / "train.jsonl"), tmp_path / "run", train_iters=5)
    of_ranks = gloo_ranks(2).run(silent_runs.slowed, given, 1)
    assert of_ranks[0] == of_ranks[1]
    for own_s in of_ranks[0][1:]:
        assert own_s[1] - own_s[0] > 0.5 * silent_runs.SLOWLY_S
    told = progress.read(tmp_path / "run" / progress.FILE)
    assert told.slow_rank == 1
    assert told.slow_rank_ratio > 1.5


@pytest.mark.parametrize(
    "words",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=13, OpType=ALLREDUCE) ran for 5012 "
        "milliseconds before timing out.",
    ],
)
def test_the_words_of_a_timeout_are_known_also_as_a_cause(words):
    error = ValueError("further up")
    error.__cause__ = RuntimeError(words)
    assert silent_rank.is_cause(error)
    assert not silent_rank.is_cause(RuntimeError("Connection closed by peer"))
