"""What gloo ranks do in tests of adapters: build a tiny model, adapt it, run it, give back plain tensors.

Every function here runs on each rank with the process group joined (see pool.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from megatron_trainer import backend as backends
from megatron_trainer import parallel
from megatron_trainer.convert.adapter import check_loadable, load_adapter, save_adapter
from megatron_trainer.convert.load import load_weights
from megatron_trainer.failure import InvalidInput
from megatron_trainer.lora.inject import add_adapters
from megatron_trainer.lora.merge import merged
from megatron_trainer.lora.names import named_parameters, unwrapped
from megatron_trainer.models.build import build_model
from megatron_trainer.models.spec import ModelSpec, read_model
from megatron_trainjob.args.tree import TrainArgs

VOCAB_ROWS = 300
LAYOUTS = {
    "TP1": {},
    "TP2": {"tensor_model_parallel_size": 2},
    "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
    "EP2": {"expert_model_parallel_size": 2},
    "TP2+EP2+SP": {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "expert_model_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
    },
}


@dataclass(kw_only=True)
class Model:
    """This rank's part of a model; ddp is what the schedule runs, made on the first run."""

    args: TrainArgs
    spec: ModelSpec
    chunks: list[torch.nn.Module]
    ddp: list[torch.nn.Module] | None = None


def token_ids() -> torch.Tensor:
    """The batch of every test: [2, 48]."""
    return torch.randint(3, VOCAB_ROWS, (2, 48), generator=torch.Generator().manual_seed(0))


def arguments(**given: Any) -> TrainArgs:
    """float32, no dropout, small adapters, gradients averaged over data-parallel ranks; `given` replaces."""
    settings = {
        "torch_dtype": "float32",
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "calculate_per_token_loss": False,
        **given,
    }
    return TrainArgs(**settings)


def build(directory: str, *, adapt: bool = True, keep_originals: bool = False, **given: Any) -> Model:
    """The loaded model in the layout of the arguments, adapted unless told otherwise."""
    args = arguments(**given)
    parallel.initialize(args)
    spec = read_model(directory, args)
    chunks = build_model(spec, args, backends.select())
    load_weights(chunks, spec)
    if adapt:
        add_adapters(chunks, args, keep_originals=keep_originals)
    return Model(args=args, spec=spec, chunks=chunks)


def run(model: Model, *, backward: bool) -> torch.Tensor | None:
    """Logits [2, 48, V] on the last stage, None elsewhere; with backward, gradients are in `main_grad`."""
    if model.ddp is None:
        config = unwrapped(model.chunks[0]).config
        settings = DistributedDataParallelConfig(use_distributed_optimizer=False)
        model.ddp = [DistributedDataParallel(config, settings, chunk) for chunk in model.chunks]
        config.finalize_model_grads_func = finalize_model_grads
    for chunk in model.ddp:
        chunk.zero_grad_buffer()
    ids = token_ids().to(backends.select().device)
    outputs: list[torch.Tensor] = []

    def forward_step(rows, chunk):
        row = next(rows)[None]
        output = chunk(row, torch.arange(row.shape[1], device=row.device)[None], None)
        return output, lambda logits: _loss(logits, row, model.spec.vocab_size, outputs)

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(ids),
        model=model.ddp,
        num_microbatches=len(ids),
        seq_length=ids.shape[1],
        micro_batch_size=1,
        forward_only=not backward,
    )
    return (
        torch.cat([_whole_vocabulary(logits) for logits in outputs])[..., : model.spec.vocab_size] if outputs else None
    )


def _loss(
    logits: torch.Tensor, row: torch.Tensor, vocab_size: int, outputs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict]:
    outputs.append(logits.detach())
    width = logits.shape[-1]
    columns = torch.arange(width, device=logits.device) + width * parallel_state.get_tensor_model_parallel_rank()
    scores = logits.float().masked_fill(columns >= vocab_size, -1e9).transpose(0, 1).contiguous()
    loss = vocab_parallel_cross_entropy(scores, row.roll(-1, 1).t().contiguous()).mean()
    return loss, {"loss": loss.detach()}


def _whole_vocabulary(logits: torch.Tensor) -> torch.Tensor:
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(logits) for _ in range(group.size())]
    dist.all_gather(parts, logits.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def randomise(model: Model, seed: int = 0) -> None:
    """Every trained tensor becomes random, so that nothing is hidden by a zero. For a world of one rank."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in named_parameters(model.chunks):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def make_adapter(directory: str, adapter: str, **given: Any) -> None:
    """Writes a random adapter for the model, from one rank."""
    model = build(directory, **given)
    randomise(model)
    save_adapter(model.chunks, model.spec, model.args, Path(adapter))


def refusal_of_its_form(directory: str, **given: Any) -> str:
    """What is said of adapters that peft would not load, empty if it loads them."""
    model = build(directory, **given)
    try:
        check_loadable(model.chunks, model.spec, model.args)
    except InvalidInput as refused:
        return str(refused.violations[0])
    return ""


def write_again(directory: str, adapter: str, folder: str, **given: Any) -> None:
    """Loads the adapter and writes what it has become."""
    model = build(directory, **given)
    load_adapter(model.chunks, model.spec, model.args, Path(adapter))
    save_adapter(model.chunks, model.spec, model.args, Path(folder))


def use_adapter(directory: str, adapter: str, folder: str, **given: Any) -> dict[str, Any]:
    """Loads the adapter in a layout and runs it; writes it again, and its gradients as an adapter of their own.

    Returns logits (last stage), `merged` (largest change of a logit by merging), `restored` (weights after merging are
    the ones before, bit by bit) and `replicated` (largest difference of a gradient between ranks that hold copies).
    """
    model = build(directory, **given)
    load_adapter(model.chunks, model.spec, model.args, Path(adapter))
    save_adapter(model.chunks, model.spec, model.args, Path(folder) / "again")
    logits = run(model, backward=True)
    replicated = _replicated_difference(model)
    before = {name: parameter.detach().clone() for name, parameter in named_parameters(model.chunks)}
    with torch.no_grad():
        for _, parameter in named_parameters(model.chunks):
            if parameter.requires_grad:
                parameter.copy_(parameter.main_grad)
    save_adapter(model.chunks, model.spec, model.args, Path(folder) / "gradients")
    with torch.no_grad():
        for name, parameter in named_parameters(model.chunks):
            parameter.copy_(before[name])
    with merged(model.chunks):
        by_merging = run(model, backward=False)
    restored = all(torch.equal(before[name], parameter) for name, parameter in named_parameters(model.chunks))
    difference = None if logits is None else (logits - by_merging).abs().max().item()
    return {"logits": logits, "merged": difference, "restored": restored, "replicated": replicated}


def _replicated_difference(model: Model) -> float:
    group = parallel_state.get_tensor_model_parallel_group()
    worst = 0.0
    for _, parameter in named_parameters(model.chunks):
        if parameter.requires_grad and not getattr(parameter, "tensor_model_parallel", False):
            copies = [torch.empty_like(parameter.main_grad) for _ in range(group.size())]
            dist.all_gather(copies, parameter.main_grad.contiguous(), group=group)
            worst = max(worst, *((copy - copies[0]).abs().max().item() for copy in copies))
    return worst
