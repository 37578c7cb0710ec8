"""The loss of reward models: the better answer of a pair should get the higher score.

Shape suffix: P pairs. Scores are float32.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, *, center_coefficient: float) -> Tensor:
    """-log sigmoid(c - r - margin) + coefficient (c + r)^2 of each pair, [P].

    Bradley & Terry 1952; margins as in Llama 2 (Touvron et al. 2023, eq. 2); the second term keeps the scores centered
    at 0 (Eisenstein et al. 2023, section 2).
    """
    return -logsigmoid(chosen_P - rejected_P - margin_P) + center_coefficient * (chosen_P + rejected_P) ** 2
