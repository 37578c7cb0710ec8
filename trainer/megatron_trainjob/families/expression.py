"""Reads moe_layer_freq: every n-th layer, or a list such as [0]*1+[1]*27. Evaluates no code."""

from __future__ import annotations

import ast


def moe_layers(text: str | None, num_layers: int) -> list[int] | None:
    """1 for each layer with experts and 0 for each dense one; None if not given.

    Raises:
        ValueError: the text is neither an integer nor a list expression of `num_layers` zeros and ones.
    """
    if text is None:
        return None
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError) as err:
        raise ValueError(_message(text, num_layers)) from err
    if isinstance(value, int):
        return [int(layer % value == 0) for layer in range(num_layers)] if value > 0 else _fail(text, num_layers)
    return value if len(value) == num_layers and set(value) <= {0, 1} else _fail(text, num_layers)


def _value(node: ast.expr) -> int | list[int]:
    """An integer, a list of integers, or a sum or product of these."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List):
        return [int(_value(item)) for item in node.elts]  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _value(node.left), _value(node.right)
        return left + right if isinstance(node.op, ast.Add) else left * right  # type: ignore[operator]
    raise TypeError(ast.dump(node))


def _fail(text: str, num_layers: int) -> list[int]:
    raise ValueError(_message(text, num_layers))


def _message(text: str, num_layers: int) -> str:
    return (
        f"moe_layer_freq must be a whole number (every n-th layer) or a list of {num_layers} zeros and ones "
        f"such as [0]*1+[1]*{num_layers - 1} (got {text!r})"
    )
