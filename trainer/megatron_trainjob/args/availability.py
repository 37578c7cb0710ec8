"""Which arguments may be set: those that work for this task on this machine. A default is always accepted."""

from __future__ import annotations

from megatron_trainjob.args.field import Argument, Task
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.args.value import shown
from megatron_trainjob.violation import Violation


def objection(argument: Argument, value: object, task: Task) -> str:
    """The reason why a well-formed value is not accepted, or ""."""
    default = argument.default_for(task)
    is_of_another_task = argument.essential and task not in argument.applies_to
    if value == default and not (is_of_another_task and _is_a_choice(argument)):
        return ""
    if is_of_another_task:
        return f"{_of_other_tasks(argument, task)}; remove it"
    if argument.status == "refused":
        return f"is refused: {argument.reason}"
    if argument.status == "not yet":
        remedy = "remove it" if default is None else f"remove it or leave it at {shown(default)}"
        return f"does not work yet; {remedy}"
    return ""


def remark(argument: Argument, value: object, task: Task) -> str:
    """A warning about an accepted value, or ""."""
    if value == argument.default_for(task):
        return ""
    if task not in argument.applies_to:
        return f"has no effect: it {_of_other_tasks(argument, task)}"
    if argument.status == "no effect" and value not in argument.fulfilled:
        return f"has no effect: {argument.reason}"
    return argument.warned_choices.get(value, "") if isinstance(value, str | bool) else ""


def _is_a_choice(argument: Argument) -> bool:
    """Whether the default asks for one of several things, such as an algorithm, and not for nothing."""
    return argument.choices is not None and not argument.nullable and not argument.is_list


def _of_other_tasks(argument: Argument, task: Task) -> str:
    return f"applies to {', '.join(argument.applies_to)} only and this is {task}"


def without_gpu(args: TrainArgs, *, task: Task, path: str = "spec.args") -> tuple[Violation, ...]:
    """Violations on a machine without a GPU: every argument that works on GPUs only, unless its value is the default or
    only disables what is not available.
    """
    return tuple(
        Violation(
            path=f"{path}.{name}",
            value=getattr(args, name),
            message="works only on a GPU, which this machine lacks; remove it, or run on a GPU machine",
        )
        for name, argument in ARGUMENTS.items()
        if argument.status == "works on GPU only"
        and getattr(args, name) not in (argument.default_for(task), *argument.fulfilled)
    )


def by_transformer_engine(args: TrainArgs, *, is_float32: bool, path: str = "spec.args") -> tuple[Violation, ...]:
    """Violations where TransformerEngine runs the layers: its attention over context-parallel ranks takes 16 bits."""
    if not is_float32 or args.context_parallel_size == 1 or args.transformer_impl == "local":
        return ()
    message = "float32 has no attention kernel on GPUs for context_parallel_size above 1; use bfloat16, or 1 there"
    return (Violation(path=f"{path}.torch_dtype", value=args.torch_dtype, message=message),)
