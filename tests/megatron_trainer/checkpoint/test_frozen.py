"""An attempt that is frozen at any step of a save, and wakes after its successor has written: nothing is lost."""

import pytest

from megatron_trainer.checkpoint import folder
from megatron_trainjob.checkpoint_folder import TRACKER, checkpoints
from tests.support.checkpoint import checkpoint_files
from tests.support.checkpoint.frozen_writer import (
    NOT_CLAIMED,
    TAKEN_OVER,
    WRITTEN,
    claim_and_save,
    owner,
    save,
    start_frozen,
    wake,
    write_shard,
)
from tests.support.matrix import mostly_slow

OLD, NEW = b"of the old attempt", b"of its successor"
MOST_STEPS = 80


def found(place):
    return {each.iteration: (each.path / "__0_0.distcp").read_bytes() for each in checkpoints(place) if each.manifest}


def assert_whole(place):
    """No checkpoint is damaged, and nothing but checkpoints and the newest workshop is left."""
    assert [each.problem for each in checkpoints(place) if each.problem] == []
    hidden = sorted(path.name for path in place.glob(".*"))
    assert hidden == [folder.workshop(place, owner(1)).name]


def prepared(place):
    """A folder in which the old attempt has saved steps 2, 4 and 6 and goes on to 8; each was complete once."""
    place.mkdir()
    assert folder.claim(place, owner(0))
    for iteration in (4, 6):
        save(place, 0, iteration, OLD)
    return place


@pytest.mark.parametrize(
    ("order", "successor"),
    mostly_slow(
        [(order, successor) for order in ("published", "claimed") for successor in ((8,), (6, 8), (8, 10))],
        [("published", (6, 8)), ("claimed", (8,)), ("claimed", (8, 10))],
    ),
)
def test_a_writer_frozen_at_any_step_leaves_its_successor_intact(tmp_path, successor, order):
    """order: whether the successor has published, or merely claimed the folder, when the old one wakes."""
    steps = 0
    for step in range(MOST_STEPS):
        place = prepared(tmp_path / f"{step}")
        pid, is_frozen = start_frozen(lambda place=place: save(place, 0, 8, OLD), step)
        if not is_frozen:
            assert pid == WRITTEN
            break
        steps += 1
        assert folder.claim(place, owner(1))
        if order == "claimed":
            code = wake(pid)
        for iteration in successor:
            save(place, 1, iteration, NEW)
        if order == "published":
            code = wake(pid)
        assert code in (TAKEN_OVER, WRITTEN), f"step {step}"
        left = found(place)
        assert {iteration: left[iteration] for iteration in successor[-2:]} == dict.fromkeys(successor[-2:], NEW)
        assert (place / TRACKER).read_text() == str(successor[-1])
        assert folder.owner(place) == owner(1)
        assert_whole(place)
    assert steps > 10


def test_a_writer_that_replaces_a_checkpoint_and_is_gone_before_the_new_one_is_there_leaves_the_old(tmp_path):
    for step in range(MOST_STEPS):
        place = prepared(tmp_path / f"{step}")
        pid, is_frozen = start_frozen(lambda place=place: save(place, 0, 6, b"again"), step)
        if not is_frozen:
            break
        import os
        import signal

        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert folder.claim(place, owner(1))
        assert found(place)[6] in (OLD, b"again"), f"step {step}"
        assert_whole(place)


def test_an_old_attempt_that_is_frozen_while_it_claims_does_not_take_the_folder_back(tmp_path):
    for step in range(MOST_STEPS):
        place = prepared(tmp_path / f"{step}")
        old = folder.Owner(job_uid="a", attempt=0, job_name="job", token="again")
        pid, is_frozen = start_frozen(lambda place=place, old=old: _claim(place, old), step)
        if not is_frozen:
            break
        claim_and_save(place, 1, 8, NEW)
        assert wake(pid) == NOT_CLAIMED, f"step {step}"
        assert folder.owner(place) == owner(1)
        save(place, 1, 10, NEW)
        assert found(place) == {8: NEW, 10: NEW}
        assert_whole(place)


def _claim(place, claimant):
    import sys

    sys.exit(WRITTEN if folder.claim(place, claimant) else NOT_CLAIMED)


@pytest.mark.parametrize("step", [0])
def test_the_second_rank_of_a_replaced_attempt_hears_who_has_the_folder(tmp_path, step):
    place = prepared(tmp_path / "run")
    folder.make_aside(folder.folder_aside(place, 8, owner(0)))
    pid, is_frozen = start_frozen(lambda: write_shard(place, 0, 8, OLD), step)
    assert is_frozen
    claim_and_save(place, 1, 8, NEW)
    assert wake(pid) == TAKEN_OVER
    assert found(place)[8] == NEW
    assert_whole(place)


def test_a_whole_new_start_within_the_same_attempt_takes_over_too(tmp_path):
    place = prepared(tmp_path / "run")
    again = folder.Owner(job_uid="a", attempt=0, job_name="job", token="again")
    assert folder.claim(place, again)
    with pytest.raises(folder.TakenOver, match="was taken over by attempt 0 of job job"):
        save(place, 0, 8, OLD)
    assert sorted(found(place)) == [4, 6]
    assert checkpoint_files.INDEX
