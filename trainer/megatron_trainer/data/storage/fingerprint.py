"""Keys of cached data: equal inputs give equal keys, on every machine. Digests of files are cached."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.encoding.encode import Encoder
from megatron_trainer.data.reading.rename import Renamed
from megatron_trainer.data.reading.source import FileSource, Source, TableSource
from megatron_trainer.data.reading.unpair import Unpaired
from megatron_trainer.data.reading.unroll import Unrolled
from megatron_trainer.data.storage.store import VERSION
from megatron_trainjob import input_file

DATA = Path(__file__).parents[1]
ROOMS = ("conversation", "encoding", "reading", "vision")
"""Rooms of data/ whose code decides which tokens a row becomes."""
DIGEST_CHARACTERS = 64
SETTLED_NS = 2_000_000_000
"""A file modified this shortly before its digest was taken may change again without a new timestamp."""


def text_key(text: str) -> str:
    """A key for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def code_digest(data: Path = DATA) -> str:
    """A digest of the code that turns rows into tokens, so that none cached by another version of it is trained on."""
    rooms = [file for room in ROOMS for file in sorted((data / room).glob("*.py"))]
    files = [data / "row.py", data / "values.py", *rooms]
    versions = [importlib.metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")]
    return text_key("".join([*versions, *(file.read_text() for file in files)]))


def store_key(source_digest: str, tokenizer_digest: str, encoder: Encoder, choice: str) -> str:
    """The key of the tokenized rows of one dataset. choice: which of its rows were selected, empty for all."""
    settings = asdict(encoder.settings)
    if encoder.settings.vision is None:
        del settings["vision"]  # the keys of text are those of trainers that knew no images
    parts = {
        "version": VERSION,
        "code": code_digest(),
        "source": source_digest,
        "tokenizer": tokenizer_digest,
        "template": encoder.template.name,
        "settings": settings,
        "choice": choice,
    }
    return text_key(json.dumps(parts, sort_keys=True))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of everything that determines the ids of a text."""
    if tokenizer.is_fast:
        content = tokenizer.backend_tokenizer.to_str()
    else:
        content = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    roles = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    flags = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
    content += json.dumps([roles, flags, tokenizer.chat_template])
    return hashlib.sha256(content.encode()).hexdigest()


def source_digest(source: Source, memory: Path) -> str:
    """The source's fingerprint; digests of files are cached in the folder `memory`, so that a large unchanged file is
    not read again.
    """
    if isinstance(source, Renamed | Unpaired | Unrolled):
        return f"{source_digest(source.whole, memory)} {source.manner}"
    if not isinstance(source, FileSource):
        return source.fingerprint()
    parts = [_remembered(file, memory, _data_digest) for file in source.files]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def starts_of_paths(source: Source, root: str | None) -> list[str]:
    """The folders in which relative paths of a source's images may start: equal rows elsewhere name other images.

    root: that of all images, if there is one.
    """
    if root is not None:
        return [str(Path(root).expanduser().absolute())]
    if isinstance(source, Renamed | Unpaired | Unrolled):
        return starts_of_paths(source.whole, root)
    folders = [file.parent for file in source.files] if isinstance(source, FileSource) else []
    if isinstance(source, TableSource):
        folders.append(Path(source.name))
    return [*(str(folder.absolute()) for folder in folders), str(Path.cwd())]


def file_identities(source: Source) -> list[object]:
    """Identifies files without reading them: name, size and time of modification."""
    if isinstance(source, Renamed | Unpaired | Unrolled):
        return [*file_identities(source.whole), source.manner]
    if not isinstance(source, FileSource):
        return [source.fingerprint()]
    return [_identity(file) for file in source.files]


def _identity(file: Path) -> list[object]:
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def files_digest(files: Sequence[Path], memory: Path) -> str:
    """A digest of the names and bytes of files of any kind, cached like those of data files."""
    parts = [f"{file.name} {_remembered(file, memory, _bytes_digest)}" for file in files]
    return text_key("\n".join(parts))


def _data_digest(file: Path) -> str:
    return FileSource(files=(file,)).fingerprint()


def _bytes_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remembered(file: Path, memory: Path, digest_of: Callable[[Path], str]) -> str:
    status = file.stat()
    # Some tools that edit a file in place reset its st_mtime; st_ctime is set by the kernel only.
    identity = [*_identity(file), status.st_ctime_ns, status.st_ino, digest_of.__name__]
    note = memory / f"{text_key(json.dumps(identity))}.txt"
    try:
        remembered = input_file.read_text(note)
        age_ns = note.stat().st_mtime_ns - max(status.st_mtime_ns, status.st_ctime_ns)
        if age_ns > SETTLED_NS and len(remembered) == DIGEST_CHARACTERS:
            return remembered
    except (OSError, ValueError):
        pass
    digest = digest_of(file)
    with contextlib.suppress(OSError):  # a read-only volume: the file is read again next time
        memory.mkdir(parents=True, exist_ok=True)
        aside = note.with_name(f"{note.name}.{uuid.uuid4().hex}.part")
        aside.write_text(digest)
        os.replace(aside, note)
    return digest
