"""What items say, in words of the ChatML tokenizer: all of a sample, what of it is trained, and the answers of many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.support.models.text_models import chatml_tokenizer

TOKENIZER = chatml_tokenizer()


def text(sample: Any) -> str:
    """The whole sample."""
    return TOKENIZER.decode(sample.input_ids)


def trained(sample: Any) -> str:
    """What of the sample is trained, without the ends of turns."""
    return TOKENIZER.decode(sample.input_ids[sample.labels >= 0]).replace("<|im_end|>", "")


def answers(items: Iterable[Any]) -> list[str]:
    """What is trained of each sample in order, whether items are samples or packed rows of them."""
    return [trained(sample) for item in items for sample in (item if isinstance(item, list) else [item])]
