"""The pixels of a sample, in the form that vision towers of transformers take. No I/O.

Shape suffixes: P patches of all images, D numbers of a patch (channels x temporal x patch x patch), N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images (or videos) in the order in which the token ids name them, exactly as transformers' processor makes them.

    values_PD: float32, the patches of all images, one image after the other. grid_N3: int64, patches of each image
    along (time, height, width); their product is its number of patches.
    """

    values_PD: NDArray[np.float32]
    grid_N3: NDArray[np.int64]


def joined(parts: Sequence[Pixels]) -> Pixels | None:
    """The images of all parts in order, None if there are none."""
    if not parts:
        return None
    return Pixels(
        values_PD=np.concatenate([part.values_PD for part in parts]),
        grid_N3=np.concatenate([part.grid_N3 for part in parts]),
    )
