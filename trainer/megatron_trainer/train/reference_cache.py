"""Reference log-probabilities of all pairs, computed once per dataset and model and cached on disk.

A file holds float32 [rows, 2] (chosen, rejected; or an answer and a mismatched one), or [rows, 1], of one tokenized
dataset; its name is a key of the content of that dataset and of the reference, so that every later run and restart can
use it, whatever the layout, order or packing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import batched
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from numpy.typing import NDArray

from megatron_trainer import parallel
from megatron_trainer.backend import Backend
from megatron_trainer.convert.adapter_source import holds_adapter
from megatron_trainer.data.collate import RowShape, collate
from megatron_trainer.data.dataset import mismatched_in, stores_of, with_reference
from megatron_trainer.data.ordering.sample import WholePass
from megatron_trainer.data.prepare import Prepared
from megatron_trainer.data.storage import array_file
from megatron_trainer.data.storage.fingerprint import files_digest, text_key
from megatron_trainer.data.storage.lazy import LazyStore
from megatron_trainer.data.storage.store import Store
from megatron_trainer.data.streaming.items import Stream
from megatron_trainer.data.values import Pair, Sample
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.reference import Reference
from megatron_trainer.train.feed import on_device
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import checkpoints

logger = logging.getLogger(__name__)

VERSION = 1
PASSES_AT_ONCE = 8
"""Micro-batches of one run of the pipeline schedule."""

Values = NDArray[np.float32]


def with_known_reference(
    args: TrainArgs,
    spec: ModelSpec,
    *,
    data: Prepared,
    shape: RowShape,
    cache: Path,
    backend: Backend,
    open_reference: Callable[[], Reference],
    mismatched_length: int | None = None,
) -> Prepared:
    """The data with the reference log-probabilities of its pairs. Collective.

    mismatched_length: of single answers, whose prompts are also asked with the answers of others (dataset.Items).
    open_reference: called when some are not cached yet; the model that it builds is freed afterwards.
    """
    assert not isinstance(data.train, Stream)
    datasets = [data.train, *([] if data.validation is None else [data.validation])]
    stores = list(dict.fromkeys(store for dataset in datasets for store in stores_of(dataset)))
    identity = _identity(args, spec, cache)
    identity += "" if mismatched_length is None else f" mismatched {mismatched_length}"
    width = None if mismatched_length is None else 2
    files = {store: cache / "reference" / f"{text_key(f'{store.directory.name} {identity}')}.npy" for store in stores}
    found = {store: _read(path, _shape(store, width)) for store, path in files.items()}
    missing = [store for store, values in found.items() if values is None]
    if missing:
        reference = open_reference()
        for store in missing:
            found[store] = values = _ask(args, reference, store, shape, backend, mismatched_length)
            _write(values, files[store])
    known = {store.directory: values for store, values in found.items() if values is not None}
    knows = partial(with_reference, reference=known, mismatched_length=mismatched_length)
    validation = None if data.validation is None else knows(data.validation)
    return replace(data, train=knows(data.train), validation=validation)


def _identity(args: TrainArgs, spec: ModelSpec, cache: Path) -> str:
    """A key of everything that determines the reference's outputs; the first rank's, for all. Collective."""
    names = ("load", "ref_load") if args.train_type == "full" else ("load", "ref_adapter_load")
    drawn = (args.new_special_tokens, args.seed) if args.new_special_tokens else ()
    parts = [VERSION, spec.config, str(spec.dtype), args.train_type, drawn]
    key = [""]
    if dist.get_rank() == 0:
        weights = sorted([*spec.directory.glob("*.safetensors"), *spec.directory.glob("*.bin")])
        digests = [files_digest(weights, cache / "digests")]
        digests += [_content(Path(path), cache) for name in names if (path := getattr(args, name))]
        key = [text_key(json.dumps([*parts, *digests], default=str, sort_keys=True))]
    dist.broadcast_object_list(key, src=0)
    return key[0]


def _content(folder: Path, cache: Path) -> str:
    """A digest of the weights in a folder: a model, an adapter, or the newest of its checkpoints."""
    if (folder / "config.json").exists() or holds_adapter(folder):
        return files_digest(sorted(folder.glob("*.safetensors")), cache / "digests")
    newest = next((one for one in checkpoints(folder) if one.manifest is not None), None)
    where = folder if newest is None else newest.path
    return files_digest(sorted(path for path in where.rglob("*") if path.is_file()), cache / "digests")


def _shape(store: Store | LazyStore, width: int | None = None) -> tuple[int, int]:
    """Shape of the values for the rows of a store. width: values of a row, None for one of each sequence."""
    assert isinstance(store, Store)  # a rule refuses lazy tokenization
    return len(store), width or store.facts.sequences_per_row


def _asked(store: Store | LazyStore, row: int, mismatched_length: int | None) -> Sample | Pair:
    """The sequences of a row that the reference scores."""
    item = store[row]
    if mismatched_length is None or isinstance(item, Pair):
        return item
    return Pair(chosen=item, rejected=mismatched_in(store, row, mismatched_length))


def _read(path: Path, shape: tuple[int, int]) -> Values | None:
    """The values that the first rank finds on disk, on all ranks. Collective."""
    found: list[Values | None] = [stored(path, shape=shape) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def stored(path: Path, *, shape: tuple[int, int]) -> Values | None:
    """The values in a file; None if it is missing or has another shape: they are computed again."""
    try:
        found = array_file.read(path, np.float32, 2)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        logger.warning("cached log-probabilities cannot be read and are recomputed path=%s error=%s", path, err)
        return None
    if found.shape != shape:
        logger.warning("cached log-probabilities are of other data and are recomputed path=%s", path)
        return None
    return np.array(found)


def _write(values: Values, path: Path) -> None:
    if dist.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.part.npy")
        np.save(aside, values)
        aside.replace(path)


def _ask(
    args: TrainArgs,
    reference: Reference,
    store: Store | LazyStore,
    shape: RowShape,
    backend: Backend,
    mismatched_length: int | None,
) -> Values:
    """The log-probabilities of all rows of a store, each computed by one data-parallel rank. Collective."""
    num_rows, width = _shape(store, None if mismatched_length is None else 2)
    logger.info("computing log-probabilities of the reference model rows=%d data=%s", num_rows, store.directory.name)
    here = parallel.coordinates()
    order = WholePass(
        num_items=num_rows,
        micro_batch_size=args.micro_batch_size,
        data_parallel_rank=here.data,
        data_parallel_size=here.data_size,
    )
    totals = torch.zeros(num_rows, width, dtype=torch.float32, device=backend.device)
    for rows in batched(order, PASSES_AT_ONCE):
        batches = [
            on_device(collate([_asked(store, row, mismatched_length) for row in some], shape), backend.device)
            for some in rows
        ]
        for some, answer_S in zip(rows, reference.log_probabilities(batches), strict=True):
            if some and answer_S is not None and _speaks():
                totals[list(some)] = answer_S.view(width, -1).t()
    dist.all_reduce(totals)
    values: Values = totals.cpu().numpy()
    return values


def _speaks() -> bool:
    """Whether this rank contributes its values: of ranks with the same values, exactly one does."""
    return bool(
        parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_context_parallel_rank() == 0
    )
