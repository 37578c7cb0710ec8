"""Checkpoints in Megatron's older format `torch`: one pickle per model-parallel rank, read in the layout that wrote it.

    mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt    tensor rank, then pipeline and expert rank where there are several

The weights of a rank are in its file under "model" ("model0", "model1" .. with virtual pipeline stages), with layers
numbered from zero. Everything else in the file (arguments, optimizer, random states) is skipped, and nothing is run.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_trainer import parallel
from megatron_trainer.failure import TrainingError
from megatron_trainer.lora.names import canonical, is_adapter, named_weights
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)

FILE = "model_optim_rng.pt"
_FOLDER = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?(?:_(\d{3}))?")
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
_SKIPPED = ("_extra_state", "inv_freq")
_SHOWN = 4


class _Inert:
    """Stands for an object of any class that is no tensor: it takes whatever the pickle gives it and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Keeps nothing."""

    def __setstate__(self, _: object) -> None:
        """Keeps nothing."""

    def __setitem__(self, *_: object) -> None:
        """Keeps nothing."""

    def append(self, _: object) -> None:
        """Keeps nothing."""

    def extend(self, _: object) -> None:
        """Keeps nothing."""


class _TensorUnpickler(pickle.Unpickler):
    """Makes tensors and plain containers; every other class of the file is inert."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - pickle's signature
        if module == "torch._utils" and name in _REBUILD:
            return getattr(torch._utils, name)
        is_tensor_part = module in ("torch", "torch.storage") and (name.endswith("Storage") or name == "Size")
        is_tensor_part &= "." not in name  # pickle would follow the path to anything that torch has imported
        if (module, name) == ("collections", "OrderedDict") or is_tensor_part:
            return super().find_class(module, name)
        value = getattr(torch, name, None) if module == "torch" else None
        return value if isinstance(value, torch.dtype) else _Inert


def _load(file: IO[bytes], **settings: Any) -> Any:  # noqa: ANN401 - pickle's signature
    """As pickle.load, with which torch reads the head and the end of a file that is no zip archive."""
    return _TensorUnpickler(file, **settings).load()


_TENSORS_ALONE = SimpleNamespace(Unpickler=_TensorUnpickler, load=_load, __name__="legacy tensors")
_ZIP = b"PK\x03\x04"


def read(models: Sequence[nn.Module], path: Path) -> None:
    """Fills the weights of this rank's chunks, not those of adapters. Collective.

    Raises:
        TrainingError: the checkpoint is of another layout or another model; the same on all ranks.
    """
    problems = _layout_problem(path) or _fill(models, path)
    every: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(every, problems)
    if any(every):
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, next(filter(None, every)))


def _layout_problem(path: Path) -> str:
    here = parallel.coordinates()
    found = [match for folder in path.iterdir() if (match := _FOLDER.fullmatch(folder.name))]
    sizes = [1 + max((int(match[place] or 0) for match in found), default=0) for place in (1, 2, 3)]
    stored = dict(zip(("tensor", "pipeline", "expert"), sizes, strict=True))
    if here.expert_size > 1 and here.pipeline_size == 1:  # without pipeline stages the second number is the expert's
        stored |= {"pipeline": 1, "expert": stored["pipeline"]}
    wanted = {"tensor": here.tensor_size, "pipeline": here.pipeline_size, "expert": here.expert_size}
    if stored == wanted:
        return ""
    remedy = ", ".join(f"{name}_model_parallel_size: {size}" for name, size in stored.items())
    return f"{path} is in the format torch, which loads in the layout that wrote it alone; set {remedy}"


def _file(path: Path) -> Path:
    here = parallel.coordinates()
    parts = [f"mp_rank_{here.tensor:02d}"]
    parts += [f"{here.pipeline:03d}"] if here.pipeline_size > 1 else []
    parts += [f"{here.expert:03d}"] if here.expert_size > 1 else []
    return path / "_".join(parts) / FILE


def _fill(models: Sequence[nn.Module], path: Path) -> str:
    """Copies the weights; what does not fit, or "" if all do."""
    file = _file(path)
    try:
        content = read_file(file)
    except Exception as err:  # noqa: BLE001 - a damaged pickle raises anything
        return f"{file} cannot be read ({type(err).__name__}: {err})"
    keys = [f"model{number}" for number in range(len(models))] if len(models) > 1 else ["model"]
    problems = []
    for model, key in zip(models, keys, strict=True):
        stored = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(stored, Mapping):
            return f"{file} has no weights under {key}; is it of other virtual pipeline stages?"
        problems += _copy(model, dict(_weights(stored)))
    if not problems:
        return ""
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{file} is of another model: {', '.join(problems[:_SHOWN])}{more}"


def read_file(file: Path) -> Any:  # noqa: ANN401 - of any structure
    """What torch.save has put into a file, in each of its formats: tensors and plain containers. Runs nothing.

    Raises anything for a damaged or forged file.
    """
    _check_is_no_program(file)
    return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_TENSORS_ALONE)


def _check_is_no_program(file: Path) -> None:
    """Raises ValueError for a TorchScript archive, whose code torch.load would run."""
    with file.open("rb") as opened:
        is_zip = opened.read(len(_ZIP)) == _ZIP
    if is_zip and "constants.pkl" in torch._C.PyTorchFileReader(str(file)).get_all_records():
        raise ValueError("it is a TorchScript program")


def _weights(stored: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in stored.items():
        if isinstance(value, Tensor) and not name.endswith(_SKIPPED):
            yield canonical(name), value


@torch.no_grad()
def _copy(model: nn.Module, stored: dict[str, Tensor]) -> list[str]:
    """Fills the model's weights from the stored ones; names what is missing, left over or of another shape."""
    problems = []
    for name, own in named_weights(model):
        if is_adapter(name):
            continue
        found = stored.pop(canonical(name), None)
        if found is None:
            problems.append(f"{name} is missing")
        elif found.shape != own.shape:
            problems.append(f"{name} has the shape {list(found.shape)} instead of {list(own.shape)}")
        else:
            own.copy_(found)
    return [*problems, *(f"{name} is left over" for name in sorted(stored))]
