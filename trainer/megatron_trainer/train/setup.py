"""Builds a run from its arguments: process, data, model, optimizer, checkpoint to start from, reports.

One function a stage, in the order of `build`; each takes what the ones before it made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from megatron_trainer import backend as backends
from megatron_trainer import clock, model_source, parallel
from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import folder
from megatron_trainer.checkpoint import load as checkpoint_load
from megatron_trainer.checkpoint.folder import Owner
from megatron_trainer.checkpoint.save import SavePolicy, Saver
from megatron_trainer.convert import adapter_modules
from megatron_trainer.convert.adapter import check_loadable, load_adapter
from megatron_trainer.convert.adapter_source import holds_adapter
from megatron_trainer.convert.draw import draw_weights
from megatron_trainer.convert.load import load_weights
from megatron_trainer.data.collate import RowShape
from megatron_trainer.data.ordering.sample import Sampler, WholePass
from megatron_trainer.data.prepare import Prepared, prepare
from megatron_trainer.data.report import DATA_REPORT
from megatron_trainer.data.settings import row_shape
from megatron_trainer.data.streaming.items import StreamSampler
from megatron_trainer.engine import Engine
from megatron_trainer.environment import Environment
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainer.lora.freeze import freeze
from megatron_trainer.lora.inject import add_adapters
from megatron_trainer.models.build import build_model
from megatron_trainer.models.settings import draws_on_host
from megatron_trainer.models.spec import ModelSpec, read_model
from megatron_trainer.report import RunInfo, open_reporter
from megatron_trainer.report.flops import flops_per_pair, flops_per_token
from megatron_trainer.state import TrainState, on_data
from megatron_trainer.termination import Termination
from megatron_trainer.train import optim, output_folder, resume
from megatron_trainer.train.enough_data import check_first_step
from megatron_trainer.train.feed import EvaluationFeed, Feed
from megatron_trainer.train.loop import Run
from megatron_trainer.train.preference_run import engine_and_reference, task_of
from megatron_trainer.train.schedule import Schedule
from megatron_trainjob import violation
from megatron_trainjob.args import availability as status
from megatron_trainjob.args import derive, rules
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.parse import Parsed
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import RECORD, Checkpoint
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

logger = logging.getLogger(__name__)


def start_process(env: Environment, args: TrainArgs) -> Backend:
    """The backend of this rank, with its device taken and the process group started. Collective."""
    backend = backends.select()
    backend.install()
    backend.bind(env.local_rank)
    backend.set_deterministic(args.deterministic_mode)
    if not dist.is_initialized():
        parallel.join(
            backend,
            rank=env.rank,
            world_size=env.world_size,
            master_address=env.master_address,
            master_port=env.master_port,
            timeout_s=args.ddp_timeout,
        )
    parallel.initialise(args)
    return backend


def build(
    parsed: Parsed, task: Task, env: Environment, backend: Backend, termination: Termination
) -> tuple[Run, TrainState]:
    """The run and the state to start from. Collective."""
    args = _arguments(parsed)
    directory = model_source.folder(args)
    spec = read_model(directory, args)
    tokenizer = model_source.tokenizer(args, directory)
    if args.new_special_tokens:
        spec = read_model(directory, args, num_tokens=len(tokenizer))
    _check(parsed, task, spec, backend)
    save = output_folder.choose(args)
    owner, heartbeat = output_folder.claim(save, env)
    data = _prepare_data(args, tokenizer, task, spec, save)
    check_first_step(args, data, derive.data_parallel_size(args, dist.get_world_size()))
    engine, reference, data = engine_and_reference(
        args, spec, task, backend, data, _shape(args, tokenizer), _data_cache(args), build=build_engine
    )
    resolved = _resolved(args, data)
    total, eval_iters = resolved["train_iters"], resolved["eval_iters"]
    record = output_folder.arguments_record(args, task, resolved, spec.config)
    started = start_state(args, env, engine, backend, save, spec, record)
    state = on_data(started, data.identity, total_iterations=total)
    train, validation = _feeds(args, tokenizer, data)
    _tell_unread(validation, eval_iters)
    info = _run_info(parsed, task, env, backend, spec, engine, data, state, total)
    output_folder.write_json(data.report.to_json(), save / DATA_REPORT, owner)
    output_folder.write_json(engine.settings(), save / "megatron_config.json", owner)
    output_folder.write_json(record, save / RECORD, owner)
    reporter = open_reporter(
        args,
        save=save,
        rank=env.rank,
        environment=env.variables,
        now=clock.epoch_s,
        workshop=folder.workshop(save, owner),
    )
    reporter.start(info)
    run = Run(
        args=args,
        spec=spec,
        task=task_of(args, spec, task, reference),
        engine=engine,
        backend=backend,
        train=train,
        validation=validation,
        schedule=_schedule(args, total),
        reporter=reporter,
        saver=Saver(engine, backend, _save_policy(args, env, save, record, owner)),
        total_iterations=total,
        eval_iters=eval_iters,
        eval_interval=derive.eval_interval(args),
        flops_per_token=flops_per_token(spec.model, args),
        flops_per_pair=flops_per_pair(spec.model),
        termination=termination,
        stop_words=data.report.stop_words,
        heartbeat=heartbeat,
    )
    return run, state


def build_engine(args: TrainArgs, spec: ModelSpec, backend: Backend, *, keep_originals: bool = False) -> Engine:
    """Model with its weights, adapters or frozen parts, wrapped for training. Collective.

    keep_originals: as for add_adapters.
    """
    models = build_model(spec, args, backend)
    if args.no_initialization:
        load_weights(models, spec)
    elif draws_on_host(args, backend):
        draw_weights(models, spec, seed=args.seed)
    if args.train_type == "lora":
        directory = adapter_modules.start_of(None, args.adapter_load)
        parts = adapter_modules.parts(models, spec, directory)
        add_adapters(models, args, keep_originals=keep_originals, parts=parts)
        check_loadable(models, spec, args)
    else:
        freeze(models, args)
    return optim.wrap(models, args, learning_rate=derive.learning_rate(args))


def start_state(
    args: TrainArgs,
    env: Environment,
    engine: Engine,
    backend: Backend,
    save: Path,
    spec: ModelSpec,
    record: Mapping[str, Any],
) -> TrainState:
    """Loads the checkpoint that this run goes on from, if any, into the engine; says where it stands. Collective.

    record: the args.json of this run, to compare with the checkpoint's.
    """
    policy = checkpoint_load.LoadPolicy(
        layout=layout(),
        with_optimizer=not args.no_load_optim,
        with_rng=not args.no_load_rng,
    )
    if env.resume != "Never":
        own = checkpoint_load.find(save)
        if own is not None:
            logger.info("resuming job=%s from=%s", env.job_name, own.path)
            resume.check(own, record, with_optimizer=policy.with_optimizer)
            return checkpoint_load.resume(engine, own, backend, policy)
        if env.resume == "Required":
            raise TrainingError(ExitCode.NO_CHECKPOINT, f"resume is Required, but {save} holds no complete checkpoint")
    for found, part in _given_checkpoints(args):
        if args.finetune or (part == "base" and args.train_type == "lora"):
            checkpoint_load.weights(engine, found, part)
        else:
            resume.check(found, record, with_optimizer=policy.with_optimizer)
            return checkpoint_load.resume(engine, found, backend, policy)
    if args.adapter_load and holds_adapter(Path(args.adapter_load)):
        load_adapter(engine.models, spec, args, Path(args.adapter_load))
        engine.optimizer.reload_model_params()
    return TrainState()


def _given_checkpoints(args: TrainArgs) -> list[tuple[Checkpoint, Literal["base", "trainable"]]]:
    """What load and adapter_load name, each with the part of the model that it holds; the base comes first."""
    found: list[tuple[Checkpoint, Literal["base", "trainable"]]] = []
    sources: tuple[tuple[str, str | None, Literal["base", "trainable"]], ...] = (
        ("load", args.load, "base"),
        ("adapter_load", args.adapter_load, "trainable"),
    )
    for name, path, part in sources:
        if path is None or holds_adapter(Path(path)):
            continue
        checkpoint = checkpoint_load.find(Path(path), recognises_others=args.auto_detect_ckpt_format)
        if checkpoint is not None:
            found.append((checkpoint, part))
        elif args.exit_on_missing_checkpoint:
            message = f"spec.args.{name}: {path} holds no complete checkpoint; name the folder above iter_NNNNNNN"
            raise TrainingError(ExitCode.NO_CHECKPOINT, message)
        else:
            logger.warning("no complete checkpoint in %s=%s; going on without it", name, path)
    return found


def layout() -> dict[str, int]:
    """Sizes of the parallel axes of this run, under the names that checkpoints and reports use."""
    here = parallel.coordinates()
    return {
        "tp": here.tensor_size,
        "pp": here.pipeline_size,
        "cp": here.context_size,
        "dp": here.data_size,
        "ep": here.expert_size,
    }


def _arguments(parsed: Parsed) -> TrainArgs:
    if parsed.args is None:
        raise ValueError("arguments with violations cannot be run")
    return parsed.args


def _check(parsed: Parsed, task: Task, spec: ModelSpec, backend: Backend) -> None:
    """The rules that need the model, the number of ranks and the machine; all violations at once."""
    args = _arguments(parsed)
    found = rules.check(
        args, parsed.given, task=task, world_size=dist.get_world_size(), hf_config=spec.config, path="spec.args"
    )
    said = {warning.message for warning in parsed.warnings}
    for warning in violation.warnings(found):
        if warning.message not in said:
            logger.warning("%s", warning)
    violations = violation.errors(found)
    if args.fp8_format and args.fp8_recipe == "mxfp8" and "mxfp8" not in backend.fused_kernels():
        message = "needs a Blackwell GPU, and this is none; use blockwise"
        violations += (Violation(path="spec.args.fp8_recipe", value="mxfp8", message=message),)
    if backend.num_devices() is None:
        violations += status.without_gpu(args, task=task)
    if violations:
        raise InvalidInput(violations)


def _prepare_data(
    args: TrainArgs, tokenizer: PreTrainedTokenizerBase, task: Task, spec: ModelSpec, save: Path
) -> Prepared:
    """The first rank reads and caches; the others read the cache after it, and so do later versions of the run."""
    is_first = dist.get_rank() == 0
    max_length = derive.max_length(args, spec.config) or spec.model.max_position_embeddings
    options: dict[str, Any] = {
        "task": task,
        "max_length": max_length,
        "save": save,
        "cache_directory": _data_cache(args),
        "is_first_rank": is_first,
    }
    if not is_first:
        dist.barrier()
    prepared = prepare(args, tokenizer, **options)
    if is_first:
        dist.barrier()
    return prepared


def _data_cache(args: TrainArgs) -> Path:
    return Path(derive.save_directory(args)) / "data_cache"


def _shape(args: TrainArgs, tokenizer: PreTrainedTokenizerBase) -> RowShape:
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return row_shape(args, pad_id=pad_id)


def _feeds(args: TrainArgs, tokenizer: PreTrainedTokenizerBase, data: Prepared) -> tuple[Feed, EvaluationFeed | None]:
    world_size = dist.get_world_size()
    place = {
        "micro_batch_size": args.micro_batch_size,
        "data_parallel_rank": parallel.coordinates().data,
        "data_parallel_size": derive.data_parallel_size(args, world_size),
    }
    common = {
        "shape": _shape(args, tokenizer),
        "num_micro_batches": derive.num_micro_batches(args, world_size),
        "num_workers": derive.num_workers(args),
    }
    train = Feed(items=data.train, sampler=_train_order(args, data, place), **common)
    if not data.validation:
        return train, None
    in_order = WholePass(num_items=len(data.validation), **place)
    return train, EvaluationFeed(items=data.validation, order=in_order, **common)


def _tell_unread(validation: EvaluationFeed | None, eval_iters: int) -> None:
    """Says how much of the validation set the given number of steps leaves out."""
    if validation is None or eval_iters == 0:
        return
    read, rows = validation.num_items_in(eval_iters), len(validation.items)
    if read < rows:
        logger.warning("eval_iters=%d reads %d of the %d rows of the validation set", eval_iters, read, rows)


def _train_order(args: TrainArgs, data: Prepared, place: dict[str, int]) -> Sampler | StreamSampler:
    if data.num_items is None:
        return StreamSampler(num_epochs=args.max_epochs, **place)
    order = derive.dataloader_type(args)
    lengths = torch.from_numpy(data.lengths) if args.group_by_length and data.lengths is not None else None
    return Sampler(
        num_items=data.num_items, dataloader_type=order, num_epochs=args.max_epochs, lengths=lengths, **place
    )


def _schedule(args: TrainArgs, total_iterations: int) -> Schedule:
    return Schedule(
        peak=derive.learning_rate(args),
        floor=args.min_lr,
        warmup_steps=derive.lr_warmup_samples(args, total_iterations) / args.global_batch_size,
        decay_steps=derive.lr_decay_samples(args, total_iterations) // args.global_batch_size,
        style=args.lr_decay_style,
        late_steps=args.lr_wsd_decay_iters or 0,
        late_style=args.lr_wsd_decay_style,
    )


def _resolved(args: TrainArgs, data: Prepared) -> dict[str, Any]:
    """What follows from arguments and data: the length of the run and of an evaluation, and the course of the rate."""
    data_parallel_size = derive.data_parallel_size(args, dist.get_world_size())
    total = derive.train_iters(args, data.num_items, data_parallel_size)
    schedule = _schedule(args, total)
    return {
        "train_iters": total,
        "eval_iters": derive.eval_iters(args, len(data.validation or ())),
        "lr_decay_iters": schedule.decay_steps,
        "lr_warmup_iters": schedule.warmup_steps,
    }


def _save_policy(args: TrainArgs, env: Environment, save: Path, record: Mapping[str, Any], owner: Owner) -> SavePolicy:
    return SavePolicy(
        save=save,
        layout=layout(),
        train_type=args.train_type,
        with_optimizer=not args.no_save_optim,
        with_rng=not args.no_save_rng,
        owner=owner,
        in_background=args.async_save,
        on_termination=env.save_on_termination,
        limit=args.save_total_limit,
        record=json.dumps(record, indent=1),
    )


def _run_info(
    parsed: Parsed,
    task: Task,
    env: Environment,
    backend: Backend,
    spec: ModelSpec,
    engine: Engine,
    data: Prepared,
    state: TrainState,
    total_iterations: int,
) -> RunInfo:
    args = _arguments(parsed)
    return RunInfo(
        job_name=env.job_name,
        task=task,
        model=str(spec.directory),
        train_type=args.train_type,
        num_parameters=engine.num_parameters(trainable_only=False),
        num_trainable_parameters=engine.num_parameters(trainable_only=True),
        device=backend.device_name(),
        world_size=dist.get_world_size(),
        layout=layout(),
        dtype=str(spec.dtype).removeprefix("torch."),
        micro_batch_size=args.micro_batch_size,
        global_batch_size=args.global_batch_size,
        max_length=derive.max_length(args, spec.config) or spec.model.max_position_embeddings,
        start_iteration=state.iteration,
        total_iterations=total_iterations,
        consumed_samples=state.consumed_samples,
        peak_flops_per_second_per_gpu=backend.peak_flops(spec.dtype),
        data=data.report.to_json(),
        arguments_given={name: asdict(args)[name] for name in sorted(parsed.given)},
    )
