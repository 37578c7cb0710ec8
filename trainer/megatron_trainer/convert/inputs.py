"""The inputs of an export: the model's own folder, a checkpoint, an adapter, and the arguments they were trained with.

Reads only file names and small JSON files, and fetches a model from the Hub. Arguments of the model and of the adapter
come from the args.json that training left beside its checkpoints, unless the command line sets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_trainer import model_source
from megatron_trainer.checkpoint import load as checkpoint_load
from megatron_trainer.convert import peft_format
from megatron_trainer.convert.adapter_source import holds_adapter, open_adapter
from megatron_trainer.convert.companions import stops_of
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainjob import input_file
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.checkpoint_folder import DATA_REPORT, RECORD, Checkpoint
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

_HEAD = ("task_type", "rlhf_type", "num_labels", "problem_type", "use_chat_template", "seed")
_HEADS: dict[str, dict[str, str]] = {
    "SEQ_CLS": {"task_type": "seq_cls"},
    "FEATURE_EXTRACTION": {"task_type": "embedding"},
}
"""Keys are PEFT's task_type."""
_GROUPS = ("model", "moe", "mla", "prediction", "mixed_precision", "tuner_lora")
_NAMES = ("torch_dtype", "no_initialization", "use_cpu_initialization", "new_special_tokens", *_HEAD)
# Parallel layout and compute settings of training do not apply: the model is read whole, and no tokens are dropped.
_ONE_PROCESS: dict[str, Any] = {
    "recompute_granularity": "none",
    "tensor_model_parallel_size": 1,
    "sequence_parallel": False,
    "pipeline_model_parallel_size": 1,
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "context_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": 1,
    "moe_expert_capacity_factor": None,
    "moe_shared_expert_overlap": False,
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """args: of the model, built in one process. model: the Hugging Face folder that describes it (for a Hub repository:
    in the Hub's cache).

    stop_words: the texts with which trained answers end, if the run recorded them. adapter_load: the PEFT folder that
    the run of an adapter started from, which determines the widths of its adapters.

    base: location of its weights, None for those in `model`. adapter: a checkpoint of LoRA training, a PEFT folder, or
    None.
    """

    args: TrainArgs
    model: Path
    base: Checkpoint | None
    adapter: Checkpoint | Path | None
    stop_words: tuple[str, ...] = ()
    adapter_load: str | None = None

    def is_unmerged(self, args: TrainArgs) -> bool:
        """Whether the export writes only the adapter."""
        return self.adapter is not None and not args.merge_lora

    def folders(self) -> list[Path]:
        """Everything that is read."""
        checkpoints = [part for part in (self.base, self.adapter) if isinstance(part, Checkpoint)]
        peft = [self.adapter] if isinstance(self.adapter, Path) else []
        return [self.model, *peft, *(checkpoint.path for checkpoint in checkpoints)]


def find(args: TrainArgs, given: frozenset[str]) -> Inputs:
    """The inputs that the arguments of an export name; `given` holds the names of those that the user set.

    Raises:
        InvalidInput: a folder does not contain what its argument requires, or the model cannot be determined.
    """
    adapter = _adapter(args)
    base = _checkpoint("mcore_model", args.mcore_model, "full") if args.mcore_model else None
    record = _record(adapter) if adapter is not None else _record(base) if base is not None else {}
    if base is None and record.get("load"):
        base = _checkpoint("mcore_model", record["load"], "full", named_by=f"{RECORD} of the adapter")
    if args.model is None and adapter is not None and base is not None and not record.get("model"):
        record |= {"model": _record(base).get("model")}
    return Inputs(
        args=_arguments(args, given, record),
        model=_model(args, record),
        base=base,
        adapter=adapter,
        stop_words=_stop_words(adapter or base),
        adapter_load=record.get("adapter_load"),
    )


def _adapter(args: TrainArgs) -> Checkpoint | Path | None:
    if not args.mcore_adapters:
        return None
    path = Path(args.mcore_adapters[0])
    if holds_adapter(path):
        return path
    found = _checkpoint("mcore_adapters", str(path), "lora")
    if args.to_mcore and not args.merge_lora:
        message = "is a Megatron-Core checkpoint already; set to_hf to write it as PEFT loads it, or merge_lora"
        raise _wrong("mcore_adapters", str(path), message)
    return found


def _checkpoint(argument: str, path: str, train_type: str, *, named_by: str = "") -> Checkpoint:
    try:
        is_folder = Path(path).is_dir()
        found = checkpoint_load.find(Path(path), recognizes_others=argument == "mcore_model") if is_folder else None
    except TrainingError as err:
        raise TrainingError(err.exit_code, f"args.{argument}: {err}") from err
    if found is None:
        raise _wrong(argument, path, f"{_absence(Path(path), argument)}{named_by and f' ({named_by} names it)'}")
    if found.manifest is not None and found.manifest.train_type != train_type:
        held, other = ("an adapter", "mcore_adapters") if train_type == "full" else ("a whole model", "mcore_model")
        raise _wrong(argument, path, f"holds {held}; pass it as {other}")
    return found


def _absence(path: Path, argument: str) -> str:
    """The reason why no checkpoint was found, and the remedy."""
    if not path.is_dir():
        return "the folder does not exist"
    if (path / "config.json").is_file():
        return "is a Hugging Face folder; pass it as model"
    kinds = " or an adapter_config.json" if argument == "mcore_adapters" else ""
    return f"has no checkpoint; name the folder with iter_NNNNNNN folders{kinds}"


def _record(source: Checkpoint | Path) -> dict[str, Any]:
    """The arguments the source was trained with; for a PEFT folder those that its adapter_config.json implies."""
    if isinstance(source, Path):
        return _peft_record(open_adapter(source).config, source)
    path = source.path.parent / RECORD
    try:
        # Other programs of the Megatron family write a file of this name too, with other content.
        return dict(input_file.read_json(path).get("arguments", {}))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise _wrong("mcore_model", str(path), f"cannot be read ({err}); restore it or remove it") from err


def _stop_words(source: Checkpoint | Path | None) -> tuple[str, ...]:
    """The stop words from the data report of the source's run, else from the files beside an adapter."""
    if source is None:
        return ()
    folder = source.parent if isinstance(source, Path) else source.path.parent
    try:
        return tuple(input_file.read_json(folder / DATA_REPORT).get("stop_words", ()))
    except (OSError, ValueError, AttributeError):
        return _stops_beside(source) if isinstance(source, Path) else ()


def _stops_beside(adapter: Path) -> tuple[str, ...]:
    try:
        return stops_of(adapter)
    except ValueError as err:
        raise _wrong("mcore_adapters", str(adapter), f"{err}; restore the file or remove it") from err


def _peft_record(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if config.get("bias", "none") not in ("none", "all"):
        message = (
            f"{peft_format.CONFIG_FILE} says bias is {config['bias']!r}, which only PEFT supports; merge it with PEFT"
        )
        raise _wrong("mcore_adapters", str(folder), message)
    return {
        "model": config.get("base_model_name_or_path"),
        "lora_rank": config.get("r", peft_format.DEFAULTS["r"]),
        "lora_alpha": config.get("lora_alpha", peft_format.DEFAULTS["lora_alpha"]),
        "use_rslora": config.get("use_rslora", False),
        "lora_bias": config.get("bias", "none"),
        **_HEADS.get(str(config.get("task_type")), {}),
    }


def _arguments(args: TrainArgs, given: frozenset[str], record: Mapping[str, Any]) -> TrainArgs:
    recorded = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.items()
        if name in ARGUMENTS and name not in given and (ARGUMENTS[name].group in _GROUPS or name in _NAMES)
    }
    if "torch_dtype" in given:
        recorded |= {"fp16": None, "bf16": None}
    return replace(args, **{**recorded, **_ONE_PROCESS})


def _model(args: TrainArgs, record: Mapping[str, Any]) -> Path:
    """The folder of the model; one that training fetched from the Hub is fetched again."""
    named = args.model or record.get("model")
    if not named:
        message = f"needs the Hugging Face folder with the config.json and tokenizer; the checkpoint has no {RECORD}"
        raise _wrong("model", None, message)
    asked = args
    if not args.model:
        use_hf = args.use_hf or bool(record.get("use_hf"))
        if not use_hf and not Path(named).is_dir():
            raise _wrong("model", str(named), f"{RECORD} names this folder, which does not exist; set model")
        revision = args.model_revision or record.get("model_revision")
        asked = replace(args, model=str(named), use_hf=use_hf, model_revision=revision)
    return model_source.folder(asked)


def _wrong(argument: str, value: str | None, message: str) -> InvalidInput:
    violation = Violation(path=f"args.{argument}", value=value, message=message)
    return InvalidInput((violation,), ExitCode.MISSING_INPUT)
