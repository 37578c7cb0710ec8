"""Lion as published: for every parameter, with its own betas.

megatron-core's optimizer registry treats Lion like the other emerging-optimizers: for matrices only, with Adam for the
rest, and with Adam's betas.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Registers Lion again with these settings."""
    from emerging_optimizers.scalar_optimizers import Lion
    from megatron.core.optimizer import emerging_optimizers as registry

    registry._EMERGING_OPTIMIZERS["lion"] = registry.EmergingOptimizerEntry(
        optimizer_cls=Lion, config_to_kwargs=_settings, default_param_overrides={}
    )


def _settings(config: Any, _chunks: object, _groups: object) -> dict[str, Any]:  # noqa: ANN401 - of megatron-core
    return {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "betas": (config.lion_beta1, config.lion_beta2),
    }
