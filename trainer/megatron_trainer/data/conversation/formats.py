"""Recognizes the format of a row from its columns and returns its conversation. Reads no files, renders nothing.

Formats: messages/conversations | instruction+input+output (alpaca) | query/response/history | text; each with optional
system, tools, channel, and a rejected answer. The tables in columns.py map columns to their meaning.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from megatron_trainer.data.conversation.columns import (
    CONTEXT,
    LABELS,
    LATE_QUERY,
    LATE_RESPONSE,
    MESSAGES,
    QUERY,
    REJECTED,
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
    parse_json,
    parse_messages,
    parse_tools,
    text_of,
    with_thought,
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
    columns = Columns(named(row, settings.columns))
    refuse_media(columns)
    if settings.label is not None:
        return _scored(columns, settings, settings.label)
    if settings.grouping is not None:
        return _group(columns, settings, settings.grouping, number)
    messages = _messages(columns, settings.seed + number, of_pairs=settings.needs_rejected or settings.needs_label)
    rejected = _rejected(columns, messages) if settings.needs_rejected else None
    target: tuple[float, ...] = ()
    if settings.needs_label:
        messages, target = _labeled(columns, messages)
    if settings.needs_margin:
        target = (_margin(columns),)
    if settings.needs_question and not _asks(messages):
        raise RowError("the row has no question", f"its columns are {', '.join(columns)}")
    placeholders = _placeholders(columns, settings)
    tools = _pick(columns, TOOLS, "tools")
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


def _scored(columns: Columns, settings: Recognition, label: Label) -> Conversation:
    """The input of a head: a conversation, or one text, with its label. It may end with any turn."""
    messages = _scored_messages(columns)
    value = _pick(columns, LABELS, "label")
    if value is None:
        raise RowError("no label", f"the row has {', '.join(columns)}; name its column with columns: {{x: label}}")
    tools, channel = _pick(columns, TOOLS, "tools"), columns.get("channel")
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
    system = text_of(_pick(row, SYSTEM, "system"), "system")
    listed = _pick(row, MESSAGES, "messages")
    has_answer = any(name in row for name in RESPONSE) and any(name in row for name in (*QUERY, *LATE_QUERY))
    if listed is not None:
        messages = parse_messages(listed)
    elif has_answer:
        messages = _query_and_response(row, 0)
    else:
        names = (*QUERY, *LATE_QUERY, *RESPONSE, *LATE_RESPONSE)
        text = next((row[name] for name in names if name in row), None)
        if text is None:
            raise RowError("no known columns", f"the row has {', '.join(map(str, list(row)[:8])) or 'none'}")
        text = _query(row) if any(name in row for name in QUERY) else text
        messages = _as_turns(text) or (Message(role="user", content=_single(text)),)
    if not any(message.content.strip() for message in messages):
        raise RowError("empty text")
    return under_system(row, system, messages)


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


def _messages(row: Columns, choice: int, *, of_pairs: bool) -> tuple[Message, ...]:
    system = text_of(_pick(row, SYSTEM, "system"), "system")
    listed = _pick(row, MESSAGES, "messages")
    if of_pairs and listed is not None and all(isinstance(row.get(name), list) for name in ("chosen", "rejected")):
        if listed != row["chosen"]:
            row.tell("the turns of chosen and rejected are used, not those of messages")
        listed = None
    if listed is not None:
        messages = parse_messages(listed)
    elif isinstance(row.get("chosen"), list):
        messages = _with_prompt(row, "chosen")
    else:
        messages = _query_and_response(row, choice)
    messages = under_system(row, system, messages)
    if any(_is_empty(message) and message.loss is None for message in messages):
        row.tell("an answer before the last one is empty, and trained so (loss: false leaves it out)")
    return _checked(messages)


def _is_empty(message: Message) -> bool:
    nothing = not (message.content.strip() or message.calls or message.thought.strip())
    return message.role == "assistant" and nothing


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise RowError(
            "the last turn is not the assistant's", f"it has role {messages[-1].role}, and so have all others"
        )
    if _is_empty(answers[-1]):
        raise RowError("empty response")
    return messages


def _query_and_response(row: Columns, choice: int) -> tuple[Message, ...]:
    query, response = _query(row), _response(row, choice)
    thoughts = [text_of(row[key], key) for key in THOUGHT_KEYS if key in row]
    answers = _as_turns(response) or (Message(role="assistant", content=text_of(response, "response")),)
    messages: list[Message] = []
    for question, answer in _history(row.get("history")):
        messages += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    asked = _as_turns(query)
    if asked:
        messages += _as_prompt(asked)
    elif query:
        messages.append(Message(role="user", content=_single(query)))
    if thoughts and answers[-1].thought:
        row.tell("the thought inside the answer is used, not the one in the column")
    return (*messages, *answers[:-1], with_thought(answers[-1], "\n\n".join(thoughts)))


def _as_prompt(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns of a prompt: answers in it are not trained unless they say otherwise (as in TRL)."""
    return tuple(
        replace(turn, loss=False) if turn.role == "assistant" and turn.loss is None else turn for turn in turns
    )


def _as_turns(value: object) -> tuple[Message, ...]:
    """The turns in a column, empty if it holds a text."""
    is_list = (
        isinstance(value, list) and value and all(isinstance(turn, Mapping) and "type" not in turn for turn in value)
    )
    return parse_messages(value) if is_list else ()


def _single(value: object) -> str:
    """A question; a list of several texts is not one.

    Raises RowError for such a list.
    """
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        if len(value) != 1:
            raise RowError("a column holds a list", f"the question is {len(value)} texts; use one in each row")
        return str(value[0])
    return text_of(value, "query")


def _query(row: Row) -> object:
    """The question: its column and its context."""
    question = _pick(row, QUERY, "query")
    if question is None:
        return next((row[name] for name in LATE_QUERY if name in row), None)
    if _as_turns(question) or not any(name in row for name in CONTEXT):
        return question
    beside = [row[name] for name in CONTEXT if name in row]
    return "\n".join(text for text in map(_single, [question, *beside]) if text)


def _response(row: Columns, choice: int) -> object:
    response = row["chosen"] if "chosen" in row else _pick(row, RESPONSE, "response")
    if response is None:
        response = next((row[name] for name in LATE_RESPONSE if name in row), None)
    if response is None:
        raise RowError("no known columns", f"the row has {', '.join(map(str, list(row)[:8])) or 'none'}")
    if isinstance(response, list) and response and all(isinstance(option, str) for option in response):
        if len(set(response)) > 1:
            row.tell("one of several answers is trained")
        return response[zlib.crc32(choice.to_bytes(8, "little", signed=True)) % len(response)]
    return response


def _history(value: object) -> list[tuple[str, str]]:
    if not value:
        return []
    rounds = parse_json(value, "history")
    if not isinstance(rounds, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in rounds):
        raise RowError("history is not a list of [query, response] pairs")
    if any(part is None for pair in rounds for part in pair):
        raise RowError("history has an empty round")
    return [(text_of(pair[0], "history"), text_of(pair[1], "history")) for pair in rounds]


def _pick(row: Row, names: Sequence[str], key: str) -> object:
    """The value of the column for `key`. The key's own name takes precedence over its aliases."""
    if key in row:
        return row[key]
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise RowError(f"several columns could be the {key}", f"{', '.join(found)}; name one with columns")
    return row[found[0]] if found else None


def _rejected(row: Columns, chosen: tuple[Message, ...]) -> tuple[Message, ...]:
    name = next((name for name in REJECTED if name in row), None)
    if name is None:
        raise RowError("no rejected answer", "preference training needs rejected_response or rejected_messages")
    if name == "rejected_messages":
        rejected = parse_messages(row[name])
    elif isinstance(row[name], list):
        rejected = _with_prompt(row, name)
    else:
        rejected = (Message(role="assistant", content=text_of(row[name], name)),)
    if not any(message.role == "user" and message.content.strip() for message in rejected):
        rejected = _after_question(chosen, tuple(message for message in rejected if message.role != "system"))
    if chosen[0].role == "system" and rejected[0].role != "system":
        rejected = (chosen[0], *rejected)
    if rejected == chosen and not row.get("rejected_images"):  # equal words about two images differ
        raise RowError("the rejected answer equals the chosen one")
    if [m.content for m in chosen if m.role == "user"] != [m.content for m in rejected if m.role == "user"]:
        row.tell("chosen and rejected answer different questions")
    return _checked(rejected)


def _labeled(row: Columns, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[float, ...]]:
    """The conversation that the label refers to, and the label as a target: 1 for a desirable answer, else 0."""
    label = row.get("label")
    if label is None:
        raise RowError("no label", "kto needs label: true or false, or a rejected answer next to the chosen one")
    if isinstance(label, str):  # of a table
        label = {"true": True, "1": True, "false": False, "0": False}.get(label.strip().lower(), label)
    if label not in (True, False):
        raise RowError("the label is neither true nor false", repr(label))
    if is_paired(row):
        rejected = _rejected(row, messages)
        messages = messages if label else rejected
    return messages, (float(bool(label)),)


def _margin(row: Row) -> float:
    margin = row.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise RowError("the margin is not a number", repr(margin))
    return float(margin)


def is_paired(row: Row) -> bool:
    """Whether the row has a rejected answer as well."""
    return any(row.get(name) is not None for name in REJECTED)


def _after_question(chosen: tuple[Message, ...], answer: tuple[Message, ...]) -> tuple[Message, ...]:
    """Rejected turns after all chosen ones up to the last that is not the assistant's; with tools of their own, up to
    the last question.
    """
    has_question = any(message.role == "user" for message in chosen)
    if has_question and answer[:1] and answer[0].role == "tool":
        raise RowError("the rejected turns begin with a tool result", "add the turns before it, or a prompt")
    has_tools = any(message.role == "tool" for message in answer)
    ends = [m.role == "user" if has_tools else m.role != "assistant" for m in chosen]
    return (*chosen[: max((place for place, is_end in enumerate(ends) if is_end), default=-1) + 1], *answer)


def _with_prompt(row: Columns, name: str) -> tuple[Message, ...]:
    """Preference rows of {prompt, chosen, rejected} with answers, and possibly the prompt, as turns."""
    answer = parse_messages(row[name])
    prompt = row["prompt"] if "prompt" in row else _query(row) if any(name in row for name in QUERY) else None
    if prompt in (None, "", []):
        return answer
    asked = _as_turns(prompt) or (Message(role="user", content=_single(prompt)),)
    if answer[0].role not in ("system", "user"):
        return (*_as_prompt(asked), *answer)
    said = [turn.content.strip() for turn in answer]
    if any(turn.content.strip() not in said for turn in asked):
        row.tell("the prompt inside the answers is used, not the one in the column")
    return answer


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
