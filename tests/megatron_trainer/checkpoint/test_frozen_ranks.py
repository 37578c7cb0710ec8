"""Two ranks of which one is frozen at any step of a save, and wakes after a successor: its checkpoints are whole."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_trainer.checkpoint import folder
from megatron_trainjob.checkpoint_folder import TRACKER, checkpoints
from tests.support.checkpoint.frozen_writer import owner, save
from tests.support.ranks.frozen_ranks import MOST_STEPS, export_taken_over, save_again_and_again
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, write_data

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]
NEW = b"of its successor"
PATIENCE_S = 240


@pytest.mark.slow
@pytest.mark.parametrize("order", ["published", "claimed"])
@pytest.mark.parametrize("frozen_rank", [0, 1])
def test_a_rank_frozen_at_any_step_leaves_its_successor_intact(llama, tmp_path, frozen_rank, order):
    """order: whether the successor has published, or merely claimed the folder, when the rank wakes."""
    given = arguments(llama, write_data(tmp_path / "train.jsonl"), tmp_path / "run", train_iters=9)
    places = tmp_path / "places"
    places.mkdir()
    with ThreadPoolExecutor(1) as threads:
        saving = threads.submit(gloo_ranks(2).run, save_again_and_again, given, str(places), frozen_rank)
        steps = 0
        try:
            while steps < MOST_STEPS and replay(places / f"{steps}", order, saving):
                steps += 1
        except BaseException:
            end(places / f"{steps}.pid")
            raise
        assert set(saving.result(PATIENCE_S)) == {steps}
    assert steps > (10 if frozen_rank == 0 else 0)


def test_an_export_of_a_run_that_was_taken_over_leaves_its_successors_alone(tmp_path):
    """The folder that it writes in comes back where a library makes missing parents; the door does not."""
    [message] = gloo_ranks(1).run(export_taken_over, str(tmp_path))
    assert message.startswith(f"could not write {tmp_path}/hf")
    assert {path.name: path.read_text() for path in (tmp_path / "hf").iterdir()} == {"config.json": "new"}


def replay(place, order, saving):
    """One save with a successor in its middle; whether the rank was frozen in it."""
    if not wait_for_freeze(place, saving):
        assert json.loads(place.with_suffix(".json").read_text()) == ""
        return False
    pid = int(place.with_suffix(".pid").read_text())
    assert folder.claim(place, owner(1))
    if order == "published":
        save(place, 1, 8, NEW)
        save(place, 1, 10, NEW)
    os.kill(pid, signal.SIGCONT)
    wait(place.with_suffix(".json").exists, saving)
    if order == "claimed":
        save(place, 1, 8, NEW)
        save(place, 1, 10, NEW)
    message = json.loads(place.with_suffix(".json").read_text())
    assert message == "" or "was taken over by attempt 1 of job job" in message, (place.name, message)
    assert_whole(place)
    return True


def assert_whole(place):
    found = checkpoints(place)
    assert [each.problem for each in found if each.problem] == [], place.name
    newest = {each.iteration: (each.path / "__0_0.distcp").read_bytes() for each in found[:2]}
    assert newest == {10: NEW, 8: NEW}, place.name
    assert (place / TRACKER).read_text() == "10"
    assert folder.owner(place) == owner(1)
    assert sorted(path.name for path in place.glob(".*")) == [folder.workshop(place, owner(1)).name], place.name


def wait_for_freeze(place, saving):
    """Whether the rank is frozen in this save; else it has ended."""
    wait(place.with_suffix(".pid").exists, saving)
    pid = int(place.with_suffix(".pid").read_text())
    wait(lambda: is_stopped(pid) or place.with_suffix(".json").exists(), saving)
    return not place.with_suffix(".json").exists()


def end(path):
    """Ends the rank, so that no one waits for it: the pool starts another."""
    if path.exists():
        os.kill(int(path.read_text()), signal.SIGKILL)


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def wait(is_true, saving):
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        if saving.done():
            saving.result()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
