"""Builds a run from its arguments: process, data, model, optimizer, checkpoint to start from, reports.

One function per stage, in the order of `build`; each takes the results of those before it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from megatron_trainer import backend as backends
from megatron_trainer import clock, environment, model_source, parallel, start_stages, upload
from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import folder, memory
from megatron_trainer.checkpoint.folder import Owner
from megatron_trainer.checkpoint.lease import Heartbeat
from megatron_trainer.checkpoint.memory import Memory
from megatron_trainer.checkpoint.memory_save import MemorySaver
from megatron_trainer.checkpoint.save import SavePolicy, Saver
from megatron_trainer.convert import adapter_modules
from megatron_trainer.convert.adapter import check_loadable
from megatron_trainer.convert.initialize import initialize_tower, initialize_weights
from megatron_trainer.convert.load import load_weights
from megatron_trainer.data.collate import RowShape
from megatron_trainer.data.ordering.sample import Sampler
from megatron_trainer.data.prepare import Prepared
from megatron_trainer.engine import Engine
from megatron_trainer.environment import Environment
from megatron_trainer.failure import InvalidInput
from megatron_trainer.lora.freeze import freeze
from megatron_trainer.lora.inject import add_adapters
from megatron_trainer.models.build import build_model
from megatron_trainer.models.settings import initializes_on_host, takes_whole_rows
from megatron_trainer.models.spec import ModelSpec, read_model, training_dtype
from megatron_trainer.report import Reporter, RunInfo, open_reporter
from megatron_trainer.report.flops import (
    flops_per_near_pair,
    flops_per_pair,
    flops_per_patch,
    flops_per_target,
    flops_per_token,
)
from megatron_trainer.state import TrainState, on_data
from megatron_trainer.tasks.reference import Reference
from megatron_trainer.termination import Termination
from megatron_trainer.train import optim, output_folder, starting_weights
from megatron_trainer.train.enough_data import check_first_step
from megatron_trainer.train.feed import feeds, tell_unread, train_order
from megatron_trainer.train.preference_run import engine_and_reference, task_of
from megatron_trainer.train.read_data import data_cache, max_length, read_data
from megatron_trainer.train.run_parts import Pace, Run
from megatron_trainer.train.schedule import Schedule
from megatron_trainer.train.start import start_state
from megatron_trainjob import violation
from megatron_trainjob.args import availability as status
from megatron_trainjob.args import derive, placement, rules
from megatron_trainjob.args.field import TrainingTask
from megatron_trainjob.args.parse import Accepted
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import DATA_REPORT, RECORD
from megatron_trainjob.violation import Violation

logger = logging.getLogger(__name__)

MEGATRON_CONFIG = "megatron_config.json"


def start_process(env: Environment, args: TrainArgs) -> Backend:
    """The backend of this rank, with its device bound and the process group started. Collective."""
    backend = backends.select()
    backends.refuse_missing_gpu(backend)
    backend.install()
    backend.bind(env.local_rank)
    backend.set_deterministic(args.deterministic_mode)
    if backend.collective == "nccl":
        environment.place_flight_recorder(Path(derive.save_directory(args)).absolute())
    if not dist.is_initialized():
        parallel.join(
            backend,
            rank=env.rank,
            world_size=env.world_size,
            master_address=env.master_address,
            master_port=env.master_port,
            attempt=env.attempt,
        )
    parallel.initialize(args)
    return backend


@dataclass(frozen=True, kw_only=True)
class _Course:
    """Derived from arguments and data: the length of the run and of an evaluation, and the learning-rate schedule."""

    train_iters: int
    eval_iters: int
    lr_decay_iters: float
    lr_warmup_iters: float


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of a run once its model is built. record: the content of args.json."""

    accepted: Accepted
    task: TrainingTask
    spec: ModelSpec
    shape: RowShape
    data: Prepared
    engine: Engine
    reference: Reference | None
    course: _Course
    save: Path
    owner: Owner
    memory: Memory | None
    record: Mapping[str, Any]


def build(
    accepted: Accepted, task: TrainingTask, env: Environment, backend: Backend, termination: Termination
) -> tuple[Run, TrainState]:
    """The run and the state to start from. Collective."""
    args = accepted.args
    spec, tokenizer = _model_and_tokenizer(args)
    _check(accepted, task, spec, backend)
    upload.check(args, "spec.args")
    parallel.interleave(placement.virtual_stages(args, spec.model.num_layers))
    save = output_folder.choose(args)
    owner, heartbeat = output_folder.claim(save, env)
    data, shape = read_data(args, tokenizer, task, spec, save)
    shape = replace(shape, whole_rows=takes_whole_rows(spec, args, task, backend))
    check_first_step(args, data, derive.data_parallel_size(args, dist.get_world_size()))
    engine, reference, data = engine_and_reference(
        args, spec, task, backend, data, shape, data_cache(args), build=build_engine
    )
    weights = starting_weights.identities(args, task, spec.directory, save)

    def record(state: TrainState) -> Mapping[str, Any]:
        resolved = asdict(_course(args, data, state))
        return output_folder.arguments_record(args, task, resolved, spec.config, weights)

    remembered = memory.of_run(env, save, owner)
    started = start_state(args, env, engine, backend, save, spec, record, memory=remembered)
    course = _course(args, data, started)
    _check_course(accepted, task, course)
    state = on_data(started, data.identity, total_iterations=course.train_iters)
    state = state if state.iteration else replace(state, run=owner.token)
    parts = _Parts(
        accepted=accepted,
        task=task,
        spec=spec,
        shape=shape,
        data=data,
        engine=engine,
        reference=reference,
        course=course,
        save=save,
        owner=owner,
        memory=remembered,
        record=record(started),
    )
    return _run(parts, env, backend, termination, heartbeat, state), state


def _run(
    parts: _Parts,
    env: Environment,
    backend: Backend,
    termination: Termination,
    heartbeat: Heartbeat | None,
    state: TrainState,
) -> Run:
    """Assembles the run, writes its settings to its folder and starts its reports. Collective."""
    args, spec, course = parts.accepted.args, parts.spec, parts.course
    train, validation = feeds(args, parts.data, parts.shape)
    tell_unread(validation, course.eval_iters)
    learned = task_of(args, spec, parts.task, parts.engine, parts.reference)
    policy = _save_policy(parts, env, _metric(args, learned.evaluated))
    info = _run_info(parts, env, backend, state)
    _write_settings(parts)
    return Run(
        args=args,
        spec=spec,
        task=learned,
        engine=parts.engine,
        backend=backend,
        train=train,
        validation=validation,
        schedule=_schedule(args, course.train_iters),
        reporter=_started_reporter(parts, env, info),
        saver=Saver(parts.engine, backend, policy),
        total_iterations=course.train_iters,
        eval_iters=course.eval_iters,
        evaluations=Pace(strategy=derive.eval_strategy(args), interval=derive.eval_interval(args)),
        saves=Pace(strategy=args.save_strategy, interval=args.save_interval),
        flops_per_token=flops_per_token(spec.model, args),
        flops_per_target=flops_per_target(spec.model, args),
        flops_per_pair=flops_per_pair(spec.model),
        flops_per_near_pair=flops_per_near_pair(spec.model),
        flops_per_patch=flops_per_patch(spec.model, args),
        termination=termination,
        stop_words=parts.data.report.stop_words,
        heartbeat=heartbeat,
        memory=MemorySaver(parts.engine, backend, policy, parts.memory, kept=state.iteration) if parts.memory else None,
        on_step=start_stages.first_step_of(env),
    )


def build_engine(args: TrainArgs, spec: ModelSpec, backend: Backend, *, keep_originals: bool = False) -> Engine:
    """The model with its weights, and adapters or frozen parts, wrapped for training. Collective.

    keep_originals: as for add_adapters.
    """
    models = build_model(spec, args, backend)
    if args.no_initialization:
        load_weights(models, spec)
    elif initializes_on_host(args, backend):
        initialize_weights(models, spec, seed=args.seed)
    else:
        initialize_tower(models, spec, seed=args.seed)
    if args.train_type != "full":
        directory = adapter_modules.start_of(None, args.adapter_load)
        parts = adapter_modules.parts(models, spec, directory)
        add_adapters(models, args, keep_originals=keep_originals, parts=parts)
        check_loadable(models, spec, args)
    else:
        freeze(models, args)
    return optim.wrap(models, args, peak=derive.learning_rate(args))


def _model_and_tokenizer(args: TrainArgs) -> tuple[ModelSpec, PreTrainedTokenizerBase]:
    """The model, with a vocabulary that includes the new special tokens, and its tokenizer."""
    directory = model_source.folder(args)
    spec = read_model(directory, args)
    tokenizer = model_source.tokenizer(args, directory)
    if args.new_special_tokens:
        spec = read_model(directory, args, num_tokens=len(tokenizer))
    return spec, tokenizer


def _check(accepted: Accepted, task: TrainingTask, spec: ModelSpec, backend: Backend) -> None:
    """The rules that need the model, the number of ranks and the machine; all violations at once."""
    args = accepted.args
    found = rules.check(
        args, accepted.given, task=task, world_size=dist.get_world_size(), hf_config=spec.config, path="spec.args"
    )
    said = accepted.warnings
    for warning in violation.told_once((*said, *violation.warnings(found))):
        if warning not in said:
            logger.warning("%s", warning)
    violations = violation.errors(found)
    if args.fp8_format and args.fp8_recipe == "mxfp8" and "mxfp8" not in backend.fused_kernels():
        message = "needs a Blackwell GPU, which this is not; use blockwise"
        violations += (Violation(path="spec.args.fp8_recipe", value="mxfp8", message=message),)
    if backend.num_devices() is None:
        violations += status.without_gpu(args, task=task)
    if backend.layer_impl == "transformer_engine":
        is_float32 = training_dtype(args, spec.config) == torch.float32
        violations += status.by_transformer_engine(args, is_float32=is_float32)
    if violations:
        raise InvalidInput(violations)


def _check_course(accepted: Accepted, task: TrainingTask, course: _Course) -> None:
    """The rules that need the length of the run, which max_epochs leaves to the data; all violations at once."""
    known = replace(accepted.args, train_iters=course.train_iters)
    violations = violation.errors(rules.check(known, accepted.given, task=task))
    if violations:
        raise InvalidInput(violations)


def _schedule(args: TrainArgs, total_iterations: int) -> Schedule:
    return Schedule(
        peak=derive.learning_rate(args),
        floor=args.min_lr,
        start=args.lr_warmup_init,
        warmup_steps=derive.lr_warmup_samples(args, total_iterations) / args.global_batch_size,
        decay_steps=derive.lr_decay_samples(args, total_iterations) // args.global_batch_size,
        style=args.lr_decay_style,
        late_steps=args.lr_wsd_decay_iters or 0,
        late_style=args.lr_wsd_decay_style,
    )


def _course(args: TrainArgs, data: Prepared, state: TrainState) -> _Course:
    """The course of a run that starts from, or continues after, this state."""
    total = _total_iterations(args, data, state)
    schedule = _schedule(args, total)
    return _Course(
        train_iters=total,
        eval_iters=derive.eval_iters(args, len(data.validation or ())),
        lr_decay_iters=schedule.decay_steps,
        lr_warmup_iters=schedule.warmup_steps,
    )


def _total_iterations(args: TrainArgs, data: Prepared, state: TrainState) -> int:
    """As derive.train_iters; after a resume of max_epochs the steps of what earlier ones, of any size, did not read."""
    size = derive.data_parallel_size(args, dist.get_world_size())
    if args.max_epochs is None or data.num_items is None or state.iteration == 0:
        return derive.train_iters(args, data.num_items, size)
    order = train_order(args, data, dist.get_world_size())
    assert isinstance(order, Sampler)
    left = replace(order, consumed_samples=state.consumed_samples, history=state.history).num_left or 0
    return min(state.iteration + left // args.global_batch_size, args.train_iters or sys.maxsize)


def _write_settings(parts: _Parts) -> None:
    """Writes the data report, Megatron's settings and the arguments beside the checkpoints."""
    contents = {
        DATA_REPORT: parts.data.report.to_json(),
        MEGATRON_CONFIG: parts.engine.settings(),
        RECORD: parts.record,
    }
    for name, content in contents.items():
        output_folder.write_json(content, parts.save / name, parts.owner)


def _started_reporter(parts: _Parts, env: Environment, info: RunInfo) -> Reporter:
    reporter = open_reporter(
        parts.accepted.args,
        save=parts.save,
        rank=env.rank,
        environment=env.variables,
        now=clock.epoch_s,
        door=folder.door(parts.save, parts.owner),
    )
    reporter.start(info)
    return reporter


def _metric(args: TrainArgs, known: Sequence[str]) -> str:
    """The task's name of metric_for_best_model, "" for its loss. Raises InvalidInput for an unknown one."""
    given = args.metric_for_best_model or "loss"
    plain = given.removeprefix("eval_")
    names = {"loss": known[0], **{spelled: name for name in known for spelled in (name, name.replace(" ", "_"))}}
    if plain not in names:
        message = f"is not a metric of this task; it has {', '.join(known)}"
        raise InvalidInput((Violation(path="spec.args.metric_for_best_model", value=given, message=message),))
    return "" if names[plain] == known[0] and not args.greater_is_better else names[plain]


def _save_policy(parts: _Parts, env: Environment, metric: str) -> SavePolicy:
    args = parts.accepted.args
    return SavePolicy(
        save=parts.save,
        layout=parallel.layout(),
        train_type="full" if args.train_type == "full" else "lora",
        with_optimizer=not args.no_save_optim,
        with_rng=not args.no_save_rng,
        owner=parts.owner,
        in_background=args.async_save,
        on_termination=env.save_on_termination,
        limit=args.save_total_limit,
        record=json.dumps(parts.record, indent=1),
        metric=metric,
        greater_is_better=bool(metric) and derive.greater_is_better(args),
    )


def _run_info(parts: _Parts, env: Environment, backend: Backend, state: TrainState) -> RunInfo:
    """The facts about the run as a whole, for its reports. Collective."""
    args, spec, engine = parts.accepted.args, parts.spec, parts.engine
    return RunInfo(
        job_name=env.job_name,
        task=parts.task,
        model=str(spec.directory),
        train_type=args.train_type,
        num_parameters=engine.num_parameters(trainable_only=False),
        num_trainable_parameters=engine.num_parameters(trainable_only=True),
        device=backend.device_name(),
        world_size=dist.get_world_size(),
        layout=parallel.layout(),
        dtype=str(spec.dtype).removeprefix("torch."),
        micro_batch_size=args.micro_batch_size,
        global_batch_size=args.global_batch_size,
        max_length=max_length(args, spec),
        start_iteration=state.iteration,
        total_iterations=parts.course.train_iters,
        consumed_samples=state.consumed_samples,
        peak_flops_per_second_per_gpu=backend.peak_flops(spec.dtype),
        data=parts.data.report.to_json(),
        arguments_given={name: asdict(args)[name] for name in sorted(parts.accepted.given)},
    )
