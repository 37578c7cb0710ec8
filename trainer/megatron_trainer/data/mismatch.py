"""Prompts with the answers of other samples: log-probabilities of such mismatched answers estimate the KL divergence
from another model, which KTO needs (Ethayarajh et al. 2024, section 4.1).

Samples (x1 y1) (x2 y2) (x3 y3) give (x1 y3) (x2 y1) (x3 y2): every answer once, none with its own prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_trainer.data.values import IGNORED, Sample


def mismatched(samples: Sequence[Sample], *, max_length: int) -> list[Sample]:
    """Each sample's prompt with the answer of the previous one, cut to max_length tokens; empty for a single sample.

    The answer begins at the first token with loss.
    """
    if len(samples) < 2:
        return []
    return [joined(prompt, answer, max_length) for prompt, answer in zip(samples, _rotated(samples), strict=True)]


def _rotated(samples: Sequence[Sample]) -> list[Sample]:
    return [samples[-1], *samples[:-1]]


def joined(prompt: Sample, answer: Sample, max_length: int) -> Sample:
    """The prompt of one sample with the answer of another, cut to max_length tokens."""
    start, first = _start(prompt), _start(answer)
    ids = np.concatenate([prompt.input_ids[:start], answer.input_ids[first:]])[:max_length]
    labels = np.concatenate([np.full(start, IGNORED, np.int32), answer.labels[first:]])[:max_length]
    return Sample(input_ids=ids, labels=labels)


def _start(sample: Sample) -> int:
    """Start of the answer; at least 1, because nothing predicts the first token."""
    return max(int(np.argmax(sample.labels != IGNORED)), 1)
