"""Converts a model: reads a Hugging Face folder or a Megatron-Core checkpoint, merges an adapter, writes the other.

Runs in one process, which holds the model once; tensors are streamed one at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from megatron.core.models.gpt import GPTModel

from megatron_trainer import model_source, parallel, upload
from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import folder
from megatron_trainer.checkpoint import load as checkpoint_load
from megatron_trainer.checkpoint.folder import Owner
from megatron_trainer.checkpoint.save import SavePolicy, Saver
from megatron_trainer.convert import adapter_modules, inputs, precision
from megatron_trainer.convert.adapter import load_adapter, save_adapter
from megatron_trainer.convert.companions import Companions
from megatron_trainer.convert.inputs import Inputs
from megatron_trainer.convert.load import load_weights
from megatron_trainer.convert.precision import Comparison
from megatron_trainer.convert.save import save_model
from megatron_trainer.convert.stream import Read, own_data
from megatron_trainer.engine import Engine
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainer.lora.inject import add_adapters
from megatron_trainer.lora.merge import merge_adapters, merged_weights
from megatron_trainer.models.build import build_model
from megatron_trainer.models.spec import ModelSpec, read_model
from megatron_trainer.state import TrainState
from megatron_trainjob import checkpoint_folder
from megatron_trainjob.args.rules.export import TEST_TYPES
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import RECORD
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

ITERATION = 1
"""Iteration of a converted checkpoint, as other tools of the Megatron family expect it."""
BYTES_PER_FILE = 10 * 10**9
MIN_FILES = 2

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory, and the values to write for each parameter. stop_words: the texts with which trained answers
    end.
    """

    chunks: list[GPTModel]
    spec: ModelSpec
    args: TrainArgs
    read: Read
    stop_words: tuple[str, ...] = ()

    def num_bytes(self) -> int:
        """The size of all parameters."""
        return sum(p.numel() * p.element_size() for chunk in self.chunks for p in chunk.parameters())


def export(args: TrainArgs, given: frozenset[str], backend: Backend, tell: Tell) -> Comparison | None:
    """Runs the export; returns the comparison of both models if test_convert_precision is set.

    given: the names of the arguments that the user set. tell: prints a line for the user.

    Raises:
        InvalidInput: an input does not match its argument, or the output exists already.
        TrainingError: OUTPUT_NOT_WRITABLE; no partial output is left.
    """
    found = inputs.find(args, given)
    output = _output(args, found)
    upload.check(args, "args")
    parallel.initialize(found.args)
    model = _load(found, backend)
    _check_widths(args, found, model)
    if args.test_convert_precision and model.spec.head is not None:
        message = "compares language models; remove it for a classifier, and compare its scores with transformers"
        raise InvalidInput((Violation(path="args.test_convert_precision", value=True, message=message),))
    tell(f"read {' and '.join(str(path) for path in found.folders())}")
    _check_room(output, model)
    if args.to_mcore:
        _write_checkpoint(args, model, backend, output)
    elif found.is_unmerged(args):
        save_adapter(model.chunks, model.spec, model.args, output, keeps_others=args.exist_ok, changed=_changed(model))
    else:
        _write_model(args, model, output)
    tell(f"written: {output} ({_description(output)})")
    if args.push_to_hub:
        tell(f"uploaded: {upload.push(output, args)}")
    if not args.test_convert_precision:
        return None
    return _compare(args, found, model, backend, output)


def _load(found: Inputs, backend: Backend) -> Loaded:
    """The model with its weights, and its adapter beside them. Collective."""
    args = found.args
    spec = _spec(found, args)
    chunks = build_model(spec, args, backend)
    if found.base is None:
        load_weights(chunks, spec)
    args = _adapted(found, args, chunks, spec)
    engine = engine_of(chunks)
    if found.base is not None:
        checkpoint_load.read_part(engine, found.base, "base")
    if isinstance(found.adapter, Path):
        load_adapter(chunks, spec, args, found.adapter)
    elif found.adapter is not None:
        checkpoint_load.read_part(engine, found.adapter, "trainable")
    read = own_data if found.adapter is None else merged_weights(chunks)
    whole = [chunk.eval() for chunk in chunks]
    return Loaded(chunks=whole, spec=spec, args=args, read=read, stop_words=found.stop_words)


def _adapted(found: Inputs, args: TrainArgs, chunks: list[GPTModel], spec: ModelSpec) -> TrainArgs:
    """Adds adapters of the right shape to the chunks; returns the arguments that select their modules. Collective."""
    if found.adapter is None:
        return args
    own = found.adapter if isinstance(found.adapter, Path) else None
    if own is not None:
        args = adapter_modules.with_modules(args, chunks, spec, own)
    add_adapters(chunks, args, parts=_widths(found, chunks, spec))
    return args


def _widths(found: Inputs, chunks: list[GPTModel], spec: ModelSpec) -> dict[str, int]:
    own = found.adapter if isinstance(found.adapter, Path) else None
    return adapter_modules.parts(chunks, spec, adapter_modules.start_of(own, found.adapter_load))


def _check_widths(args: TrainArgs, found: Inputs, model: Loaded) -> None:
    """Refuses adapters of separate projections for a checkpoint, which records a single rank for all adapters."""
    if args.to_mcore and found.is_unmerged(args) and _widths(found, model.chunks, model.spec):
        message = (
            "adapts q, k and v (or gate and up) separately, which only a PEFT folder records; training reads it "
            "as it is: name the folder in adapter_load"
        )
        raise InvalidInput((Violation(path="args.mcore_adapters", value=args.mcore_adapters[0], message=message),))


def _spec(found: Inputs, args: TrainArgs) -> ModelSpec:
    """The model, with the vocabulary as extended in training."""
    grown = len(model_source.tokenizer(args, found.model)) if args.new_special_tokens else 0
    return read_model(found.model, args, num_tokens=grown)


def engine_of(chunks: list[GPTModel]) -> Engine:
    """The chunks as an engine for checkpoints; unwrapped, because nothing trains."""
    return Engine(config=chunks[0].config, models=chunks, chunks=(), optimizer=None)


def _write_model(args: TrainArgs, model: Loaded, output: Path) -> None:
    """Writes the whole model as a Hugging Face folder, with its tokenizer if that has grown."""
    save_model(
        model.chunks,
        model.spec,
        output,
        max_shard_size=args.max_shard_size,
        read=model.read,
        keeps_others=args.exist_ok,
        changed=_changed(model),
        in_fp8=args.quant_method == "fp8",
    )


def _changed(model: Loaded) -> Companions:
    grown = model_source.tokenizer(model.args, model.spec.directory) if model.args.new_special_tokens else None
    return Companions(tokenizer=grown, stop_words=model.stop_words)


def _write_checkpoint(args: TrainArgs, model: Loaded, backend: Backend, output: Path) -> None:
    """As write_checkpoint, but removes a newly created folder on failure."""
    existed = output.exists()
    try:
        write_checkpoint(args, model, backend, output)
    except TrainingError:
        if not existed:
            shutil.rmtree(output, ignore_errors=True)
        raise


def write_checkpoint(args: TrainArgs, model: Loaded, backend: Backend, output: Path) -> None:
    """Writes a checkpoint that any layout can load, and the args.json that describes it: the model, or with merge_lora
    false the adapter only.
    """
    is_adapter = model.read is not own_data and not args.merge_lora
    if model.read is not own_data and not is_adapter:
        merge_adapters(model.chunks, keep_originals=False)
    owner = Owner(job_uid="", attempt=0)
    folder.claim(output, owner)
    train_type: Literal["lora", "full"] = "lora" if is_adapter else "full"
    base = str(Path(args.mcore_model).absolute()) if is_adapter and args.mcore_model else None
    trained = model.args.train_type if is_adapter and model.args.train_type != "full" else train_type
    whole = replace(model.args, model=str(model.spec.directory.absolute()), load=base, train_type=trained)
    record = json.dumps({"task": "export", "arguments": asdict(whole), "resolved": {}}, indent=1)
    policy = SavePolicy(
        save=output,
        layout={"tp": 1, "pp": 1, "cp": 1, "dp": 1, "ep": 1},
        train_type=train_type,
        with_optimizer=False,
        with_rng=False,
        owner=owner,
        in_background=False,
        on_termination=False,
        limit=None,
        record=record,
        num_files=args.thread_count or max(MIN_FILES, -(-model.num_bytes() // BYTES_PER_FILE)),
    )
    saver = Saver(engine_of(model.chunks), backend, policy)
    saver.start(TrainState(iteration=ITERATION), loss=None)
    saver.finish()
    folder.replace_text(output / RECORD, record)


def _output(args: TrainArgs, found: Inputs) -> Path:
    """The output path, which must be free unless exist_ok is set."""
    suffix = "mcore" if args.to_mcore else "hf" if args.merge_lora or found.adapter is None else "adapter"
    suffix = "merged" if found.adapter is not None and args.merge_lora else suffix
    source = found.folders()[-1]
    beside = source.parent if checkpoint_folder.NAME.fullmatch(source.name) else source
    # A Hub repository is in a cache, where results do not belong: its name is used in the working directory.
    is_repository = beside == found.model and not Path(str(args.model)).is_dir()
    name = Path(str(args.model)).name if is_repository else str(beside)
    output = Path(args.output_dir or f"{name}-{suffix}").absolute()
    if output in {path.absolute() for path in (*found.folders(), beside)}:
        raise _in_the_way(output, "is what the export reads; choose another folder")
    if output.exists() and not args.exist_ok:
        raise _in_the_way(output, "exists; choose another folder, or set exist_ok to write into it")
    if output.exists() and not output.is_dir():
        raise _in_the_way(output, "is not a directory; choose another one")
    if args.to_mcore and any(path.iteration != ITERATION for path in checkpoint_folder.checkpoints(output)):
        raise _in_the_way(output, "has the checkpoints of a run; choose another folder")
    return output


def _in_the_way(output: Path, message: str) -> InvalidInput:
    return InvalidInput((Violation(path="args.output_dir", value=str(output), message=message),))


def _check_room(output: Path, model: Loaded) -> None:
    """Checks free disk space: fails before hours of writing, not after."""
    place = next(parent for parent in output.parents if parent.is_dir())
    needed, free = model.num_bytes(), shutil.disk_usage(place).free
    if free < needed:
        message = f"{output} needs {_size(needed)} and {_size(free)} are free; free some or choose another output_dir"
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, message)


def _description(output: Path) -> str:
    sizes = [path.stat().st_size for path in output.rglob("*") if path.is_file()]
    return f"{len(sizes)} files, {_size(sum(sizes))}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 10**9:.2f} GB" if num_bytes >= 10**8 else f"{num_bytes / 10**6:.1f} MB"


def _compare(args: TrainArgs, found: Inputs, model: Loaded, backend: Backend, output: Path) -> Comparison:
    """Compares the written model, as stored on disk, with the source."""
    (name,) = (each for each in TEST_TYPES if each == args.test_convert_dtype)  # the rules refuse any other value
    dtype = getattr(torch, name)
    ids, prompt = precision.prompt(model.spec, model.args)
    test_args = replace(model.args, torch_dtype=name, fp16=None, bf16=None)
    spec = _spec(found, test_args)
    chunks = build_model(spec, test_args, backend)
    written = checkpoint_folder.inspect(checkpoint_folder.iteration_folder(output, ITERATION))
    if found.is_unmerged(args):
        theirs = _with_adapter_beside(args, found, model, output, ids, dtype)
        _adapted(found, test_args, chunks, spec)
        precision.copy_parameters(model.chunks, chunks)
        if args.to_mcore:
            checkpoint_load.read_part(engine_of(chunks), written, "trainable")
    else:
        directory = found.model if args.to_mcore else output
        theirs = precision.hugging_face(directory, ids, stored=model.spec.dtype, computed=dtype)
        if args.to_mcore:
            checkpoint_load.read_part(engine_of(chunks), written, "base")
        else:
            precision.copy_weights(model.chunks, model.spec, chunks, spec, model.read)
    ours = precision.megatron(chunks[0].eval(), spec, ids)
    return precision.compare(theirs, ours, dtype=dtype, prompt=prompt)


def _with_adapter_beside(
    args: TrainArgs, found: Inputs, model: Loaded, output: Path, ids: torch.Tensor, dtype: torch.dtype
) -> precision.Outputs:
    """The outputs of transformers with the adapter as loaded by PEFT: the written or the converted one."""
    adapter = found.adapter if args.to_mcore else output
    assert isinstance(adapter, Path)  # ensured by inputs.find
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as aside:
        base = found.model
        if found.base is not None:
            base = Path(aside) / "base"
            save_model(model.chunks, model.spec, base)
        return precision.hugging_face(base, ids, stored=model.spec.dtype, computed=dtype, adapter=adapter)
