"""Arrays of NumPy that lie in a cache: somebody else may have written, cut off or replaced the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_trainjob import input_file


def read(path: Path, dtype: type[np.generic], num_axes: int) -> NDArray[Any]:
    """The array in a .npy file, mapped into memory. Nothing in it is run.

    Raises:
        ValueError: it is no such array. OSError: it cannot be opened.
    """
    input_file.check(path)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except EOFError as err:
        raise ValueError(f"{path} is cut off") from err
    if not isinstance(found, np.ndarray) or found.dtype != dtype or found.ndim != num_axes:
        raise ValueError(f"{path} holds no array of {np.dtype(dtype)} with {num_axes} axes")
    return found
