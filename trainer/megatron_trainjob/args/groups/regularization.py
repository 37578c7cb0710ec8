"""Weight decay, gradient clipping and the constants of the optimizer."""

from dataclasses import dataclass

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """Weight decay, gradient clipping and the constants of the optimizer."""

    weight_decay: float = arg(
        0.1,
        "Decoupled weight decay; biases and vectors are not decayed.",
        ge=0,
        featured=True,
        status="works",
    )
    clip_grad: float = arg(
        1.0,
        "Maximum L2 norm of the gradient over all parameters; 0 disables clipping.",
        ge=0,
        featured=True,
        status="works",
    )
    adam_beta1: float = arg(
        0.9,
        "Adam first-moment decay.",
        ge=0,
        lt=1,
        status="works",
    )
    adam_beta2: float = arg(
        0.95,
        "Adam second-moment decay.",
        ge=0,
        lt=1,
        status="works",
    )
    adam_eps: float = arg(
        1e-08,
        "Adam denominator epsilon.",
        gt=0,
        status="works",
    )
    sgd_momentum: float = arg(
        0.9,
        "Momentum of SGD.",
        ge=0,
        lt=1,
        status="works",
    )
