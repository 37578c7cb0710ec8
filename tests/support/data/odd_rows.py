"""Odd rows as people publish them, each with what it says: a second opinion beside row_fuzz.py, which it does not use.

Every text is a word that occurs nowhere else, so that one look at the tokens tells where it went. A row is right when
each of its words stands where it belongs (before, in or after trained tokens, in the order of the conversation), or
when the row is dropped or a note speaks of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Place = Literal["given", "trained", "masked", "unread"]
Fields = dict[str, object]

ROLES = {
    "system": ("system", "SYSTEM", "developer"),
    "user": ("user", "human", "Human", " user"),
    "assistant": ("assistant", "gpt", "Assistant", "model", "chatgpt"),
    "tool": ("tool", "observation", "function", "tool-response", "tool result"),
    "call": ("tool_call", "function_call", "function-call"),
}
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
NEIGHBORS = ("context_note", "Reference", "explanation", "category", "mood", "quеstion", "answer ", "score", "hint")
"""Columns and keys that nothing reads; one of them has a Cyrillic letter, one ends with a space."""


@dataclass(frozen=True)
class Word:
    """A word of a row and where it belongs.

    is_ordered: after the one before it; a first system prompt is not, which Mistral's templates print with a question.
    """

    text: str
    place: Place
    is_ordered: bool = True


@dataclass
class Odd:
    """A row and its words."""

    fields: Fields
    words: list[Word] = field(default_factory=list)


class OddRows:
    """Rows from a seed.

    is_flat: only columns of text, as in tables. is_uniform: each column and key holds one type, as in Arrow.
    """

    def __init__(self, seed: int, *, is_flat: bool = False, is_uniform: bool = False) -> None:
        self._random = Random(seed)
        self._prefix = f"{'qzxvj'[seed % 5]}{seed}"
        self._count = 0
        self._words: list[Word] = []
        self._is_flat = is_flat
        self._is_uniform = is_uniform

    def row(self) -> Odd:
        """The next row."""
        self._words = []
        makers = [self._in_columns, self._in_columns, self._pandas]
        if self._is_uniform:
            makers = [self._in_columns, self._uniform]
        elif not self._is_flat:
            makers = [
                self._in_columns,
                self._turns,
                self._turns,
                self._turns,
                self._turns,
                self._split_turns,
                self._pairs,
            ]
        return self._random.choice(makers)()

    def _maybe(self, share: float) -> bool:
        return self._random.random() < share

    def _one_of[Element](self, *options: Element) -> Element:
        return self._random.choice(options)

    def _word(self, place: Place, *, is_ordered: bool = True) -> str:
        self._count += 1
        text = f"{self._prefix}k{self._count}w"
        self._words.append(Word(text, place, is_ordered))
        return text

    def _prose(self, place: Place, *, is_ordered: bool = True) -> str:
        word = self._word(place, is_ordered=is_ordered)
        return self._one_of(
            word,
            f"  {word}",
            f"{word}\r\nand a line\n\n",
            f'{{"{word}": [1, null]}}',
            f"<b>{word}</b> & \\n 100 % {{{{ x }}}}",
            f"è ﬁ Ⅷ \u200b{word} \U0001f600",
            f"```python\nprint('{word}')\n```",
        )

    def _beside(self, fields: Fields, share: float) -> None:
        """Something that nothing reads."""
        if self._maybe(share):
            fields[self._one_of(*NEIGHBORS)] = self._word("unread", is_ordered=False)

    # Columns

    def _name(self, *names: str) -> str:
        name = self._one_of(*names)
        return self._one_of(name, name, name.capitalize(), name.upper())

    def _in_columns(self) -> Odd:
        fields: Fields = {}
        question = self._name("query", "prompt", "instruction", "question", "problem")
        answer = self._name("response", "answer", "output", "completion", "target", "solution")
        if self._maybe(0.3):
            fields[self._name("system", "system_prompt")] = self._prose("given", is_ordered=False)
        if not self._is_flat and self._maybe(0.25):
            rounds = [[self._prose("given"), self._prose("trained")] for _ in range(self._random.randint(1, 2))]
            fields["history"] = rounds if self._is_uniform else self._one_of(rounds, json.dumps(rounds), repr(rounds))
        fields[question] = self._prose("given")
        if self._maybe(0.3):
            fields[self._name("input", "context")] = self._prose("given")
        if self._maybe(0.15):
            fields[self._one_of(*THOUGHTS)] = self._prose("trained").strip()
        fields[answer] = self._prose("trained")
        if self._maybe(0.1):
            fields["source"] = self._word("unread", is_ordered=False)
        if self._maybe(0.1):
            fields["text"] = self._word("unread", is_ordered=False)
        if self._maybe(0.1):
            fields["conversations"] = None if not self._is_flat else ""
        self._beside(fields, 0.3)
        self._shuffle(fields)
        return Odd(fields, self._words)

    def _uniform(self) -> Odd:
        """Turns of which each key has one type: content is text, arguments are objects."""
        while True:
            self._words = []
            odd = self._turns()
            if _is_uniform(odd.fields):
                return Odd({name: value for name, value in odd.fields.items() if value is not None}, odd.words)

    def _pandas(self) -> Odd:
        odd = self._turns()
        plain = {key: value if isinstance(value, str) else repr(value) for key, value in odd.fields.items()}
        return Odd(plain, odd.words)

    def _shuffle(self, fields: Fields) -> None:
        entries = list(fields.items())
        self._random.shuffle(entries)
        fields.clear()
        fields.update(entries)

    # Turns

    def _turn(self, role: str, content: object, **extra: object) -> Fields:
        name = self._one_of(*ROLES[role])
        turn: Fields = self._one_of({"role": name, "content": content}, {"from": name, "value": content})
        if self._maybe(0.1):
            turn |= {"role": turn.get("role"), "from": turn.get("from"), "weight": None, "tool_calls": None}
        turn |= extra
        self._beside(turn, 0.05)
        if "content" in turn and content and self._maybe(0.05):
            turn["value"] = self._word("unread", is_ordered=False)
        if role not in ("assistant", "call") and self._maybe(0.03):
            turn[self._one_of(*THOUGHTS)] = self._word("unread", is_ordered=False)
        return turn

    def _said(self, place: Place, *, is_ordered: bool = True) -> object:
        if self._maybe(0.7):
            return self._prose(place, is_ordered=is_ordered)
        return [
            {"type": "text", "text": self._prose(place, is_ordered=is_ordered)} for _ in range(self._one_of(1, 1, 2))
        ]

    def _turns(self) -> Odd:
        turns: list[Fields] = []
        fields: Fields = {}
        if self._maybe(0.2):
            fields["system"] = self._prose("given", is_ordered=False)
        elif self._maybe(0.35):
            turns.append(self._turn("system", self._said("given", is_ordered=False)))
        if self._maybe(0.03):
            turns.append(self._turn("assistant", self._prose("trained")))
        uses_tools = self._maybe(0.4)
        for number in range(self._random.randint(1, 3)):
            if number and self._maybe(0.05):
                turns.append(self._turn("system", self._prose("given")))
            turns += [self._turn("user", self._said("given")) for _ in range(self._one_of(1, 1, 1, 1, 2))]
            if uses_tools:
                turns += self._tool_round()
            turns += self._answer()
        if self._maybe(0.05):
            turns.append(self._turn("user", self._prose("unread")))
        if uses_tools and self._maybe(0.8):
            fields[self._one_of("tools", "functions")] = self._tools()
        name = self._one_of("messages", "conversations", "conversation", "Messages")
        fields[name] = self._one_of(turns, turns, turns, json.dumps(turns))
        self._beside(fields, 0.1)
        self._shuffle(fields)
        return Odd(fields, self._words)

    def _answer(self) -> list[Fields]:
        place: Place = "masked" if self._maybe(0.2) else "trained"
        extra: Fields = {}
        if place == "masked":
            extra[self._one_of("weight", "loss", "train", "training")] = self._one_of(False, 0)
        elif self._maybe(0.1):
            extra[self._one_of("weight", "loss")] = self._one_of(True, 1, 0.5)
        style = self._one_of(*["plain"] * 12, "key", "inside", "part", "twice", "late")
        thought_place: Place = "trained"
        if style == "plain":
            return [self._turn("assistant", self._said(place), **extra)]
        if place == "masked":  # templates may take away the thoughts of such turns
            return [self._turn("assistant", self._prose(place), **{self._one_of(*THOUGHTS): "hm"}, **extra)]
        thought = self._prose(thought_place).strip()
        if style == "key":
            return [self._turn("assistant", self._prose(place), **{self._one_of(*THOUGHTS): thought}, **extra)]
        if style == "part":
            parts = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": self._prose(place)}]
            return [self._turn("assistant", parts, **extra)]
        if style == "late":
            return [
                self._turn("assistant", f"{thought}\n<think>\n{self._prose(place).strip()}\n</think>\n\nso", **extra)
            ]
        answer = self._turn("assistant", f"<think>\n{thought}\n</think>\n\n{self._prose(place)}", **extra)
        return [answer] if style == "inside" else [answer, self._turn("assistant", self._prose(place), **extra)]

    def _arguments(self) -> object:
        arguments: Fields = {self._word("trained", is_ordered=False): self._prose("trained", is_ordered=False)}
        if self._maybe(0.3):
            arguments["more"] = {"x": [self._word("trained", is_ordered=False), None, 1.5, True, {"y": -3}]}
        return self._one_of(arguments, json.dumps(arguments), json.dumps(arguments, ensure_ascii=False, indent=1))

    def _tool_round(self) -> list[Fields]:
        calls: list[Fields] = []
        spoken: object = self._one_of(None, "", None)
        if self._maybe(0.2):
            spoken = self._prose("trained")
        for _ in range(self._one_of(1, 1, 1, 2)):
            name = self._word("trained", is_ordered=False)
            key = self._one_of("arguments", "arguments", "arguments", "parameters", "args")
            call: Fields = {"name": name, key: self._arguments()}
            if self._maybe(0.05):
                call["result_so_far"] = self._word("unread", is_ordered=False)
            calls.append(call)
        style = self._one_of("tool_calls", "tool_calls", "flat", "turn", "function_call")
        if style == "function_call" and len(calls) == 1:
            asked = [self._turn("assistant", spoken, function_call=calls[0])]
        elif style == "turn":
            texts = [self._turn("call", json.dumps(call)) for call in calls]
            asked = [*([self._turn("assistant", spoken)] if spoken else []), *texts]
        elif style == "flat":
            asked = [self._turn("assistant", spoken, tool_calls=calls)]
        else:
            whole = [{"id": f"c{self._count}{n}", "type": "function", "function": call} for n, call in enumerate(calls)]
            asked = [self._turn("assistant", spoken, tool_calls=self._one_of(whole, json.dumps(whole)))]
        return [*asked, *(self._turn("tool", self._result()) for _ in calls)]

    def _result(self) -> object:
        text = self._prose("given")
        return self._one_of(text, text, {"temperature": text}, [{"type": "text", "text": text}])

    def _tools(self) -> object:
        tools: list[Fields] = []
        for _ in range(self._one_of(1, 2)):
            schema = {"type": "object", "properties": {self._word("given", is_ordered=False): {"type": "string"}}}
            function: Fields = {
                "name": self._word("given", is_ordered=False),
                "description": self._prose("given", is_ordered=False),
                self._one_of("parameters", "parameters", "parameters", "input_schema"): schema,
            }
            tools.append(self._one_of(function, {"type": "function", "function": function}))
        return self._one_of(tools, json.dumps(tools), tools[0] if len(tools) == 1 else tools)

    # Others

    def _pairs(self) -> Odd:
        turns: list[Fields] = []
        for number in range(self._random.randint(1, 3)):
            pair: Fields = {"system": self._prose("given")} if number == 0 and self._maybe(0.2) else {}
            pair |= {self._one_of("human", "user"): self._prose("given")}
            pair |= {self._one_of("assistant", "bot"): self._prose("trained")}
            self._beside(pair, 0.1)
            turns.append(pair)
        return Odd({"conversation": turns}, self._words)

    def _split_turns(self) -> Odd:
        asked: list[Fields] = []
        if self._maybe(0.3):
            asked.append(self._turn("system", self._prose("given", is_ordered=False)))
        if self._maybe(0.3):
            asked += [self._turn("user", self._prose("given")), self._turn("assistant", self._prose("masked"))]
        if asked or self._maybe(0.5):
            asked.append(self._turn("user", self._prose("given")))
        prompt: object = asked or self._prose("given")
        answer = self._prose("trained")
        fields: Fields = {
            "prompt": prompt,
            "completion": [self._turn("assistant", answer)] if self._maybe(0.5) else answer,
        }
        self._beside(fields, 0.2)
        return Odd(fields, self._words)


def _is_uniform(fields: Fields) -> bool:
    """Whether turns, contents and calls have the types that most rows give them."""
    turns = next(
        (value for name, value in fields.items() if name.lower() in ("messages", "conversations", "conversation"))
    )
    if not isinstance(turns, list) or isinstance(fields.get("tools", fields.get("functions")), str | dict):
        return False
    calls = [call for turn in turns for call in turn.get("tool_calls") or [] if isinstance(turn["tool_calls"], list)]
    functions = [call.get("function", call) for call in calls]
    functions += [turn["function_call"] for turn in turns if "function_call" in turn]
    masks = (turn.get(key) for turn in turns for key in ("weight", "loss", "train", "training"))
    return (
        all(isinstance(turn.get(key), str | None) for turn in turns for key in ("content", "value"))
        and all(isinstance(turn.get("tool_calls"), list | None) for turn in turns)
        and not any("more" in str(function) or "_so_far" in str(function) for function in functions)
        and all(isinstance(function[key], dict) for function in functions for key in function if key != "name")
        and all(mask is None or type(mask) is bool for mask in masks)
    )


def traced(
    tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int32], weights: NDArray[np.float32]
) -> tuple[str, list[bool]]:
    """The decoded text, and of each of its characters whether it is trained."""
    edges = [0, *(np.flatnonzero(np.diff(weights > 0)) + 1).tolist(), len(ids)]
    text, trained = "", []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        piece = str(tokenizer.decode(ids[start:end]))
        text += piece
        trained += [bool(weights[start] > 0)] * len(piece)
    return text, trained


def wrong(odd: Odd, text: str, trained: list[bool], notes: tuple[str, ...]) -> list[str]:
    """What is wrong with the training of a row. text: decoded tokens; trained: of each character, whether it is."""
    found: list[str] = []
    last = -1
    for word in odd.words:
        start = text.find(word.text)
        if word.place == "unread":
            if start >= 0 or not any("nothing reads" in note or "dropped" in note for note in notes):
                found.append(f"{word.text} is {'used' if start >= 0 else 'lost'} without a word")
            continue
        if start < 0:
            found.append(f"{word.text} is lost")
            continue
        if word.is_ordered and text.find(word.text, start + 1) >= 0:
            found.append(f"{word.text} stands there twice")
        is_trained = all(trained[start : start + len(word.text)])
        if is_trained != (word.place == "trained"):
            found.append(f"{word.text} is{'' if is_trained else ' not'} trained")
        if word.is_ordered and start < last:
            found.append(f"{word.text} is out of order")
        last = start if word.is_ordered else last
    return found
