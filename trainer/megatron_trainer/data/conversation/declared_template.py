"""Templates declared as a few pieces of text, for tokenizers without a chat template, and the plain template.

With the pieces of chatml:
    system_prefix  <|im_start|>system\\n{{SYSTEM}}<|im_end|>\\n
    prompt         <|im_start|>user\\n{{QUERY}}<|im_end|>\\n<|im_start|>assistant\\n
    end            <|im_end|>        trained, after every answer
    separator      \\n               not trained, between rounds
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from megatron_trainer.data.conversation.conserve import lost
from megatron_trainer.data.conversation.form import joined
from megatron_trainer.data.conversation.rendering import Rendering, Tools, Turn
from megatron_trainer.data.conversation.thought import written_thought
from megatron_trainer.data.values import Message, RowError
from megatron_trainjob.args import yaml_file

SYSTEM, QUERY = "{{SYSTEM}}", "{{QUERY}}"


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The texts of a template.

    prefix: starts a conversation without a system prompt. system_prefix: starts one with it, None refuses a system
    prompt. prompt: a user turn and the start of the answer. observation: the same for a tool's result, None
    refuses tools. end: closes each answer and is trained. separator: between rounds, None refuses several rounds.
    default_system: used if neither row nor argument sets one.
    """

    prefix: str = ""
    system_prefix: str | None = None
    prompt: str = QUERY
    observation: str | None = None
    end: str = ""
    separator: str | None = None
    default_system: str | None = None


BUILT_IN: dict[str, Pieces] = {
    "chatml": Pieces(
        system_prefix=f"<|im_start|>system\n{SYSTEM}<|im_end|>\n",
        prompt=f"<|im_start|>user\n{QUERY}<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        separator="\n",
    ),
    "llama3": Pieces(
        prefix="<|begin_of_text|>",
        system_prefix=f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>",
        prompt=(
            f"<|start_header_id|>user<|end_header_id|>\n\n{QUERY}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        end="<|eot_id|>",
        separator="",
    ),
    "zephyr": Pieces(
        system_prefix=f"<|system|>\n{SYSTEM}</s>\n",
        prompt=f"<|user|>\n{QUERY}</s>\n<|assistant|>\n",
        end="</s>",
        separator="\n",
    ),
    "vicuna": Pieces(
        prefix="<s>",
        system_prefix=f"<s>{SYSTEM} ",
        prompt=f"USER: {QUERY} ASSISTANT: ",
        end="</s>",
        separator="",
    ),
    "alpaca": Pieces(
        system_prefix=f"{SYSTEM}\n\n",
        prompt=f"### Instruction:\n{QUERY}\n\n### Response:\n",
        end="{{EOS}}",
        separator="\n\n",
        default_system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
    ),
}


class DeclaredTemplate:
    """Renders conversations from pieces. {{BOS}} and {{EOS}} in a piece are the tokenizer's own.

    end: closes answers if the pieces define no end. writes_thoughts: thoughts are written before their answers.
    """

    def __init__(
        self, pieces: Pieces, *, bos: str = "", eos: str = "", end: str = "", writes_thoughts: bool = False
    ) -> None:
        self._writes_thoughts = writes_thoughts
        pieces = replace(pieces, end=pieces.end or end)
        self._pieces = Pieces(
            **{
                name: text.replace("{{BOS}}", bos).replace("{{EOS}}", eos)
                for name, text in asdict(pieces).items()
                if text is not None
            }
        )

    @property
    def name(self) -> str:
        """All pieces."""
        return f"declared:{sorted(asdict(self._pieces).items())}"

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The text that closes an answer."""
        return (self._pieces.end,) if self._pieces.end else ()

    def render(
        self, messages: Sequence[Message], tools: Tools = None, trained: Container[int] | None = None
    ) -> Rendering:
        """Concatenates the pieces. Raises RowError when the template does not support something."""
        if tools:
            raise RowError("the template does not support tools")
        whole, origins = joined(messages)
        system, rest = _split_system(whole)
        text = self._opening(system or self._pieces.default_system)
        turns: list[Turn] = []
        for place, message in enumerate(rest, start=len(whole) - len(rest)):
            self._check_place(message, whole[place - 1] if place else None)
            if message.role == "assistant":
                thought = written_thought(message) if self._writes_thoughts and message.thought else ""
                start, text = len(text), text + thought + message.content + self._pieces.end
                closing = len(text) - len(self._pieces.end)
                turns.append(Turn(message=place, start=start, closing=closing, end=len(text)))
            else:
                text += self._question(message, is_first=not turns)
        missing = lost(text, turns, whole, tools)
        return Rendering(
            text=text, turns=tuple(replace(turn, message=origins[turn.message]) for turn in turns), lost=missing
        )

    def _check_place(self, message: Message, before: Message | None) -> None:
        """Raises RowError for unsupported turns: calls, consecutive turns of one role, an answer without a question."""
        if message.calls:
            raise RowError("the template does not support tools")
        role = before.role if before is not None else "system"
        if message.role == role and role != "system":
            raise RowError("the template does not support consecutive messages of one role", f"both have role {role}")
        if message.role == "assistant" and role == "system" and self._pieces.prompt != QUERY:
            raise RowError("the template does not support an answer without a question")

    def _opening(self, system: str | None) -> str:
        if not system:
            return self._pieces.prefix
        if self._pieces.system_prefix is None:
            raise RowError("the template does not support a system prompt")
        return self._pieces.system_prefix.replace(SYSTEM, system)

    def _question(self, message: Message, *, is_first: bool) -> str:
        if message.role == "system":
            raise RowError("the template does not support a system prompt between turns")
        piece = self._pieces.prompt if message.role == "user" else self._pieces.observation
        if piece is None:
            raise RowError("the template does not support tools")
        if is_first:
            return piece.replace(QUERY, message.content)
        if self._pieces.separator is None:
            raise RowError("the template does not support a second round")
        return self._pieces.separator + piece.replace(QUERY, message.content)


def plain_template(*, bos: str, eos: str) -> DeclaredTemplate:
    """Question and answer concatenated, closed by EOS: pre-training, and use_chat_template false."""
    return DeclaredTemplate(Pieces(prefix="{{BOS}}", end="{{EOS}}"), bos=bos, eos=eos)


def read_pieces(path: Path) -> Pieces:
    """The pieces of a YAML or JSON file.

    Raises ValueError when the file holds anything but pieces of text.
    """
    content = yaml_file.load(path)
    if not isinstance(content, dict):
        raise ValueError(f"must be a mapping of {', '.join(field.name for field in fields(Pieces))}")
    known = {field.name for field in fields(Pieces)}
    wrong = sorted(str(name) for name, text in content.items() if name not in known or not isinstance(text, str | None))
    if wrong:
        raise ValueError(f"not a field of text: {', '.join(wrong)}; known are {', '.join(sorted(known))}")
    return Pieces(**content)


def _split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    if messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages
