"""The tokenizer's own chat template, with the exact place of every assistant turn in the rendered text.

The text is that of `apply_chat_template` on the whole conversation, in the first form (form.py) of which nothing is
lost (conserve.py). Where the template removes the thought of a trained turn, the turn is written as the model generates
it; where it prints no stop token after the last answer, the one that it prints between turns is added.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import jinja2
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.bounded import TooMuch, bounded
from megatron_trainer.data.conversation.conserve import lost, prints_python
from megatron_trainer.data.conversation.form import Form, Habits, Turns, forms_for, messages_of, turns_of
from megatron_trainer.data.conversation.locate import Locator, Marks, common_prefix, stand_in
from megatron_trainer.data.conversation.rendering import Rendering, Tools, Turn
from megatron_trainer.data.conversation.stop import Stops, added_tokens, any_of, declared_stops
from megatron_trainer.data.conversation.thought import Bodies, Thoughts
from megatron_trainer.data.values import Message, RowError

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
ROLES = ("developer", "observation", "function", "ipython", "function_response", "tool_response")
SYSTEM_MOVED = "the chat template shows the system prompt only with an open question; it is rendered there"
KEEPING = {
    "preserve_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
    "keep_past_thinking": True,
}
"""Variables that make templates print the thoughts of earlier turns."""
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    RecursionError,
    ArithmeticError,
)


@dataclass(frozen=True, kw_only=True)
class TemplateSettings:
    """The user's settings of a chat template.

    preserve_thinking: whether to keep thoughts that the template removes: None keeps those of trained turns.
    add_non_thinking_prefix: whether trained turns without a thought start with an empty one: None follows the template.
    variables: further variables of the template, such as enable_thinking. stop_words: texts that end an answer.
    """

    preserve_thinking: bool | None = None
    add_non_thinking_prefix: bool | None = None
    variables: Mapping[str, object] = field(default_factory=dict)
    stop_words: tuple[str, ...] = ()


class ChatTemplate:
    """Renders conversations with the tokenizer's chat template (or with `source`, a template in the same language)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source: str | None = None,
        settings: TemplateSettings | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._settings = settings or TemplateSettings()
        self._written = source or str(tokenizer.chat_template)
        added = added_tokens(tokenizer)
        self._tokens = any_of(added)
        stops = {*declared_stops(tokenizer), *self._settings.stop_words}
        self._stops = Stops(known=any_of(stops), tokens=self._tokens)
        self._keeping = {name: value for name, value in KEEPING.items() if name in self._written}
        self._locate = Locator(self._text, self._stops)
        self._habits = Habits(thought_key=self._thought_key(), roles=self._roles(added))
        self._thoughts = Thoughts(
            marks=self.marks,
            is_known=self._habits.thought_key is not None or "</think>" in self._written,
            preserves=self._settings.preserve_thinking,
            adds_empty=self._settings.add_non_thinking_prefix,
        )
        self._last_stops = self._find_last_stops()

    @property
    def name(self) -> str:
        """The template's text and its stop tokens."""
        return f"jinja:{self._written}:{self._stops.known.pattern}"

    @property
    def marks(self) -> Marks:
        """The fixed texts around an assistant turn."""
        return self._locate.marks

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The tokens (or texts) with which an answer and a turn with tool calls end."""
        return tuple(dict.fromkeys(self._last_token(stop) for stop in self._last_stops if stop))

    def _last_token(self, stop: str) -> str:
        tokens = self._tokens.findall(stop)
        return str(tokens[-1]) if tokens else stop

    @property
    def variables(self) -> frozenset[str]:
        """The names in the template, including all variables that it reads."""
        return frozenset(re.findall(r"\w+", self._written))

    @property
    def example(self) -> str:
        """A rendered question and answer, for messages about a faulty template."""
        return self._text([_ASK, {"role": "assistant", "content": "b"}], None)

    def render(
        self, messages: Sequence[Message], tools: Tools = None, trained: Container[int] | None = None
    ) -> Rendering:
        """The text of apply_chat_template and its assistant turns, in the form that loses least.

        Raises RowError when the template rejects the conversation or omits an assistant turn.
        """
        best: Rendering | None = None
        failure: RowError | None = None
        for form in forms_for(messages):
            try:
                rendering = self._render(messages, tools, trained, form)
            except RowError as err:
                failure = failure or err
                continue
            if not rendering.lost:
                return rendering
            best = rendering if best is None or len(rendering.lost) < len(best.lost) else best
        if best is None:
            assert failure is not None
            raise failure
        return best

    def _render(self, given: Sequence[Message], tools: Tools, trained: Container[int] | None, form: Form) -> Rendering:
        messages, origins = messages_of(given, form)
        is_trained = [
            message.role == "assistant" and (trained is None or origin in trained)
            for message, origin in zip(messages, origins, strict=True)
        ]
        turns = turns_of(messages, form, self._habits)
        variables = self._keeping if self._thoughts.keeps_any(messages, is_trained) else {}
        text = self._text(turns, tools, variables)
        places = [place for place, message in enumerate(messages) if message.role == "assistant"]
        found = self._locate.turns(text, turns, tools, places, variables)
        bodies = Bodies(text=text, spans=found, places=places)
        with_system = self._with_system(bodies, turns, tools, is_trained)
        bodies, notes = self._thoughts.restored(
            with_system or bodies, messages, is_trained, lambda place: self._as_last(turns[: place + 1], tools, place)
        )
        text, located = self._with_stops(bodies, messages, is_trained)
        if prints_python(text, messages):
            raise RowError("the chat template prints the arguments of a call as Python")
        calling = (text[turn.start : turn.closing] for turn in located if messages[turn.message].calls)
        if form.null_content and any("None" in answer for answer in calling):
            raise RowError("the chat template prints an empty turn as None")
        missing = lost(
            text,
            located,
            messages,
            tools,
            fixed=self._without_fixed,
            without_thought=self._thoughts.may_lack(messages, is_trained),
            known=() if with_system is None else (0,),
        )
        return Rendering(
            text=text,
            turns=tuple(
                Turn(message=origins[turn.message], start=turn.start, closing=turn.closing, end=turn.end)
                for turn in located
            ),
            lost=missing,
            notes=notes if with_system is None else (*notes, SYSTEM_MOVED),
        )

    def _with_system(self, bodies: Bodies, turns: Turns, tools: Tools, is_trained: Sequence[bool]) -> Bodies | None:
        """The text with the system prompt, for templates that print it only while the last question is unanswered.

        None if the text has it, if the template never prints it, or if an answer before the last question is trained,
        which the model generates after a prompt that contains it.
        """
        first, (*before, last) = turns[0], bodies.places
        system = str(first["content"]).strip()
        if first["role"] not in ("system", "developer") or not system or system in bodies.text:
            return None
        if any(is_trained[place] for place in before):
            return None
        try:
            prompt = self._text(turns[:last], tools, header=True)
            silent = self._text(turns[1:last], tools, header=True)
        except RowError:
            return None
        inserted = len(prompt) - len(silent)
        place = common_prefix(prompt, silent)
        is_insertion = silent[place:] == prompt[place + inserted :] and bodies.text.startswith(silent)
        if not is_insertion or system not in prompt:
            return None
        spans = [(s, e) if e <= place else (s + inserted, e + inserted) for s, e in bodies.spans]
        return Bodies(text=prompt + bodies.text[len(silent) :], spans=spans, places=bodies.places)

    def _as_last(self, turns: Turns, tools: Tools, place: int) -> str | None:
        """The answer of a turn rendered as the last of its conversation; None if the template rejects that."""
        try:
            text = self._text(turns, tools)
            places = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
            [*_, (start, end)] = self._locate.turns(text, turns, tools, places, {})
        except RowError:
            return None
        return text[start:end]

    def _with_stops(
        self, bodies: Bodies, messages: Sequence[Message], is_trained: Sequence[bool]
    ) -> tuple[str, list[Turn]]:
        """The text and its turns, each including its stop."""
        pieces, located, length, position = [], [], 0, 0
        limits = [*(start for start, _ in bodies.spans[1:]), len(bodies.text)]
        for place, (start, closing), limit in zip(bodies.places, bodies.spans, limits, strict=True):
            end = self._closed(bodies.text, closing, limit)
            stop = bodies.text[closing:end]
            if is_trained[place]:
                stop = self._stop(stop, self._last_stops[bool(messages[place].calls)])
            pieces += [bodies.text[position:closing], stop]
            offset = length - position
            length += closing - position + len(stop)
            located.append(Turn(message=place, start=start + offset, closing=closing + offset, end=length))
            position = end
        text = "".join([*pieces, bodies.text[position:]])
        _check(located, len(text))
        return text, located

    def _stop(self, printed: str, last: str) -> str:
        """The end of a trained turn: as printed, or, if no model stops at that, the end of the last turn."""
        stops = not printed or (self._stops.known.search(last) and not self._stops.known.search(printed))
        return last if stops else printed

    def _closed(self, text: str, closing: int, limit: int) -> int:
        """The end of the turn including its closing text; without one, the end of its answer."""
        usual = self.marks.end_of_turn
        if usual and text.startswith(usual, closing):
            return closing + len(usual)
        found = self._stops.after(text, closing, limit)
        begins_next = found is not None and self.marks.header.startswith(found[0]) and bool(found[0])
        return closing if found is None or begins_next else found.end()

    def _without_fixed(self, text: str) -> str:
        for fixed in (self.marks.header, self.marks.end_of_turn):
            text = text.replace(fixed, "\0") if fixed else text
        return self._tokens.sub("\0", text)

    def _text(
        self, turns: Turns, tools: Tools, variables: Mapping[str, object] | None = None, *, header: bool = False
    ) -> str:
        try:
            with bounded():
                text = self._tokenizer.apply_chat_template(
                    turns,
                    tools=None if tools is None else list(tools),
                    chat_template=self._source,
                    tokenize=False,
                    add_generation_prompt=header,
                    **{**self._settings.variables, **(variables or {})},
                )
        except (TooMuch, MemoryError) as err:
            reason = str(err) or "took more memory than any row needs"
            shown = repr(" ".join(self._written.split())[:80])
            raise RowError("the chat template took too much time or memory", f"{reason}: {shown}") from None
        except _TEMPLATE_ERRORS as err:
            raise RowError("the chat template refuses the conversation", str(err)) from err
        assert isinstance(text, str)
        return text

    def _thought_key(self) -> str | None:
        """The field from which the template reads the thought of an answer."""
        for key in THOUGHT_KEYS:
            try:
                if stand_in(1) in self._text(
                    [_ASK, {"role": "assistant", "content": stand_in(0), key: stand_in(1)}], None
                ):
                    return key
            except RowError:
                continue
        return None

    def _roles(self, added: set[str]) -> frozenset[str]:
        """The less common roles that the template names, or has a token for if it has none for tools."""
        named = {role for role in ROLES if f"'{role}'" in self._written or f'"{role}"' in self._written}
        has_tool = "<|tool|>" in added or "'tool'" in self._written or '"tool"' in self._written
        return frozenset(named | ({role for role in ROLES if f"<|{role}|>" in added} if not has_tool else set()))

    def _find_last_stops(self) -> tuple[str, str]:
        """(end of an answer, end of a turn with calls) if the template prints nothing after the last one."""
        words = next(iter(self._settings.stop_words), "")
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}, "id": "000000000"}
        result: dict[str, object] = {"role": "tool", "content": _FOLLOWING, "tool_call_id": "000000000", "name": "f"}
        answer = self._stop_of(_ANSWER, {**_ASK, "content": _FOLLOWING}) or words
        return answer, self._stop_of({**_ANSWER, "tool_calls": [call]}, result) or answer

    def _stop_of(self, answer: dict[str, object], following: dict[str, object]) -> str:
        """The stop that the template prints after an answer: at the end of the text, or before what follows."""
        for turns in ([_ASK, answer], [_ASK, answer, following]):
            try:
                text = self._text(turns, None)
                [(start, closing)] = self._locate.turns(text, turns, None, [1], {})
            except RowError:
                continue
            limit = text.find(_FOLLOWING, closing) if len(turns) > 2 else len(text)
            end = self._closed(text, closing, limit)
            if start < closing < end:
                return text[closing:end].strip()
        return ""


_ASK: dict[str, object] = {"role": "user", "content": "a"}
_ANSWER: dict[str, object] = {"role": "assistant", "content": "An example"}
_FOLLOWING = "What follows"


def _check(turns: list[Turn], length: int) -> None:
    previous = 0
    for turn in turns:
        if not (previous <= turn.start < turn.end <= length and turn.start <= turn.closing):
            raise RowError("the chat template leaves out an assistant turn", f"message {turn.message + 1}")
        previous = turn.end
