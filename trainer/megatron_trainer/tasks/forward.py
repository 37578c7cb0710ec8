"""What the tasks share: the model's forward pass over a micro-batch, and the cross entropy of logits.

Shape suffixes: B batch (1 when rows are packed), T tokens of this rank, N tokens of a chunk, H hidden, V vocabulary
columns of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from megatron.core.utils import get_attr_wrapped_model, get_model_config
from torch import Tensor, nn

from megatron_trainer import backend as backends
from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.lora.names import unwrapped
from megatron_trainer.models.image_text import ImageInputs, ImageTextModel, image_inputs
from megatron_trainjob.args.tree import TrainArgs

CrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, 1, V], labels [N, 1] >= 0) -> losses [N, 1] in nats, float32, over all tensor-parallel ranks."""


def _of_transformer_engine(logits_N1V: Tensor, labels_N1: Tensor, group: dist.ProcessGroup) -> Tensor:
    """TransformerEngine's kernel for a GPU, which takes no float16. The gradient takes the place of the logits."""
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    if logits_N1V.dtype == torch.float16:
        logits_N1V = logits_N1V.float()
    losses: Tensor = parallel_cross_entropy(
        logits_N1V, labels_N1, dist_process_group=group, overwrite_input=logits_N1V.is_contiguous()
    )
    return losses


FUSED_CROSS_ENTROPY = {"native": fused_vocab_parallel_cross_entropy, "te": _of_transformer_engine}
"""By cross_entropy_fusion_impl: (logits [N, 1, V], labels [N, 1], group) -> losses [N, 1]."""


def forward(model: nn.Module, whole: MicroBatch, batch: MicroBatch, *, output_processor: Callable[..., Any]) -> Any:  # noqa: ANN401 - a tensor, or what the processor gives
    """Hidden states [T, B, H] of this stage; on the last stage the result of output_processor.

    batch: this context rank's part of the micro-batch `whole`.
    """
    return model(
        batch.tokens_BT,
        batch.position_ids_BT,
        batch.attention_mask,
        packed_seq_params=parallel.packed_sequence_parameters(whole),
        padding_mask=_padding_for_routers(model, batch.padding_BT),
        output_processor=output_processor,
        **images_of(model, whole, batch),
    )


def images_of(model: nn.Module, whole: MicroBatch, batch: MicroBatch) -> dict[str, ImageInputs]:
    """The further argument of a model with a vision tower; for text alone too, because it has the positions."""
    own = unwrapped(model)
    return {"images": image_inputs(whole, batch, own.vision)} if isinstance(own, ImageTextModel) else {}


def cross_entropy(args: TrainArgs) -> CrossEntropy:
    """The requested kernel; else TransformerEngine's where it is available and need not be deterministic."""
    name = args.cross_entropy_fusion_impl if args.cross_entropy_loss_fusion else None
    if args.cross_entropy_loss_fusion is None and not args.deterministic_mode:
        name = "te" if "cross_entropy" in backends.select().fused_kernels() else None
    if name is None:
        separate: CrossEntropy = vocab_parallel_cross_entropy
        return separate
    kernel = FUSED_CROSS_ENTROPY[name]
    return lambda logits_N1V, labels_N1: kernel(logits_N1V, labels_N1, parallel_state.get_tensor_model_parallel_group())


def _padding_for_routers(model: nn.Module, padding_BT: Tensor) -> Tensor | None:
    """The padding mask for expert load balancing. Megatron splits it over ranks on the first stage only."""
    config = get_model_config(model)
    if not config.num_moe_experts:
        return None
    if not config.sequence_parallel or get_attr_wrapped_model(model, "pre_process"):
        return padding_BT
    size: int = parallel_state.get_tensor_model_parallel_world_size()
    rank: int = parallel_state.get_tensor_model_parallel_rank()
    return padding_BT.chunk(size, dim=1)[rank].contiguous()
