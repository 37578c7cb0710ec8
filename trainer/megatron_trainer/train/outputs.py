"""The outputs of a run besides its checkpoints: the PEFT adapter of a LoRA run, a Hugging Face directory.

Written at the end and, with save_safetensors, beside each checkpoint. Every function is collective.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from megatron_trainer import model_source, upload
from megatron_trainer.checkpoint import folder as run_folder
from megatron_trainer.checkpoint import load as checkpoint_load
from megatron_trainer.convert.adapter import save_adapter
from megatron_trainer.convert.companions import Companions
from megatron_trainer.convert.save import save_model
from megatron_trainer.convert.stream import Read, own_data
from megatron_trainer.failure import TrainingError
from megatron_trainer.lora.merge import merged_weights
from megatron_trainer.state import TrainState
from megatron_trainer.train.run_parts import Run
from megatron_trainjob import checkpoint_folder
from megatron_trainjob.checkpoint_folder import Checkpoint, best, iteration_folder, of_run
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)
SAFETENSORS = "safetensors"
"""Folder of the models or adapters that save_safetensors writes, one for each checkpoint, with its name."""


def write_outputs(run: Run, state: TrainState, *, is_done: bool) -> dict[str, str]:
    """Paths by name. A LoRA run always gets its adapter; to_hf asks for the model (merge_lora: with the adapter).

    With load_best_model_at_end they have the weights of the best checkpoint. With push_to_hub the address of the
    uploaded commit too.
    """
    save = run.saver.policy.save
    checkpoint = iteration_folder(save, state.iteration)
    outputs = {"checkpoint": str(checkpoint)} if checkpoint.is_dir() else {}
    if not is_done:
        return outputs
    exported = load_best(run, state.iteration) if run.args.load_best_model_at_end else state.iteration
    run.reporter.phase("exporting")
    models = list(run.engine.models)
    is_lora = run.args.train_type != "full"
    if is_lora:
        outputs["adapter"] = _save_adapter(run, save / "adapter")
    if run.args.merge_lora if is_lora else run.args.to_hf:
        outputs["hf"] = _save_model(run, save / "hf", merged_weights(models) if is_lora else own_data)
    if run.args.push_to_hub:
        written = outputs.get("hf") or outputs.get("adapter") or _beside_checkpoint(run, exported)
        outputs["hub"] = upload.push(written, run.args)
    return outputs


def _beside_checkpoint(run: Run, iteration: int) -> str:
    """The folder that save_safetensors wrote with this checkpoint; written now if an earlier run left it out."""
    folder = iteration_folder(run.saver.policy.save / SAFETENSORS, iteration)
    found = [folder.is_dir()]
    dist.broadcast_object_list(found, src=0)
    if not found[0]:
        write_safetensors(run, iteration)
    return str(folder)


def load_best(run: Run, last: int) -> int:
    """Loads the weights of the best checkpoint up to iteration `last` into the model, and returns its iteration.

    Only an export may follow.
    """
    save = run.saver.policy.save
    chosen = _best_undamaged(save, last)
    if chosen is None:
        logger.warning("no checkpoint in %s was evaluated: the last weights are exported, not the best", save)
    elif chosen.iteration != last:
        logger.info("exporting the weights of the best checkpoint, iteration=%d", chosen.iteration)
        checkpoint_load.weights(run.engine, chosen, "trainable" if run.args.train_type != "full" else "base")
    return last if chosen is None else chosen.iteration


def _best_undamaged(save: Path, last: int) -> Checkpoint | None:
    """The best checkpoint of the run up to iteration `last`, whose weights are in the model, so that it is not read."""
    every = [of_run(checkpoint_folder.checkpoints(save), last)]
    dist.broadcast_object_list(every, src=0)
    found = every[0]
    while (chosen := best(found)) is not None and chosen.iteration != last:
        problem = checkpoint_load.damage_in(chosen)
        if problem is None:
            break
        logger.warning("passing over the best checkpoint, iteration=%d: %s", chosen.iteration, problem)
        found = tuple(each for each in found if each != chosen)
    return chosen


def write_safetensors(run: Run, iteration: int) -> None:
    """Writes the current weights in Hugging Face form: the adapter of a LoRA run, the model otherwise or with
    merge_lora.

    Folders whose checkpoint was pruned (save_total_limit) are removed too.
    """
    save = run.saver.policy.save
    folder = iteration_folder(save / SAFETENSORS, iteration)
    is_lora = run.args.train_type != "full"
    if dist.get_rank() == 0:
        folder.parent.mkdir(exist_ok=True)
    if is_lora and not run.args.merge_lora:
        _save_adapter(run, folder)
    else:
        _save_model(run, folder, merged_weights(list(run.engine.models)) if is_lora else own_data)
    if dist.get_rank() == 0:
        with _owned(run):
            _drop_those_without_checkpoint(save, iteration, _door(run))


def _drop_those_without_checkpoint(save: Path, newest: int, door: Path) -> None:
    kept = {found.iteration for found in checkpoint_folder.checkpoints(save)} | {newest}
    for path in (save / SAFETENSORS).iterdir():
        named = checkpoint_folder.NAME.fullmatch(path.name)
        if named and int(named[1]) not in kept:
            removed = door / f"{path.name}.{SAFETENSORS}"
            shutil.rmtree(removed, ignore_errors=True)  # what an earlier removal left
            path.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)


def _door(run: Run) -> Path:
    return run_folder.door(run.saver.policy.save, run.saver.policy.owner)


@contextlib.contextmanager
def _owned(run: Run) -> Iterator[None]:
    """Reports a failed export as a takeover of the folder where that is the cause."""
    try:
        with run_folder.owned(run.saver.policy.save, run.saver.policy.owner):
            yield
    except run_folder.TakenOver as err:
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, str(err)) from err


def _save_adapter(run: Run, folder: Path) -> str:
    """Writes the adapter, with the tokenizer and the stop tokens where training changed them."""
    with _owned(run):
        models = list(run.engine.models)
        save_adapter(models, run.spec, run.args, folder, door=_door(run), changed=_changed(run))
    return str(folder)


def _changed(run: Run) -> Companions:
    grown = model_source.tokenizer(run.args, run.spec.directory) if run.args.new_special_tokens else None
    return Companions(tokenizer=grown, stop_words=run.stop_words)


def _save_model(run: Run, folder: Path, read: Read) -> str:
    """Writes the model, with its tokenizer if that has grown and the stop tokens that were trained."""
    changed = _changed(run)
    size = run.args.max_shard_size
    models = list(run.engine.models)
    with _owned(run):
        save_model(models, run.spec, folder, max_shard_size=size, read=read, changed=changed, door=_door(run))
    return str(folder)
