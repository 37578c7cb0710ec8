"""An error of one rank in any phase of a save, a load or an export ends all ranks, with the words of that rank."""

import pytest

from megatron_trainer import lost_peer
from megatron_trainjob import termination
from megatron_trainjob.checkpoint_folder import checkpoints
from megatron_trainjob.exit_codes import ExitCode
from tests.support.matrix import mostly_slow
from tests.support.ranks import one_rank_fails
from tests.support.ranks.pool import RankError, gloo_ranks
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


def test_shards_that_do_not_fit_together_end_all_ranks_with_the_words_of_the_first(llama, data, tmp_path):
    """Megatron checks them on the first rank, while the others go on to the next collective."""
    given = arguments(llama, data, tmp_path / "run", train_iters=1)
    ends = gloo_ranks(2).run(one_rank_fails.overlapping_rank, given, {})
    assert [end.exit_code for end in ends] == [ExitCode.OUTPUT_NOT_WRITABLE] * 2
    for end in ends:
        assert "rank 0: Invalid sharding pattern validation. Errors: Invalid access pattern" in end.message
        assert "earlier ones are untouched" in end.message
    assert checkpoints(tmp_path / "run") == ()
    assert list((tmp_path / "run").glob(".iter*")) == []


SAVES = ["what is saved is collected", "a save is planned"]


@pytest.mark.parametrize(
    ("fault", "code", "bad"),
    mostly_slow(
        [
            *[(fault, ExitCode.OUTPUT_NOT_WRITABLE, bad) for fault in SAVES for bad in (0, 1)],
            *[("a checkpoint is read", ExitCode.CHECKPOINT_INCOMPATIBLE, bad) for bad in (0, 1)],
            *[("tensors are gathered for an export", ExitCode.ERROR, bad) for bad in (0, 1)],
        ],
        [("a save is planned", ExitCode.OUTPUT_NOT_WRITABLE, 1)],
    ),
)
def test_a_rank_that_fails_while_others_wait_for_it_ends_and_they_with_it(llama, data, tmp_path, fault, code, bad):
    """The other rank waits in a collective, which it leaves because the connection is gone: its record says no more."""
    given = arguments(llama, data, tmp_path / "run", train_iters=1)
    env = {}
    if code == ExitCode.CHECKPOINT_INCOMPATIBLE:
        train(given, ranks=2)
        given, env = {**given, "train_iters": 2, "lr_decay_iters": 1}, {"resume": "Required", "attempt": 1}
    elif code == ExitCode.ERROR:
        given = {**given, "to_hf": True, "tensor_model_parallel_size": 2}
    with pytest.raises(RankError, match=rf"rank {bad}.*exit code {int(code)}"):
        gloo_ranks(2).run(one_rank_fails.failing_rank, given, fault, bad, tmp_path, env)
    own = termination.read(tmp_path / f"rank-{bad}.json")
    assert (own.exit_code, own.rank) == (code, bad)
    assert "was not to be" in own.message
    other = termination.read(tmp_path / f"rank-{1 - bad}.json")
    if other is not None:  # it may have been ended before
        assert other.exit_code == ExitCode.ERROR
        assert lost_peer.is_said(other.message)


def test_a_rank_that_cannot_make_its_folder_in_memory_turns_it_off_and_stops_nobody(llama, data, tmp_path):
    given = arguments(llama, data, tmp_path / "run", train_iters=5)
    for run in gloo_ranks(2).run(one_rank_fails.memory_rank, given, tmp_path):
        assert (run.exit_code, run.message) == (0, "")
        assert len(run.column("lm loss")) == 5


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("none", None),
        ("missing", "rank 0: OSError: [Errno 2]"),
        ("shorter", "own-0 ends at byte 600"),
        ("nowhere to write", "rank 1: OSError: [Errno 2]"),
    ],
)
def test_a_file_that_cannot_be_sent_or_taken_holds_up_neither_node(tmp_path, harm, words):
    first, second = gloo_ranks(2).run(one_rank_fails.exchange, tmp_path, harm)
    assert first == second
    assert len(first) == (words is not None)
    assert all(words in text for text in first)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("Read error [127.0.0.1]:4711: Connection reset by peer"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error, NCCL version 2.27"), True),
        (BrokenPipeError("[Errno 32] Broken pipe"), False),
        (RuntimeError("shape '[2]' is invalid"), False),
    ],
)
def test_the_loss_of_a_peer_is_known_also_as_a_cause(error, is_one):
    further_up = ValueError("further up")
    further_up.__cause__ = error
    assert lost_peer.is_cause(further_up) == is_one
