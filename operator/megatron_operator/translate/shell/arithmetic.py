"""Whole numbers of a shell: `$((8 * N))`, `(( N = M / 2 ))`, `let "N += 1"`, `(( N >= 8 ))`. Runs nothing."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: int(left / right),  # towards zero, as a shell divides
    ast.Mod: lambda left, right: left - right * int(left / right),
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ASSIGNED = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*(?P<operator>[-+*/%]?)=(?!=)(?P<value>.*)", re.DOTALL)
BASED = re.compile(r"\b(?:(?P<base>\d+)#|0(?=\d))(?P<digits>\w+)")
"""A number of another base, such as `2#101` or, with a zero in front, of base 8."""
CHOSEN = re.compile(r"(?P<condition>[^?]+)\?(?P<one>[^?:]+):(?P<other>[^?:]+)")
"""One number or another, `a > b ? c : d`."""
COUNTED = re.compile(r"(?P<name>[A-Za-z_]\w*)(?P<after>\+\+|--)|(?P<before>\+\+|--)(?P<other>[A-Za-z_]\w*)")


def calculated(text: str, variables: Mapping[str, str]) -> int | None:
    """The value of the expression; a comparison is 1 or 0. None where a value is not known."""
    plain = re.sub(r"\$?\{?\b([A-Za-z_]\w*)\b\}?", lambda found: variables.get(found[1], found[0]), text.strip())
    plain = re.sub(r"!(?!=)", " not ", plain.replace("&&", " and ").replace("||", " or "))
    if chosen := CHOSEN.fullmatch(plain):
        plain = f"({chosen['one']}) if ({chosen['condition']}) else ({chosen['other']})"
    try:
        plain = BASED.sub(lambda found: str(int(found["digits"], int(found["base"] or 8))), plain)
        return int(_number(ast.parse(plain.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return None


def assigned(text: str, variables: Mapping[str, str]) -> tuple[str, int | None] | None:
    """(name, new value) of an assignment such as `N = 3`, `N += 2` or `N++`; None for any other expression."""
    text = text.strip()
    if counted := COUNTED.fullmatch(text):
        name, step = counted["name"] or counted["other"], counted["after"] or counted["before"]
        return name, calculated(f"{name} {step[0]} 1", variables)
    if found := ASSIGNED.fullmatch(text):
        left = f"{found['name']} {found['operator']} " if found["operator"] else ""
        return found["name"], calculated(f"{left}({found['value']})", variables)
    return None


def _number(node: ast.AST) -> int:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_number(left), _number(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return int(OPERATORS[type(op)](_number(left), _number(right)))
        case ast.IfExp(test=test, body=body, orelse=other):
            return _number(body if _number(test) else other)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return int(not _number(operand))
        case ast.BoolOp(op=ast.And(), values=values):
            return int(all([_number(each) for each in values]))
        case ast.BoolOp(op=ast.Or(), values=values):
            return int(any([_number(each) for each in values]))
    raise ValueError(node)
