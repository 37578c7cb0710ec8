"""The loss_scale strategies as data: which turns they train, and the weights of the parts of an answer.

Weights follow the argument reference: agents learn their calls with two or three times the weight, and never the
results of tools. Agent formats: ReAct (arXiv 2210.03629), Qwen's markers, Hermes tool calls, AgentFLAN (arXiv
2403.12881), alpha-UMi (arXiv 2401.07324).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """The weights of an answer; unmatched text has weight 1.

    keywords: (weight of the keyword, weight of the text from there to the next keyword). patterns: weight of text that
    matches a regular expression. questions: weight of the whole answer when the question contains the text.
    """

    keywords: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    patterns: Mapping[str, float] = field(default_factory=dict)
    questions: Mapping[str, float] = field(default_factory=dict)

    def parts(self, answer: str, question: str) -> Iterator[tuple[int, int, float]]:
        """The answer split into (start, end, weight), without gaps."""
        whole = next((weight for text, weight in self.questions.items() if text in question), None)
        place, weight = 0, 1.0 if whole is None else whole
        for start, end, own, after in self._marks(answer) if whole is None else self._left_out(answer):
            if start >= place:
                yield place, start, weight
                yield start, end, own
                place, weight = end, weight if after is None else after
        yield place, len(answer), weight

    @property
    def is_binary(self) -> bool:
        """Whether it only selects what is trained."""
        weights = {*self.patterns.values(), *self.questions.values()}
        return weights.union(*self.keywords.values()) <= {0, 1}

    def _marks(self, answer: str) -> list[tuple[int, int, float, float | None]]:
        """(start, end, weight, weight of the text from there; None: as before) in their order."""
        marks: list[tuple[int, int, float, float | None]] = [
            (m.start(), m.end(), *self.keywords[m[0]]) for m in self._keyword_pattern.finditer(answer)
        ]
        for pattern, weight in self.patterns.items():
            marks += [(m.start(), m.end(), weight, None) for m in re.finditer(pattern, answer, re.DOTALL)]
        return sorted(marks, key=lambda each: each[0])

    def _left_out(self, answer: str) -> list[tuple[int, int, float, float | None]]:
        return [mark for mark in replace(self, keywords={})._marks(answer) if mark[2] == 0]

    @cached_property
    def _keyword_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.keywords, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """turns: which assistant turns are trained (all: every token of the conversation). weighing: None means weight
    1.
    """

    turns: Literal["every", "last", "all"] = "every"
    weighing: Weighing | None = None

    @property
    def is_binary(self) -> bool:
        """Whether tokens are either trained with weight 1 or not trained."""
        return self.weighing is None or self.weighing.is_binary


_REACT = {
    "Action:": (2.0, 2.0),
    "Action Input:": (2.0, 2.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}
_QWEN = {"✿FUNCTION✿:": (2.0, 2.0), "✿ARGS✿:": (2.0, 2.0), "✿RETURN✿:": (1.0, 1.0), "✿RESULT✿:": (2.0, 0.0)}
_AGENT_FLAN = {
    **dict.fromkeys(("Name:", "Action:", "ACTION:", "Tool:", "Command", "Arguments:"), (1.0, 3.0)),
    **dict.fromkeys(("action input", "ACTION_INPUT:", "Action Input:"), (1.0, 3.0)),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}
_AGENT_FLAN_QUESTIONS = (
    "What is the tool you want to use",
    "What are the required parameter names",
    "What is the value of",
)
_EMPTY_THOUGHT = Weighing(patterns={r"<think>\s*</think>\s*": 0.0})

_SINGLE: dict[str, Strategy] = {
    "default": Strategy(),
    "last_round": Strategy(turns="last"),
    "all": Strategy(turns="all"),
    "ignore_empty_think": Strategy(weighing=_EMPTY_THOUGHT),
    "last_round_with_ignore_empty_think": Strategy(turns="last", weighing=_EMPTY_THOUGHT),
    "react": Strategy(weighing=Weighing(keywords=_REACT)),
    "hermes": Strategy(weighing=Weighing(patterns={r"<tool_call>.+?</tool_call>": 2.0})),
    "qwen": Strategy(weighing=Weighing(keywords=_QWEN)),
    "agentflan": Strategy(weighing=Weighing(keywords=_AGENT_FLAN, questions=dict.fromkeys(_AGENT_FLAN_QUESTIONS, 3.0))),
    "alpha_umi": Strategy(weighing=Weighing(keywords={**_REACT, "Next:": (2.0, 2.0)})),
}
_WEIGHTED = {name: each for name, each in _SINGLE.items() if not each.is_binary}


def _without_empty_thoughts(strategy: Strategy) -> Strategy:
    weighing = strategy.weighing or Weighing()
    return replace(strategy, weighing=replace(weighing, patterns={**weighing.patterns, **_EMPTY_THOUGHT.patterns}))


STRATEGIES: dict[str, Strategy] = {
    **_SINGLE,
    **{f"last_round+{name}": replace(each, turns="last") for name, each in _WEIGHTED.items()},
    **{f"{name}+ignore_empty_think": _without_empty_thoughts(each) for name, each in _WEIGHTED.items()},
    **{
        f"last_round+{name}+ignore_empty_think": _without_empty_thoughts(replace(each, turns="last"))
        for name, each in _WEIGHTED.items()
    },
}
