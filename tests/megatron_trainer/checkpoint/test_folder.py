"""Who may write to a folder of checkpoints, how one is published, which are removed: on real folders."""

import pytest

from megatron_trainer.checkpoint import folder
from megatron_trainer.checkpoint.folder import Owner
from megatron_trainjob.checkpoint_folder import checkpoints, pointed_at
from tests.support.checkpoint import checkpoint_files

OWNER = Owner(job_uid="a", attempt=0)


def aside(save, iteration: int, writer: Owner = OWNER):
    path = folder.folder_aside(save, iteration, writer)
    folder.make_aside(path)
    return path


def iterations(save) -> list[int]:
    return [found.iteration for found in checkpoints(save)]


def test_a_newer_attempt_of_a_job_keeps_the_folder_and_another_job_takes_it_over(tmp_path):
    assert folder.owner(tmp_path) is None
    assert folder.claim(tmp_path, Owner(job_uid="a", attempt=3))
    assert not folder.claim(tmp_path, Owner(job_uid="a", attempt=2))
    assert folder.owner(tmp_path) == Owner(job_uid="a", attempt=3)
    assert folder.claim(tmp_path, Owner(job_uid="b", attempt=0))
    assert folder.owner(tmp_path) == Owner(job_uid="b", attempt=0)


def test_publishing_gives_a_folder_its_name_and_replaces_one_of_the_same_iteration(tmp_path):
    folder.claim(tmp_path, OWNER)
    checkpoint_files.write(tmp_path, 5, files={"__0_0.distcp": b"old"})
    path = aside(tmp_path, 5)
    final = folder.publish(path, checkpoint_files.manifest(path, {"__0_0.distcp": b"new"}), OWNER)
    assert (final / "__0_0.distcp").read_bytes() == b"new"
    assert checkpoints(tmp_path)[0].problem is None
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "5"
    assert [path.name for path in tmp_path.glob(".iter*")] == []


def test_an_attempt_that_was_replaced_publishes_nothing(tmp_path):
    folder.claim(tmp_path, OWNER)
    path = aside(tmp_path, 5)
    manifest = checkpoint_files.manifest(path)
    folder.claim(tmp_path, Owner(job_uid="a", attempt=1))
    assert not path.exists(), "what the attempt before left half written is removed"
    with pytest.raises(FileNotFoundError):
        aside(tmp_path, 5)
    with pytest.raises(folder.TakenOver, match="was taken over by attempt 1 of job a"):
        folder.publish(path, manifest, OWNER)
    assert checkpoints(tmp_path) == ()


@pytest.mark.parametrize(
    ("complete", "damaged", "best", "limit", "left"),
    [
        ((1, 2, 3, 4), (), None, 2, [4, 3]),
        ((1, 2, 3, 4), (), None, 4, [4, 3, 2, 1]),
        ((1, 2, 3, 4), (), None, 9, [4, 3, 2, 1]),
        ((1, 2, 4), (3,), None, 2, [4, 3, 2]),
        ((2, 3, 4), (1,), None, 2, [4, 3]),
        ((4,), (1, 2, 3), None, 2, [4, 3, 2, 1]),
        ((1, 2, 3, 4), (), 1, 2, [4, 3, 1]),
        ((1, 2, 3, 4), (), 4, 2, [4, 3]),
        ((1, 2, 4, 9), (), None, 2, [9, 4, 2]),
    ],
    ids=[
        "the newest stay",
        "as many as allowed",
        "fewer than allowed",
        "a damaged one does not count",
        "an old damaged one goes",
        "damaged ones stay where too few are complete",
        "the best one stays",
        "the best one is among the newest",
        "a later one of another run is left alone",
    ],
)
def test_pruning_keeps_the_newest_complete_ones_and_the_best(tmp_path, complete, damaged, best, limit, left):
    """Iteration 4 has just been published."""
    for iteration in (*complete, *damaged):
        loss = {None: None, iteration: 1.0}.get(best, 2.0)
        path = checkpoint_files.write(tmp_path, iteration, validation_loss=loss)
        if iteration in damaged:
            (path / ".metadata").unlink()
    folder.claim(tmp_path, OWNER)
    folder.prune(tmp_path, 4, limit, OWNER)
    assert iterations(tmp_path) == left
    assert list(tmp_path.glob(".iter*")) == []


def test_storage_without_links_gets_a_file_that_holds_the_name(tmp_path, monkeypatch):
    for iteration, loss in ((2, 1.0), (4, 2.0)):
        checkpoint_files.write(tmp_path, iteration, validation_loss=loss)
    folder.claim(tmp_path, OWNER)

    def refuse(*_: object) -> None:
        raise PermissionError("no symbolic links here")

    for linked in (True, False):
        if not linked:
            monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
        folder.point(tmp_path, 4, OWNER)
        assert (tmp_path / "best").is_symlink() == linked
        assert pointed_at(tmp_path / "best") == tmp_path / "iter_0000002"
        assert pointed_at(tmp_path / "last") == tmp_path / "iter_0000004"


def test_links_that_a_copy_turned_into_folders_are_kept_aside(tmp_path, caplog):
    checkpoint_files.write(tmp_path, 4, validation_loss=1.0)
    folder.claim(tmp_path, OWNER)
    for name in ("last", "best", "last-copied"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    folder.point(tmp_path, 4, OWNER)
    assert pointed_at(tmp_path / "last") == pointed_at(tmp_path / "best") == tmp_path / "iter_0000004"
    kept = {name: (tmp_path / name / "weights").read_text() for name in ("last-copied", "last-copied1", "best-copied")}
    assert kept == {"last-copied": "last-copied", "last-copied1": "last", "best-copied": "best"}
    assert "best was a folder, not a link, and is kept as best-copied" in caplog.text
