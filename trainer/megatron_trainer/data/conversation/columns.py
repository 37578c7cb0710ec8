"""Maps the columns of a row to their meaning, by any of their names in any case, and reports unread columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from megatron_trainer.data.conversation.messages import THOUGHT_KEYS, is_missing
from megatron_trainer.data.conversation.unread import unread_keys
from megatron_trainer.data.values import Message, RowError

MESSAGES = ("messages", "conversations", "conversation")
QUERY = ("query", "prompt", "instruction", "question", "problem")
CONTEXT = ("input", "context")
"""With a question, they are its second half; alone, `input` is the question."""
LATE_QUERY = ("input", "source")
RESPONSE = (
    "response",
    "answer",
    "output",
    "targets",
    "target",
    "answer_key",
    "answers",
    "solution",
    "completion",
)
LATE_RESPONSE = ("text", "content")
"""Used only if no other column is the question or the answer: they often mean something else."""
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
REJECTED = ("rejected_messages", "rejected_response", "rejected")
"""In order of precedence."""
_OTHER = ("history", "channel", "chosen", "margin", "tag", "rejected_images", "objects", *REJECTED)
LABELS = ("label", "labels")
JUDGMENT = (*LABELS, "kto_tag")
"""Whether an answer is desirable; the last is LLaMA-Factory's name."""
ANCHOR = ("anchor", "sentence1")
POSITIVE = (
    "positive_messages",
    "positive",
    "positives",
    "pos",
    "sentence2",
    "document",
    "passage",
    "response",
    "answer",
)
NEGATIVE = ("negative_messages", "negative", "negatives", "neg", "rejected_response", "rejected")
"""Columns of rows with several texts; the first one present is used for each."""
NUMBERED_NEGATIVE = re.compile(r"neg(?:ative)?_?([0-9]+)", re.IGNORECASE)
"""Columns with one negative each, beside any of NEGATIVE: sentence-transformers writes mined negatives so."""
MEDIA = (
    *("positive_images", "negative_images", "positive_videos", "negative_videos"),
    *("positive_audios", "negative_audios"),
    *("images", "image", "videos", "video", "audios", "audio"),
)
KNOWN = frozenset(
    {
        *(*MESSAGES, *QUERY, *CONTEXT, *LATE_QUERY, *RESPONSE, *LATE_RESPONSE),
        *(*SYSTEM, *TOOLS, *THOUGHT_KEYS, *_OTHER, *MEDIA, *JUDGMENT),
        *(*ANCHOR, *POSITIVE, *NEGATIVE),
    }
)
"""Column names that mean something, in lower case; they are matched in any case."""
PARTS_OF_A_TASK = frozenset(
    {
        *("article", "background", "document", "documents", "evidence", "facts", "knowledge", "paragraph", "passage"),
        *("passages", "premise", "reference", "references", "retrieved", "sentence", "story", "table", "persona"),
        *("chain_of_thought", "cot", "explanation", "rationale", "hint", "hints", "demonstrations", "example"),
        *("examples", "few_shot", "choices", "options", "task", "mask", "train", "instruction"),
    }
)
"""Columns that are not read but look like part of the context of the answer."""
NAMES_OF_MEDIA: Mapping[str, str] = {
    **dict.fromkeys(("image_path", "image_paths", "image_url", "image_urls", "image_file", "image_files"), "images"),
    **dict.fromkeys(("img", "imgs", "img_path", "picture", "pictures", "photo", "photos", "pil_image"), "images"),
    **dict.fromkeys(("video_path", "video_paths", "video_url", "video_urls", "video_file", "video_files"), "videos"),
}
"""Columns that are not read but look like images or videos -> the column that they would be."""
_KEPT_QUIET = frozenset({"id", "idx", "index", "uuid", "_id"})

Row = Mapping[str, object]


class Columns(Mapping[str, object]):
    """The fields of a row; records which of them were read, and notes about the others."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields
        self._read: set[str] = set()
        self._notes: list[str] = []

    def __getitem__(self, name: str) -> object:
        value = self._fields[name]
        self._read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def tell(self, note: str) -> None:
        """Record a note for the user, with the same text for all rows of its kind."""
        self._notes.append(note)

    @property
    def notes(self) -> tuple[str, ...]:
        """The recorded notes."""
        return tuple(self._notes)

    def turns(self) -> Iterator[object]:
        """The values of columns that were read and may hold turns."""
        for name in sorted(self._read.difference(TOOLS, ("history",))):
            value = self._fields[name]
            if isinstance(value, list) or name in MESSAGES:
                yield value

    def unread(self) -> list[str]:
        """The non-empty columns that were not read."""
        return [name for name, value in self._fields.items() if name not in self._read and value not in ("", [], {})]


def refuse_media(row: Row) -> None:
    """Raises RowError for a row with images, videos or audio."""
    media = [name for name in MEDIA if row.get(name)]
    if media and all("audio" in name for name in media):
        raise RowError("sound is not read", f"the row has {', '.join(media)}")
    if media:
        raise RowError("only text can be trained on", f"the row has {', '.join(media)}")


def notes(columns: Columns) -> list[str]:
    """Notes about unread parts of a row."""
    found = list(columns.notes)
    for name in columns.unread():
        if name.lower() in _KEPT_QUIET:
            continue
        found.append(f"nothing reads the column {name}{_what_it_looks_like(name)}")
    for turns in columns.turns():
        found += [f"nothing reads the message key {key}" for key in unread_keys(turns)]
    return list(dict.fromkeys(found))


def _what_it_looks_like(name: str) -> str:
    """The end of the note about an unread column, with what to do about it."""
    if name.lower() in PARTS_OF_A_TASK:
        return ", which looks like part of the task; name it with columns"
    meant = NAMES_OF_MEDIA.get(name.lower())
    return f", which looks like {meant}; columns: {{{name}: {meant}}} has it read" if meant else ""


def under_system(columns: Columns, system: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns, preceded by the system prompt of its own column; a system turn overrides it, with a note."""
    if not system:
        return turns
    if turns[0].role != "system":
        return (Message(role="system", content=system), *turns)
    if turns[0].content.strip() != system.strip():
        columns.tell("the system prompt among the messages is used, not the one in the column")
    return turns


def named(row: Row, columns: Mapping[str, str]) -> Row:
    """The row's fields under their canonical names: renamed by `columns`, known names in lower case. Missing values
    are left out.

    Raises RowError when two columns get the same name.
    """
    renaming = {name.lower(): target for name, target in columns.items()}
    named: dict[str, object] = {}
    origin: dict[str, str] = {}
    for name, value in row.items():
        if is_missing(value) or not isinstance(name, str):
            continue
        target = columns.get(name) or renaming.get(name.lower(), name)
        target = target.lower() if target.lower() in KNOWN else target
        if target in named and named[target] != value:
            raise RowError(f"two columns mean {target}", f"{origin[target]} and {name}; name one with columns")
        named[target], origin[target] = value, name
    return named
