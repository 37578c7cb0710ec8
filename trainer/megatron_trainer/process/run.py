"""One rank of a training run: parse, build, train, write the outputs; the exit code names the cause of a failure.

The only place that catches every exception: each failure becomes an exit code and a record for the launcher, and a bug
also a traceback in the log.
"""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Sequence

from megatron_trainer import backend as backends
from megatron_trainer import environment, out_of_memory, silent_rank, stacks, start_stages
from megatron_trainer.environment import Environment
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainer.process import recorded_arguments as inherit
from megatron_trainer.report import FinishRecord
from megatron_trainer.termination import Termination
from megatron_trainer.train import garbage_collection as garbage
from megatron_trainer.train import setup
from megatron_trainer.train.loop import fit
from megatron_trainer.train.outputs import write_outputs
from megatron_trainjob import shown
from megatron_trainjob.args.cli import parse_command_line
from megatron_trainjob.args.field import TRAINING_TASKS, TrainingTask
from megatron_trainjob.args.parse import Accepted, Parsed, Refused
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.progress import Phase
from megatron_trainjob.termination import TerminationRecord
from megatron_trainjob.termination import write as write_record

logger = logging.getLogger(__name__)

CHATTY_LIBRARIES = ("megatron.core", "torch", "datasets", "transformers", "filelock", "httpx")
"""Their INFO lines list every parameter and setting; logging_level DEBUG shows them, and Python's warnings."""


def main(argv: Sequence[str]) -> int:
    """Runs the rank; returns its exit code. argv: task, then the arguments as for `python -m megatron_trainer`."""
    env = environment.read()
    setup_logging(env, logging.INFO)
    stacks.listen(env.failure_file, env.rank)
    termination = Termination()
    termination.listen()
    task = _task(argv[0])
    accepted: Accepted | None = None
    try:
        accepted = parse(argv[1:], task, env)
        setup_logging(env, logging.getLevelName((accepted.args.logging_level or "INFO").upper()))
        train(accepted, task, env, termination)
    except BaseException as err:  # also torch's CheckpointException, a panic of a Rust library, SystemExit
        if _is_out_of_memory(err):
            logger.exception("out of GPU memory rank=%d iteration=%d", env.rank, termination.iteration)
            message = out_of_memory.explain(err, accepted, task, env.world_size, _device_memory_bytes)
            return _fail(env, termination, ExitCode.OUT_OF_DEVICE_MEMORY, message, err)
        if isinstance(err, TrainingError):
            return _fail(env, termination, err.exit_code, str(err))
        if silent_rank.is_cause(err):
            logger.exception("a collective timed out rank=%d iteration=%d", env.rank, termination.iteration)
            limit_s = accepted.args.ddp_timeout if accepted else 0
            message = silent_rank.explain(err, iteration=termination.iteration, limit_s=limit_s)
            return _fail(env, termination, ExitCode.COLLECTIVE_TIMEOUT, message, err)
        silent_rank.note()
        logger.exception("unexpected error rank=%d iteration=%d", env.rank, termination.iteration)
        return _fail(env, termination, ExitCode.ERROR, f"{type(err).__name__}: {err}", err)
    return ExitCode.OK


def _device_memory_bytes() -> int | None:
    return backends.select().available_memory_bytes()


def parse(argv: Sequence[str], task: TrainingTask, env: Environment) -> Accepted:
    """The arguments of the command line, validated for this number of ranks.

    Raises:
        InvalidInput: with every violation.
    """
    parsed: Parsed = parse_command_line(argv, task, world_size=env.world_size)
    if isinstance(parsed, Accepted):
        parsed = inherit.complete(parsed, task, world_size=env.world_size)
    for warning in parsed.warnings:
        logger.warning("%s", warning)
    if isinstance(parsed, Refused):
        raise InvalidInput(parsed.violations)
    return parsed


def train(accepted: Accepted, task: TrainingTask, env: Environment, termination: Termination) -> None:
    """Builds the run and trains; returns when training is complete.

    Raises:
        TrainingError: PREEMPTED when it was asked to stop (its state is saved), otherwise the cause of the failure.
    """
    backend = setup.start_process(env, accepted.args)
    start_stages.note(env, "processGroup")
    run, state = setup.build(accepted, task, env, backend, termination)
    start_stages.note(env, "loaded")
    try:
        termination.wait_for_step()
        with garbage.controlled(run.args):
            ended = fit(run, state)
        state, is_done = ended.state, not ended.is_stopped
        outputs = write_outputs(run, state, is_done=is_done)
        phase: Phase = "finished" if is_done else "stopped"
        if run.memory is not None:
            run.memory.close(forget=is_done or run.saver.policy.on_termination)
        run.reporter.finish(FinishRecord(phase=phase, iteration=state.iteration, outputs=outputs))
    finally:
        run.reporter.close()
        if run.heartbeat is not None:
            run.heartbeat.stop()
    if not is_done:
        message = f"stopped after step {state.iteration}; the same job continues from its newest checkpoint"
        raise TrainingError(ExitCode.PREEMPTED, message)


def setup_logging(env: Environment, level: int) -> None:
    """Log lines name the rank; ranks other than the first log warnings and errors only."""
    own_level = level if env.rank == 0 else max(level, logging.WARNING)
    shown.configure_logging(own_level, f"%(asctime)s %(levelname)s rank {env.rank} %(message)s")
    for library in CHATTY_LIBRARIES:
        logging.getLogger(library).setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
    warnings.simplefilter("default" if level <= logging.DEBUG else "ignore")


def _is_out_of_memory(error: BaseException) -> bool:
    """Also true when another rank ran out of memory during a save and this rank knows only the exit code."""
    if isinstance(error, TrainingError):
        return error.exit_code == ExitCode.OUT_OF_DEVICE_MEMORY
    return out_of_memory.is_cause(error)


def _task(name: str) -> TrainingTask:
    return next(task for task in TRAINING_TASKS if task == name)  # __main__ starts ranks for no other


def _fail(
    env: Environment, termination: Termination, exit_code: int, message: str, error: BaseException | None = None
) -> int:
    """Logs and records the failure. error: one whose place in the program says more than its message."""
    if exit_code == ExitCode.PREEMPTED:
        logger.info("%s", message)
    else:
        logger.error("rank=%d step=%d %s", env.rank, termination.iteration, message)
    record = TerminationRecord(
        exit_code=exit_code,
        reason=ExitCode(exit_code).name,
        rank=env.rank,
        iteration=termination.iteration,
        message=message,
        host=socket.gethostname(),
        stack="" if error is None else stacks.of_error(error),
    )
    try:
        write_record(env.failure_file, record)
    except OSError as err:  # the exit code alone still says what a restart would do
        logger.warning("cannot leave a record of the failure path=%s error=%s", env.failure_file, err)
    return exit_code
