"""Wrong manifests by name: what is changed in a valid one, and {path: part of the message} of every problem of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Wrong = tuple[Mapping[str, Any], Mapping[str, str]]


def trainer_with(**paths: str) -> dict[str, Any]:
    """The trainer's container in a template that mounts each volume at its path."""
    mounts = [{"name": volume, "mountPath": path} for volume, path in paths.items()]
    return {"name": "trainer", "volumeMounts": mounts}


CASES: Mapping[str, Wrong] = {
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
    "a variable that is the folder of images": (
        {"env": [{"name": "ROOT_IMAGE_DIR", "value": "/data"}]},
        {"spec.env[0].name": "use spec.args.image_root"},
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
    "a download that no other pod sees": (
        {
            "numNodes": 2,
            "checkpoint": {},
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "nfs", "nfs": {"server": "s", "path": "/"}}],
            "volumeMounts": [
                {"name": "scratch", "mountPath": "/scratch"},
                {"name": "nfs", "mountPath": "/scratch/nfs"},
            ],
            "initializers": [
                {"name": f"fetch-{number}", "storageUri": "hf://a/b", "targetPath": path}
                for number, path in enumerate(("/checkpoints/m", "/scratch/m", "/scratch/nfs/m"))
            ],
        },
        {
            "spec.initializers[0].targetPath": "wait forever",
            "spec.initializers[1].targetPath": "use a claim with ReadWriteMany",
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
"""Changes of spec."""
HEADERS: Mapping[str, Wrong] = {
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
"""Changes outside of spec."""
