"""The tokenizer's own chat template, with the exact place of every assistant turn in the rendered text.

The text is always that of `apply_chat_template` on the whole conversation. The turns are found by rendering it again
with other words in the assistant's mouth: what differs between the two texts is the turn. (The tempting way, rendering
each prefix of the conversation, fails for templates that render a turn differently once another follows, such as
those that drop earlier thoughts.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.rendering import Rendering, Turn
from megatron_trainer.data.values import Message, RowError

_OPEN, _CLOSE = "\ue0f1", "\ue0f2"  # private-use characters: in no vocabulary's template, in hardly any text
_STAND_IN = re.compile(f"{_OPEN}[0-9]+{_CLOSE}")
_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*\Z")
_OPENED_THOUGHT = re.compile(r"\s*(<think>\s*(</think>\s*)?)?")
_LONGEST_TOKEN = 100  # characters of a special token
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    RecursionError,
)

Turns = list[dict[str, object]]
Tools = Sequence[Mapping[str, object]] | None


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The fixed texts of a template around an assistant turn.

    header: what the template writes to start an answer; it is given at inference, so it is not trained.
    end_of_turn: what closes every answer up to its last special token; trained, so that the model learns to stop.
    last_end: what closes the very last answer, where templates treat it differently.
    """

    header: str
    end_of_turn: str
    last_end: str


class ChatTemplate:
    """Renders conversations with the tokenizer's chat template (or with `source`, a template in the same language)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._special = _any_of(_special_tokens(tokenizer))
        self._marks = self._probe()

    @property
    def name(self) -> str:
        """The template's text."""
        return f"jinja:{self._source or self._tokenizer.chat_template}"

    @property
    def marks(self) -> Marks:
        """The fixed texts around an assistant turn."""
        return self._marks

    def render(self, messages: Sequence[Message], tools: Tools = None) -> Rendering:
        """The text of apply_chat_template and its assistant turns.

        Raises RowError when the template refuses the conversation or leaves an assistant turn out.
        """
        turns = [message.for_template() for message in messages]
        if turns[0]["role"] == "assistant":
            turns.insert(0, {"role": "user", "content": ""})
        text = self._text(turns, tools)
        if _OPEN in text:
            raise RowError("the text holds a private-use character that the trainer needs", "U+E0F1")
        inserted = len(turns) - len(messages)
        places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        bodies = (
            self._headed(text, turns, tools, places)
            or self._aligned(text, turns, tools, places)
            or self._compared(text, turns, tools, places)
        )
        found = [
            Turn(
                message=place - inserted,
                start=start,
                closing=closing,
                end=self._closed(text, closing, is_last=place == places[-1]),
            )
            for place, (start, closing) in zip(places, bodies, strict=True)
        ]
        _check(found, len(text))
        return Rendering(text=text, turns=tuple(found))

    def _text(self, turns: Turns, tools: Tools, *, header: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                tools=None if tools is None else list(tools),
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=header,
            )
        except _TEMPLATE_ERRORS as err:
            raise RowError("the chat template refuses the conversation", str(err)) from err
        assert isinstance(text, str)
        return text

    def _probe(self) -> Marks:
        """The marks, from rendering two tiny conversations."""
        ask: dict[str, object] = {"role": "user", "content": "a"}
        answer: dict[str, object] = {"role": "assistant", "content": _stand_in(0)}
        asked = self._text([ask], None)
        headed = self._text([ask], None, header=True)
        last = self._text([ask, answer], None).partition(_stand_in(0))[2]
        between = self._text([ask, answer, {**ask, "content": _stand_in(1)}], None)
        between = between.partition(_stand_in(0))[2].partition(_stand_in(1))[0]
        common = last[: _common_prefix(last, between)]
        return Marks(
            header=headed[len(asked) :] if headed.startswith(asked) else "",
            end_of_turn=self._until_last_special(common),
            last_end=self._until_last_special(last),
        )

    def _until_last_special(self, text: str) -> str:
        return text[: max((token.end() for token in self._special.finditer(text)), default=0)]

    def _headed(self, text: str, turns: Turns, tools: Tools, places: list[int]) -> list[tuple[int, int]] | None:
        """The answers right after their headers, found without rendering again; None where that is not certain.

        It is certain when nobody but the template can have written a header: then there are as many as answers.
        """
        header, closing = self._marks.header, self._marks.end_of_turn
        if not (header and closing) or tools or text.count(header) != len(places):
            return None
        if any(header in str(turn["content"]) for turn in turns if turn["role"] != "assistant"):
            return None
        bodies, position = [], 0
        for place in places:
            start = text.index(header, position) + len(header)
            end = _printed_until(turns[place], text, start, closing)
            if end is None:
                return None
            bodies.append((start, end))
            position = end
        return bodies

    def _aligned(self, text: str, turns: Turns, tools: Tools, places: list[int]) -> list[tuple[int, int]] | None:
        """All turns at once, where the template prints the answers as they are; None where it does not."""
        answers = [turns[place]["content"] for place in places]
        if any(_is_special(turns[place]) for place in places):
            return None
        replaced = list(turns)
        for number, place in enumerate(places):
            replaced[place] = {"role": "assistant", "content": _stand_in(number)}
        fixed = _STAND_IN.split(self._text(replaced, tools))
        if len(fixed) != len(answers) + 1 or not text.startswith(fixed[0]):
            return None
        bodies, position = [], len(fixed[0])
        for answer, before, after in zip(answers, fixed[:-1], fixed[1:], strict=True):
            assert isinstance(answer, str)
            printed = next((a for a in (answer, answer.strip()) if text.startswith(a + after, position)), None)
            if printed is None:
                return None
            bodies.append((position - self._empty_thought(before), position + len(printed)))
            position += len(printed) + len(after)
        return bodies if position == len(text) else None

    def _empty_thought(self, before: str) -> int:
        """Characters of an empty think block that the template itself puts between header and answer."""
        thought = _EMPTY_THOUGHT.search(before)
        if thought is None or not self._marks.header or before.endswith(self._marks.header):
            return 0
        return len(thought[0]) if before[: thought.start()].endswith(self._marks.header) else 0

    def _compared(self, text: str, turns: Turns, tools: Tools, places: list[int]) -> list[tuple[int, int]]:
        """One turn after the other, by what changes in the text when this turn says something else."""
        bodies: list[tuple[int, int]] = []
        for place in places:
            other = self._text_with_other_answer(turns, place, tools)
            start = _common_prefix(text, other)
            end = len(text) - _common_prefix(text[start:][::-1], other[start:][::-1])
            bodies.append((self._after_header(text, start, bodies[-1][1] if bodies else 0), end))
        return bodies

    def _text_with_other_answer(self, turns: Turns, place: int, tools: Tools) -> str:
        plain: dict[str, object] = {"role": "assistant", "content": _stand_in(0)}
        try:
            return self._text([*turns[:place], plain, *turns[place + 1 :]], tools)
        except RowError:  # the turns that follow need the tool calls of this one
            kept = {**turns[place], "content": _stand_in(0)}
            return self._text([*turns[:place], kept, *turns[place + 1 :]], tools)

    def _after_header(self, text: str, start: int, lowest: int) -> int:
        """Where the turn starts: right after its header, when only an opening thought lies between."""
        header = self._marks.header
        found = text.rfind(header, lowest, start) if header else -1
        if found < 0:
            return start
        after = found + len(header)
        return after if _OPENED_THOUGHT.fullmatch(text, after, start) else start

    def _closed(self, text: str, end: int, *, is_last: bool) -> int:
        """The end of the turn with what closes it."""
        closing = self._marks.end_of_turn or (self._marks.last_end if is_last else "")
        if text.startswith(closing, end):
            return end + len(closing)
        # This turn is closed by another token than usual, and the texts differ in the middle of its name.
        nearby = self._special.finditer(text, max(0, end - _LONGEST_TOKEN), end + _LONGEST_TOKEN)
        return next((token.end() for token in nearby if token.start() < end < token.end()), end)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return (added | set(tokenizer.all_special_tokens)) - {""}


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _printed_until(turn: Mapping[str, object], text: str, start: int, closing: str) -> int | None:
    """The end of an answer that is printed as it is, perhaps after an empty thought; None when it is not."""
    answer = turn["content"]
    if _is_special(turn) or not isinstance(answer, str):
        return None
    thought = _OPENED_THOUGHT.match(text, start)
    for begin in (start, thought.end() if thought else start):
        for printed in (answer, answer.strip()):
            if text.startswith(printed, begin) and text.startswith(closing, begin + len(printed)):
                return begin + len(printed)
    return None


def _stand_in(number: int) -> str:
    return f"{_OPEN}{number}{_CLOSE}"


def _is_special(turn: Mapping[str, object]) -> bool:
    """Whether templates may print the turn in another form than its content."""
    content = turn["content"]
    return len(turn) > 2 or not isinstance(content, str) or not content.strip() or "</think>" in content


def _check(turns: list[Turn], length: int) -> None:
    previous = 0
    for turn in turns:
        if not (previous <= turn.start < turn.end <= length and turn.start <= turn.closing):
            raise RowError("the chat template leaves out an assistant turn", f"message {turn.message + 1}")
        previous = turn.end


def _common_prefix(first: str, second: str) -> int:
    """Characters at the start that both have in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
