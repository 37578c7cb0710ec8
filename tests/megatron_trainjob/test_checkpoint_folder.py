"""Which checkpoint is complete, read from real folders."""

import zlib

import pytest

from megatron_trainjob.checkpoint_folder import FileRecord, best, checkpoints, damage, inspect
from tests.support.checkpoint import checkpoint_files


def newest_complete(save):
    return next(found for found in checkpoints(save) if found.manifest)


def test_the_manifest_says_what_a_checkpoint_holds(tmp_path):
    checkpoint_files.write(tmp_path, 5)
    checkpoint_files.write(tmp_path, 10, validation_loss=2.5)
    found = newest_complete(tmp_path)
    assert (found.iteration, found.problem, found.manifest.validation_loss) == (10, None, 2.5)
    assert found.manifest.size_bytes == 7 + len(checkpoint_files.INDEX)
    checksum = f"{zlib.crc32(b'weights'):08x}"
    assert found.manifest.files["__0_0.distcp"] == FileRecord(size_bytes=7, crc32=checksum)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda path: (path / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
        (lambda path: (path / "__0_0.distcp").write_bytes(b"w"), "__0_0.distcp has 1 bytes, expected 7"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
        (
            lambda path: (path / "manifest.json").write_text(
                (path / "manifest.json").read_text().replace("1.5", "1.6")
            ),
            "manifest.json has changed since it was saved",
        ),
    ],
    ids=["deleted", "truncated", "no manifest", "cut manifest", "empty", "a list", "no text", "one digit changed"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, harm, problem):
    checkpoint_files.write(tmp_path, 5)
    harm(checkpoint_files.write(tmp_path, 10))
    assert newest_complete(tmp_path).iteration == 5
    assert problem in checkpoints(tmp_path)[0].problem


def test_a_changed_byte_shows_when_the_contents_are_read(tmp_path):
    path = checkpoint_files.write(tmp_path, 10)
    manifest = inspect(path).manifest
    assert list(damage(path, manifest, manifest.files, with_contents=True)) == []
    (path / "__0_0.distcp").write_bytes(b"Weights")
    assert inspect(path).problem is None
    assert list(damage(path, manifest, manifest.files, with_contents=True)) == [
        f"{path / '__0_0.distcp'} has changed since it was saved (its checksum differs)"
    ]


def test_a_folder_that_was_never_published_is_not_a_checkpoint(tmp_path):
    checkpoint_files.write(tmp_path, 5).rename(tmp_path / ".iter_0000005.attempt0.tmp")
    assert checkpoints(tmp_path) == ()
    assert checkpoints(tmp_path / "missing") == ()


def test_iterations_are_numbers_not_words(tmp_path):
    for iteration in (9_999_999, 10_000_000):
        checkpoint_files.write(tmp_path, iteration)
    assert [found.iteration for found in checkpoints(tmp_path)] == [10_000_000, 9_999_999]


def test_an_evaluation_that_gave_no_number_is_not_the_best(tmp_path):
    for iteration, loss in ((5, 2.5), (10, float("inf")), (15, float("nan"))):
        checkpoint_files.write(tmp_path, iteration, validation_loss=loss)
    assert best(checkpoints(tmp_path)).iteration == 5
