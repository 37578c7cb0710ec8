"""The body of a progress push: Kubeflow Trainer's fields, plus the whole progress record."""

from __future__ import annotations

from typing import Final

STATUS: Final = "trainerStatus"
PERCENTAGE: Final = "progressPercentage"
REMAINING_S: Final = "estimatedRemainingSeconds"
METRICS: Final = "metrics"
METRIC_NAME: Final = "name"
METRIC_VALUE: Final = "value"
UPDATED: Final = "lastUpdatedTime"
PROGRESS: Final = "progress"
"""A progress record (progress.Progress), which other servers ignore."""
