"""Thirty and more wrong manifests through `mtj validate` and `mtj run`: all problems of each at once, exit code 2.

Each case: what is changed in a valid manifest, and (path, part of the message) of every problem that must be said.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli import main
from megatron_operator.process.controller import Jobs
from tests.support.operator.job_values import raw, write_model_header, write_tokenizer


def trainer_with(**paths):
    """The trainer's container in a template that mounts each volume at its path."""
    mounts = [{"name": volume, "mountPath": path} for volume, path in paths.items()]
    return {"name": "trainer", "volumeMounts": mounts}


CASES = {
    "unknown argument": (
        {"args": {"tensor_model_paralel_size": 2}},
        {"spec.args.tensor_model_paralel_size": "did you mean tensor_model_parallel_size?"},
    ),
    "an argument of another task": (
        {"args": {"rlhf_typ": "dpo"}},
        {"spec.args.rlhf_typ": "rlhf_type, if that is meant, applies to rlhf, export only"},
    ),
    "a misspelled name of another trainer": ({"args": {"learning_rat": 1}}, {"spec.args.learning_rat": "mean lr?"}),
    "a kind of rlhf as the task": (
        {"task": "dpo", "args": {"beta": 0.2, "rlhf_typ": "dpo"}},
        {"spec.task": "set task: rlhf and spec.args.rlhf_type: dpo", "spec.args.rlhf_typ": "did you mean rlhf_type?"},
    ),
    "a wrong task, whatever the arguments": (
        {"task": "x", "args": {"beta": 0.2, "max_lenght": 7}},
        {"spec.task": "must be one of pt, sft, rlhf", "spec.args.max_lenght": "did you mean max_length?"},
    ),
    "wrong type": ({"args": {"train_iters": "many"}}, {"spec.args.train_iters": "whole number"}),
    "wrong type of a flag": ({"args": {"packing": "perhaps"}}, {"spec.args.packing": "true or false"}),
    "wrong choice": ({"args": {"lr_decay_style": "cosin"}}, {"spec.args.lr_decay_style": "cosine"}),
    "out of range": ({"args": {"micro_batch_size": 0}}, {"spec.args.micro_batch_size": "1"}),
    "several arguments at once": (
        {"args": {"lr": "fast", "clip_grad": "x", "seeed": 3}},
        {"spec.args.lr": "number", "spec.args.clip_grad": "number", "spec.args.seeed": "seed"},
    ),
    "arguments that are no mapping": ({"args": ["model"]}, {"spec.args": "mapping"}),
    "no model, no data, no length": (
        {"args": {"model": None, "dataset": None, "train_iters": None}},
        {"spec.args.model": "missing", "spec.args.dataset": "missing", "spec.args.train_iters": "max_epochs"},
    ),
    "a layout that does not divide": (
        {"nprocPerNode": 3, "args": {"tensor_model_parallel_size": 4, "global_batch_size": 12}},
        {"spec.args.tensor_model_parallel_size": "6"},
    ),
    "a batch that does not divide": ({"args": {"global_batch_size": 7}}, {"spec.args.global_batch_size": "multiple"}),
    "a model folder that is not there": ({"args": {"model": "/nowhere/model"}}, {"spec.args.model": "does not exist"}),
    "a model folder without config": ({"args": {"model": "{here}"}}, {"spec.args.model": "config.json"}),
    "a model of an unknown family, without weights": (
        {"args": {"model": "{here}/bert"}},
        {"config.json:model_type": "this model family is not known", "spec.args.model": "has no weights"},
    ),
    "a data file that is not there": (
        {"args": {"dataset": ["/nowhere/a.jsonl", "{here}/b.jsonl#5"]}},
        {"spec.args.dataset": "does not exist"},
    ),
    "a checkpoint that is not there": ({"args": {"load": "/nowhere/iter"}}, {"spec.args.load": "checkpoint folder"}),
    "memory that holds no checkpoint, where another volume is mounted": (
        {
            "checkpoint": {"memory": {"sizeLimit": 64}},
            "volumes": [{"name": "v", "emptyDir": {}}],
            "volumeMounts": [{"name": "v", "mountPath": "/run/mtj-memory"}],
        },
        {
            "spec.checkpoint.memory.sizeLimit": "too small",
            "spec.volumeMounts[0].mountPath": "mounted already",
        },
    ),
    "memory without a size or an interval": (
        {"checkpoint": {"memory": {"intervalIterations": 0}}},
        {"spec.checkpoint.memory.sizeLimit": "required", "spec.checkpoint.memory.intervalIterations": "1"},
    ),
    "another name of args": ({"arg": {"lr": 1}}, {"spec.arg": "did you mean args?"}),
    "an argument outside args": (
        {"lora_rank": 8, "save_steps": 5},
        {
            "spec.lora_rank": "is an argument; move it to spec.args.lora_rank",
            "spec.save_steps": "move it to spec.args.save_steps",
        },
    ),
    "unknown field": ({"numNode": 3}, {"spec.numNode": "did you mean numNodes?"}),
    "unknown field further down": (
        {"network": {"masterport": 1, "rdma": {"resources": "a"}}},
        {
            "spec.network.masterport": "did you mean masterPort?",
            "spec.network.rdma.resources": "did you mean resource?",
            "spec.network.rdma.resource": "required",
        },
    ),
    "snake case where camel case belongs": ({"num_nodes": 2}, {"spec.num_nodes": "did you mean numNodes?"}),
    "numbers out of range": (
        {"numNodes": 0, "failurePolicy": {"maxRestarts": -1}, "runPolicy": {"activeDeadlineSeconds": 0}},
        {
            "spec.numNodes": "at least 1",
            "spec.failurePolicy.maxRestarts": "at least 0",
            "spec.runPolicy.activeDeadlineSeconds": "at least 1",
        },
    ),
    "text where a number belongs": (
        {"numNodes": "two", "suspend": "no"},
        {"spec.numNodes": "whole number", "spec.suspend": "true or false"},
    ),
    "no task": ({"task": None}, {"spec.task": "is required; one of pt, sft, rlhf"}),
    "a wrong task": ({"task": "stf"}, {"spec.task": "did you mean sft?"}),
    "a wrong number of processes": ({"nprocPerNode": "all"}, {"spec.nprocPerNode": "auto"}),
    "a wrong policy": (
        {"runPolicy": {"cleanPodPolicy": "Some"}, "checkpoint": {"resume": "auto"}},
        {"spec.runPolicy.cleanPodPolicy": "None, Running, All", "spec.checkpoint.resume": "did you mean Auto?"},
    ),
    "two checkpoint sources": (
        {"checkpoint": {"pvc": {"claimName": "a", "template": {"spec": {}}}}},
        {"spec.checkpoint.pvc": "exclude each other"},
    ),
    "a checkpoint folder outside its volume": (
        {"checkpoint": {"subPath": "../other"}},
        {"spec.checkpoint.subPath": "without '..'"},
    ),
    "a relative mount path": (
        {"checkpoint": {"mountPath": "ckpt"}},
        {"spec.checkpoint.mountPath": "must be an absolute path"},
    ),
    "variables that are ours": (
        {"env": [{"name": "RANK", "value": "0"}], "network": {"ncclEnv": {"MASTER_ADDR": "me"}}},
        {
            "spec.env[0].name": "set by the operator",
            "spec.network.ncclEnv.MASTER_ADDR": "set by the operator",
        },
    ),
    "variables of the trainer with values that they cannot have": (
        {
            "env": [
                {"name": "MTJ_RANK_START", "value": "thread"},
                {"name": "MTJ_DEVICE", "value": "gpu"},
                {"name": "MTJ_LAUNCHER_PATIENCE_SECONDS", "value": "1.5"},
                {"name": "MTJ_TERMINATION_LOG", "value": "/tmp/log"},
                {"name": "MTJ_RANK_START", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}},
            ],
            "podTemplate": {
                "spec": {
                    "containers": [{"name": "trainer", "env": [{"name": "MTJ_RANK_START", "value": "forked"}]}],
                }
            },
        },
        {
            "spec.env[0].value": "MTJ_RANK_START must be fork or spawn",
            "spec.env[1].value": "MTJ_DEVICE must be cpu or cuda",
            "spec.env[2].value": "MTJ_LAUNCHER_PATIENCE_SECONDS must be a whole number of seconds",
            "spec.env[3].name": "set by the operator",
            "spec.podTemplate.spec.containers[0].env[0].value": "must be fork or spawn",
        },
    ),
    "a variable that is an argument": (
        {"env": [{"name": "INFONCE_TEMPERATURE", "value": "0.02"}]},
        {"spec.env[0].name": "use spec.args.infonce_temperature"},
    ),
    "a variable that is a setting of images": (
        {"env": [{"name": "MAX_PIXELS", "value": "1003520"}]},
        {"spec.env[0].name": "use spec.args.model_kwargs: {max_pixels: ...}"},
    ),
    "a variable of images that nothing reads": (
        {"env": [{"name": "VIDEO_TOTAL_PIXELS", "value": "1003520"}]},
        {"spec.env[0].name": "is read by nothing here; remove it"},
    ),
    "a variable that is not NCCL's": ({"network": {"ncclEnv": {"FOO": "1"}}}, {"spec.network.ncclEnv.FOO": "spec.env"}),
    "a template that takes over": (
        {
            "podTemplate": {
                "metadata": {"labels": {"megatrontrain.dev/job-name": "x"}},
                "spec": {
                    "restartPolicy": "Always",
                    "containers": [{"name": "trainer", "command": ["sh"], "restartPolicy": "Never"}],
                },
            }
        },
        {
            "spec.podTemplate.spec.restartPolicy": "set by the operator",
            "spec.podTemplate.spec.containers[0].command": "set under spec",
            "spec.podTemplate.spec.containers[0].restartPolicy": "set by the operator",
            "spec.podTemplate.metadata.labels.megatrontrain.dev/job-name": "choose another",
        },
    ),
    "a misspelt pod field": (
        {"podTemplate": {"spec": {"nodeSelektor": {}}}, "workerTemplate": {"spec": {"tolerationz": []}}},
        {
            "spec.podTemplate.spec.nodeSelektor": "did you mean nodeSelector?",
            "spec.workerTemplate.spec.tolerationz": "did you mean tolerations?",
        },
    ),
    "a mount without its volume": (
        {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        {"spec.volumeMounts[0].name": "spec.volumes is empty"},
    ),
    "volumes that clash": (
        {
            "volumes": [{"name": name, "emptyDir": {}} for name in ("a", "a", "mtj-x")],
            "volumeMounts": [{"name": "a", "mountPath": "/checkpoints/"}],
        },
        {
            "spec.volumes[1].name": "twice",
            "spec.volumes[2].name": "reserved for the operator",
            "spec.volumeMounts[0].mountPath": "mounted already",
        },
    ),
    "volumes that hide the container, or what is mounted in it": (
        {
            "checkpoint": {"mountPath": "//", "memory": {"sizeLimit": "1Gi"}},
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": "keys"}}],
            "volumeMounts": [
                {"name": "v", "mountPath": "/var"},
                {"name": "keys", "mountPath": "/var/run"},
                {"name": "v", "mountPath": "/run", "readOnly": True},
                *(
                    {"name": "v", "mountPath": path}
                    for path in (
                        "/usr/",
                        "/etc",
                        "/data/../proc/self",
                        "/dev",
                        "/etc/megatron/args.yaml",
                        "/usr/local/nvidia",
                        "/dev/shm",
                        "/etc/team.conf",
                        "/var/log",
                    )
                ),
            ],
            "workerTemplate": {
                "spec": {
                    "containers": [
                        {"name": "trainer", "volumeMounts": [{"name": "v", "mountPath": "/lib"}]},
                        {"name": "proxy", "volumeMounts": [{"name": "v", "mountPath": "/lib"}]},
                    ]
                }
            },
        },
        {
            "spec.checkpoint.mountPath": "hides folders of the container itself; choose another path",
            "spec.volumeMounts[1].mountPath": "overlaps /var/run/secrets/megatrontrain.dev",
            "spec.volumeMounts[2].mountPath": "overlaps /run/mtj-memory",
            "spec.volumeMounts[3].mountPath": "hides folders",
            "spec.volumeMounts[4].mountPath": "hides folders",
            "spec.volumeMounts[5].mountPath": "hides folders",
            "spec.volumeMounts[6].mountPath": "hides folders",
            "spec.volumeMounts[7].mountPath": "overlaps /etc/megatron, which the operator mounts",
            "spec.workerTemplate.spec.containers[0].volumeMounts[0].mountPath": "hides folders",
        },
    ),
    "checkpoints among the programs": (
        {"checkpoint": {"mountPath": "/usr/share/checkpoints"}},
        {"spec.checkpoint.mountPath": "is a folder of the container's system; choose another path"},
    ),
    "a template that mounts another volume over the checkpoints": (
        {
            "podTemplate": {
                "spec": {
                    "containers": [
                        {"name": "trainer", "volumeMounts": [{"name": "scratch", "mountPath": "/checkpoints"}]}
                    ]
                }
            },
            "masterTemplate": {
                "spec": {
                    "containers": [
                        {
                            "name": "trainer",
                            "volumeMounts": [{"name": "mtj-checkpoint", "mountPath": "/checkpoints", "subPath": "a"}],
                        }
                    ]
                }
            },
        },
        {"spec.podTemplate.spec.containers[0].volumeMounts[0].mountPath": "is mounted already; choose another path"},
    ),
    "a path mounted twice in a container; each role may have its own volume, and replace one of the spec": (
        {
            "volumes": [{"name": name, "emptyDir": {}} for name in ("all", "first", "rest")],
            "volumeMounts": [{"name": "all", "mountPath": "/cache"}],
            "masterTemplate": {"spec": {"containers": [trainer_with(first="/scratch", rest="/cache/")]}},
            "workerTemplate": {
                "spec": {"containers": [trainer_with(rest="/scratch", first="/cache", all="/scratch")]},
            },
        },
        {
            "spec.masterTemplate.spec.containers[0].volumeMounts[1].mountPath": "is mounted already",
            "spec.workerTemplate.spec.containers[0].volumeMounts[2].mountPath": "is mounted already",
        },
    ),
    "an initializer that cannot run": (
        {"initializers": [{"name": "trainer", "storageUri": "s3://b/x", "targetPath": "/elsewhere"}]},
        {
            "spec.initializers[0].name": "taken",
            "spec.initializers[0].storageUri": "set a command",
            "spec.initializers[0].targetPath": "not below a mounted volume",
        },
    ),
    "scheduling without its scheduler": (
        {"scheduling": {"queue": "q", "minMember": 3, "scheduleTimeoutSeconds": 5, "topology": {}}},
        {
            "spec.scheduling.queue": "Volcano",
            "spec.scheduling.minMember": "must not exceed",
            "spec.scheduling.scheduleTimeoutSeconds": "Coscheduling",
            "spec.scheduling.topology.key": "required",
            "spec.scheduling.topology": "Kueue",
        },
    ),
    "a rule that always matches": (
        {"failurePolicy": {"rules": [{"action": "FailJob"}]}},
        {"spec.failurePolicy.rules[0]": "every failure"},
    ),
    "quantities that are none": (
        {"resourcesPerNode": {"limits": {"memory": "64GiB"}}, "shmSize": "big"},
        {"spec.resourcesPerNode.limits.memory": "quantity", "spec.shmSize": "must be a quantity"},
    ),
    "text of another form": (
        {
            "nprocPerNode": "8 GPUs",
            "checkpoint": {"mountPath": "out"},
            "initializers": [{"name": "My Step", "targetPath": "d", "storageUri": "hf://a/b"}],
        },
        {
            "spec.nprocPerNode": "must be auto or a whole number from 1 to 9999",
            "spec.checkpoint.mountPath": "must be an absolute path such as /checkpoints",
            "spec.initializers[0].name": "must be lower-case letters",
            "spec.initializers[0].targetPath": "must be an absolute path",
        },
    ),
    "an extra argument that is known": ({"extraArgs": {"lr": "0.1"}}, {"spec.extraArgs.lr": "move it to spec.args"}),
    "everything at once": (
        {"numNodes": -1, "imagee": "x", "args": {"lr": "x", "modell": "y"}, "shmSize": "?"},
        {
            "spec.numNodes": "at least 1",
            "spec.imagee": "did you mean image?",
            "spec.args.lr": "number",
            "spec.args.modell": "did you mean model?",
            "spec.shmSize": "must be a quantity",
        },
    ),
}
HEADERS = {
    "a wrong kind and version": (
        {"apiVersion": "v1", "kind": "MegatronJob"},
        {"apiVersion": "megatrontrain.dev/v1alpha1", "kind": "MegatronTrainJob"},
    ),
    "a name that is too long": ({"metadata": {"name": "a" * 46}}, {"metadata.name": "45"}),
    "a name that no service can bear": ({"metadata": {"name": "1.job"}}, {"metadata.name": "start with a letter"}),
    "no name": ({"metadata": {}}, {"metadata.name": "lower-case"}),
    "fields outside of spec": ({"args": {}}, {"args": "under spec"}),
    "no spec": ({"spec": None}, {"spec": "is required"}),
}


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
        ("spec: {a: 1", "correct the YAML"),
        ("a: 1\na: 2\n", "correct the YAML"),
        ("", "must contain exactly one MegatronTrainJob"),
        ("kind: MegatronTrainJob\n---\nkind: MegatronTrainJob\n", "split the file"),
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
