"""What this machine can check about a job before it starts: its GPUs, the model's config.json, missing files.

Only for paths that exist here: local ones, and those below a mount whose folder is known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megatron_operator.api.schema import structural
from megatron_operator.api.spec import spec_schema
from megatron_operator.cluster.local import paths as local_paths
from megatron_operator.cluster.local.paths import Folders, NoSuchVolume
from megatron_operator.manifest.mounts import is_below
from megatron_trainjob import dataset_entry, hub_cache, input_file, processor_folder, tokenizer_folder, weight_files
from megatron_trainjob.args import head
from megatron_trainjob.args.groups.base_template import TEMPLATE_FILES
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.rules.data import is_of_a_shell
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
DATA_ARGUMENTS = ("dataset", "val_dataset", "cached_dataset", "cached_val_dataset", "custom_dataset_info")
TEXT_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "system": (".txt",),
    "template": TEMPLATE_FILES,
    "new_special_tokens": (".txt",),
}
"""Arguments that hold a text or name a file with these endings."""
FOLDER_ARGUMENTS = ("load", "adapter_load", "ref_load", "ref_adapter_load", "image_root")


def num_gpus() -> int:
    """GPUs of this machine, counted by their device files."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def with_local_processes(manifest: Object, gpus: int) -> Object:
    """The manifest with nprocPerNode "auto" resolved to this machine's GPUs unless it requests a number of them."""
    spec = manifest.get("spec")
    if not isinstance(spec, Mapping) or spec.get("nprocPerNode", "auto") != "auto" or _asks_for_gpus(spec):
        return manifest
    nodes = spec.get("numNodes", 1)
    share = gpus // nodes if isinstance(nodes, int) and nodes > 0 else 0
    return {**manifest, "spec": {**spec, "nprocPerNode": share}} if share else manifest


def mounts(manifest: Object, folders: Folders, *, runs_here: bool = False) -> dict[str, Path | None]:
    """mountPath -> folder for each mount, None where no folder is known. Accepts any manifest, even an invalid one.

    runs_here: the job will run on this machine, so a folder is known even before it is created.
    """
    spec = manifest.get("spec")
    if not isinstance(spec, Mapping):
        return {}
    readable = {key: value for key, value in spec.items() if not _is_broken(key, value)}
    spec = structural.defaulted(readable, spec_schema())
    claim = (spec["checkpoint"].get("pvc") or {}).get("claimName")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    known_folder = partial(_known_folder, folders, runs_here)
    found = {
        mount["mountPath"]: known_folder(volumes.get(mount["name"]), mount.get("subPath", ""))
        for mount in spec.get("volumeMounts", ())
    }
    checkpoint = {"name": "checkpoint", "persistentVolumeClaim": {"claimName": claim}} if claim else None
    return {spec["checkpoint"]["mountPath"]: known_folder(checkpoint, ""), **found}


def local_path(path: str, mounted: Mapping[str, Path | None]) -> Path | None:
    """A path of the manifest on this machine; None if only the cluster knows it."""
    for mount in sorted(mounted, key=len, reverse=True):
        if is_below(path, mount.rstrip("/")):
            folder = mounted[mount]
            return None if folder is None else folder / path[len(mount.rstrip("/")) :].lstrip("/")
    return Path(path).expanduser()


def read_hf_config(manifest: Object, mounted: Mapping[str, Path | None]) -> Object | None:
    """The model's config.json, None if it cannot be read here."""
    model = _arguments(manifest).get("model")
    folder = local_path(model, mounted) if isinstance(model, str) else None
    if folder is None:
        return None
    return _config(folder)


def _config(folder: Path) -> Object | None:
    try:
        config = input_file.read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    return config if isinstance(config, Mapping) else None


def missing_files(
    manifest: Object, mounted: Mapping[str, Path | None], args: TrainArgs | None = None
) -> tuple[Violation, ...]:
    """Models, tokenizers, processors, data files and checkpoints that the manifest names and this machine lacks.

    Paths that an initializer fetches are not checked. args: the job's, None if they are invalid; then only what
    does not depend on them is checked about the weights.
    """
    spec = manifest.get("spec")
    given = spec.get("initializers") if isinstance(spec, Mapping) else None
    fetched = [str(each.get("targetPath")) for each in given or () if isinstance(each, Mapping)]
    arguments = _arguments(manifest)
    checks = (
        _missing_model,
        partial(_wrong_weights, args),
        _wrong_companions,
        _missing_data,
        _missing_folders,
        _missing_texts,
    )
    found = [violation for each in checks for violation in each(arguments, mounted)]
    named = [each for each in found if not is_of_a_shell(str(each.value))]  # the others are refused as such
    return tuple(each for each in named if not any(is_below(str(each.value), target) for target in fetched))


def _missing_model(arguments: Object, mounted: Mapping[str, Path | None]) -> Iterator[Violation]:
    model = arguments.get("model")
    if not isinstance(model, str) or not _is_path(model):
        return
    folder = local_path(model, mounted)
    if folder is None:
        return
    if folder.is_file():
        message = f"is a file; pass the folder that holds it: {Path(model).parent}"
        yield Violation(path="spec.args.model", value=model, message=message)
    elif not folder.is_dir():
        message = f"folder {folder} does not exist; correct the path, or bind the volume with --volume"
        yield Violation(path="spec.args.model", value=model, message=message)
    elif not (folder / "config.json").is_file():
        message = f"{folder} has no config.json; pass the folder of a Hugging Face model{_what_it_is(folder)}"
        yield Violation(path="spec.args.model", value=model, message=message)


def _what_it_is(folder: Path) -> str:
    """A remark about a folder that this project, peft, or the Hub's client has written."""
    if (folder / weight_files.ADAPTER_FILE).is_file():
        return ". It holds an adapter: pass it as adapter_load, and its base model as model"
    if (folder / "args.json").is_file():
        return ". It holds a run's checkpoints: pass it as load, and the model that it started from as model"
    if snapshot := hub_cache.snapshot(folder):
        return f". It is the cache of a Hub repository: pass {snapshot}"
    return ""


def _wrong_weights(
    args: TrainArgs | None, arguments: Object, mounted: Mapping[str, Path | None]
) -> Iterator[Violation]:
    """The trainer's checks of the stored weights; a model that starts from random weights needs none."""
    model = arguments.get("model")
    folder = local_path(model, mounted) if isinstance(model, str) and _is_path(model) else None
    config = None if folder is None else _config(folder)
    if folder is not None and config is not None and arguments.get("no_initialization") is not False:
        checked = check(config, args) if args is not None else None
        known = checked.model if checked is not None and not checked.violations else None
        has_scores = args is not None and head.replaces_output(args)
        for problem in weight_files.problems(folder, config, known, has_scores=has_scores):
            yield Violation(path="spec.args.model", value=model, message=problem)


def _wrong_companions(arguments: Object, mounted: Mapping[str, Path | None]) -> Iterator[Violation]:
    model = arguments.get("model")
    folder = local_path(model, mounted) if isinstance(model, str) and _is_path(model) else None
    if folder is not None and (folder / "config.json").is_file():
        wrong = tokenizer_folder.problems(folder, grows=bool(arguments.get("new_special_tokens")))
        for problem in (*wrong, *processor_folder.problems(folder, _config(folder) or {})):
            yield Violation(path="spec.args.model", value=model, message=problem)


def _missing_data(arguments: Object, mounted: Mapping[str, Path | None]) -> Iterator[Violation]:
    # Names of custom_dataset_info may look like files; the trainer looks them up.
    suffixes = frozenset() if arguments.get("custom_dataset_info") else {*dataset_entry.FILES, *dataset_entry.PACKED}
    for name in DATA_ARGUMENTS:
        given = arguments.get(name)
        for entry in [given] if isinstance(given, str) else given or ():
            if message := _problem_of_data(str(entry), suffixes, mounted):
                yield Violation(path=f"spec.args.{name}", value=entry, message=message)


def _problem_of_data(entry: str, suffixes: Collection[str], mounted: Mapping[str, Path | None]) -> str:
    """What is wrong with an entry of a data argument as far as this machine shows, "" if nothing is."""
    try:
        source = dataset_entry.parse(entry, lambda text: _is_here(text, mounted)).name
    except ValueError as err:
        return str(err)
    path = local_path(source, mounted) if _is_path(source) or Path(source).suffix in suffixes else None
    if path is None or path.exists():
        return ""
    return f"{path} does not exist; correct the path, or bind the volume with --volume"


def _is_here(text: str, mounted: Mapping[str, Path | None]) -> bool:
    path = local_path(text, mounted)
    return path is not None and path.exists()


def _missing_folders(arguments: Object, mounted: Mapping[str, Path | None]) -> Iterator[Violation]:
    for name in FOLDER_ARGUMENTS:
        given = arguments.get(name)
        for entry in [given] if isinstance(given, str) else given or ():
            path = local_path(str(entry), mounted) if _is_path(str(entry)) else None
            if path is not None and not path.exists():
                kind = "folder of images" if name == "image_root" else "checkpoint folder"
                message = f"{kind} {path} does not exist; correct the path"
                yield Violation(path=f"spec.args.{name}", value=entry, message=message)


def _missing_texts(arguments: Object, mounted: Mapping[str, Path | None]) -> Iterator[Violation]:
    """Files that an argument names in place of the text itself, or of a name."""
    for name, suffixes in TEXT_ARGUMENTS.items():
        given = arguments.get(name)
        for entry in [given] if isinstance(given, str) else given or ():
            path = local_path(str(entry), mounted) if str(entry).endswith(suffixes) else None
            if path is not None and not path.exists():
                message = f"file {path} does not exist; correct the path, or bind the volume with --volume"
                yield Violation(path=f"spec.args.{name}", value=entry, message=message)


def _arguments(manifest: Object) -> Object:
    spec = manifest.get("spec")
    arguments = spec.get("args") if isinstance(spec, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def _is_path(text: str) -> bool:
    """Whether the text is a path rather than a Hub id ("owner/name")."""
    return text.startswith(("/", "./", "../", "~")) or Path(text).exists()


def _known_folder(folders: Folders, runs_here: bool, volume: Object | None, sub_path: str) -> Path | None:  # noqa: FBT001
    """The folder behind a volume if it exists here already, or will."""
    try:
        folder = local_paths.folder_of(volume, folders) if volume else None
    except NoSuchVolume:
        return None
    return folder / sub_path if folder is not None and (runs_here or folder.is_dir()) else None


def _is_broken(name: str, value: object) -> bool:
    schema = spec_schema()["properties"].get(name)
    return schema is None or any(structural.check(value, schema, name))


def _asks_for_gpus(spec: Object) -> bool:
    limits = (spec.get("resourcesPerNode") or {}).get("limits") or {}
    return any(str(name).startswith("nvidia.com/") for name in limits)
