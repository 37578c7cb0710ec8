"""Which checkpoint is complete, and which attempt may write: read from real folders."""

import pytest

from megatron_trainer.checkpoint import folder
from megatron_trainer.checkpoint.folder import Manifest, Owner


def make(save, iteration: int, *, files: dict[str, bytes] | None = None):
    path = folder.iteration_folder(save, iteration)
    path.mkdir(parents=True)
    for name, content in (files or {"__0_0.distcp": b"weights", ".metadata": b"index"}).items():
        (path / name).write_bytes(content)
    manifest = Manifest(
        iteration=iteration,
        layout={"tp": 1},
        world_size=1,
        train_type="full",
        has_optimizer=True,
        has_rng=True,
        loss=1.5,
        files=folder.file_sizes(path),
    )
    folder.write_manifest(path, manifest)
    return path


def test_the_newest_complete_checkpoint_is_taken(tmp_path):
    make(tmp_path, 5)
    make(tmp_path, 10)
    found = folder.newest_complete(tmp_path)
    assert (found.iteration, found.manifest.files) == (10, {".metadata": 5, "__0_0.distcp": 7})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
        (lambda path: (path / "__0_0.distcp").write_bytes(b"w"), "__0_0.distcp has 1 bytes, expected 7"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json cannot be read"),
    ],
    ids=["file deleted", "file truncated", "manifest deleted", "manifest truncated", "manifest of another kind"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage, problem):
    make(tmp_path, 5)
    damage(make(tmp_path, 10))
    assert folder.newest_complete(tmp_path).iteration == 5
    assert problem in folder.checkpoints(tmp_path)[0].problem


def test_a_folder_that_was_never_published_is_not_a_checkpoint(tmp_path):
    make(tmp_path, 5).rename(tmp_path / ".iter_0000005.attempt0.tmp")
    assert folder.checkpoints(tmp_path) == ()
    assert folder.newest_complete(tmp_path / "missing") is None


def test_a_newer_attempt_of_a_job_keeps_the_folder_and_another_job_takes_it_over(tmp_path):
    assert folder.owner(tmp_path) is None
    assert folder.claim(tmp_path, Owner(job_uid="a", attempt=3))
    assert not folder.claim(tmp_path, Owner(job_uid="a", attempt=2))
    assert folder.owner(tmp_path) == Owner(job_uid="a", attempt=3)
    assert folder.claim(tmp_path, Owner(job_uid="b", attempt=0))
    assert folder.owner(tmp_path) == Owner(job_uid="b", attempt=0)
