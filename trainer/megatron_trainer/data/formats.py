"""Which format a row has, told from its columns, and the conversation it holds. Reads no files, renders nothing.

Formats: messages/conversations | instruction+input+output (alpaca) | query/response/history | text; each with
optional system, tools, channel, and a rejected answer for preference training.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from megatron_trainer.data.messages import parse_json, parse_messages, text_of
from megatron_trainer.data.values import Conversation, Message, RowError

MESSAGES = ("messages", "conversations", "conversation")
QUERY = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSE = (
    "response",
    "answer",
    "output",
    "targets",
    "target",
    "answer_key",
    "answers",
    "solution",
    "text",
    "completion",
    "content",
)
SYSTEM = ("system", "system_prompt")
_OTHER = ("history", "tools", "channel", "chosen", "rejected", "rejected_response", "rejected_messages", "tag")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
KNOWN = frozenset({*MESSAGES, *QUERY, *RESPONSE, *SYSTEM, *_OTHER, *_MEDIA})
"""Column names that mean something, in lower case; they are matched in any case."""

Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What the user says about the columns, and whether rows must hold a rejected answer.

    model_name, model_author: what {{NAME}} and {{AUTHOR}} stand for, in Chinese and in English; None leaves them.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    needs_rejected: bool = False
    seed: int = 42
    model_name: tuple[str, str] | None = None
    model_author: tuple[str, str] | None = None


def recognise(row: Row, settings: Recognition, *, number: int = 0) -> Conversation:
    """The conversation that a row holds.

    number: place of the row in its file; with the seed it picks one of several responses, the same in each run.

    Raises RowError with the reason when the row is in no known format or damaged.
    """
    row = _named(row, settings.columns)
    _refuse_media(row)
    messages = _messages(row, settings.seed + number)
    rejected = _rejected(row, messages) if settings.needs_rejected else None
    tools = row.get("tools")
    channel = row.get("channel")
    placeholders = _placeholders(row, settings)
    return Conversation(
        messages=_filled(messages, placeholders),
        tools=_tools(tools) if tools else None,
        channel=None if channel is None else text_of(channel, "channel"),
        rejected=None if rejected is None else _filled(rejected, placeholders),
    )


def _named(row: Row, columns: Mapping[str, str]) -> Row:
    """The row's fields under their canonical names: renamed by `columns`, known names in lower case, nulls left out.

    Raises RowError when two columns get the same name.
    """
    renaming = {name.lower(): target for name, target in columns.items()}
    named: dict[str, object] = {}
    origin: dict[str, str] = {}
    for name, value in row.items():
        if value is None or not isinstance(name, str):
            continue
        target = columns.get(name) or renaming.get(name.lower(), name)
        target = target.lower() if target.lower() in KNOWN else target
        if target in named and named[target] != value:
            raise RowError(f"two columns mean {target}", f"{origin[target]} and {name}; name one with columns")
        named[target], origin[target] = value, name
    return named


def _placeholders(row: Row, settings: Recognition) -> dict[str, str]:
    """Self-cognition data says in its column `tag` which language a row is in; without it, Chinese signs tell."""
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


def _messages(row: Row, choice: int) -> tuple[Message, ...]:
    system = text_of(_pick(row, SYSTEM, "system"), "system")
    listed = _pick(row, MESSAGES, "messages")
    if listed is not None:
        messages = parse_messages(listed)
    elif isinstance(row.get("chosen"), list):
        messages = _with_prompt(row, "chosen")
    else:
        messages = _query_and_response(row, choice)
    if system and messages[0].role != "system":
        messages = (Message(role="system", content=system), *messages)
    return _checked(messages)


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[-1].role != "assistant":
        raise RowError("the last turn is not the assistant's", f"it is the {messages[-1].role}'s")
    if any(message.role == "system" for message in messages[1:]):
        raise RowError("a system message is not the first message")
    last = messages[-1]
    if not last.content.strip() and not last.extra:
        raise RowError("empty response")
    return messages


def _query_and_response(row: Row, choice: int) -> tuple[Message, ...]:
    query, response = _query(row), _response(row, choice)
    messages = []
    for question, answer in _history(row.get("history")):
        messages += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    if query:
        messages.append(Message(role="user", content=query))
    return (*messages, Message(role="assistant", content=response))


def _query(row: Row) -> str:
    if "query" not in row and "instruction" in row and "input" in row:
        parts = (text_of(row[name], name) for name in ("instruction", "input"))
        return "\n".join(part for part in parts if part)
    return text_of(_pick(row, QUERY, "query"), "query")


def _response(row: Row, choice: int) -> str:
    response = row["chosen"] if "chosen" in row else _pick(row, RESPONSE, "response")
    if response is None:
        raise RowError("no known columns", f"the row has {', '.join(map(str, list(row)[:8])) or 'none'}")
    if isinstance(response, list) and response and all(isinstance(option, str) for option in response):
        response = response[zlib.crc32(choice.to_bytes(8, "little", signed=True)) % len(response)]
    return text_of(response, "response")


def _history(value: object) -> list[tuple[str, str]]:
    if not value:
        return []
    rounds = parse_json(value, "history")
    if not isinstance(rounds, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in rounds):
        raise RowError("history is not a list of [query, response] pairs")
    return [(text_of(pair[0], "history"), text_of(pair[1], "history")) for pair in rounds]


def _pick(row: Row, names: Sequence[str], key: str) -> object:
    """The value of the one column that means `key`. The key's own name wins over its other names."""
    if key in row:
        return row[key]
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise RowError(f"several columns could be the {key}", f"{', '.join(found)}; name one with columns")
    return row[found[0]] if found else None


def _rejected(row: Row, chosen: tuple[Message, ...]) -> tuple[Message, ...]:
    if row.get("rejected_messages") is not None:
        rejected = parse_messages(row["rejected_messages"])
    elif isinstance(row.get("rejected"), list):
        rejected = _with_prompt(row, "rejected")
    else:
        answer = row.get("rejected_response", row.get("rejected"))
        if answer is None:
            raise RowError("no rejected answer", "preference training needs rejected_response or rejected_messages")
        rejected = (
            *_prompt_of(chosen),
            Message(role="assistant", content=text_of(answer, "rejected_response")),
        )
    if chosen[0].role == "system" and rejected[0].role != "system":
        rejected = (chosen[0], *rejected)
    if rejected == chosen:
        raise RowError("the rejected answer equals the chosen one")
    return _checked(rejected)


def _prompt_of(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Everything up to the last turn that is not the assistant's."""
    last = max((place for place, message in enumerate(messages) if message.role != "assistant"), default=-1)
    return messages[: last + 1]


def _with_prompt(row: Row, name: str) -> tuple[Message, ...]:
    """Preference rows of {prompt, chosen, rejected}, where the answers are turns and the prompt may be too."""
    answer = parse_messages(row[name])
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        return (*parse_messages(prompt), *answer)
    if isinstance(prompt, str) and answer[0].role == "assistant":
        return (Message(role="user", content=prompt), *answer)
    return answer


def _tools(value: object) -> tuple[Mapping[str, object], ...]:
    tools = parse_json(value, "tools")
    if not isinstance(tools, list):
        raise RowError("tools is not a list", f"it is of type {type(tools).__name__}")
    return tuple(_tool(parse_json(tool, "tools")) for tool in tools)


def _tool(tool: object) -> Mapping[str, object]:
    if not isinstance(tool, Mapping):
        raise RowError("a tool is not an object", f"it is of type {type(tool).__name__}")
    return tool if "function" in tool else {"type": "function", "function": dict(tool)}


def _refuse_media(row: Row) -> None:
    media = [name for name in _MEDIA if row.get(name)]
    if media:
        raise RowError("only text can be trained on", f"the row has {', '.join(media)}")


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    """The conversation with this system prompt where the row itself has none."""
    if not system or conversation.messages[0].role == "system":
        return conversation
    first = Message(role="system", content=system)
    rejected = conversation.rejected
    return replace(
        conversation,
        messages=(first, *conversation.messages),
        rejected=None if rejected is None else (first, *rejected),
    )
