"""One condition on one argument, in the three forms that a pair rule needs: Python, CEL and plain words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from megatron_trainjob.args.field import Task
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.args.value import shown

Test = Literal["is", "one of", "above", "set", "changed", "contains"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition on the argument `name`; `value` is the operand of the comparison, if any."""

    name: str
    test: Test
    value: Any = None
    negated: bool = False

    def holds(self, args: TrainArgs, task: Task) -> bool:
        """Whether the condition holds for these arguments."""
        return self._compare(getattr(args, self.name), task) != self.negated

    def _compare(self, actual: Any, task: Task) -> bool:  # noqa: ANN401 (the value of any argument)
        match self.test:
            case "is":
                return bool(actual == self.value)
            case "one of":
                return actual in self.value
            case "above":
                return actual is not None and actual > self.value
            case "set":
                return actual not in (None, "", ())
            case "changed":
                return bool(actual != ARGUMENTS[self.name].default_for(task))
            case "contains":
                return self.value in actual

    def words(self) -> str:
        """The condition as a user would write it."""
        match self.test:
            case "is":
                return f"{self.name}: {shown(self.value)}"
            case "one of":
                return f"{self.name}: {' or '.join(map(shown, self.value))}"
            case "above":
                return f"{self.name} > {self.value}"
            case "contains":
                return f"{self.value} in {self.name}"
            case "set" | "changed":
                return self.name

    def cel(self) -> str:
        """The condition in CEL over spec.args, with defaults for absent arguments."""
        argument = ARGUMENTS[self.name]
        otherwise = self._compare(argument.default, "sft")
        text = _either(f"has(self.{self.name})", self._cel_of(f"self.{self.name}"), otherwise)
        for alias in reversed(argument.aliases):
            text = f"(has(self.{alias}) ? {self._cel_of(f'self.{alias}')} : {text})"
        for alias in argument.inverted_aliases:
            text = f"(has(self.{alias}) ? {self._cel_of(f'(!self.{alias})')} : {text})"
        return f"!{text}" if self.negated else text

    def _cel_of(self, value: str) -> str:
        """The condition on a value that is present."""
        argument = ARGUMENTS[self.name]
        match self.test:
            case "is" if isinstance(self.value, bool):
                return value if self.value else f"!{value}"
            case "is":
                return f"{value} == {cel_literal(self.value)}"
            case "one of":
                return f"{value} in {cel_literal(self.value)}"
            case "above":
                return f"{value} > {cel_literal(self.value)}"
            case "contains":
                return f"{cel_literal(self.value)} in {value}"
            case "changed" if argument.default is not None:
                return f"{value} != {cel_literal(argument.default)}"
            case "set" if argument.is_list:
                return f"size({value}) > 0"
            case "set" if argument.type == "str" and argument.choices is None:
                return f"{value} != ''"
            case "set" | "changed":
                return "true"


def is_(name: str, value: object) -> Condition:
    """The argument has this value."""
    return Condition(name=name, test="is", value=value)


def one_of(name: str, *values: object) -> Condition:
    """The argument has one of these values."""
    return Condition(name=name, test="one of", value=values)


def above(name: str, value: float) -> Condition:
    """The argument is a number greater than this."""
    return Condition(name=name, test="above", value=value)


def is_set(name: str) -> Condition:
    """The argument is present and not empty."""
    return Condition(name=name, test="set")


def changed(name: str) -> Condition:
    """The argument differs from its default."""
    return Condition(name=name, test="changed")


def contains(name: str, value: str) -> Condition:
    """The argument, a list, has this element."""
    return Condition(name=name, test="contains", value=value)


def cel_value(name: str) -> str:
    """The value in CEL of an argument that is neither nullable nor renamed: its own, else its default."""
    return f"(has(self.{name}) ? self.{name} : {cel_literal(ARGUMENTS[name].default)})"


def cel_literal(value: object) -> str:
    """A constant in CEL; numbers of float arguments must be given as float."""
    if isinstance(value, tuple):
        return f"[{', '.join(cel_literal(element) for element in value)}]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)


def _either(present: str, statement: str, otherwise: bool) -> str:  # noqa: FBT001 (a value, not a switch)
    """The condition if present, else the constant."""
    if statement == "true" and not otherwise:
        return f"({present})"
    return f"(!{present} || {statement})" if otherwise else f"({present} && {statement})"
