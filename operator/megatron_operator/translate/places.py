"""Maps files of another machine to a cluster: each of its folders becomes a volume, to be filled in.

Absolute paths are kept, below a mount of their first two parts; relative ones are below the folder that the command is
started in, which is WORKDIR where only the machine knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from megatron_operator.translate.arguments import FILL_IN, NOT_CARRIED, Carried
from megatron_operator.translate.shell import folders
from megatron_operator.translate.shell.folders import HOME, WORKDIR, is_below
from megatron_operator.translate.shell.nodes import is_evaluated
from megatron_trainjob import dataset_entry

PATHS = ("load", "adapter_load", "ref_load", "ref_adapter_load", "cached_dataset", "cached_val_dataset", "image_root")
PATHS_OR_IDS = ("model", "dataset", "val_dataset", "mcore_model", "mcore_adapters", "adapters")
FILES_OR_TEXT = ("system", "new_special_tokens", "custom_dataset_info", "template", "external_plugins")
OUTPUTS = ("save", "tensorboard_dir", "wandb_save_dir")
HUB_ID = re.compile(r"(?:(?:hf|ms|HF|MS)::)?[\w.-]+/[\w.-]+(?::[\w/,-]+)?(?:#\d+)?")
BARE_NAME = re.compile(r"[\w-]+(?::[\w/,-]+)?(?:#\d+)?")
DATASETS = ("dataset", "val_dataset")
FILE_SUFFIXES = (*dataset_entry.FILES, *dataset_entry.PACKED, ".py", ".jinja")
FOLDERS_OF_REPOSITORIES = (
    *("examples/", "output/", "outputs/", "megatron_output/", "data/", "dataset/", "datasets/"),
    *("model/", "models/", "weights/", "ckpt/", "ckpts/", "checkpoint/", "checkpoints/", "pretrained/"),
)
"""Names of folders that are no owner on a Hub."""


ABOVE = "lies above the folder that the command is started in, which only its machine knows; write the path in the pod"
PATTERN = f"{FILL_IN}: the shell puts the names of files in place of this pattern; name the folder, or each file"


@dataclass
class Places:
    """The mounts that the paths need: mount path -> volume name.

    known: existing mounts of the manifest. folder: where relative paths start.
    """

    known: tuple[str, ...] = ()
    folder: str = WORKDIR
    mounts: dict[str, str] = field(default_factory=dict)

    @property
    def volumes(self) -> dict[str, str]:
        """The mounts without those that lie in another one, whose volume has their files."""
        return {
            path: name
            for path, name in self.mounts.items()
            if not any(path != other and is_below(path, other) for other in self.mounts)
        }

    def place(self, path: str) -> str:
        """The path in the pod."""
        if not is_evaluated(re.sub(r"^\$\{?HOME\}?(?=/|$)", "", path)):
            return path
        path = re.sub(r"^(~|\$HOME|\$\{HOME\})(?=/|$)", HOME, path)
        path = path if path.startswith("/") else folders.absolute(path, self.folder) or path
        if path.startswith("/") and not any(is_below(path, mount) for mount in self.known):
            mount = WORKDIR if is_below(path, WORKDIR) else _mount_of(path)
            self.mounts.setdefault(mount, re.sub(r"[^a-z0-9]+", "-", mount.lower()).strip("-"))
        return path


def _mount_of(path: str) -> str:
    """The folder of the path that becomes a volume."""
    return "/".join(path.split("/")[:3]) if path.count("/") > 2 else path.rsplit("/", 1)[0] or path


def placed(arguments: Iterable[Carried], places: Places) -> tuple[list[Carried], list[tuple[str, object, str]]]:
    """(arguments with their paths in the pod, those that are left to the checkpoint volume)."""
    kept: list[Carried] = []
    left_out: list[tuple[str, object, str]] = []
    arguments = tuple(arguments)
    has_catalog = any(each.name == "custom_dataset_info" for each in arguments)
    for each in arguments:
        if each.name in OUTPUTS:
            left_out.append((each.name, each.value, "outputs go to the volume of spec.checkpoint"))
        else:
            kept.append(_placed(each, places, has_catalog=has_catalog))
    return kept, left_out


def _placed(carried: Carried, places: Places, *, has_catalog: bool) -> Carried:
    """has_catalog: a data set may be a name of custom_dataset_info."""
    kinds: Mapping[str, Callable[[str], bool]] = {
        **dict.fromkeys(PATHS, lambda _: True),
        **dict.fromkeys(PATHS_OR_IDS, is_path),
        **(
            dict.fromkeys(DATASETS, lambda text: is_path(text) and not BARE_NAME.fullmatch(text)) if has_catalog else {}
        ),
        **dict.fromkeys(FILES_OR_TEXT, lambda text: text.endswith(FILE_SUFFIXES) and "\n" not in text),
    }
    is_one = kinds.get(carried.name)
    if is_one is None:
        return carried
    if isinstance(carried.value, list):
        value: object = [places.place(str(entry)) if is_one(str(entry)) else entry for entry in carried.value]
    else:
        value = places.place(str(carried.value)) if is_one(str(carried.value)) else carried.value
    remark = carried.remark
    if (
        carried.name in (*PATHS, *DATASETS)
        and any(re.search(r"[*?]", str(entry)) for entry in _entries(value))
        and not remark
    ):
        remark = PATTERN
    if any(str(entry).startswith("../") for entry in _entries(value)) and not remark.startswith(NOT_CARRIED):
        remark = f"{NOT_CARRIED}: {ABOVE}"
    return Carried(name=carried.name, value=value, remark=remark)


def _entries(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def is_path(text: str) -> bool:
    """Whether a model or data set is given by path rather than by Hub id."""
    source = text.partition("#")[0]
    if text.startswith(("/", "./", "../", "~", "$")) or source.endswith(FILE_SUFFIXES):
        return True
    return not HUB_ID.fullmatch(text) or text.startswith(FOLDERS_OF_REPOSITORIES)
