"""What the cache of tokenized data must not take for the data that is there now."""

import copy
import os
import shutil
import subprocess

import pytest

from megatron_trainer.data.reading.source import FileSource
from megatron_trainer.data.storage.cache import LENGTHS, built_once
from megatron_trainer.data.storage.fingerprint import DATA, code_digest, source_digest, tokenizer_digest
from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode
from tests.support.models import tiny_model


def build(aside):
    aside.mkdir(parents=True)
    (aside / "first").write_text("new")


@pytest.mark.parametrize("way", ["in place", "another file in its place"])
def test_a_file_of_equal_size_and_time_is_noticed(tmp_path, way):
    path, memory = tmp_path / "train.jsonl", tmp_path / "memory"
    path.write_text('{"text": "a"}\n')
    os.utime(path, (1_000_000_000,) * 2)
    source = FileSource(files=(path,))
    before = source_digest(source, memory)
    for note in memory.iterdir():
        note.write_text("a" * 64)
        os.utime(note, (9_999_999_999,) * 2)  # as if it had been taken long after the file's last change
    assert source_digest(source, memory) != before, "a digest is remembered"
    before = source_digest(source, memory)
    if way == "in place":
        path.write_text('{"text": "b"}\n')
    else:
        (tmp_path / "other").write_text('{"text": "b"}\n')
        os.replace(tmp_path / "other", path)
    os.utime(path, (1_000_000_000,) * 2)
    assert source_digest(source, memory) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "chat_template", tokenizer.chat_template + " "),
        lambda tokenizer: setattr(tokenizer, "eos_token", "<s>"),
        lambda tokenizer: tokenizer.add_tokens(["<new>"]),
        lambda tokenizer: setattr(tokenizer, "add_bos_token", True),
    ],
    ids=["template", "eos", "new token", "adds BOS"],
)
def test_another_tokenizer_or_template_is_noticed(change):
    tokenizer = copy.deepcopy(tiny_model.tokenizer())
    before = tokenizer_digest(tokenizer)
    change(tokenizer)
    assert tokenizer_digest(tokenizer) != before


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "first").write_text(""),
        lambda folder: (folder / "first").unlink(),
        lambda folder: (folder / LENGTHS).unlink(),
        lambda folder: (folder / LENGTHS).write_text('{"first": '),
        lambda folder: (folder / LENGTHS).write_text("[]"),
    ],
    ids=["cut off", "missing file", "half-written", "half a list", "another list"],
)
def test_an_entry_that_a_crash_or_somebody_else_left_half_is_made_again(tmp_path, harm):
    folder = built_once(tmp_path / "entry", build)
    harm(folder)
    assert (built_once(folder, build) / "first").read_text() == "new"
    (folder / "first").write_text("old")
    assert (built_once(folder, build) / "first").read_text() == "old", "a whole one is left alone"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry"]


@pytest.fixture
def read_only(tmp_path):
    """A volume that was mounted read-only after it was filled."""
    place = tmp_path / "volume"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    built_once(place / "cache" / "entry", build)
    (place / "train.jsonl").write_text("{}\n")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_volume_serves_what_it_has_and_says_what_it_cannot_take(read_only):
    assert (built_once(read_only / "cache" / "entry", build) / "first").read_text() == "new"
    source = FileSource(files=(read_only / "train.jsonl",))
    assert source_digest(source, read_only / "cache" / "digests") == source_digest(source, read_only / "elsewhere")
    for missing in (read_only / "cache" / "missing", read_only / "elsewhere" / "missing"):
        with pytest.raises(TrainingError, match="Read-only file system") as refused:
            built_once(missing, build)
        assert refused.value.exit_code == ExitCode.OUTPUT_NOT_WRITABLE


def test_tokens_of_another_version_of_the_code_are_not_used(tmp_path):
    copy = shutil.copytree(DATA, tmp_path / "data")
    assert code_digest(copy) == code_digest()
    for number, (path, matters) in enumerate({"storage/store.py": False, "encoding/encode.py": True}.items()):
        changed = shutil.copytree(DATA, tmp_path / str(number))
        (changed / path).write_text((changed / path).read_text() + "\n")
        assert (code_digest(changed) != code_digest()) == matters
