"""Compares our model with transformers' own: logits, the loss, every gradient, and the exported weights.

`make_reference` runs transformers in the test's process and keeps what it gave; `compare` runs on gloo ranks.
Two micro-batches of one row of 96 tokens; packed, a row holds sequences that must not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.models.tiny_model import VOCAB_SIZE

NUM_TOKENS = 96
ROWS = ((NUM_TOKENS,), (NUM_TOKENS,))
PACKED_ROWS = ((40, 16, 40), (56, 40))
# The loss below is a mean per micro-batch, so gradients are averaged over data- and context-parallel ranks.
_SETTINGS = {"recompute_granularity": "none", "calculate_per_token_loss": False}


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Largest over all ranks. logits, loss: absolute. gradients: absolute, relative to the tensor's largest.

    replicated: absolute, between gradients of ranks that hold copies of a parameter. worst: the tensor with the largest
    difference of gradients. no_gradient: tensors whose gradient transformers has and we have not.
    changed: tensors that did not come out of an export as they went in.
    """

    logits: float
    loss: float
    gradients: float
    replicated: float
    worst: str
    num_gradients: int
    no_gradient: tuple[str, ...]
    changed: tuple[str, ...]


def rows(packed: bool) -> Sequence[Sequence[int]]:
    return PACKED_ROWS if packed else ROWS


def tokens(vocab_size: int) -> Any:
    """int64 [2, NUM_TOKENS], the same in every process."""
    import torch

    return torch.randint(
        0, min(vocab_size, VOCAB_SIZE), (len(ROWS), NUM_TOKENS), generator=torch.Generator().manual_seed(7)
    )


def make_reference(directory: Path, *, packed: bool) -> Path:
    """The file with transformers' logits of each row, the mean loss, and its gradients by checkpoint name."""
    import torch

    from tests.support.models.tiny_model import auto_class, transformers_config

    path = directory / f"reference-{'packed' if packed else 'padded'}.pt"
    if path.exists():
        return path
    config = transformers_config(directory)
    model = auto_class(config.model_type).from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    _limit_gates(model)
    ids = tokens(model.config.get_text_config().vocab_size)
    logits, loss = [], torch.zeros(())
    for row, lengths in zip(ids, rows(packed), strict=True):
        whole = torch.cat([model(part[None]).logits[0] for part in row.split(list(lengths))])
        logits.append(whole.detach())
        loss = loss + torch.nn.functional.cross_entropy(whole, row.roll(-1)) / len(ROWS)
    loss.backward()
    found = {"logits": logits, "loss": loss.detach(), "gradients": stored_gradients(model, directory / "gradients")}
    torch.save(found, path)
    return path


def _limit_gates(model: Any) -> None:
    """gpt-oss's experts by config.json, which transformers before 5.24 does not ask for the limit of their gates."""
    for module in model.modules():
        if type(module).__name__ == "GptOssExperts":
            module.limit = model.config.get_text_config().swiglu_limit


def stored_gradients(model: Any, aside: Path) -> dict[str, Any]:
    """The gradients by the names of weight tables; in the model, they take the place of its weights.

    Written by transformers itself, they get the names and shapes of a checkpoint (experts one by one).
    """
    import torch

    from megatron_trainjob.families.weights import in_table

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    model.save_pretrained(aside)
    buffers = {in_table(name) for name, _ in model.named_buffers()}
    return {name: gradient for name, gradient in in_table_names(aside).items() if name not in buffers}


def in_table_names(directory: Path) -> dict[str, Any]:
    """The tensors of a model's folder by the names of weight tables."""
    from safetensors.torch import load_file

    from megatron_trainjob.families.weights import in_table

    stored = {in_table(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    is_gpt_oss = any(name.endswith(".sinks") for name in stored)
    return {
        name: tensor for key, whole in stored.items() for name, tensor in _one_by_one(key, whole, is_gpt_oss=is_gpt_oss)
    }


def _one_by_one(name: str, whole: Any, *, is_gpt_oss: bool) -> Any:
    """The matrices of each expert where the tensor has those of all, in the form of transformers' modules.

    gpt-oss, which alone has sinks, and Llama-4 store columns first, and gpt-oss gate and up in turn.
    """
    owner, _, kind = name.rpartition(".")
    if not owner.endswith(".experts"):
        yield name, whole
        return
    parts = ("gate_proj", "up_proj") if kind.startswith("gate_up_proj") else ("down_proj",)
    end = "bias" if kind.endswith("_bias") else "weight"
    for expert, matrix in enumerate(whole):
        is_exchanged = end == "weight" and (is_gpt_oss or ".feed_forward." in name)
        rows = matrix.t() if is_exchanged else matrix
        split = [rows[n :: len(parts)] for n in range(len(parts))] if is_gpt_oss else rows.chunk(len(parts))
        for part, each in zip(parts, split, strict=True):
            yield f"{owner}.{expert}.{part}.{end}", each.contiguous()


def compare(
    directory: Path, settings: dict[str, Any], *, packed: bool = False, virtual_stages: int | None = None
) -> Differences:
    """Loads the model in the layout of `settings` and compares. Runs on every rank; all return the same."""
    import torch
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(directory), **{**_SETTINGS, **settings})
    parallel.initialize(args, virtual_stages=virtual_stages)
    spec = read_model(directory, args)
    models = build_model(spec, args, backends.select())
    load_weights(models, spec)
    stored = in_table_names(directory)
    exported = gathered(models, spec)
    changed = [n for n in stored.keys() | exported.keys() if not _same(stored.get(n), exported.get(n))]
    config = models[0].config
    settings_of_ddp = DistributedDataParallelConfig(use_distributed_optimizer=False, grad_reduce_in_fp32=True)
    chunks = [DistributedDataParallel(config, settings_of_ddp, model) for model in models]
    config.finalize_model_grads_func = finalize_model_grads
    reference = torch.load(make_reference(directory, packed=packed))
    logits, loss = run_rows(chunks, spec, packed=packed, reference=reference)
    ours = gathered(models, spec, read=lambda parameter: getattr(parameter, "main_grad", None))
    theirs = reference["gradients"]
    errors = {name: _relative(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()}
    worst = max(errors, key=errors.__getitem__)
    return Differences(
        logits=_largest(logits),
        loss=_largest(loss),
        gradients=errors[worst],
        replicated=_largest(_between_copies(models)),
        worst=worst,
        num_gradients=len(errors),
        no_gradient=tuple(sorted(theirs.keys() - ours.keys())),
        changed=tuple(sorted(changed)),
    )


def _between_copies(models: Any) -> float:
    """The largest difference of a parameter's gradient between this rank and those that hold the same part of it."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    worst = 0.0
    for model in models:
        for name, parameter in model.named_parameters():
            is_expert = ".local_experts." in name
            groups = [
                parallel_state.get_expert_data_parallel_group()
                if is_expert
                else parallel_state.get_data_parallel_group(with_context_parallel=True)
            ]
            if not getattr(parameter, "tensor_model_parallel", False):
                groups.append(
                    parallel_state.get_expert_tensor_parallel_group()
                    if is_expert
                    else parallel_state.get_tensor_model_parallel_group()
                )
            for group in groups:
                copies = [torch.empty_like(parameter.main_grad) for _ in range(group.size())]
                dist.all_gather(copies, parameter.main_grad.contiguous(), group=group)
                worst = max(worst, *(float((copy - copies[0]).abs().max()) for copy in copies))
    return worst


def gathered(models: Any, spec: Any, **settings: Any) -> dict[str, Any]:
    """All checkpoint tensors on every rank."""
    import torch.distributed as dist

    from megatron_trainer.convert.stream import tensors

    mine = {name: tensor.to("cpu", copy=True) for name, tensor in tensors(models, spec, **settings)}
    every: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return {name: tensor for one in every for name, tensor in one.items()}


def micro_batch(row: Any, lengths: Sequence[int], *, packed: bool) -> Any:
    """The row as the data side would hand it over, on the row's device."""
    import torch

    from megatron_trainer.data.values import MicroBatch

    here = {"device": row.device}
    starts = torch.tensor([0, *lengths], dtype=torch.int32, **here).cumsum(0, dtype=torch.int32)
    return MicroBatch(
        tokens_BT=row[None],
        labels_BT=row.roll(-1)[None],
        loss_weight_BT=torch.ones(1, len(row), **here),
        position_ids_BT=torch.cat([torch.arange(length, **here) for length in lengths])[None],
        sequence_BT=torch.arange(len(lengths), **here).repeat_interleave(torch.tensor(lengths, **here))[None],
        cu_seqlens=starts if packed else None,
        max_seqlen=max(lengths),
        attention_mask=None,
        num_samples=len(lengths),
        num_tokens=len(row),
        channels=(None,) * len(lengths),
    )


def run_schedule(chunks: Any, forward_step: Any, num_micro_batches: int, seq_length: int) -> None:
    """One forward and backward pass over numbered micro-batches, from zero gradients. Collective."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    for chunk in chunks:
        chunk.zero_grad_buffer()
    iterators = [iter(range(num_micro_batches)) for _ in chunks]
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks),
        num_microbatches=num_micro_batches,
        seq_length=seq_length,
        micro_batch_size=1,
        forward_only=False,
    )


def run_rows(chunks: Any, spec: Any, *, packed: bool, reference: dict[str, Any]) -> tuple[float, float]:
    """One forward and backward pass over both rows; the largest difference of logits and that of the loss here."""
    import torch
    from megatron.core import parallel_state, tensor_parallel

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.models.logits import mask_padded_columns
    from megatron_trainer.tasks.forward import images_of

    ids = tokens(spec.vocab_size).to(backends.select().device)
    batches = [micro_batch(row, n, packed=packed) for row, n in zip(ids, rows(packed), strict=True)]
    found: list[float] = [0.0]
    shares = []

    def forward_step(iterator: Any, model: Any) -> Any:
        number = next(iterator)
        local = parallel.local_part(batches[number])
        output = model(
            local.tokens_BT,
            local.position_ids_BT,
            None,
            packed_seq_params=parallel.packed_sequence_parameters(batches[number]),
            **images_of(model, batches[number], local),
        )

        def loss(logits: Any) -> Any:
            found.append(_logit_difference(logits, batches[number], reference["logits"][number], spec))
            masked = mask_padded_columns(logits.float(), spec).transpose(0, 1).contiguous()
            losses = tensor_parallel.vocab_parallel_cross_entropy(masked, local.labels_BT.t().contiguous())
            shares.append(losses.detach().sum() / NUM_TOKENS)
            return losses.sum() / NUM_TOKENS, {}

        return output, loss

    run_schedule(chunks, forward_step, len(batches), NUM_TOKENS)
    assert not parallel_state.is_pipeline_last_stage() or len(found) == len(batches) + 1
    torch.distributed.barrier()
    return max(found), _loss_difference(shares, reference["loss"])


def _loss_difference(shares: list[Any], reference: Any) -> float:
    """Of the mean over the micro-batches; each context-parallel rank has a share of every one. 0 but on last stages."""
    import torch
    from megatron.core import parallel_state

    if not shares:
        return 0.0
    total = torch.stack(shares).mean()
    torch.distributed.all_reduce(total, group=parallel_state.get_context_parallel_group())
    return float((total.cpu() - reference).abs())


def _logit_difference(logits: Any, batch: Any, reference: Any, spec: Any) -> float:
    import torch
    from megatron.core import parallel_state

    from megatron_trainer import parallel

    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(logits) for _ in range(group.size())]
    torch.distributed.all_gather(parts, logits.detach().contiguous(), group=group)
    whole = torch.cat(parts, -1)[0, :, : spec.vocab_size].cpu()
    positions = torch.arange(NUM_TOKENS)
    size = parallel_state.get_context_parallel_world_size()
    if size > 1:
        bounds = parallel.bounds(batch.cu_seqlens, NUM_TOKENS)
        rank = parallel_state.get_context_parallel_rank()
        positions = parallel.context_positions(bounds, rank=rank, size=size)
    return float((whole - reference[positions]).abs().max())


def _same(one: Any, other: Any) -> bool:
    import torch

    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _relative(ours: Any, theirs: Any) -> float:
    return float((ours - theirs).abs().max() / (theirs.abs().max() + 1e-12))


def _largest(value: float) -> float:
    import torch

    from megatron_trainer import backend as backends

    largest = torch.tensor([value], device=backends.select().device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return float(largest)
