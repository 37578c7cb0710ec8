"""Kubernetes quantities ("64Gi", "500m", "8") as exact numbers."""

from __future__ import annotations

import re
from decimal import Decimal

SUFFIXES: dict[str, Decimal] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    **{f"{letter}i": Decimal(1024) ** (power + 1) for power, letter in enumerate("KMGTPE")},
}
MAX_CHARACTERS = 64
PATTERN = r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))([eE][+-]?[0-9]{1,3}|[numkMGTPE]|[KMGTPE]i)?"


def amount(text: str) -> Decimal:
    """The number that a quantity stands for. Raises ValueError for invalid text."""
    number, suffix = _parts(text)
    if suffix[:1] in ("e", "E") and len(suffix) > 1:
        return Decimal(number + suffix)
    return Decimal(number) * SUFFIXES[suffix]


def multiplied(text: str, count: int) -> str:
    """The quantity times a count, in the same unit. Raises ValueError for invalid text."""
    number, suffix = _parts(text)
    return f"{Decimal(number) * count:f}{suffix}"


def total(first: str, second: str) -> str:
    """The sum of two quantities, in their unit if they share it, else as a plain number."""
    (number, suffix), (other, other_suffix) = _parts(first), _parts(second)
    if suffix == other_suffix and suffix in SUFFIXES:
        return f"{Decimal(number) + Decimal(other):f}{suffix}"
    return f"{(amount(first) + amount(second)).normalize():f}"


def _parts(text: str) -> tuple[str, str]:
    """Number and suffix of a quantity."""
    match = re.fullmatch(PATTERN, text) if len(text) <= MAX_CHARACTERS else None
    if match is None:
        raise ValueError(f"{text[:MAX_CHARACTERS]!r} is not a quantity such as 8, 500m or 64Gi")
    return match[1], match[2] or ""
