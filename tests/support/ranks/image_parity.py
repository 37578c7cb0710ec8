"""Compares our model on images and videos with transformers' own: logits, the loss, every gradient, the tower's too.

`make_reference` runs transformers in the test's process, sample by sample; `compare` runs on gloo ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_trainjob.families.weights import in_table
from tests.support.models.tiny_model import auto_class, transformers_config
from tests.support.ranks import parity
from tests.support.ranks.image_models import built
from tests.support.ranks.image_samples import IMAGE, MICRO_BATCHES, VIDEO, sample


@dataclass(frozen=True, kw_only=True)
class Found:
    """Largest over all ranks. logits, loss: absolute. gradients: absolute, relative to the tensor's largest. tower:
    the same, over the tower's tensors alone. trained: tensors with a gradient. changed: as in parity.Differences.
    """

    logits: float
    loss: float
    gradients: float
    tower: float
    worst: str
    trained: frozenset[str]
    changed: tuple[str, ...]


def make_reference(directory: Path, vision: Any, adapter: Path | None = None) -> Path:
    """The file with transformers' logits of each sample, the mean loss of the micro-batches, and its gradients.

    adapter: loaded by peft; then the gradients are those of its matrices in the tower and in stacked experts.
    """
    import torch
    from peft import PeftModel

    path = (adapter or directory) / "reference-images.pt"
    if path.exists():
        return path
    config = transformers_config(directory)
    model = auto_class(config.model_type).from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    logits, loss = {}, torch.zeros(())
    for batch in MICRO_BATCHES:
        total, count = torch.zeros(()), 0
        for number in batch:
            one = sample(number, vision)
            logits[number] = logits_of_transformers(model, one, vision)
            labels = torch.from_numpy(one.labels.astype("int64"))[1:]
            total = total + torch.nn.functional.cross_entropy(logits[number][:-1], labels, reduction="sum")
            count += int((labels >= 0).sum())
        loss = loss + total / count / len(MICRO_BATCHES)
    loss.backward()
    found = {
        "logits": {number: each.detach() for number, each in logits.items()},
        "loss": loss.detach(),
        "gradients": _of_adapters(model) if adapter else parity.stored_gradients(model, directory / "gradients-images"),
    }
    torch.save(found, path)
    return path


def _of_adapters(model: Any) -> dict[str, Any]:
    """The gradients of the adapters of the tower and of experts, by the names that they have in training here.

    The tests of gpt-oss compare adapters of its form of stacks. GLM-4.5V stores experts one by one, and peft joins
    the adapters of gate and up.
    """
    found = {}
    has_plain_stacks = model.config.get_text_config().model_type not in ("gpt_oss", "glm4v_moe_text", "llama4_text")
    for name, parameter in model.named_parameters():
        if ".experts." in name and parameter.grad is not None and has_plain_stacks:
            found |= _of_experts(name, parameter.grad)
        own = in_table(name.removeprefix("base_model.model."))
        if ".modules_to_save." in own:  # the tower in full
            found[own.replace(".modules_to_save.default.", ".")] = parameter.grad
        elif own.startswith("visual.") and parameter.grad is not None:
            module, half = own.removesuffix(".default.weight").rsplit(".lora_", 1)
            found[f"{module}.lora.{half}"] = parameter.grad
    return found


def _of_experts(name: str, gradient: Any) -> dict[str, Any]:
    """That of A [E x r, inputs] or B [outputs, r x E] of a stack, expert by expert. Four experts."""
    layer = name.partition(".layers.")[2].partition(".")[0]
    linear = "linear_fc1" if ".base_layer." in name else "linear_fc2"
    half = "A" if ".lora_A." in name else "B"
    by_expert = gradient.chunk(4) if half == "A" else gradient.unflatten(1, (-1, 4)).unbind(-1)
    of_layer = f"decoder.layers.{layer}.mlp.experts.local_experts."
    return {f"{of_layer}{expert}.{linear}.lora.{half}": each for expert, each in enumerate(by_expert)}


def logits_of_transformers(model: Any, one: Any, vision: Any) -> Any:
    """Logits [T, V] of one sample."""
    import torch

    ids = torch.from_numpy(one.input_ids.astype("int64"))[None]
    if vision.pads_images:
        return model(ids, **_padded(one, ids)).logits[0]
    if vision.tile:
        tiles = None if one.images is None else torch.from_numpy(one.images.values_PD).view(-1, 3, 16, 16)
        return model(ids, pixel_values=tiles).logits[0]
    given: dict[str, Any] = {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}
    if one.images is not None:
        given |= {"pixel_values": torch.from_numpy(one.images.values_PD)}
        given |= {"image_grid_thw": torch.from_numpy(one.images.grid_N3)}
    if one.videos is not None:
        given |= {"pixel_values_videos": torch.from_numpy(one.videos.values_PD)}
        given |= {"video_grid_thw": torch.from_numpy(one.videos.grid_N3)}
    if one.images is None and one.videos is None:
        given = {}
    return model(ids, **given).logits[0]


def _padded(one: Any, ids: Any) -> dict[str, Any]:
    """The images of a sample as rows of one length, longer than any, with the column and row of each patch."""
    import torch

    if one.images is None:
        return {}
    longest = 4 + int(one.images.grid_N3.prod(-1).max())
    values = torch.zeros(len(one.images.grid_N3), longest, one.images.values_PD.shape[1])
    places = torch.full((*values.shape[:2], 2), -1)
    first = 0
    for number, (_, rows, columns) in enumerate(one.images.grid_N3.tolist()):
        count = rows * columns
        values[number, :count] = torch.from_numpy(one.images.values_PD[first : first + count])
        places[number, :count] = torch.tensor([(x, y) for y in range(rows) for x in range(columns)])
        first += count
    kinds = {"mm_token_type_ids": (ids == IMAGE).int()}
    return {"pixel_values": values, "image_position_ids": places, **kinds}


def compare(
    directory: Path, settings: dict[str, Any], *, virtual_stages: int | None = None, reference: Path | None = None
) -> Found:
    """Trains one step in the layout of `settings` without updating, and compares. All ranks return the same."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    from megatron_trainer.lora.names import named_parameters

    models, spec, args = built(directory, settings, virtual_stages)
    stored, exported = parity.in_table_names(directory), parity.gathered(models, spec)
    changed = [n for n in stored.keys() | exported.keys() if not parity._same(stored.get(n), exported.get(n))]
    if args.train_type == "lora_llm":
        changed = [name for name in changed if not name.startswith("visual.")]
    config = models[0].config
    of_ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=False, grad_reduce_in_fp32=True, overlap_grad_reduce=args.overlap_grad_reduce
    )
    chunks = [DistributedDataParallel(config, of_ddp, model) for model in models]
    config.finalize_model_grads_func = finalize_model_grads
    for chunk in chunks:
        chunk.train()
    expected = torch.load(reference or directory / "reference-images.pt")
    logits, loss = _run(chunks, args, spec, expected)
    if args.train_type == "full":
        ours = parity.gathered(models, spec, read=lambda parameter: getattr(parameter, "main_grad", None))
    else:
        ours = {name: p.main_grad for name, p in named_parameters(models) if p.requires_grad}
    theirs = expected["gradients"]
    errors = {name: _error(name, ours, theirs) for name in ours.keys() & theirs.keys()}
    worst = max(errors, key=errors.__getitem__, default="")
    tower = [error for name, error in errors.items() if name.startswith("visual.")]
    return Found(
        logits=parity._largest(logits),
        loss=parity._largest(loss),
        gradients=errors.get(worst, 0.0),
        tower=max(tower, default=-1.0),
        worst=worst,
        trained=frozenset(ours),
        changed=tuple(sorted(changed)),
    )


def _error(name: str, ours: Any, theirs: Any) -> float:
    """As parity's. A bias of keys without rotation moves all scores of a query alike: its gradient is nothing but
    rounding, which is compared with that of the queries' bias.
    """
    if name.startswith("visual.") and name.endswith(".k_proj.bias"):
        scale = theirs[name.replace(".k_proj.", ".q_proj.")].abs().max()
        return float((ours[name] - theirs[name]).abs().max() / scale)
    return parity._relative(ours[name], theirs[name])


def _run(chunks: Any, args: Any, spec: Any, reference: Any) -> tuple[float, float]:
    """One forward and backward pass over this rank's micro-batches; the largest differences of logits and loss here."""
    import torch
    from megatron.core import parallel_state, tensor_parallel

    from megatron_trainer import parallel
    from megatron_trainer.data.collate import RowShape, collate, row_multiple, sample_multiple
    from megatron_trainer.models.logits import mask_padded_columns
    from megatron_trainer.tasks.forward import forward

    cp, vision = args.context_parallel_size, spec.model.vision
    shape = RowShape(
        pad_id=0,
        padding_free=args.padding_free,
        sample_multiple=sample_multiple(context_parallel=cp),
        row_multiple=row_multiple(
            tensor_parallel=args.tensor_model_parallel_size,
            context_parallel=cp,
            sequence_parallel=args.sequence_parallel,
            fp8=False,
        ),
    )
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = [numbers for index, numbers in enumerate(MICRO_BATCHES) if index % size == rank]
    batches = [collate([sample(number, vision) for number in numbers], shape) for numbers in mine]
    found, shares = [0.0], []

    def forward_step(iterator: Any, model: Any) -> Any:
        number = next(iterator)
        whole = batches[number]
        local = parallel.local_part(whole)
        output = forward(model, whole, local, output_processor=None)

        def loss(logits: Any) -> Any:
            masked = mask_padded_columns(logits.float(), spec).transpose(0, 1).contiguous()
            found.append(_logit_difference(logits, whole, [reference["logits"][each] for each in mine[number]], spec))
            losses = tensor_parallel.vocab_parallel_cross_entropy(masked, local.labels_BT.t().clamp(min=0).contiguous())
            total = (losses * local.loss_weight_BT.t()).sum() / whole.loss_weight_BT.sum()
            shares.append(total.detach().clone())  # the schedule scales its own in place
            return total, {}

        return output, loss

    parity.run_schedule(chunks, forward_step, len(batches), 128)
    torch.distributed.barrier()
    if not shares:
        return max(found), 0.0
    total = torch.stack(shares).mean()
    torch.distributed.all_reduce(total, group=parallel_state.get_context_parallel_group())
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    return max(found), float((total / size - reference["loss"]).abs())


def _logit_difference(logits: Any, whole: Any, reference: Any, spec: Any) -> float:
    """Over the real tokens of this rank."""
    import torch
    from megatron.core import parallel_state

    from megatron_trainer import parallel

    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(logits) for _ in range(group.size())]
    torch.distributed.all_gather(parts, logits.detach().contiguous(), group=group)
    ours_BTV = torch.cat(parts, -1)[..., : spec.vocab_size]
    theirs_BTV = torch.zeros(*whole.tokens_BT.shape, spec.vocab_size)
    theirs_BTV[whole.sequence_BT >= 0] = torch.cat(reference)
    size = parallel_state.get_context_parallel_world_size()
    is_real_BT = parallel.local_tokens(whole, whole.sequence_BT >= 0)
    if size > 1:
        bounds = parallel.bounds(whole.cu_seqlens, whole.tokens_BT.shape[1])
        mine = parallel.context_positions(bounds, rank=parallel_state.get_context_parallel_rank(), size=size)
        theirs_BTV = theirs_BTV[:, mine]
    return float((ours_BTV - theirs_BTV)[is_real_BT].abs().max())
