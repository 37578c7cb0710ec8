"""Finds the newest memory checkpoint that the nodes hold together, and makes it readable on each of them.

A node may hold nothing (it is new), or files that were damaged: what it lacks comes from the node that keeps the copy,
or from whichever holds it. Only the parts of files that its ranks read are sent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from megatron_trainer.checkpoint import unpickle
from megatron_trainer.checkpoint.contents import StateDict
from megatron_trainer.checkpoint.memory import Memory
from megatron_trainer.checkpoint.node_memory import Generation
from megatron_trainer.checkpoint.nodes import PeerFailure
from megatron_trainer.checkpoint.shards import INDEX_FILES
from megatron_trainjob.checkpoint_folder import MANIFEST, RECORD, Checkpoint, Manifest, damage

logger = logging.getLogger(__name__)

Range = tuple[int, int]
"""(offset, length) in bytes."""
COMMON = "common_state"
"""The plain values of a checkpoint, which every rank reads."""
SMALL = (*INDEX_FILES, RECORD)
"""Every node has them."""
SHOWN_FILES = 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """A memory checkpoint of which every file is undamaged on some node. holders: the nodes of each file."""

    memory: Memory
    manifest: Manifest
    holders: Mapping[str, Sequence[int]]

    @property
    def checkpoint(self) -> Checkpoint:
        """As this node sees it; readable once `gather` has been called."""
        path = self.memory.place.path(self.manifest.iteration)
        return Checkpoint(path=path, iteration=self.manifest.iteration, manifest=self.manifest, problem=None)

    def gather_index(self) -> None:
        """Gives every node the small files of the checkpoint, and frees the memory of older ones. Collective.

        Raises:
            PeerFailure: a node could not take them.
        """
        nodes, place = self.memory.nodes, self.memory.place
        path = place.path(self.manifest.iteration)
        whole = [node for node in range(nodes.num_nodes) if all(node in self.holders[name] for name in SMALL)]
        nodes.agreed(lambda: place.keep_only(self.manifest.iteration) if nodes.is_first_of_node else None)
        if len(whole) == nodes.num_nodes:
            return
        source = nodes.first_rank(whole[0])
        content = nodes.agreed(
            lambda: {name: (path / name).read_bytes() for name in SMALL} if dist.get_rank() == source else None
        )
        given = nodes.from_rank(source, content)
        nodes.agreed(lambda: self._take_index(path, given, whole))

    def _take_index(self, path: Path, given: Mapping[str, bytes], whole: Sequence[int]) -> None:
        if self.memory.nodes.is_first_of_node and self.memory.nodes.node not in whole:
            path.mkdir(exist_ok=True)
            for name, content in given.items():
                (path / name).write_bytes(content)
            (path / MANIFEST).write_text(self.manifest.to_text())

    def gather(self, wanted: StateDict) -> None:
        """Gives every node what its ranks read of the wanted state. Collective.

        Raises:
            PeerFailure: a node could not take it; nothing has been loaded yet.
        """
        nodes = self.memory.nodes
        if nodes.num_nodes == 1:
            return
        path = self.checkpoint.path
        own = nodes.agreed(lambda: _needs(wanted, path))
        problem = ""
        for name, node, ranges in self._transfers(nodes.gathered(own)):
            source, target = nodes.first_rank(self.holders[name][0]), nodes.first_rank(node)
            if dist.get_rank() == source:
                problem = nodes.send(path / name, ranges, target) or problem
            elif dist.get_rank() == target:
                problem = nodes.receive(path / name, ranges, source) or problem
        problems = list(filter(None, nodes.gathered(problem)))
        if problems:
            raise PeerFailure("; ".join(problems))

    def release(self) -> None:
        """Frees the memory of what was gathered for the load alone. Collective."""
        nodes = self.memory.nodes
        nodes.gathered(None)  # every rank has read what it needs
        borrowed = [name for name, where in self.holders.items() if nodes.node not in where and name not in SMALL]
        for name in borrowed if nodes.is_first_of_node else ():
            (self.checkpoint.path / name).unlink(missing_ok=True)

    def _transfers(self, needs: Sequence[Mapping[str, set[Range]]]) -> Iterator[tuple[str, int, list[Range]]]:
        """(file, node, its parts) of everything that a node needs and lacks, in the same order on every rank."""
        nodes = self.memory.nodes
        for node in range(nodes.num_nodes):
            of_node = needs[nodes.first_rank(node) : nodes.first_rank(node) + nodes.ranks_per_node]
            for name in sorted({name for need in of_node for name in need}):
                if node not in self.holders[name]:
                    yield name, node, sorted({each for need in of_node for each in need.get(name, ())})


def find(memory: Memory, layout: Mapping[str, int]) -> Found | None:
    """The newest memory checkpoint that the nodes hold completely. Collective.

    The ranks of a node read its files among them and compare the checksums; a damaged file counts as missing. One of
    another layout is not used.
    """
    nodes = memory.nodes
    try:
        own = nodes.agreed(lambda: memory.place.generations() if nodes.is_first_of_node else {})
    except PeerFailure as err:
        logger.warning("resuming from the save folder, not from memory: %s", err)
        return None
    held = nodes.gathered(own)[:: nodes.ranks_per_node]
    for iteration in sorted({each for on_node in held for each in on_node}, reverse=True):
        alike = _alike([on_node.get(iteration) for on_node in held])
        manifest = next(each.manifest for each in alike if each is not None)
        if manifest.world_size != dist.get_world_size() or dict(manifest.layout) != dict(layout):
            logger.warning("not using the memory checkpoint of iteration=%d: it is of another layout", iteration)
            continue
        holders = _holders(memory, manifest, alike)
        missing = sorted(name for name, where in holders.items() if not where)
        if not missing:
            return Found(memory=memory, manifest=manifest, holders=holders)
        shown = ", ".join(missing[:SHOWN_FILES]) + ("" if len(missing) <= SHOWN_FILES else ", ...")
        logger.warning("passing over the memory checkpoint of iteration=%d: no node holds %s", iteration, shown)
    return None


def _alike(found: Sequence[Generation | None]) -> list[Generation | None]:
    """What the nodes hold of the checkpoint that the first of them holds; one written at another time is another."""
    first = next(each.manifest for each in found if each is not None)
    return [each if each is not None and each.manifest == first else None for each in found]


def _holders(memory: Memory, manifest: Manifest, held: Sequence[Generation | None]) -> dict[str, list[int]]:
    """The nodes on which each file is undamaged. Collective."""
    nodes = memory.nodes
    here = held[nodes.node]
    path = memory.place.path(manifest.iteration)
    share = sorted(here.files)[dist.get_rank() % nodes.ranks_per_node :: nodes.ranks_per_node] if here else []
    problems = {name: next(damage(path, manifest, [name], with_contents=True), None) for name in share}
    for text in filter(None, problems.values()):
        logger.warning("memory checkpoint: %s", text)
    good = nodes.gathered([name for name, text in problems.items() if text is None])
    of_ranks = [(nodes.of(rank), names) for rank, names in enumerate(good)]
    return {name: sorted({node for node, names in of_ranks if name in names}) for name in manifest.files}


def _needs(wanted: StateDict, path: Path) -> dict[str, set[Range]]:
    """The parts of each file that this rank reads for the wanted state."""
    with unpickle.restricted():
        index = FileSystemReader(path).read_metadata()
    needs: dict[str, set[Range]] = {}
    for place in _entries(wanted, index):
        stored = (index.storage_data or {})[place]
        needs.setdefault(stored.relative_path, set()).add((stored.offset, stored.length))
    return needs


def _entries(wanted: StateDict, index: Metadata) -> Iterator[MetadataIndex]:
    """The entries of the index that hold a part of the wanted state, and the plain values."""
    tensors = [part for each in nested_values(wanted) for part in _sharded(each)]
    objects = {part.unique_key for part in tensors if isinstance(part, ShardedObject)}
    by_name: dict[str, list[ShardedTensor]] = {}
    for part in tensors:
        if isinstance(part, ShardedTensor):
            by_name.setdefault(part.key, []).append(part)
    sizes = {
        (name, tuple(chunk.offsets)): chunk.sizes
        for name, stored in index.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata)
        for chunk in stored.chunks
    }
    for place in index.storage_data or {}:
        start = tuple(place.offset or ())
        is_value = place.fqn in objects or place.fqn.startswith(COMMON)
        if is_value or any(_overlaps(part, start, sizes[place.fqn, start]) for part in by_name.get(place.fqn, ())):
            yield place


def _sharded(value: object) -> Iterable[object]:
    return nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else (value,)


def _overlaps(part: ShardedTensor, start: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a stored chunk holds any element of the part."""
    extent = (1,) * part.prepend_axis_num + tuple(part.local_shape)
    axes = zip(part.global_offset, extent, start, size, strict=True)
    return all(first < other + length and other < first + own for first, own, other, length in axes)
