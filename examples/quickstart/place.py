"""Where the quickstart keeps its files: a folder for the volume `quickstart-data` of trainjob.yaml."""

from __future__ import annotations

import os
from pathlib import Path


def data_directory() -> Path:
    """$XDG_CACHE_HOME/megatron-train-operator/quickstart; .cache/quickstart of the repository without it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache:
        return Path(cache) / "megatron-train-operator" / "quickstart"
    return Path(__file__).resolve().parents[2] / ".cache" / "quickstart"
