"""Names of the two images, as built by `make images` and installed by the chart; the defaults in manifests."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
OPERATOR: Final = f"megatron-train-operator:{VERSION}"
TRAINER: Final = f"megatron-trainer:{VERSION}"
