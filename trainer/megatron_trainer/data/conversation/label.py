"""The label of a row that a classifier is trained on: allowed values of its column, and their numeric form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from megatron_trainer.data.conversation.messages import parse_json, plain_value
from megatron_trainer.data.values import RowError
from megatron_trainjob.args.head import ProblemType

_WRONG = "the label does not fit"
_NAMES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Label:
    """problem: its type. count: classes, or numbers of a regression. names: of the classes, in their order.

    single_label_classification: one class, by number or name -> (number,).
    multi_label_classification: a list of classes, or 0 or 1 for each class -> 0 or 1 for each class.
    regression: a number, or a list of `count` numbers -> the numbers.
    """

    problem: ProblemType
    count: int
    names: tuple[str, ...] = ()

    def read(self, value: object) -> tuple[float, ...]:
        """The numbers for a value of the column. Raises RowError for an invalid one."""
        if isinstance(value, str) and value not in self.names:
            value = parse_json(value, "label") if value.lstrip().startswith("[") else plain_value(value)
        match self.problem:
            case "single_label_classification":
                return (float(self._class(value)),)
            case "multi_label_classification":
                return self._classes(value)
            case "regression":
                return self._numbers(value)

    def _class(self, value: object) -> int:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and value in self.names:
            return self.names.index(value)
        if (isinstance(value, bool) and self.count != 2) or not isinstance(value, int | float) or not _is_whole(value):
            raise RowError(_WRONG, f"{value!r} is not a class; {self._known()}")
        if not 0 <= value < self.count:
            raise RowError(_WRONG, f"class {value} of {self.count} (num_labels); they count from 0")
        return int(value)

    def _known(self) -> str:
        numbers = f"use a number from 0 to {self.count - 1}"
        if not self.names:
            return f"{numbers}, or name the classes in id2label of config.json"
        shown = ", ".join(self.names[:_NAMES_SHOWN]) + (" ..." if len(self.names) > _NAMES_SHOWN else "")
        return f"{numbers}, or a name in id2label: {shown}"

    def _classes(self, value: object) -> tuple[float, ...]:
        values: list[Any] = value if isinstance(value, list) else [value]
        is_binary = len(values) == self.count and all(
            isinstance(entry, int | float) and entry in (0, 1) for entry in values
        )
        is_list_of_classes = all(type(entry) is int for entry in values) and len(set(values)) == len(values)
        if is_binary and is_list_of_classes:
            message = (
                f"{value!r} may be classes or 0 and 1 for each; write 0.0 and 1.0 for the latter, or names of classes"
            )
            raise RowError("the label has two meanings", message)
        if is_binary:
            return tuple(float(entry) for entry in values)
        chosen = {self._class(entry) for entry in values}
        return tuple(float(number in chosen) for number in range(self.count))

    def _numbers(self, value: object) -> tuple[float, ...]:
        values: list[Any] = value if isinstance(value, list) else [value]
        if len(values) != self.count:
            raise RowError(_WRONG, f"{len(values)} numbers for num_labels {self.count}")
        if any(not isinstance(entry, int | float) or not math.isfinite(entry) for entry in values):
            raise RowError(_WRONG, f"{value!r} is not a number")
        return tuple(float(entry) for entry in values)


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and value == int(value)
