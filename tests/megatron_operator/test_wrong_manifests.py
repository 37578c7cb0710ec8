"""Thirty and more wrong manifests through `mtj validate` and `mtj run`: all problems of each at once, exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli import main
from megatron_operator.cluster.local.machine import missing_files
from megatron_operator.process.controller import Jobs
from megatron_trainjob import processor_folder
from tests.support.operator.job_values import raw, write_model_header, write_tokenizer
from tests.support.operator.wrong_manifests import CASES, HEADERS

MODEL = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL))
    write_model_header(tmp_path / "model", MODEL)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    write_tokenizer(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("")
    return tmp_path


def test_a_tokenizer_that_does_not_fit_the_model_is_found_before_anything_starts(here, capsys):
    config = {**MODEL, "vocab_size": 3}
    (here / "model" / "config.json").write_text(json.dumps(config))
    write_model_header(here / "model", config)
    assert main(["validate", write(here, {})]) == 0
    write_tokenizer(here / "model", tokens=4)
    assert main(["validate", write(here, {})]) == 2
    assert "token 'word3' has id 3, but the model's embedding has 3 rows" in " ".join(
        "".join(capsys.readouterr()).split()
    )
    assert main(["validate", write(here, {"args": {"new_special_tokens": ["<new>"]}})]) == 0
    (here / "model" / "tokenizer.json").unlink()
    assert main(["validate", write(here, {})]) == 2
    assert "has no tokenizer: tokenizer.json is missing" in " ".join("".join(capsys.readouterr()).split())


def test_an_image_processor_that_is_missing_is_found_before_anything_starts(here):
    model, config = here / "model", {"vision_config": {}, "image_token_id": 7}
    missing = ["has no image processor: preprocessor_config.json is missing; copy the processor's files from where"]

    def found():
        return [
            problem.partition(" the model was published")[0] for problem in processor_folder.problems(model, config)
        ]

    assert processor_folder.problems(model, {"model_type": "llama"}) == []
    assert found() == missing
    whole = model / "processor_config.json"
    whole.write_text(json.dumps({"processor_class": "X"}))
    assert found() == missing
    whole.write_text(json.dumps({"image_processor": {"patch_size": 14}}))
    assert found() == []
    (model / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json cannot be read" in found()[0]
    (model / "config.json").write_text(json.dumps({**MODEL, **config}))
    arguments = {"model": str(model), "image_root": "/nowhere"}
    said = {each.path: each.message for each in missing_files({"spec": {"args": arguments}}, {})}
    assert "preprocessor_config.json cannot be read" in said["spec.args.model"]
    assert said["spec.args.image_root"] == "folder of images /nowhere does not exist; correct the path"


def write(here: Path, changes) -> str:
    spec = {key: value for key, value in changes.items() if key != "args"}
    manifest = raw(spec)
    arguments = {"model": str(here / "model"), "dataset": [str(here / "train.jsonl")], "train_iters": 10}
    given = changes.get("args", {})
    manifest["spec"]["args"] = {**arguments, **given} if isinstance(given, dict) else given
    text = yaml.safe_dump(manifest).replace("{here}", str(here))
    (here / "job.yaml").write_text(text)
    return "job.yaml"


def problems(capsys):
    said = json.loads(capsys.readouterr().out)
    found = {}
    for each in said["violations"]:
        found[each["path"]] = found.get(each["path"], "") + each["message"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_problem_is_said_with_path_and_remedy(name, here, capsys):
    changes, expected = CASES[name]
    assert main(["validate", write(here, changes), "--output", "json"]) == 2
    found = problems(capsys)
    assert set(found) == set(expected)
    for path, part in expected.items():
        assert part in found[path]


def test_a_variable_that_only_looks_like_the_trainers_is_a_warning_with_a_suggestion(here, capsys):
    changes = {"env": [{"name": "MTJ_RANKS_START", "value": "spawn"}, {"name": "MTJ_RANK_START", "value": "spawn"}]}
    assert main(["validate", write(here, changes), "--output", "json"]) == 0
    said = json.loads(capsys.readouterr().out)["warnings"]
    (warning,) = [each for each in said if each.startswith("spec.env")]
    assert warning.startswith("spec.env[0].name: ")
    assert "did you mean MTJ_RANK_START?" in warning


@pytest.mark.parametrize("name", HEADERS)
def test_a_wrong_frame_is_said_too(name, here, capsys):
    changes, expected = HEADERS[name]
    manifest = yaml.safe_load(Path(write(here, {})).read_text())
    (here / "job.yaml").write_text(yaml.safe_dump({**manifest, **changes}))
    assert main(["validate", "job.yaml", "--output", "json"]) == 2
    found = problems(capsys)
    assert set(found) == set(expected)
    assert all(part in found[path] for path, part in expected.items())


@pytest.mark.parametrize("name", ["unknown argument", "a model folder that is not there", "everything at once"])
def test_nothing_is_started_for_a_wrong_manifest(name, here, capsys):
    assert main(["run", write(here, CASES[name][0])]) == 2
    assert not (here / ".mtj").exists()
    said = capsys.readouterr().err
    assert all(path in said for path in CASES[name][1])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("spec: {a: 1", "line 1: expected ',' or '}', but got '<stream end>'; correct the YAML"),
        ("a: 1\na: 2\n", "line 2: key 'a' is written twice, here and in line 1; keep one\""),
        ("", "must contain a MegatronTrainJob"),
        ("kind: MegatronTrainJob\n---\nkind: MegatronTrainJob\n", "another job of this file has this name"),
    ],
    ids=["broken", "a key twice", "empty", "two jobs"],
)
def test_a_file_that_is_no_manifest_is_answered(text, part, here, capsys):
    (here / "job.yaml").write_text(text)
    assert main(["validate", "job.yaml", "--output", "json"]) == 2
    assert part in capsys.readouterr().out


def test_a_file_that_is_not_there_is_answered(here, capsys):
    assert main(["validate", "nowhere.yaml"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_manifest_that_all_of_them_change_is_right(here, capsys):
    assert main(["validate", write(here, {}), "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["violations"] == []


def test_a_model_in_a_bound_volume_is_looked_at(here, capsys):
    changes = {
        "args": {"model": "/data/other"},
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    file = write(here, changes)
    assert main(["validate", file, "--output", "json"]) == 0
    capsys.readouterr()
    assert main(["validate", file, "--output", "json", "--volume", f"disk={here}"]) == 2
    assert "does not exist" in problems(capsys)["spec.args.model"]


def test_a_path_with_a_variable_of_a_shell_is_named_once(here, capsys):
    changes = {"args": {"model": "~/m", "dataset": ["/data/$D/a.jsonl"], "custom_dataset_info": ["${D}/info.json"]}}
    assert main(["validate", write(here, changes), "--output", "json"]) == 2
    found = json.loads(capsys.readouterr().out)["violations"]
    expected = ["spec.args.model", "spec.args.dataset", "spec.args.custom_dataset_info"]
    assert sorted(each["path"] for each in found) == sorted(expected)
    assert all("of a shell" in each["message"] for each in found)


def test_a_run_looks_at_volumes_before_their_folders_are_made(here, capsys):
    changes = {
        "args": {"model": "/data/model"},
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    assert main(["run", write(here, changes)]) == 2
    assert "bind the volume with --volume" in " ".join(capsys.readouterr().err.split())
    assert not (here / ".mtj").exists()


def test_what_an_initializer_fetches_need_not_be_there(here, capsys):
    changes = {
        "args": {"model": "/checkpoints/m"},
        "initializers": [{"name": "m", "storageUri": "hf://a/b", "targetPath": "/checkpoints/m"}],
    }
    assert main(["validate", write(here, changes), "--output", "json", "--volume", f"disk={here}"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("text", ["1.5.3", "1..2", ".", "+", "1e9999999999", "8\n", "1Gi ", "9" * 5000])
def test_what_is_no_quantity_is_refused_whatever_it_looks_like(text):
    wrong = manifest.parse(raw({"resourcesPerNode": {"limits": {"memory": text}}}), default_image="x")
    assert "spec.resourcesPerNode.limits.memory" in [violation.path for violation in wrong]


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.parametrize("template", ["podTemplate", "workerTemplate"])
def test_what_is_no_quantity_is_refused_in_templates_too(template, kind):
    container = {"name": "proxy", "image": "x", "resources": {"requests": {"cpu": "half"}}}
    wrong = manifest.parse(raw({template: {"spec": {kind: [container]}}}), default_image="x")
    assert [violation.path for violation in wrong] == [f"spec.{template}.spec.{kind}[0].resources.requests.cpu"]


def test_a_manifest_that_crashes_its_reader_fails_the_new_job_and_no_other(monkeypatch):
    """A defect of the operator is shown on the job instead of in its log alone."""

    def break_down(*_, **__):
        raise ArithmeticError("no such number")

    monkeypatch.setattr(manifest, "parse", break_down)
    jobs = Jobs()
    jobs.put(raw(resourceVersion="1"))
    (violation,) = jobs.parse(("team", "tune"))
    assert "ArithmeticError" in violation.message
    jobs.put({**raw(resourceVersion="2", generation=9), "status": {"phase": "Running"}})
    with pytest.raises(ArithmeticError):
        jobs.parse(("team", "tune"))
