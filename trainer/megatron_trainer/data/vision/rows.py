"""Finds the images and videos of a row: in columns of their own, and among the parts of its messages.

Each one among the parts of a message is replaced by a mark in the text, so that the rest of the row is read as text.
A mark is written with noncharacters of Unicode, which no text may contain; templates treat it like a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from megatron_trainer.data.conversation.columns import MESSAGES, Row, named
from megatron_trainer.data.conversation.messages import CONTENT_KEYS, parse_json
from megatron_trainer.data.values import RowError
from megatron_trainer.data.vision.frames import RATES

IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
MARK = re.compile("\ufdd0([0-9]*)([iv])\ufdd1")
"""The place of an image or a video: by its number among the row's media, or (no number) the next one of a column."""
NONCHARACTERS = re.compile("[\ufdd0\ufdd1]")
_IMAGES, _VIDEOS, _REJECTED = ("images", "image"), ("videos", "video"), ("rejected_images",)
_IMAGE_PARTS = ("image", "image_url", "input_image")
_VIDEO_PARTS = ("video", "video_url", "input_video")
_KEYS = ("image_url", "image", "video_url", "video", "source", "url", "path", "bytes", "base64", "data", "frames")
_SETTINGS = (
    *("max_pixels", "min_pixels", "resized_height", "resized_width", "total_pixels", "nframes"),
    *("max_frames", "min_frames", "video_start", "video_end"),
)
"""Keys of an image or a video for which other programs have a meaning."""
_WITH_PARTS = frozenset({*MESSAGES, "prompt", "completion", "chosen", "query"})
_REJECTED_PARTS = frozenset({"rejected", "rejected_messages"})


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image or a video as the row has it: a path, URL, object or bytes; of a video, its frames or their folder."""

    value: object
    is_video: bool = False


@dataclass(frozen=True, kw_only=True)
class Media:
    """What a row has besides text. A mark of n is all[n].

    images, videos: numbers of those in columns, which <image> and <video> name in order. rejected: of rejected_images,
    None where the rejected answer has the same. objects: its boxes, see boxes.py. notes: settings of single images and
    videos that are not read.
    """

    all: tuple[Found, ...] = ()
    images: tuple[int, ...] = ()
    videos: tuple[int, ...] = ()
    rejected: tuple[int, ...] | None = None
    objects: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def mark(number: int | None, *, is_video: bool) -> str:
    """The text at the place of an image or a video. number: in Media.all, None for the next one of a column."""
    return f"\ufdd0{'' if number is None else number}{'v' if is_video else 'i'}\ufdd1"


def lifted(row: Row, columns: Mapping[str, str], *, has_rejected: bool) -> tuple[Row, Media | None]:
    """The row as text with marks, and its media; None, and the row itself, for one that has only text.

    columns: the user's names of columns. has_rejected: the images of a rejected answer are read as well. Raises
    RowError for a column that holds no images.
    """
    names = {next(iter(named({name: value}, columns)), ""): name for name, value in row.items()}
    found: list[Found] = []
    images = _of_columns(row, names, _IMAGES, found, is_video=False)
    videos = _of_columns(row, names, _VIDEOS, found, is_video=True)
    rejected = _of_columns(row, names, _REJECTED, found, is_video=False) if has_rejected else None
    read = _WITH_PARTS | _REJECTED_PARTS if has_rejected else _WITH_PARTS
    texts = {name: _without_parts(row[name], found) for known, name in names.items() if known in read}
    has_marks = any(value is not row[name] for name, value in texts.items())
    if not found and not has_marks:
        return row, None
    taken = {names[name] for name in (*_IMAGES, *_VIDEOS, "objects") if name in names}
    rest = {name: texts.get(name, value) for name, value in row.items() if name not in taken}
    rest |= {} if rejected is None else {names[name]: True for name in _REJECTED}
    media = Media(
        all=tuple(found),
        images=images or (),
        videos=videos or (),
        rejected=rejected,
        objects=_objects(row.get(names.get("objects", ""))),
        notes=tuple(dict.fromkeys(note for each in found for note in _unread(each))),
    )
    return rest, media


def _unread(found: Found) -> Iterator[str]:
    """The settings that a row gives to one image or video, and that change it in other programs."""
    what = "video" if found.is_video else "image"
    for key, value in found.value.items() if isinstance(found.value, Mapping) else ():
        if value is not None and (key in _SETTINGS or (key in RATES and not found.is_video)):
            yield f"nothing reads {key} of a single {what}; model_kwargs holds such settings for all"


def _of_columns(
    row: Row, names: Mapping[str, str], wanted: Sequence[str], found: list[Found], *, is_video: bool
) -> tuple[int, ...] | None:
    """Numbers of the media in the first of these columns that has any; None without one."""
    given = [names[name] for name in wanted if name in names and row[names[name]] not in ("", [], {})]
    if not given:
        return None
    values, *others = [_listed(row[name], name) for name in given]
    if any(other != values for other in others):
        raise RowError("two columns hold images", ", ".join(given))
    found += [Found(value=value, is_video=is_video) for value in values]
    return tuple(range(len(found) - len(values), len(found)))


def _listed(value: object, name: str) -> list[object]:
    """The media of a column; a text may be JSON, or a path that begins like it."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(RowError):
            value = parse_json(value, name)
    return list(value) if isinstance(value, list | tuple) else [value]


def _objects(value: object) -> Mapping[str, object]:
    if value in (None, "", [], {}):
        return {}
    value = parse_json(value, "objects")
    if not isinstance(value, Mapping):
        raise RowError("objects is not an object", f"it is of type {type(value).__name__}")
    return value


def _without_parts(value: object, found: list[Found]) -> object:
    """A column with marks instead of images; the same object if it has none."""
    if isinstance(value, str) and any(f'"{kind}"' in value for kind in (*_IMAGE_PARTS, *_VIDEO_PARTS)):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if not isinstance(value, list):
        return value
    if any(_kind(part) for part in value):
        return _marked(value, found)
    turns = [_turn(entry, found) for entry in value]
    changed = any(new is not old for new, old in zip(turns, value, strict=True))
    return turns if changed else value


def _turn(turn: object, found: list[Found]) -> object:
    if not isinstance(turn, Mapping):
        return turn
    changed = {key: _marked(turn[key], found) for key in CONTENT_KEYS if _has_parts(turn.get(key))}
    return {**turn, **changed} if changed else turn


def _has_parts(content: object) -> bool:
    return isinstance(content, list) and any(_kind(part) for part in content)


def _marked(parts: object, found: list[Found]) -> list[object]:
    assert isinstance(parts, list)
    return list(_parts(parts, found))


def _parts(parts: list[object], found: list[Found]) -> Iterator[object]:
    for part in parts:
        kind = _kind(part)
        if not kind:
            yield part
            continue
        assert isinstance(part, Mapping)
        is_video = kind in _VIDEO_PARTS
        source = next((key for key in _KEYS if part.get(key) not in (None, "", b"", [], {})), None)
        settings = {key: part[key] for key in (*RATES, *_SETTINGS) if key in part}
        value = None if source is None else {"source": part[source], **settings} if settings else part[source]
        if value is not None:
            found.append(Found(value=value, is_video=is_video))
        yield {"type": "text", "text": mark(None if value is None else len(found) - 1, is_video=is_video)}


def _kind(part: object) -> str:
    """The type of a part that is an image or a video, "" of any other. One without a type has the name of its key, as
    in the templates of Qwen.
    """
    if not isinstance(part, Mapping):
        return ""
    kind, kinds = part.get("type"), (*_IMAGE_PARTS, *_VIDEO_PARTS)
    if kind is None:
        return next((key for key in kinds if part.get(key) not in (None, "", b"", [], {})), "")
    return kind if isinstance(kind, str) and kind in kinds else ""
