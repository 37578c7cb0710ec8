"""Converts a user's value of one argument to its type, or reports what was expected."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_trainjob.args.field import Argument

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text (put it into quotes)",
    "json": "an object such as {key: value}",
    "str|json": "text or an object such as {key: value}",
    "list[str]": "a list of texts such as [a, b]",
    "list[int]": "a list of whole numbers such as [64, 128]",
    "list[float]": "a list of numbers such as [0.5, 0.5]",
}
TRUTH = {
    **dict.fromkeys(("true", "yes", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0"), False),
}
"""The words of a command line for true and false, as the parser of transformers reads them."""


class WrongValue(ValueError):
    """The value is invalid; the message gives the problem and the remedy."""


def read_value(argument: Argument, value: object) -> Any:  # noqa: ANN401 (arguments have eight types)
    """The value in the argument's own type, checked against its choices and range.

    Lists become tuples. Accepts numbers as altered by YAML and Helm: 1e-5 read as text, 16 rendered as 1.6e+01.
    Raises WrongValue.
    """
    converted = _convert(argument.type, argument.spellings.get(value, value) if isinstance(value, str) else value)
    elements = converted if argument.is_list else (converted,)
    for element in elements:
        _check_choice(argument, element)
        _check_range(argument, element)
    return converted


def from_text(argument: Argument, text: str) -> object:
    """Converts a command-line word or a value of spec.extraArgs for this argument, before `read_value`.

    Text that does not fit the type is returned unchanged, so that `read_value` reports it.
    """
    if argument.type == "bool":
        return TRUTH.get(text.lower(), text)
    if argument.type == "int":
        return _number(text)
    if argument.is_list and not text.lstrip().startswith("["):
        return [text]
    if argument.is_list or ("json" in argument.type and text.lstrip().startswith("{")):
        return _json(text)
    return text


def _number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(type_name: str, value: object) -> Any:  # noqa: ANN401 (arguments have eight types)
    if type_name.startswith("list["):
        if not isinstance(value, list | tuple):
            raise _wrong_type(type_name, value)
        return tuple(_convert_element(type_name, element) for element in value)
    if type_name == "float":
        return _convert_float(value)
    if type_name == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if type_name == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if type_name == "bool" and isinstance(value, bool):
        return value
    if "str" in type_name and isinstance(value, str):
        return value
    if "json" in type_name and isinstance(value, Mapping):
        return value
    raise _wrong_type(type_name, value)


def _convert_element(type_name: str, element: object) -> Any:  # noqa: ANN401 (a text or a number)
    try:
        return _convert(type_name.removeprefix("list[").removesuffix("]"), element)
    except WrongValue:
        raise WrongValue(f"expects {EXPECTED[type_name]}, but one element is {element!r}") from None


def _convert_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong_type("float", value)
    try:
        number = float(value)
    except ValueError:
        raise _wrong_type("float", value) from None
    if not math.isfinite(number):
        raise WrongValue("must be a finite number")
    return number


def _wrong_type(type_name: str, value: object) -> WrongValue:
    hint = ""
    if type_name.startswith("list[") and isinstance(value, str | int | float):
        hint = f"; write [{shown(value)}]"
    if isinstance(value, str) and type_name in ("int", "bool"):
        hint = "; remove the quotes" if _looks_like(type_name, value) else ""
    return WrongValue(f"expects {EXPECTED[type_name]}{hint}")


def _looks_like(type_name: str, text: str) -> bool:
    return text.lower() in ("true", "false") if type_name == "bool" else isinstance(_number(text), int)


def _check_choice(argument: Argument, value: object) -> None:
    if argument.choices is not None and value not in argument.choices:
        raise WrongValue(f"must be one of {', '.join(argument.choices)}{_suggestion(value, argument.choices)}")
    if isinstance(value, str | bool) and value in argument.refused_choices:
        raise WrongValue(f"cannot be {shown(value)}: {argument.refused_choices[value]}")


def _suggestion(value: object, choices: Sequence[str]) -> str:
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _check_range(argument: Argument, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    message = ""
    if argument.ge is not None and value < argument.ge:
        message = f"at least {argument.ge}"
    elif argument.gt is not None and value <= argument.gt:
        message = f"greater than {argument.gt}"
    elif argument.le is not None and value > argument.le:
        message = f"at most {argument.le}"
    elif argument.lt is not None and value >= argument.lt:
        message = f"less than {argument.lt}"
    if message:
        raise WrongValue(f"must be {message}")


def shown(value: object) -> str:
    """The value as a user writes it in YAML."""
    return json.dumps(value) if not isinstance(value, str) else value
