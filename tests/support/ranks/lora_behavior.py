"""More of what ranks do in tests of adapters and freezing: each function returns plain values to assert on."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from safetensors.torch import load_file, save_file

from megatron_trainer import backend as backends
from megatron_trainer import parallel
from megatron_trainer.convert.adapter import load_adapter, save_adapter
from megatron_trainer.convert.load import load_weights
from megatron_trainer.convert.save import save_model
from megatron_trainer.failure import InvalidInput
from megatron_trainer.lora.freeze import freeze
from megatron_trainer.lora.inject import add_adapters
from megatron_trainer.lora.merge import (
    adapted_modules,
    adapters_disabled,
    merge_adapters,
    merged,
    merged_weights,
    unmerge_adapters,
)
from megatron_trainer.lora.names import is_adapter, named_parameters
from megatron_trainer.models.build import build_model
from megatron_trainer.models.spec import read_model
from tests.support.ranks.lora_ranks import Model, arguments, build, randomise, run


def hold_experts_in_one_module(chunk: torch.nn.Module) -> None:
    """Names the experts' weights as TransformerEngine's grouped linears do: linear_fc1.weight0, linear_fc1.weight1."""
    for layer in chunk.decoder.layers:
        grouped = torch.nn.Module()
        for name in ("linear_fc1", "linear_fc2"):
            linear = torch.nn.Module()
            for number, expert in enumerate(layer.mlp.experts.local_experts):
                linear.register_parameter(f"weight{number}", getattr(expert, name).weight)
            grouped.add_module(name, linear)
        layer.mlp.experts = grouped


def refusal(
    directory: str, *, freezing: bool = False, in_one_module: bool = False, **given: Any
) -> list[tuple[str, str]]:
    """(argument, message) of each violation that adding adapters, or freezing, raises; nothing when it raises none."""
    model = build(directory, adapt=False, **given)
    if in_one_module:
        hold_experts_in_one_module(model.chunks[0])
    try:
        (freeze if freezing else add_adapters)(model.chunks, model.args)
    except InvalidInput as err:
        return [(violation.path.removeprefix("spec.args."), violation.message) for violation in err.violations]
    return []


def load_refusal(directory: str, adapter: str, **given: Any) -> list[str]:
    """The messages that loading the adapter raises."""
    model = build(directory, **given)
    try:
        load_adapter(model.chunks, model.spec, model.args, Path(adapter))
    except InvalidInput as err:
        return [violation.message for violation in err.violations]
    return []


def spoil_shared_a(adapter: str) -> None:
    """Gives k_proj of the first layer an A of its own."""
    path = Path(adapter) / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"] += 1.0
    save_file(tensors, path)


def first_adapters(directory: str, **given: Any) -> dict[str, Any]:
    """A fresh run: whether adapters change nothing yet, the sum of this rank's part of each A, and what trains."""
    base = build(directory, adapt=False, **given)
    before = run(base, backward=False)
    model = build(directory, **given)
    after = run(model, backward=False)
    same = before is None or torch.equal(before, after)
    sums = {name: p.double().sum().item() for name, p in named_parameters(model.chunks) if name.endswith("lora.A")}
    return {"same": same, "sums": sums, "trainable": _trainable(model)}


def dropout(directory: str, **given: Any) -> dict[str, Any]:
    """Logits of two training passes and two evaluations of one random adapter, and whether copies stayed equal."""
    model = build(directory, **given)
    randomise_alike(model)
    training = [run(model, backward=True) for _ in range(2)]
    replicated = _gradients_agree(model)
    for chunk in model.ddp:
        chunk.eval()
    evaluation = [run(model, backward=False) for _ in range(2)]
    return {"training": training, "evaluation": evaluation, "replicated": replicated}


def randomise_alike(model: Model) -> None:
    """Random B, the same in copies: drawn by name. Parts of one matrix repeat, which no test here minds."""
    with torch.no_grad():
        for name, parameter in named_parameters(model.chunks):
            if name.endswith("lora.B"):
                generator = torch.Generator().manual_seed(len(name))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def _gradients_agree(model: Model) -> bool:
    group = parallel_state.get_tensor_model_parallel_group()
    for _, parameter in named_parameters(model.chunks):
        if parameter.requires_grad and not getattr(parameter, "tensor_model_parallel", False):
            copies = [torch.empty_like(parameter.main_grad) for _ in range(group.size())]
            dist.all_gather(copies, parameter.main_grad.contiguous(), group=group)
            if any(not torch.equal(copies[0], copy) for copy in copies):
                return False
    return True


def reference_policy(directory: str, **given: Any) -> dict[str, bool]:
    """Whether the model without adapters, within adapters_disabled, is the base, and afterwards itself again."""
    base = run(build(directory, adapt=False), backward=False)
    model = build(directory, keep_originals=True, **given)
    randomise(model)
    tuned = run(model, backward=False)
    with adapters_disabled(model.chunks):
        reference = run(model, backward=False)
    return {
        "is_base": torch.equal(reference, base),
        "differs": not torch.equal(tuned, base),
        "is_back": torch.equal(run(model, backward=False), tuned),
    }


def merge_errors(directory: str) -> list[str]:
    """Messages of merging twice, of taking out what was not kept, and of a reference without originals."""
    messages = []

    def expect(action: Any, *args: Any, **kwargs: Any) -> None:
        try:
            with action(*args, **kwargs) or merged([]):
                pass
        except ValueError as err:
            messages.append(str(err))

    model = build(directory, modules_to_save=("output_layer",))
    expect(adapters_disabled, model.chunks)
    merge_adapters(model.chunks, keep_originals=False)
    expect(merge_adapters, model.chunks)
    expect(unmerge_adapters, model.chunks)
    return messages


def gradients(directory: str, *, freezing: bool = False, **given: Any) -> dict[str, torch.Tensor]:
    """Gradient of every parameter that trains, by whole-model name."""
    model = build(directory, adapt=not freezing, **given)
    if freezing:
        freeze(model.chunks, model.args)
    else:
        randomise_alike(model)
    run(model, backward=True)
    return {name: p.main_grad.clone() for name, p in named_parameters(model.chunks) if p.requires_grad}


def _trainable(model: Model) -> list[str]:
    return [name for name, parameter in model_parameters(model) if parameter.requires_grad]


def model_parameters(model: Model) -> list[tuple[str, torch.nn.Parameter]]:
    """This rank's parameters by whole-model name."""
    return list(named_parameters(model.chunks))


def trainable_after_freeze(directory: str, **given: Any) -> list[str]:
    """Whole-model names of this rank's parameters that train in full training."""
    model = build(directory, adapt=False, **given)
    freeze(model.chunks, model.args)
    return _trainable(model)


def save_sharded(directory: str, adapter: str, folder: str, **given: Any) -> set[str]:
    """Saves the part of the model that trains as a distributed checkpoint; returns its keys."""
    model = build(directory, **given)
    load_adapter(model.chunks, model.spec, model.args, Path(adapter))
    state = _trained_state(model)
    if dist.get_rank() == 0:
        Path(folder).mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(state, folder)
    return set(state)


def load_sharded(directory: str, folder: str, again: str, **given: Any) -> bool:
    """Loads such a checkpoint in another layout and writes the adapter; whether nothing else moved."""
    model = build(directory, **given)
    before = {name: p.detach().clone() for name, p in model_parameters(model) if not p.requires_grad}
    chunk = model.chunks[0]
    chunk.load_state_dict(dist_checkpointing.load(_trained_state(model), folder), strict=False)
    save_adapter(model.chunks, model.spec, model.args, Path(again))
    now = dict(model_parameters(model))
    return all(torch.equal(value, now[name]) for name, value in before.items() if not is_adapter(name))


def _trained_state(model: Model) -> dict[str, Any]:
    (chunk,) = model.chunks
    trained = {name for name, parameter in chunk.named_parameters() if parameter.requires_grad}
    return {key: entry for key, entry in chunk.sharded_state_dict().items() if key in trained}


def adapter_facts(directory: str, **given: Any) -> dict[str, Any]:
    """Shapes of what trains, by name; what the first adapted linear's adapter adds to ones, evaluated and trained."""
    model = build(directory, **given)
    randomise_alike(model)
    adapter = adapted_modules(model.chunks)[0].lora
    ones = torch.ones(8, 1, adapter.A.shape[1])
    trained = [adapter(ones).detach() for _ in range(2)]
    return {
        "trainable": trainable_shapes(model),
        "added": adapter.eval()(ones).detach(),
        "trained": trained,
    }


def trainable_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of this rank that trains, by whole-model name."""
    return {name: tuple(p.shape) for name, p in model_parameters(model) if p.requires_grad}


def trainable_with_adapters(directory: str, **given: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of this rank that trains in a LoRA run."""
    return trainable_shapes(build(directory, **given))


def written_again(directory: str, adapter: str, folder: str, **given: Any) -> None:
    """Loads the adapter into two virtual stages a rank and writes it."""
    args = arguments(**given)
    parallel.initialize(args, virtual_stages=2)
    spec = read_model(directory, args)
    chunks = build_model(spec, args, backends.select())
    load_weights(chunks, spec)
    add_adapters(chunks, args)
    load_adapter(chunks, spec, args, Path(adapter))
    save_adapter(chunks, spec, args, Path(folder))


def merged_both_ways(directory: str, folder: str, **given: Any) -> None:
    """Writes a model with its adapters merged in place, and one whose merged weights were read one at a time."""
    model = build(directory, **given)
    randomise_alike(model)
    with merged(model.chunks):
        save_model(model.chunks, model.spec, Path(folder) / "in-place")
    save_model(model.chunks, model.spec, Path(folder) / "read", read=merged_weights(model.chunks))
