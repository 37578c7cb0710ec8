"""Rows of several texts: an anchor with a positive and negatives, or a question with documents.

A row becomes one group of sequences. For an embedding model: anchor, positive, negatives. For a reranker: the question
with each document, positives first; the target is the number of positives.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_trainer.data.conversation.columns import (
    ANCHOR,
    LABELS,
    MESSAGES,
    NEGATIVE,
    NUMBERED_NEGATIVE,
    POSITIVE,
    QUERY,
    SYSTEM,
    Columns,
    under_system,
)
from megatron_trainer.data.conversation.messages import parse_json, parse_messages, plain_value, text_of
from megatron_trainer.data.values import Conversation, Message, RowError
from megatron_trainjob.args.head import GroupKind

JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
"""System turn and instruction as published for Qwen3-Reranker; its serving tools send the same."""
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

_TURNS = re.compile(r"""\s*\[[\[\s]*\{.*["'](role|from)["']\s*:""", re.DOTALL)
"""Begins a text that is the source of turns, whole or damaged."""
_WITHOUT_COMMAS = re.compile(r"""(?<!\\)['"]\s+['"]""")

Turns = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How rows of several texts are read.

    needs_label: a number gives the similarity of anchor and positive; is_binary: it is 0 or 1. hard_negatives: maximum
    number of negatives. max_positives, max_negatives: limits of documents in a reranker's row, sampled by seed if there
    are more. min_documents: of a positive with its negatives, 1 if each document is judged alone. answers: those of a
    generative reranker for a relevant document and for an irrelevant one.
    """

    kind: GroupKind
    needs_label: bool = False
    is_binary: bool = False
    hard_negatives: int | None = None
    max_positives: int = 1
    max_negatives: int = 7
    min_documents: int = 1
    answers: tuple[str, str] = ("yes", "no")
    seed: int = 42

    @property
    def has_target(self) -> bool:
        """Whether groups have a target: a label, or the number of positives."""
        return self.needs_label or self.kind != "embedding"


def grouped(columns: Columns, grouping: Grouping, *, number: int) -> Conversation:
    """The group in a row. Raises RowError with the reason if there is none.

    number: position of the row in its file; with the seed it samples documents, the same in each run.
    """
    if grouping.kind == "embedding":
        return _compared(columns, grouping)
    return _ranked(columns, grouping, random.Random(f"{grouping.seed}-{number}"))


def _compared(columns: Columns, grouping: Grouping) -> Conversation:
    """Anchor, positive, negatives."""
    anchor = _anchor(columns)
    positives = _texts(columns, POSITIVE, "user")
    if len(positives) != 1:
        reason = "no positive" if not positives else "several positives"
        raise RowError(reason, f"an anchor has one positive, this one {len(positives)}; use a separate row for each")
    negatives = [] if grouping.needs_label else _negatives(columns, "user")[: grouping.hard_negatives]
    if grouping.hard_negatives is not None and not negatives:
        raise RowError("no negative", "infonce_hard_negatives requires some")
    target = (_label(columns, grouping),) if grouping.needs_label else ()
    return Conversation(messages=anchor, others=(*positives, *negatives), target=target)


def _ranked(columns: Columns, grouping: Grouping, draw: random.Random) -> Conversation:
    """One sequence for each document."""
    query = _anchor(columns)
    positives, negatives = _texts(columns, POSITIVE, "assistant"), _negatives(columns, "assistant")
    if _value(columns, LABELS) is not None and not negatives:
        positives, negatives = _by_label(columns, grouping, positives)
    _tell_displaced(columns, query, [*positives, *negatives])
    positives = _drawn(positives, grouping.max_positives, draw)
    negatives = _drawn(negatives, grouping.max_negatives, draw)
    if not positives and not negatives:
        raise RowError("no document", f"the row has {', '.join(columns)}")
    if grouping.min_documents > 1 and (not positives or 1 + len(negatives) < grouping.min_documents):
        detail = (
            f"{len(positives)} positives and {len(negatives)} negatives; {grouping.min_documents} are needed together"
        )
        raise RowError("too few documents to be ranked", detail)
    make = _judged if grouping.kind == "generative_reranker" else _answered
    sequences = [make(query, document, grouping) for document in (*positives, *negatives)]
    return Conversation(messages=sequences[0], others=tuple(sequences[1:]), target=(float(len(positives)),))


def _tell_displaced(columns: Columns, query: Turns, documents: Sequence[Turns]) -> None:
    asked = _words(query, "system")
    if asked and any(_words(document, "system") not in ("", asked) for document in documents):
        columns.tell("the system prompt of a document is used, not that of the question")


def _by_label(columns: Columns, grouping: Grouping, documents: list[Turns]) -> tuple[list[Turns], list[Turns]]:
    """(positives, negatives) of a row with one document and a label."""
    if len(documents) != 1:
        raise RowError("a label for several documents", "name them positive and negative")
    label = _label(columns, grouping)
    if label not in (0.0, 1.0):
        raise RowError("the label does not fit", f"{label} is neither 0 nor 1")
    return (documents, []) if label else ([], documents)


def _answered(query: Turns, document: Turns, _: Grouping) -> Turns:
    """The document as the answer to the question."""
    system = [turn for turn in document if turn.role == "system"] or [turn for turn in query if turn.role == "system"]
    rest = [turn for turn in (*query, *document) if turn.role != "system"]
    return (*system[-1:], *rest)


def _judged(query: Turns, document: Turns, grouping: Grouping) -> Turns:
    """A question whose answer is yes or no."""
    instruction = _words(document, "system") or _words(query, "system") or INSTRUCTION
    asked = f"<Instruct>: {instruction}\n<Query>: {_words(query)}\n<Document>: {_words(document)}"
    yes, no = grouping.answers
    judge = JUDGE.replace('"yes"', f'"{yes}"').replace('"no"', f'"{no}"')
    return (Message(role="system", content=judge), Message(role="user", content=asked))


def _words(turns: Sequence[Message], role: str | None = None) -> str:
    """The text of the system turns, or of all other turns."""
    said = [turn.content for turn in turns if (turn.role == "system") == (role == "system")]
    return "\n".join(text for text in said if text)


def _anchor(columns: Columns) -> Turns:
    listed = _value(columns, MESSAGES)
    text = None if listed is not None else _value(columns, (*ANCHOR, *QUERY))
    if listed is None and text is None:
        raise RowError("no anchor", f"the row has {', '.join(columns)}; name its column with columns: {{x: anchor}}")
    turns = _spoken(parse_messages(listed)) if listed is not None else _turns(text, "user")
    return under_system(columns, text_of(_value(columns, SYSTEM), "system"), turns)


def _negatives(columns: Columns, role: str) -> list[Turns]:
    """The texts of the first column of negatives, then those of numbered ones."""
    numbered = sorted((int(found[1]), name) for name in columns if (found := NUMBERED_NEGATIVE.fullmatch(name)))
    return [
        *_texts(columns, NEGATIVE, role),
        *(each for _, name in numbered for each in _texts(columns, (name,), role)),
    ]


def _texts(columns: Columns, names: Sequence[str], role: str) -> list[Turns]:
    """The texts of the first of these columns: a text or a list of turns, or a list of either."""
    value = _unpacked(_value(columns, names))
    if value in (None, "", []):
        return []
    return [_turns(entry, role) for entry in (value if isinstance(value, list) and not _is_turns(value) else [value])]


def _unpacked(value: object) -> object:
    """The value, or the list of texts or turns that a table holds as JSON or as pandas writes it.

    Other texts in brackets ("[1] A note", "[[1, 2], [3, 4]]") stay texts.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = parse_json(value, "text")
    except RowError:
        return value
    if not isinstance(found, list) or (found and not any(isinstance(e, str) or _is_turns(e) for e in found)):
        return value
    if len(found) == 1 and isinstance(found[0], str) and _WITHOUT_COMMAS.search(value):
        raise RowError("a list of texts without commas", "numpy prints it so; write it as JSON")
    return found


def _is_turns(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _turns(value: object, role: str) -> Turns:
    """A text as a turn of this role, or turns: as a list or its JSON text."""
    if isinstance(value, list | Mapping) or (isinstance(value, str) and _TURNS.match(value)):
        return _spoken(parse_messages(value))
    return _spoken((Message(role=role, content=text_of(value, "text")),))


def _spoken(turns: Turns) -> Turns:
    if not any(turn.content.strip() for turn in turns):
        raise RowError("empty text")
    return turns


def _drawn(texts: list[Turns], count: int, draw: random.Random) -> list[Turns]:
    """A sample of this many texts, in their order."""
    if len(texts) <= count:
        return texts
    return [texts[place] for place in sorted(draw.sample(range(len(texts)), count))]


def _label(columns: Columns, grouping: Grouping) -> float:
    value = _value(columns, LABELS)
    if value is None:
        raise RowError("no label", f"the row has {', '.join(columns)}; name its column with columns: {{x: label}}")
    value = plain_value(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError("the label does not fit", f"{value!r} is not a number")
    if grouping.is_binary and value not in (0, 1):
        raise RowError("the label does not fit", f"{value!r} is neither 0 nor 1")
    return float(value)


def _value(columns: Columns, names: Sequence[str]) -> object:
    """The value of the first of these columns that the row has."""
    return next((columns[name] for name in names if name in columns), None)
