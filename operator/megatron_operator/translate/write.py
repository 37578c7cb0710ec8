"""Writes a MegatronTrainJob as YAML with comments: what was carried over, what to fill in, what was left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from megatron_operator.api import names
from megatron_operator.translate import family
from megatron_operator.translate.arguments import FILL_IN, NOT_CARRIED, Carried, Translated, layout_ranks
from megatron_operator.translate.launch import DEVICES, Launch, unread_sizes
from megatron_operator.translate.manifests import Pods
from megatron_operator.translate.places import DATASETS, Places, is_path, placed
from megatron_operator.translate.programs import SCRIPTS
from megatron_operator.translate.shell.folders import WORKDIR
from megatron_operator.translate.shell.literal import plain
from megatron_operator.translate.shell.nodes import is_evaluated
from megatron_trainjob.args.pixels import NAMES, UNREAD, VARIABLES
from megatron_trainjob.args.tree import OF_VARIABLES
from megatron_trainjob.environment import NUM_NODES, PROCESSES_PER_NODE, RESERVED

CARRIED_VARIABLES = ("PYTORCH_", "OMP_", "NVTE_", "TORCH_", "HF_", "WANDB_", "SWANLAB_") + (
    ("CUDA_", "GLOO_", "TOKENIZERS_")
)
NETWORK_VARIABLES = ("NCCL_", "SHARP_", "UCX_")
NUMBER = re.compile(r"[-+]?\d[\d_.]*(?:[eE][-+]?\d+)?")
SECRET = re.compile(r"TOKEN(?!IZERS|_NUM)|KEY|SECRET|PASSWORD")
# Owners whose name on the Hugging Face Hub differs from ModelScope's.
OWNERS = {"ZhipuAI": "zai-org", "LLM-Research": "meta-llama", "openai-cache": "openai"}
TO_FILL_IN = "fill-in-"
ARGUMENTS = "@arguments@"
OF_IMAGES = (
    "nothing here reads them, and what they changed there is not so here; settings of images in model_kwargs are"
)
OF_THE_MACHINE = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "PYTHONUNBUFFERED", "DEBIAN_FRONTEND")


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes that other readers of YAML take for a number, such as 1e-4."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if NUMBER.fullmatch(text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


@dataclass(frozen=True, kw_only=True)
class Written:
    """The YAML text, and the manifest that it contains. notes: what was left out, and what to fill in."""

    text: str
    manifest: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def job(
    launch: Launch, translated: Translated, pods: Pods, *, name: str, taken: Collection[str] = frozenset()
) -> Written:
    """The MegatronTrainJob equivalent to the command. taken: names of other jobs, which it would replace."""
    known = tuple(mount["mountPath"] for mount in pods.volume_mounts)
    places = Places(known=known, folder=launch.folder or WORKDIR)
    arguments, outputs = placed(translated.arguments, places)
    arguments = [*_hub_ids(arguments), *_use_hf(arguments)]
    spec = _spec(launch, pods, places, arguments)
    metadata = {"name": _free_name(_job_name(pods.name or name), taken), **_of_metadata(pods)}
    manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec}
    untrained = _of_the_family(arguments)
    notes = [*_notes(launch, pods, spec), *_left_out([*translated.left_out, *outputs])]
    start = _without_secrets(launch.source)
    head = f"Written by mtj from-args from `{start}`, with the defaults of ms-swift {translated.version}.x."
    shown = {**manifest, "spec": {**spec, "args": ARGUMENTS}}
    body = yaml.dump(shown, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    body = body.replace(f"  args: '{ARGUMENTS}'\n", "  args:\n" + "".join(_argument_lines(arguments)))
    not_carried = [f"spec.args.{each.name}: {each.remark}" for each in arguments if is_open(each)]
    comment = _comment([head, *untrained, _claims(spec, pods), *notes])
    return Written(text=comment + body, manifest=manifest, notes=(*untrained, *notes, *not_carried))


def _of_metadata(pods: Pods) -> dict[str, Any]:
    own = {"namespace": pods.namespace, "labels": dict(pods.labels)}
    return {name: value for name, value in own.items() if value}


def export(launch: Launch, translated: Translated) -> Written:
    """The equivalent export command; an export is not a training job."""
    words = ["mtj", "export"]
    for each in translated.arguments:
        values = each.value if isinstance(each.value, list) else [each.value]
        words += [f"--{each.name}", *(_as_word(value) for value in values)]
    remarks = [f"{each.name}: {each.remark}" for each in translated.arguments if each.remark]
    head = f"Written by mtj from-args from `{_without_secrets(launch.source)}`: run it where model and checkpoints are."
    notes = [head, *_of_the_family(translated.arguments), *remarks, *_left_out(translated.left_out)]
    return Written(text=_comment(notes) + shlex.join(words) + "\n", manifest={}, notes=tuple(notes[1:]))


def _of_the_family(arguments: Iterable[Carried]) -> list[str]:
    """What is known here against the model, by the name or path that the command has for it or for its checkpoint."""
    named = {each.name: str(each.value) for each in arguments}
    argument = "model" if "model" in named else "load"
    problem = family.problem(named.get(argument, ""))
    return [f"spec.args.{argument}: {named[argument]}: {problem}."] if problem else []


def is_open(argument: Carried) -> bool:
    """Whether somebody has to do something about it."""
    return argument.remark.startswith((NOT_CARRIED, FILL_IN))


def _as_word(value: object) -> str:
    """The value for a command line, which runs where the script started."""
    return str(value).lower() if isinstance(value, bool) else str(value).removeprefix(f"{WORKDIR}/")


def _spec(launch: Launch, pods: Pods, places: Places, arguments: Sequence[Carried]) -> dict[str, Any]:
    values = {each.name: each.value for each in arguments}
    gpus = _num_processes(launch, pods, values)
    env, network = _environment(_seen(launch), pods.env)
    volumes = [
        {"name": name, "persistentVolumeClaim": {"claimName": f"{TO_FILL_IN}{name}"}}
        for name in places.volumes.values()
    ]
    mounts = [{"name": name, "mountPath": path} for path, name in places.volumes.items()]
    fields: dict[str, Any] = {
        "task": launch.task,
        "numNodes": pods.num_nodes or launch.num_nodes or 1,
        "resourcesPerNode": dict(pods.resources) or {"limits": {"nvidia.com/gpu": str(gpus)}},
        "args": {each.name: each.value for each in arguments},
        "env": env,
        "envFrom": list(pods.env_from),
        "network": _network(pods, network),
        "checkpoint": {"pvc": {"claimName": f"{TO_FILL_IN}checkpoints"}},
        "volumes": [*pods.volumes, *volumes],
        "volumeMounts": [*pods.volume_mounts, *mounts],
        "podTemplate": {
            **({"metadata": dict(pods.pod_metadata)} if pods.pod_metadata else {}),
            **({"spec": dict(pods.pod_spec)} if pods.pod_spec else {}),
        },
        **pods.policies,
    }
    return {field: value for field, value in fields.items() if value}


def _num_processes(launch: Launch, pods: Pods, values: Mapping[str, object]) -> int:
    """Processes per pod: as given, else the minimum for the layout."""
    said = pods.num_processes or launch.num_processes
    return said or layout_ranks(values, launch.task)


def _seen(launch: Launch) -> dict[str, str]:
    """The variables that the command has from its shell, and those of secrets, which a pod may need all the same."""
    return {
        name: value
        for name, value in launch.environment.items()
        if SECRET.search(name) or (name not in launch.private and is_evaluated(value))
    }


def _unread(launch: Launch) -> list[str]:
    """NAME=VALUE of variables that would be carried over, had another than a running shell their value."""
    carried = (*CARRIED_VARIABLES, *NETWORK_VARIABLES)
    return [
        f"{name}={value}"
        for name, value in launch.environment.items()
        if name.startswith(carried) and name not in launch.private and name not in DEVICES
        if not is_evaluated(value) and not SECRET.search(name)
    ]


def _network(pods: Pods, variables: Mapping[str, str]) -> dict[str, Any]:
    own = {"hostNetwork": True} if pods.host_network else {}
    return {**own, **({"ncclEnv": dict(variables)} if variables else {})}


def _environment(variables: Mapping[str, str], own: Iterable[Mapping[str, Any]]) -> tuple[list[Any], dict[str, str]]:
    """(spec.env, spec.network.ncclEnv), each variable once, with the value that the command sees.

    A secret becomes a reference to a Secret, whatever its value was.
    """
    values = {name: plain(value) for name, value in variables.items()}
    network = {name: value for name, value in values.items() if name.startswith(NETWORK_VARIABLES)}
    env = [
        {**entry, "value": values.get(entry["name"], entry["value"])} if "value" in entry else dict(entry)
        for entry in own
        if entry.get("name") not in RESERVED and entry.get("name") not in network
    ]
    there = {entry.get("name") for entry in env}
    for name, value in values.items():
        if name in there or name in network or not name.startswith(CARRIED_VARIABLES):
            continue
        if SECRET.search(name):
            reference = {"secretKeyRef": {"name": f"{TO_FILL_IN}secret", "key": name}}
            env.append({"name": name, "valueFrom": reference})
        elif name not in DEVICES:
            env.append({"name": name, "value": value})
    return env, network


def _use_hf(arguments: Sequence[Carried]) -> list[Carried]:
    """Models are fetched from the Hub only if the command says so."""
    values = {each.name: each.value for each in arguments}
    model = values.get("model")
    if model is None or "use_hf" in values or is_path(str(model)):
        return []
    return [
        Carried(
            name="use_hf",
            value=True,
            remark="ms-swift tries ModelScope first: check that the id is the same on the Hub",
        )
    ]


def _hub_ids(arguments: Iterable[Carried]) -> list[Carried]:
    found = []
    for each in arguments:
        owner, _, rest = str(each.value).partition("/")
        if each.name == "model" and owner in OWNERS:
            each = Carried(name="model", value=f"{OWNERS[owner]}/{rest}", remark=f"was {each.value} on ModelScope")
        elif each.name == "model" and (ending := family.ending_of_transformers(str(each.value))):
            remark = f"was {each.value}; the same model for transformers"
            each = Carried(name="model", value=f"{each.value}{ending}", remark=remark)
        elif each.name in DATASETS and isinstance(each.value, list) and not all(map(is_path, map(str, each.value))):
            each = Carried(
                name=each.name, value=each.value, remark=each.remark or "ids of the Hugging Face Hub, not of ModelScope"
            )
        found.append(each)
    return found


def _argument_lines(arguments: Iterable[Carried]) -> Iterable[str]:
    for each in arguments:
        value = yaml.dump(each.value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=100_000)
        remark = f"  # {each.remark}" if each.remark else ""
        yield f"    {each.name}: {value.removesuffix('...\n').strip()}{remark}\n"


def _claims(spec: Mapping[str, Any], pods: Pods) -> str:
    """The volumes that a user has to name."""
    mounts = [mount for mount in spec.get("volumeMounts", ()) if mount not in pods.volume_mounts]
    claims = "".join(f", {mount['mountPath']} (claim {TO_FILL_IN}{mount['name']})" for mount in mounts)
    return f"Fill in the claims: checkpoints (claim {TO_FILL_IN}checkpoints){claims}."


def _notes(launch: Launch, pods: Pods, spec: Mapping[str, Any]) -> list[str]:
    notes = []
    unread = ", ".join(_without_secrets(each) for each in unread_sizes(launch))
    if unread and not (pods.num_processes or pods.resources):
        notes.append(f"Nodes and GPUs cannot be counted from {unread}: set numNodes and resourcesPerNode.")
    elif not (pods.num_processes or launch.num_processes or pods.resources):
        notes.append("The number of GPUs was not given; this is the minimum for the layout.")
    return [*notes, *_of_the_start(launch, spec["args"]), *(f"Left out: {remark}." for remark in pods.remarks)]


def _of_the_start(launch: Launch, values: Iterable[str]) -> list[str]:
    """What started the command there and has no place here: other programs with their options, variables."""
    ran = _without_secrets(" ".join(launch.behind))
    left = sorted(name for name in launch.exported if name not in values and not _is_known(name))
    named = ", ".join(name for name in left if name not in UNREAD)
    of_images = ", ".join(name for name in left if name in UNREAD)
    around = [f"Left out: its launcher: `{ran}`."] if any(word.startswith("-") for word in launch.behind) else []
    unknown = [
        f"Left out: {each} (only a running shell knows it; add its value to spec.env)." for each in _unread(launch)
    ]
    return [
        *around,
        *map(plain, unknown),
        *([f"Left out: variables {named}: add the relevant ones to spec.env."] if named else []),
        *([f"Left out: variables {of_images}: {OF_IMAGES}, {', '.join(NAMES)}."] if of_images else []),
    ]


def _is_known(name: str) -> bool:
    """Whether the variable has become something else here, or belongs to a machine."""
    carried = name.startswith((*CARRIED_VARIABLES, *NETWORK_VARIABLES)) or name in {*OF_VARIABLES, *VARIABLES}
    return carried or name in RESERVED or name in OF_THE_MACHINE or name in (*DEVICES, NUM_NODES, PROCESSES_PER_NODE)


def _without_secrets(text: str) -> str:
    return re.sub(rf"(\w*(?:{SECRET.pattern})\w*[= ])\S+", r"\1(hidden)", plain(text))


def _left_out(entries: Iterable[tuple[str, object, str]]) -> list[str]:
    return [plain(f"Left out: {name}: {value} ({reason}).") for name, value, reason in entries]


def _comment(lines: Iterable[str]) -> str:
    return "".join(f"# {line}\n" for text in lines for line in str(text).split("\n"))


def _job_name(text: str) -> str:
    """A valid job name derived from a path or a title."""
    path = PurePosixPath(text)
    stem = path.stem if path.suffix in (*SCRIPTS, ".yaml", ".yml", ".json") else path.name
    plain = re.sub(r"[^a-z0-9]+", "-", stem.lower()).lstrip("-0123456789").rstrip("-") or "job"
    return plain[: names.MAX_JOB_NAME_LENGTH].rstrip("-")


def _free_name(name: str, taken: Collection[str]) -> str:
    """The name, with a number behind it where another job of the same file has it."""
    numbered = (f"{name[: names.MAX_JOB_NAME_LENGTH - 4]}-{count}" for count in range(2, len(taken) + 3))
    return next(each for each in (name, *numbered) if each not in taken)


def as_comments(text: str) -> str:
    """The lines of an export as comments, so that the file has nothing but manifests for kubectl."""
    return "".join(line if line.startswith("#") else f"# {line}" for line in text.splitlines(keepends=True))
