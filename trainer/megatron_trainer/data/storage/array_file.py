"""NumPy arrays in a cache: another process may have written, truncated or replaced the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_trainjob import input_file


def read(path: Path, dtype: type[np.generic], num_axes: int) -> NDArray[Any]:
    """The array in a .npy file, memory-mapped. No code in it is executed.

    Raises:
        ValueError: not a valid array. OSError: it cannot be opened.
    """
    input_file.check(path)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except EOFError as err:
        raise ValueError(f"{path} is truncated") from err
    if not isinstance(found, np.ndarray) or found.dtype != dtype or found.ndim != num_axes:
        raise ValueError(f"{path} holds no array of {np.dtype(dtype)} with {num_axes} axes")
    return found
