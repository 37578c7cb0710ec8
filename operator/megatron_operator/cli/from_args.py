"""mtj from-args: translates a working ms-swift command (or a PyTorchJob that runs one) into a commented
MegatronTrainJob.

mtj from-args 'NPROC_PER_NODE=8 megatron sft --model ... '
mtj from-args train.sh | config.yaml | pytorchjob.yaml
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from megatron_operator.api import names
from megatron_operator.cli.output import INVALID, OK, show_violations
from megatron_operator.translate import launch, launchers, manifests, write
from megatron_operator.translate.arguments import VERSIONS, Version, of_variables, outvoted, translate, with_variables
from megatron_operator.translate.launch import Launch
from megatron_operator.translate.manifests import Pods
from megatron_operator.translate.shell import statements
from megatron_operator.translate.shell.folders import WORKDIR, of_this_machine
from megatron_operator.translate.shell.literal import kept, kept_value, plain, plain_value
from megatron_operator.translate.text_file import read_text
from megatron_operator.translate.write import Written
from megatron_trainjob.args import yaml_file
from megatron_trainjob.args.cli import written_values
from megatron_trainjob.args.field import EVERY_TASK, TRAINING, Task
from megatron_trainjob.violation import Violation

OF_THE_CALL = "the arguments of the script"
OF_THE_CALL_WHY = "in a shell function those of its call: add their values to spec.args"
OF_THE_QUEUE = "their counterparts are scheduling, runPolicy.activeDeadlineSeconds and podTemplate"
OF_THE_LAST = "the command gives it again behind; the last one counts"
STRAY = "the shell takes it for a program; the line above ends in no backslash, or a comment or blank follows it"
NO_COUNTERPART = "it neither trains nor exports; there is nothing like it here"
NOT_HERE = "this script does not lie there; pass it by itself if it trains"
OF_TRANSFORMERS = "it trains with transformers, whose arguments have other names; write it as megatron sft, pt or rlhf"
NOT_TAKEN = "it is in a branch that the script's own values do not take"
NO_PODS = Pods()
NO_FILES: Mapping[str, str] = {}
KINDS_READ = f"not read; manifests of {', '.join(manifests.KINDS)} are, or pass the command that it starts"
SHOWN_CHARACTERS = 160
UNREAD = "its launcher is not known; pass the training command by itself"
OTHER_TEXT = "is no UTF-8 and was read as GB 18030; check its texts, such as system"
OF_PYTHON = "Python is not read; pass the command that it starts, or write its fields as docs/migrating.md names them"
NOTHING = "contains no known training command: megatron pt|sft|rlhf, swift export, or torchrun with such a script"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source to translate.

    launches: its commands. remarks: what could not be followed, such as a training behind an unknown launcher. header:
    options of a batch system other than the number of ranks. files: those that a script writes itself. values:
    arguments of a YAML configuration, if it is one.
    """

    name: str
    launches: tuple[Launch, ...]
    remarks: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    values: Mapping[str, object] | None = None
    pods: Pods = NO_PODS


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("from-args", help="write a manifest from a command, a script or a PyTorchJob")
    command.add_argument("source", help="a command, or the file of a script, a YAML configuration or a manifest")
    command.add_argument("--task", choices=EVERY_TASK, help="task of a YAML configuration, which does not contain it")
    command.add_argument(
        "--from-version", choices=VERSIONS, help="version of ms-swift, if names and layout do not determine it"
    )
    command.add_argument("--name", help="name of the job (default: derived from the file or the output folder)")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 with the manifests on standard output, 2 if nothing in the source can be translated."""
    if arguments.source.endswith((".py", ".ipynb")) and " " not in arguments.source:
        return _refuse(arguments.source, OF_PYTHON)
    try:
        source = read(arguments.source, arguments.task)
    except (OSError, yaml_file.YamlProblem) as err:
        return _refuse(arguments.source, str(err))
    _tell(source.name, source.remarks)
    if not source.launches:
        return _refuse(arguments.source, NOTHING)
    found_all: list[Written] = []
    for found in source.launches:
        taken = {each.manifest["metadata"]["name"] for each in found_all if each.manifest}
        written, problems = translated(source, found, version=arguments.from_version, name=arguments.name, taken=taken)
        if problems:
            show_violations(arguments.source, [_shown(each) for each in problems])
            return INVALID
        _tell(source.name, written.notes)
        found_all.append(written)
    has_jobs = any(each.manifest for each in found_all)
    texts = [write.as_comments(each.text) if has_jobs and not each.manifest else each.text for each in found_all]
    sys.stdout.write("---\n".join(texts))
    return OK


def read(text: str, task: Task | None = None) -> Source:
    """The source that the command-line argument names. Raises OSError and YamlProblem."""
    path = Path(text)
    is_file = "\n" not in text and " " not in text
    if not is_file:
        return _of_script("", text, Path())
    if path.suffix in (".yaml", ".yml", ".json"):
        return _read_yaml(path, task)
    script, is_other = read_text(path)
    source = _of_script(path.name, script, path.parent, path=text)
    return replace(source, remarks=(OTHER_TEXT, *source.remarks)) if is_other else source


def _why_not(command: str) -> str:
    return OF_TRANSFORMERS if command.split()[1:2] and command.split()[1] in TRAINING else NO_COUNTERPART


def _tell(name: str, remarks: Iterable[str]) -> None:
    for each in remarks:
        print(f"{name or 'command'}: {plain(each)}", file=sys.stderr)


def _of_script(
    name: str,
    text: str,
    folder: Path,
    *,
    pods: Pods = NO_PODS,
    files: Mapping[str, str] = NO_FILES,
    path: str | None = None,
) -> Source:
    variables = {entry["name"]: str(entry["value"]) for entry in pods.env if "value" in entry}
    script = statements.read(text, folder, files, variables, path, pods.folder)
    used = launchers.of_header(script.header).used
    known = partial(_text_beside, script.files, folder)
    not_taken = [" ".join((each.source, *each.words))[:SHOWN_CHARACTERS] for each in launch.find(script.skipped)]
    return Source(
        name=name,
        launches=tuple(launch.find(script.commands, script.header, known)),
        remarks=(
            *script.remarks,
            *(f"not translated: {each}; {UNREAD}" for each in launch.unread(script.commands)),
            *(
                f"not translated: {each[:SHOWN_CHARACTERS]}; {_why_not(each)}"
                for each in launch.others(script.commands)
            ),
            *(f"not translated: {each}; {STRAY}" for each in launch.stray(script.commands)),
            *(f"not translated: {each}; {NOT_HERE}" for each in launch.missing_scripts(script.commands)),
            *(f"not translated: {each}; {NOT_TAKEN}" for each in not_taken),
        ),
        header=tuple(option for option in script.header if not launchers.options_of(option.split()).keys() & {*used}),
        files=script.files,
        folder=folder,
        pods=pods,
    )


def translated(
    source: Source,
    found: Launch,
    *,
    version: Version | None = None,
    name: str | None = None,
    taken: Collection[str] = frozenset(),
) -> tuple[Written, tuple[Violation, ...]]:
    """(the manifest of one command of the source, its words that cannot be parsed). taken: names of other jobs."""
    words, is_cut = launch.without_own_arguments(list(found.words))
    if words and not words[0].startswith("-") and words[0].endswith((".yaml", ".yml")):
        words = ["--config", *words]
    words, replaced = launch.last_of_each(words)
    values, problems = (source.values, []) if source.values is not None else _values(source, words, found.task)
    processes = source.pods.num_processes or found.num_processes
    nodes = source.pods.num_nodes or found.num_nodes or 1
    world_size = processes * nodes if processes else None
    written = with_variables(values, of_variables(found.environment, found.task))
    carried = translate(written, found.task, version=version, world_size=world_size)
    if is_cut:
        carried = replace(carried, left_out=(*carried.left_out, ("$@", OF_THE_CALL, OF_THE_CALL_WHY)))
    others = ((*each, OF_THE_LAST) for each in replaced)
    carried = replace(carried, left_out=(*carried.left_out, *outvoted(found.environment, values or {}), *others))
    left_out = [("batch system", " ".join(source.header), OF_THE_QUEUE)] if source.header else []
    carried = replace(carried, left_out=(*carried.left_out, *left_out))
    if found.task == "export":
        return write.export(found, carried), tuple(problems)
    title = name or source.name or _title(carried.arguments) or found.task
    return write.job(found, carried, source.pods, name=title, taken=taken), tuple(problems)


def _values(source: Source, words: Sequence[str], task: Task) -> tuple[dict[str, object], list[Violation]]:
    """The arguments of the words, and of a configuration that the script writes itself or that lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        placed = list(words)
        for index, name in enumerate(words[1:], 1):
            text = _text_beside(source.files, source.folder, plain(name)) if words[index - 1] == "--config" else None
            if text is not None:
                placed[index] = str(Path(folder, "config.yaml"))
                Path(placed[index]).write_text(kept(text))
        return written_values(placed, task)


def _text_beside(files: Mapping[str, str], folder: Path | None, name: str) -> str | None:
    """The text of a file that the script writes itself or that lies beside it."""
    if name in files or folder is None:
        return files.get(name)
    for path in (folder / name, of_this_machine(name, WORKDIR)):
        with suppress(OSError, ValueError):
            return None if path is None else read_text(path)[0]
    return None


def _read_yaml(path: Path, task: Task | None) -> Source:
    """A manifest of another operator, or a mapping of arguments."""
    loaded = [each for each in yaml_file.load_all(path) if isinstance(each, Mapping)]
    documents = [
        inner for each in loaded for inner in (each.get("items") or () if each.get("kind") == "List" else (each,))
    ]
    jobs = [each for each in documents if each.get("kind") in manifests.KINDS]
    if jobs:
        return _of_manifest(path, jobs, documents)
    if len(documents) != 1 or any("kind" in each for each in documents):
        found = ", ".join(str(each["kind"]) for each in documents if "kind" in each) or f"{len(documents)} documents"
        return Source(name=path.name, launches=(), remarks=(f"{found}: {KINDS_READ}",))
    values = cast(Mapping[str, Any], kept_value(documents[0]))
    found_task = task or _task_of(values)
    return Source(name=path.name, launches=(Launch(task=found_task, words=(), source=str(path)),), values=values)


def _of_manifest(path: Path, jobs: Sequence[Mapping[str, Any]], documents: Sequence[Mapping[str, Any]]) -> Source:
    """The first job; of others beside it, that they are there."""
    job = manifests.read(jobs[0], documents)
    found = _of_script(path.name, job.script, path.parent, pods=job.pods, files=job.files)
    others = tuple(f"not translated: {each['kind']} beside the first one" for each in jobs[1:])
    return replace(found, remarks=(*found.remarks, *others))


def _task_of(values: Mapping[str, object]) -> Task:
    if "rlhf_type" in values:
        return "rlhf"
    return "export" if {"to_hf", "to_mcore", "to_cached_dataset"} & values.keys() else "sft"


def _title(arguments: tuple[Any, ...]) -> str:
    values = {each.name: str(each.value) for each in arguments}
    return values.get("save") or values.get("model") or values.get("load") or ""


def _refuse(source: str, message: str) -> int:
    show_violations(source if len(source) < names.MAX_JOB_NAME_LENGTH else "from-args", (_violation(message),))
    return INVALID


def _shown(problem: Violation) -> Violation:
    return replace(problem, value=plain_value(problem.value), message=plain(problem.message))


def _violation(message: str) -> Violation:
    return Violation(path="source", value=None, message=message)
