"""Random rows in mixed dialects. Every part is a word of its own, so that a missing one is seen for certain."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

ROLE_NAMES = {
    "system": ("system", "developer", "System"),
    "user": ("user", "human", "User"),
    "assistant": ("assistant", "gpt", "bot", "model"),
    "tool": ("tool", "observation", "function_response", "tool_response", "ipython"),
}
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
QUESTIONS = ("query", "prompt", "instruction", "Question", "problem", "source")
ANSWERS = ("response", "answer", "output", "Completion", "target", "solution")


@dataclass
class Row:
    """A row, the words that it says, and those of answers that a mask leaves out."""

    fields: dict[str, object]
    words: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)


class Fuzz:
    """Makes rows from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._count = 0
        self._words: list[str] = []

    def row(self) -> Row:
        """One row of a random format."""
        self._words = []
        make = self._random.choice((self._messages, self._messages, self._messages, self._columns, self._turn_columns))
        return make()

    def _word(self) -> str:
        self._count += 1
        word = f"w{self._count}z"
        self._words.append(word)
        return word

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _text(self) -> str:
        word = self._word()
        return self._random.choice(
            (word, f"{word} and more", f"\n{word}\n", f'"{word}" {{in}} quotes', f"Zwölf 今 {word}")
        )

    def _content(self) -> object:
        text = self._text()
        return [{"type": "text", "text": text}] if self._chance(0.1) else text

    def _columns(self) -> Row:
        question = self._random.choice(QUESTIONS)
        answer = self._random.choice(ANSWERS) if question != "source" else "target"
        fields: dict[str, object] = {question: self._text(), answer: self._text(), "id": 1}
        if self._chance(0.3) and question != "source":
            fields[self._random.choice(("input", "context"))] = self._text()
        if self._chance(0.2):
            fields["history"] = [[self._text(), self._text()]]
        if self._chance(0.2):
            fields["system"] = self._text()
        if self._chance(0.2):
            fields[self._random.choice(THOUGHT_KEYS)] = self._text()
        return Row(fields=fields, words=self._words)

    def _turn_columns(self) -> Row:
        completion: object = [{"role": "assistant", "content": self._content()}] if self._chance(0.5) else self._text()
        return Row(
            fields={"prompt": [{"role": "user", "content": self._content()}], "completion": completion},
            words=self._words,
        )

    def _messages(self) -> Row:
        turns: list[dict[str, object]] = []
        masked: list[str] = []
        if self._chance(0.3):
            turns.append(self._turn("system", self._text()))
        with_tools = self._chance(0.4)
        for _ in range(self._random.randint(1, 3)):
            turns += [self._turn("user", self._content()) for _ in range(1 + self._chance(0.1))]
            if with_tools and self._chance(0.6):
                turns += self._calls()
            turns += self._answers(masked)
        fields: dict[str, object] = {self._random.choice(("messages", "conversations")): turns}
        if with_tools and self._chance(0.8):
            fields[self._random.choice(("tools", "functions"))] = self._tools()
        if self._chance(0.1):
            fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        return Row(fields=fields, words=self._words, masked=masked)

    def _turn(self, role: str, content: object, **extra: object) -> dict[str, object]:
        name = self._random.choice(ROLE_NAMES[role])
        if self._chance(0.4):
            return {"from": name, "value": content, **extra}
        return {"role": name, "content": content, **extra}

    def _answers(self, masked: list[str]) -> list[dict[str, object]]:
        turns = []
        for _ in range(1 + self._chance(0.05)):
            content = self._text()
            extra: dict[str, object] = {}
            if self._chance(0.15):
                masked.append(self._words[-1])
                extra[self._random.choice(("weight", "loss", "train", "training"))] = self._random.choice((0, False))
            num_words = len(self._words)
            if self._chance(0.2):
                extra[self._random.choice(THOUGHT_KEYS)] = self._text()
            elif self._chance(0.15):
                content = f"<think>\n{self._text().strip()}\n</think>\n\n{content}"
            if masked and masked[-1] == self._words[num_words - 1]:
                del self._words[num_words:]  # templates may take away the thought of a turn that is not trained
            turns.append(self._turn("assistant", content, **extra))
        return turns

    def _call(self) -> dict[str, object]:
        arguments: dict[str, object] = {self._word(): self._word(), "n": self._random.randint(1, 9)}
        if self._chance(0.3):
            arguments["deep"] = {"list": [self._word(), 2.5, True]}
        return {"name": self._word(), "arguments": json.dumps(arguments) if self._chance(0.4) else arguments}

    def _calls(self) -> list[dict[str, object]]:
        calls = [self._call() for _ in range(1 + self._chance(0.3))]
        results = [self._turn("tool", self._result()) for _ in calls]
        dialect = self._random.choice(("openai", "openai", "own turn", "older"))
        speaks = dialect != "own turn" and self._chance(0.1)
        content = self._text() if speaks else self._random.choice((None, ""))
        match dialect:
            case "own turn":
                return [{"role": "tool_call", "content": json.dumps(calls)}, *results]
            case "older" if len(calls) == 1:
                return [{"role": "assistant", "content": content, "function_call": calls[0]}, *results]
            case _:
                whole = [{"type": "function", "id": f"call_{self._count}", "function": call} for call in calls]
                return [{"role": "assistant", "content": content, "tool_calls": whole}, *results]

    def _result(self) -> object:
        return {"found": self._word()} if self._chance(0.2) else self._text()

    def _tools(self) -> object:
        tools: list[object] = []
        for _ in range(self._random.randint(1, 2)):
            properties = {self._word(): {"type": "string"}}
            function = {"name": self._word(), "description": self._word(), "parameters": {"properties": properties}}
            tools.append(function if self._chance(0.5) else {"type": "function", "function": function})
        return json.dumps(tools) if self._chance(0.3) else tools
