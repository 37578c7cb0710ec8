"""What test_convert.py runs on gloo ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def built(directory: Path, settings: dict[str, Any], **of_the_reader: Any) -> tuple[Any, Any]:
    """(model chunks without weights, spec) in the layout of `settings`."""
    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(directory), **settings)
    parallel.initialize(args)
    spec = read_model(directory, args, **of_the_reader)
    return build_model(spec, args, backends.select()), spec


def convert(directory: Path, target: Path, settings: dict[str, Any], **of_the_save: Any) -> None:
    """Loads and writes again."""
    import torch

    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.convert.save import save_model

    models, spec = built(directory, settings)
    load_weights(models, spec)
    if isinstance(of_the_save.get("dtype"), str):
        of_the_save["dtype"] = getattr(torch, of_the_save["dtype"])
    save_model(models, spec, target, **of_the_save)


def convert_for(directory: Path, target: Path, stop_words: list[str]) -> None:
    """Loads and writes again, as after training on answers that end with these texts."""
    from megatron_trainer.convert.companions import Companions

    convert(directory, target, {}, changed=Companions(stop_words=tuple(stop_words)))


def refusal(directory: Path, settings: dict[str, Any]) -> list[str]:
    """What loading says is wrong, in words."""
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.failure import InvalidInput

    models, spec = built(directory, settings)
    try:
        load_weights(models, spec)
    except InvalidInput as refused:
        return [violation.message for violation in refused.violations]
    return []


def warnings_of_loading(directory: Path, target: Path) -> list[str]:
    """What loading, while the model is loaded and written again, warns of."""
    import logging

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("megatron_trainer.convert").addHandler(handler)
    try:
        convert(directory, target, {})
    finally:
        logging.getLogger("megatron_trainer.convert").removeHandler(handler)
    return said


def unwritable(directory: Path, target: Path, settings: dict[str, Any]) -> str:
    """What saving says when the target cannot be written."""
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.convert.save import save_model
    from megatron_trainer.failure import TrainingError

    models, spec = built(directory, settings)
    load_weights(models, spec)
    try:
        save_model(models, spec, target)
    except TrainingError as err:
        return f"{err.exit_code.name} {err}"
    return ""


def grown(directory: Path, num_tokens: int) -> Any:
    """The embedding after the vocabulary grew."""
    from megatron_trainer.convert.load import load_weights

    models, spec = built(directory, {}, num_tokens=num_tokens)
    load_weights(models, spec)
    return models[0].embedding.word_embeddings.weight.detach().clone()


def drawn(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """All checkpoint tensors of a model that starts from nothing."""
    from megatron_trainer.convert.initialize import initialize_weights
    from tests.support.ranks.parity import gathered

    models, spec = built(directory, settings)
    initialize_weights(models, spec, seed=3)
    return gathered(models, spec)


def peak_of_loading(directory: Path) -> tuple[int, int]:
    """(bytes that loading held at its peak beyond the model, bytes of the largest parameter), as torch counts them."""
    import torch

    from megatron_trainer.convert.load import load_weights

    models, spec = built(directory, {})
    largest = max(p.numel() * p.element_size() for p in models[0].parameters())
    with torch.profiler.profile(profile_memory=True) as profile:
        load_weights(models, spec)
    mapped = (directory / "model.safetensors").stat().st_size  # the file's mapping, which is no memory
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [(event.start_ns(), event.nbytes()) for event in events if abs(event.nbytes()) != mapped]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak, largest


def save_sharded(directory: Path, target: Path, settings: dict[str, Any]) -> None:
    """Loads the model and writes megatron-core's distributed checkpoint of it."""
    from megatron.core import dist_checkpointing

    from megatron_trainer.convert.load import load_weights

    models, spec = built(directory, settings)
    load_weights(models, spec)
    dist_checkpointing.save(models[0].sharded_state_dict(), str(target))


def load_sharded(directory: Path, source: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """All checkpoint tensors of a model that was read from a distributed checkpoint alone."""
    import torch
    from megatron.core import dist_checkpointing

    from tests.support.ranks.parity import gathered

    models, spec = built(directory, settings)
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.fill_(float("nan"))
    models[0].load_state_dict(dist_checkpointing.load(models[0].sharded_state_dict(), str(source)))
    return gathered(models, spec)
