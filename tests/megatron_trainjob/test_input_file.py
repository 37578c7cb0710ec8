"""What lies where a file belongs and is none, is too large, or becomes gigabytes: refused at once, with a reason."""

import json
from pathlib import Path

import pytest

from megatron_trainjob import checkpoint_folder, input_file, progress, tokenizer_folder, weight_files
from megatron_trainjob.args import yaml_file
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.input_file import UnfitFile
from tests.support.data.no_files import LFS_POINTER, NO_FILES, lay
from tests.support.models.model_configs import PUBLISHED

LLAMA = PUBLISHED["SmolLM2-135M"][1]


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_named(tmp_path, kind):
    lay(kind, tmp_path / "config.json")
    with pytest.raises(UnfitFile, match=f"config.json is {kind}; pass a file"):
        input_file.read_json(tmp_path / "config.json")


@pytest.mark.parametrize("kind", [*NO_FILES, "a link to itself", "a link to nothing"])
def test_every_reader_of_small_files_ends_with_a_reason(tmp_path, kind):
    for name in ("config.json", "tokenizer.json", "manifest.json", weight_files.INDEX_FILE, "job.yaml"):
        lay(kind, tmp_path / name)
    (tmp_path / "iter_0000001").mkdir()
    lay(kind, tmp_path / "iter_0000001" / "manifest.json")
    (found,) = checkpoint_folder.checkpoints(tmp_path)
    assert found.manifest is None
    assert "manifest.json" in found.problem
    with pytest.raises((yaml_file.YamlProblem, OSError)):
        yaml_file.load(tmp_path / "job.yaml")
    with pytest.raises(weight_files.Unusable, match=r"cannot be read \("):
        weight_files.indexed(tmp_path, weight_files.INDEX_FILE)
    if kind != "a link to nothing":  # as good as missing, and its model may have another vocabulary
        assert tokenizer_folder.problems(tmp_path)
    if kind in NO_FILES:
        assert progress.read(tmp_path / "config.json") is None


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "model.safetensors", "pytorch_model.bin", weight_files.INDEX_FILE, "config.json"]
)
def test_a_pointer_of_git_lfs_in_place_of_a_file_of_the_model_is_named_with_the_remedy(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (tmp_path / name).write_bytes(LFS_POINTER)
    found = [*tokenizer_folder.problems(tmp_path), *weight_files.problems(tmp_path, {"model_type": "llama"})]
    assert any(
        f"{name} is a pointer of Git LFS and not the file itself; fetch it with git lfs pull" in each for each in found
    )


def test_a_text_is_read_as_an_editor_shows_it(tmp_path):
    """Notepad writes a byte order mark and \\r\\n, of which neither belongs to a system prompt or a token."""
    (tmp_path / "system.txt").write_bytes("\ufeffGrüß dich.\r\n\r\nBe brief.\rAnd kind.\n".encode())
    assert input_file.read_text(tmp_path / "system.txt") == "Grüß dich.\n\nBe brief.\nAnd kind.\n"


def test_a_file_of_10_terabytes_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10 * 2**40)
    with pytest.raises(UnfitFile, match="has 10995116277760 bytes, expected at most 16777216"):
        input_file.read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [("[" * 10**6, "nested too deep"), ("[[]," + "[]," * 4_000_001 + "[]]", "more than 4000000 lists and objects")],
)
def test_json_that_would_take_all_memory_or_the_stack_is_refused(content, message):
    for text in (content, content.encode()):
        with pytest.raises(ValueError, match=message):
            input_file.parse_json(text)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 7, None, ["a"], "a\0b"],
    ids=str,
)
def test_an_index_names_files_of_its_own_folder_only(tmp_path, name):
    (tmp_path / weight_files.INDEX_FILE).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    (found,) = weight_files.problems(tmp_path, {"vocab_size": 8})
    assert weight_files.INDEX_FILE in found


def test_an_index_does_not_read_what_lies_beside_the_folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "other.safetensors").write_bytes(b"")
    (model / weight_files.INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(weight_files.Unusable, match=r"names '../other.safetensors', which is not a file name"):
        weight_files.indexed(model, weight_files.INDEX_FILE)


@pytest.mark.parametrize("value", [10**18, -1, 0, True, float("nan"), float("inf"), 1.5, "8", None, [8]], ids=str)
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_sizes_beyond_measure_are_refused_by_name(key, value):
    found = check({**LLAMA, key: value}, TrainArgs())
    assert found.model is None or found.violations
    assert any(key in str(violation) for violation in found.violations)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, "1e-5"], ids=str)
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "initializer_range", "attention_dropout"])
def test_numbers_that_are_none_are_refused_by_name(key, value):
    found = check({**LLAMA, key: value}, TrainArgs())
    assert any(key in str(violation) for violation in found.violations)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {"a": "x"}}},
        {"model": {"vocab": [[]]}},
        {"model": {"vocab": 7}},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [7]},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": float("inf"), "content": "b"}]},
        {"model": 7},
    ],
    ids=json.dumps,
)
def test_a_tokenizer_that_holds_what_none_does_is_named(tmp_path: Path, content):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 8}))
    (found,) = tokenizer_folder.problems(tmp_path)
    assert "tokenizer.json" in found
    assert found.endswith("download it again")
