"""Recognizes the format of a row from its columns and returns its conversation. Reads no files, renders nothing.

Formats: messages/conversations | instruction+input+output (alpaca) | query/response/history | text; each with optional
system, tools, channel, and a rejected answer. The tables in columns.py map columns to their meaning.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from megatron_trainer.data.conversation import preference
from megatron_trainer.data.conversation.columns import (
    LABELS,
    LATE_RESPONSE,
    MESSAGES,
    QUERY,
    RESPONSE,
    SYSTEM,
    TOOLS,
    Columns,
    Row,
    named,
    notes,
    refuse_media,
    under_system,
)
from megatron_trainer.data.conversation.group import Grouping, grouped
from megatron_trainer.data.conversation.label import Label
from megatron_trainer.data.conversation.messages import (
    THOUGHT_KEYS,
    parse_messages,
    parse_tools,
    text_of,
    with_thought,
)
from megatron_trainer.data.conversation.preference import Texts
from megatron_trainer.data.conversation.turn_columns import (
    as_prompt,
    as_question,
    as_turns,
    history,
    late_query,
    pick,
    query,
    single,
    unpacked,
)
from megatron_trainer.data.values import Conversation, Message, RowError


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The user's settings of columns, and what rows must contain: a rejected answer, a label, a question.

    needs_margin: read the minimal margin of the chosen answer, 0 if none. needs_label: whether the answer is desirable;
    in a row of two answers a label that is false means the rejected one.
    label: meaning of the column `label` in scored rows, which need no answer. grouping: the purpose of rows of several
    texts, None for others. model_name, model_author: of {{NAME}} and {{AUTHOR}}, in Chinese and in English.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    needs_rejected: bool = False
    needs_label: bool = False
    needs_margin: bool = False
    needs_question: bool = False
    seed: int = 42
    model_name: tuple[str, str] | None = None
    model_author: tuple[str, str] | None = None
    label: Label | None = None
    grouping: Grouping | None = None

    @property
    def is_scored(self) -> bool:
        """Whether only the last token of each sequence is trained on."""
        return self.label is not None or self.grouping is not None


def recognize(row: Row, settings: Recognition, *, number: int = 0) -> Conversation:
    """The conversation of a row.

    number: position of the row in its file; with the seed it picks one of several responses, the same in each run.

    Raises RowError with the reason when the row is in no known format or damaged.
    """
    columns = _columns(row, settings)
    if settings.label is not None:
        return _scored(columns, settings, settings.label)
    if settings.grouping is not None:
        return _group(columns, settings, settings.grouping, number)
    choose = _chooser(columns, settings.seed + number)
    messages = _messages(columns, choose, of_pairs=settings.needs_rejected or settings.needs_label)
    rejected = preference.rejected(columns, messages, choose) if settings.needs_rejected else None
    target: tuple[float, ...] = ()
    if settings.needs_label:
        messages, target = preference.labeled(columns, messages, choose)
    if settings.needs_margin:
        target = (preference.margin(columns),)
    if settings.needs_question and not _asks(messages):
        detail = f"its columns are {', '.join(columns)}; name its column with columns: {{x: query}}, or pre-train (pt)"
        raise RowError("the row has no question", detail)
    placeholders = _placeholders(columns, settings)
    tools = pick(columns, TOOLS, "tools")
    channel = columns.get("channel")
    found = [*_cut_notes(messages), *notes(columns)]
    return Conversation(
        messages=_filled(_until_answer(messages), placeholders),
        tools=parse_tools(tools) or None if tools else None,
        channel=None if channel is None else text_of(channel, "channel"),
        rejected=None if rejected is None else _filled(_until_answer(rejected), placeholders),
        target=target,
        notes=tuple(found),
    )


def _columns(row: Row, settings: Recognition) -> Columns:
    """The columns of a row by their meaning. Raises RowError for those that nothing here reads."""
    fields = named(row, settings.columns)
    if settings.grouping is not None:  # reads texts that are turns itself
        columns = Columns(fields)
    else:
        fields, found = unpacked(fields)
        columns = Columns(fields)
        for note in found:
            columns.tell(note)
    refuse_media(columns)
    return columns


def _scored(columns: Columns, settings: Recognition, label: Label) -> Conversation:
    """The input of a head: a conversation, or one text, with its label. It may end with any turn."""
    messages = _scored_messages(columns)
    value = pick(columns, LABELS, "label")
    if value is None:
        raise RowError("no label", f"the row has {', '.join(columns)}; name its column with columns: {{x: label}}")
    tools, channel = pick(columns, TOOLS, "tools"), columns.get("channel")
    return Conversation(
        messages=_filled(messages, _placeholders(columns, settings)),
        tools=parse_tools(tools) or None if tools else None,
        channel=None if channel is None else text_of(channel, "channel"),
        notes=tuple(notes(columns)),
        target=label.read(value),
    )


def _group(columns: Columns, settings: Recognition, grouping: Grouping, number: int) -> Conversation:
    """Several texts that belong together."""
    found, placeholders = grouped(columns, grouping, number=number), _placeholders(columns, settings)
    return replace(
        found,
        messages=_filled(found.messages, placeholders),
        others=tuple(_filled(turns, placeholders) for turns in found.others),
        notes=tuple(notes(columns)),
    )


def _scored_messages(row: Columns) -> tuple[Message, ...]:
    """Messages, a question with or without its answer, or a text."""
    system = text_of(pick(row, SYSTEM, "system"), "system")
    listed = pick(row, MESSAGES, "messages")
    has_question = any(name in row for name in QUERY)
    late = None if has_question or listed is not None else late_query(row)
    has_answer = any(name in row for name in RESPONSE) and (has_question or late is not None)
    if listed is not None:
        messages = parse_messages(listed)
    elif has_answer:
        messages = _query_and_response(row, _chooser(row, 0))
    else:
        text = query(row) if has_question else late
        if text is None:
            text = next((row[name] for name in (*RESPONSE, *LATE_RESPONSE) if name in row), None)
        if text is None:
            raise _unknown(row, "text")
        messages = as_turns(text) or (Message(role="user", content=single(text)),)
    if not any(message.content.strip() for message in messages):
        raise RowError("empty text")
    return under_system(row, system, messages)


def _unknown(row: Row, meaning: str) -> RowError:
    """The reason why a row in which no column has this meaning is dropped."""
    names = ", ".join(map(str, list(row)[:8]))
    remedy = f"; name its column with columns: {{x: {meaning}}}" if names else ""
    return RowError("no known columns", f"the row has {names or 'none'}{remedy}")


def _asks(messages: Sequence[Message]) -> bool:
    return any(message.role in ("user", "tool") and message.content.strip() for message in messages)


def _cut_notes(messages: Sequence[Message]) -> list[str]:
    return [] if messages[-1].role == "assistant" else ["messages after the last answer are dropped"]


def _until_answer(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation up to its last answer."""
    last = max(place for place, message in enumerate(messages) if message.role == "assistant")
    return tuple(messages[: last + 1])


def _placeholders(row: Row, settings: Recognition) -> dict[str, str]:
    """Self-cognition data gives the language of a row in its column `tag`; without it, Chinese characters decide."""
    given = {"{{NAME}}": settings.model_name, "{{AUTHOR}}": settings.model_author}
    if not any(given.values()):
        return {}
    tag = row.get("tag")
    is_english = tag == "en" if tag in ("zh", "en") else not re.search(r"[\u4e00-\u9fff]", str(row))
    return {placeholder: names[is_english] for placeholder, names in given.items() if names is not None}


def _filled(messages: tuple[Message, ...], placeholders: Mapping[str, str]) -> tuple[Message, ...]:
    for placeholder, text in placeholders.items():
        messages = tuple(replace(m, content=m.content.replace(placeholder, text)) for m in messages)
    return messages


def _messages(row: Columns, choose: Texts, *, of_pairs: bool) -> tuple[Message, ...]:
    system = text_of(pick(row, SYSTEM, "system"), "system")
    listed = pick(row, MESSAGES, "messages")
    if of_pairs and listed is not None and row.get("chosen") not in (None, "", []):
        messages = preference.chosen_beside(row, listed, choose)
    elif listed is not None:
        messages = parse_messages(listed)
    elif as_turns(row.get("chosen")):
        messages = preference.with_prompt(row, "chosen")
    else:
        messages = _query_and_response(row, choose)
    messages = under_system(row, system, messages)
    if any(preference.is_empty(message) and message.loss is None for message in messages):
        row.tell("an answer before the last one is empty, and trained so (loss: false leaves it out)")
    return preference.checked(messages)


def _query_and_response(row: Columns, choose: Texts) -> tuple[Message, ...]:
    asked, response = query(row), _response(row, choose)
    thoughts = [text_of(row[key], key) for key in THOUGHT_KEYS if key in row]
    answers = as_turns(response) or (Message(role="assistant", content=text_of(response, "response")),)
    if thoughts and answers[-1].thought:
        row.tell("the thought inside the answer is used, not the one in the column")
    before = (*history(row.get("history")), *as_prompt(as_question(asked)))
    return (*before, *answers[:-1], with_thought(answers[-1], "\n\n".join(thoughts)))


def _response(row: Columns, choose: Texts) -> object:
    response = row["chosen"] if "chosen" in row else pick(row, RESPONSE, "response")
    if response is None:
        response = next((row[name] for name in LATE_RESPONSE if name in row), None)
    if response is None:
        raise _unknown(row, "response")
    return choose(response)


def _chooser(row: Columns, choice: int) -> Texts:
    """Picks one of several texts, the same in each run, and of as many other texts the one in the same place."""

    def choose(value: object) -> object:
        if not (isinstance(value, list) and value and all(isinstance(option, str) for option in value)):
            return value
        if len(set(value)) > 1:
            row.tell("one of several answers is trained")
        return value[zlib.crc32(choice.to_bytes(8, "little", signed=True)) % len(value)]

    return choose


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    """The conversation with this system prompt if the row has none."""
    if not system:
        return conversation
    first = Message(role="system", content=system)
    others = tuple(turns if turns[0].role == "system" else (first, *turns) for turns in conversation.others)
    conversation = replace(conversation, others=others)
    if conversation.messages[0].role == "system":
        return conversation
    rejected = conversation.rejected
    return replace(
        conversation,
        messages=(first, *conversation.messages),
        rejected=None if rejected is None else (first, *rejected),
    )
