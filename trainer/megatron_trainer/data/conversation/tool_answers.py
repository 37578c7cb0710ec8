"""Tools, calls and results as text inside the answer: agent_template react_*, toolbench and qwen_*.

The model writes a call and the marker of its result, generation stops there, and whoever runs the tool appends the
result to the same answer, which the model then continues. So an answer with its results is one turn, of which the
results are not trained. Markers: ReAct (arXiv 2210.03629), ToolBench (arXiv 2307.16789), Qwen2's function calls
(Qwen-Agent). The sentences that explain them to the model are this project's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from megatron_trainer.data.conversation.form import SEPARATOR
from megatron_trainer.data.conversation.tool_instructions import INSTRUCTIONS
from megatron_trainer.data.values import Arguments, Conversation, Message, RowError


@dataclass(frozen=True, kw_only=True)
class Markers:
    """What stands before the name of a tool, its arguments and its result."""

    name: str = "Action:"
    arguments: str = "Action Input:"
    result: str = "Observation:"


_REACT = Markers()
_QWEN = Markers(name="✿FUNCTION✿:", arguments="✿ARGS✿:", result="✿RESULT✿:")

MARKERS: Mapping[str, Markers] = {
    **dict.fromkeys(("react_en", "react_zh", "toolbench"), _REACT),
    **dict.fromkeys(("qwen_en", "qwen_zh", "qwen_en_parallel", "qwen_zh_parallel"), _QWEN),
}
"""Values of agent_template that write calls and results into the answer."""


def with_tools_in_answers(conversation: Conversation, agent_template: str) -> Conversation:
    """The conversation with its tools in the system prompt, and its calls and results in the answers.

    RowError where a result follows no answer, or where parts of one answer have different losses or own thoughts.
    """
    markers = MARKERS[agent_template]
    rejected = conversation.rejected
    prompt = _prompt(conversation.tools or (), agent_template)
    return replace(
        conversation,
        messages=_as_answers(_with_system(conversation.messages, prompt), markers),
        rejected=None if rejected is None else _as_answers(_with_system(rejected, prompt), markers),
        tools=None,
    )


def _prompt(tools: Sequence[Mapping[str, object]], agent_template: str) -> str:
    if not tools:
        return ""
    functions = [tool["function"] if isinstance(tool.get("function"), Mapping) else tool for tool in tools]
    return INSTRUCTIONS[agent_template].format(
        tools=SEPARATOR.join(json.dumps(function, ensure_ascii=False) for function in functions),
        names=", ".join(str(function.get("name")) for function in functions if isinstance(function, Mapping)),
    )


def _with_system(messages: Sequence[Message], prompt: str) -> Sequence[Message]:
    if not prompt:
        return messages
    if messages[0].role == "system":
        text = SEPARATOR.join(part for part in (messages[0].content, prompt) if part)
        return (replace(messages[0], content=text), *messages[1:])
    return (Message(role="system", content=prompt), *messages)


def _as_answers(messages: Sequence[Message], markers: Markers) -> tuple[Message, ...]:
    """Each answer joined with the results that follow it and the answers that follow those."""
    groups: list[list[Message]] = []
    for message in messages:
        continues = message.role == "assistant" and groups and groups[-1][-1].role == "tool"
        if groups and (continues or message.role == "tool"):
            groups[-1].append(message)
        else:
            groups.append([message])
    return tuple(_joined(group, markers) for group in groups)


def _joined(group: Sequence[Message], markers: Markers) -> Message:
    if group[0].role != "assistant":
        if len(group) > 1 or group[0].role == "tool":
            raise RowError("a tool's result follows no answer")
        return group[0]
    if any(message.thought for message in group[1:]):
        raise RowError("agent_template does not support a thought after a tool's result")
    pieces = list(_pieces(group, markers))
    places = [0, *accumulate(len(text) for text, _ in pieces)]
    given = [
        edges for edges, (_, trains) in zip(zip(places, places[1:], strict=False), pieces, strict=True) if not trains
    ]
    answers = [message for message in group if message.role == "assistant"]
    return replace(
        group[0],
        content="".join(text for text, _ in pieces),
        loss=_common_loss(answers),
        extra={name: value for name, value in group[0].extra.items() if name != "tool_calls"},
        given=() if all(not _trains(message) for message in answers) else tuple(given),
    )


def _pieces(group: Sequence[Message], markers: Markers) -> Iterator[tuple[str, bool]]:
    """The parts of an answer in order, and whether each is trained."""
    for place, message in enumerate(group):
        has_result = place + 1 < len(group) and group[place + 1].role == "tool"
        if message.role == "tool":
            ends = "" if message.content.endswith("\n") or place + 1 == len(group) else "\n"
            yield f"{message.content}{ends}{markers.result if has_result else ''}", False
        else:
            text = _written(message, markers)
            asks = (has_result or message.calls) and not text.endswith(markers.result)
            yield (f"{_line(text)}{markers.result}" if asks else text), _trains(message)


def _written(message: Message, markers: Markers) -> str:
    """The answer's text and its calls, a line each for the tool's name and its arguments."""
    lines = [f"{markers.name} {_name(call)}\n{markers.arguments} {_arguments(call)}" for call in message.calls]
    return _line(message.content) + "\n".join(lines) if lines else message.content


def _line(text: str) -> str:
    """The text with a line's end, unless it is empty or has one."""
    return text if not text or text.endswith("\n") else f"{text}\n"


def _name(call: Mapping[str, Mapping[str, object]]) -> object:
    return call["function"]["name"]


def _arguments(call: Mapping[str, Mapping[str, object]]) -> str:
    arguments = call["function"]["arguments"]
    return arguments.text if isinstance(arguments, Arguments) else json.dumps(arguments, ensure_ascii=False)


def _trains(message: Message) -> bool:
    return message.loss is None or message.loss > 0


def _common_loss(answers: Sequence[Message]) -> bool | float | None:
    losses = {message.loss for message in answers if _trains(message)}
    if len(losses) > 1:
        raise RowError("parts of one answer with tools have different losses")
    return losses.pop() if losses else False
