"""Names of the two images, as `make images` builds them, the chart installs them and manifests may leave them out."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
OPERATOR: Final = f"megatron-train-operator:{VERSION}"
TRAINER: Final = f"megatron-trainer:{VERSION}"
