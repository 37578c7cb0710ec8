"""What a finished run leaves besides its checkpoint: the PEFT adapter of a LoRA run, a Hugging Face directory."""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist

from megatron_trainer import model_source
from megatron_trainer.convert.adapter import save_adapter
from megatron_trainer.convert.save import save_model
from megatron_trainer.convert.stream import Read, own_data
from megatron_trainer.loop import Run
from megatron_trainer.lora.merge import merged_weights
from megatron_trainer.state import TrainState
from megatron_trainjob.checkpoint_folder import iteration_folder

logger = logging.getLogger(__name__)


def write_outputs(run: Run, state: TrainState, *, is_done: bool) -> dict[str, str]:
    """Paths by name. A LoRA run always gets its adapter; to_hf asks for the model (merge_lora: with the adapter)."""
    save = run.saver.policy.save
    checkpoint = iteration_folder(save, state.iteration)
    outputs = {"checkpoint": str(checkpoint)} if checkpoint.is_dir() else {}
    if not is_done:
        return outputs
    run.reporter.phase("exporting")
    models = list(run.engine.models)
    is_lora = run.args.train_type == "lora"
    if is_lora:
        save_adapter(models, run.spec, run.args, save / "adapter")
        outputs["adapter"] = str(save / "adapter")
    if run.args.merge_lora if is_lora else run.args.to_hf:
        outputs["hf"] = _save_model(run, save / "hf", merged_weights(models) if is_lora else own_data)
    return outputs


def _save_model(run: Run, folder: Path, read: Read) -> str:
    """Writes the model, with its tokenizer where that has grown."""
    save_model(list(run.engine.models), run.spec, folder, max_shard_size=run.args.max_shard_size, read=read)
    if run.args.new_special_tokens and dist.get_rank() == 0:
        model_source.tokenizer(run.args, run.spec.directory).save_pretrained(folder)
    return str(folder)
