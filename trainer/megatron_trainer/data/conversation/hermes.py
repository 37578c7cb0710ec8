"""Tools, calls and results as text, for chat templates that do not support them: agent_template hermes.

The form of the Hermes models (github.com/NousResearch/Hermes-Function-Calling): the tools are in the system prompt,
calls between <tool_call> tags in the answer, results between <tool_response> tags in a question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_trainer.data.conversation.form import SEPARATOR, join
from megatron_trainer.data.values import Conversation, Message

_INSTRUCTIONS = """# Tools

You can call the functions whose signatures stand between the <tools> tags:
<tools>
{tools}
</tools>

Answer with one JSON object between <tool_call> tags for each call:
<tool_call>
{{"name": <function name>, "arguments": <object of arguments>}}
</tool_call>"""


def uses_tools(conversation: Conversation) -> bool:
    """Whether the conversation has tools, calls or results."""
    messages = (*conversation.messages, *(conversation.rejected or ()))
    return bool(conversation.tools) or any(message.calls or message.role == "tool" for message in messages)


def without_tools(conversation: Conversation) -> Conversation:
    """The conversation with its tools, calls and results as text."""
    return replace(
        conversation,
        messages=_as_text(conversation.messages, conversation.tools),
        rejected=None if conversation.rejected is None else _as_text(conversation.rejected, conversation.tools),
        tools=None,
    )


def _as_text(messages: Sequence[Message], tools: Sequence[Mapping[str, object]] | None) -> tuple[Message, ...]:
    result: list[Message] = []
    for message in _with_system(messages, tools):
        written = _written(message)
        if message.role == "tool" and result and result[-1].role == "user" and result[-1].alias == "tool":
            written = join(result.pop(), written)
        result.append(written)
    return tuple(replace(message, alias="") if message.alias == "tool" else message for message in result)


def _with_system(messages: Sequence[Message], tools: Sequence[Mapping[str, object]] | None) -> Sequence[Message]:
    if not tools:
        return messages
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    instructions = _INSTRUCTIONS.format(tools=signatures)
    if messages[0].role == "system":
        first = replace(messages[0], content=f"{messages[0].content}{SEPARATOR}{instructions}")
        return (first, *messages[1:])
    return (Message(role="system", content=instructions), *messages)


def _written(message: Message) -> Message:
    if message.role == "tool":
        text = f"<tool_response>\n{message.content}\n</tool_response>"
        return Message(role="user", content=text, alias="tool")
    if not message.calls:
        return message
    calls = [{"name": call["function"]["name"], "arguments": call["function"]["arguments"]} for call in message.calls]
    lines = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
    content = "\n".join([*([message.content] if message.content else []), *lines])
    return replace(message, content=content, extra={})
