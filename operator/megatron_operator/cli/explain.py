"""mtj explain: the help of a field of the manifest or of an argument of the trainer."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_operator.api.reference import CHANGES, inside, limits, type_of
from megatron_operator.api.schema import structural
from megatron_operator.api.schema.parts import changes
from megatron_operator.api.spec import spec_schema
from megatron_operator.cli.output import INVALID, OK, error, escape, out, show_table, table
from megatron_trainjob.args.document import default
from megatron_trainjob.args.field import Argument
from megatron_trainjob.args.names import ALIASES, LISTED, explain_unknown
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.args.value import shown

Schema = Mapping[str, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("explain", help="explain a field of the manifest or an argument")
    command.add_argument("field", nargs="?", default="spec", help="for example spec.network.rdma or lr_decay_style")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 with the help; 2 for an unknown name, with the nearest known one."""
    name = arguments.field.removeprefix("spec.").replace("args.", "", 1)
    found = find_arguments(name)
    for argument in found:
        _show_argument(argument)
    if found:
        return OK
    if name == "args":
        _show_arguments()
        return OK
    schema = find_field(name)
    if schema is not None:
        _show_field(arguments.field, schema)
        return OK
    error.print(f"no field or argument {escape(arguments.field)}; {escape(_hint(name))}")
    return INVALID


def _hint(name: str) -> str:
    """What stands for an unknown name: of an argument first, then of a field."""
    said = explain_unknown(name.replace("-", "_").removeprefix("__"), "sft").removeprefix("unknown argument; ")
    near = structural.nearest(name, dict.fromkeys(field_names(spec_schema(), "")))
    if said != LISTED:
        return said
    return f"did you mean {near}?" if near else "mtj explain spec and mtj explain args list all"


def find_arguments(name: str) -> tuple[Argument, ...]:
    """The arguments with this name, in snake_case or kebab-case: its own, and the one whose ms-swift 4.x name it is.

    Some names are an argument of an export and another name of one of training.
    """
    plain = name.replace("-", "_").removeprefix("__")
    alias = ALIASES.get(plain)
    names = (alias.canonical if alias else plain, plain)
    return tuple(ARGUMENTS[each] for each in dict.fromkeys(names) if each in ARGUMENTS)


def find_field(path: str) -> Schema | None:
    """The schema of a field by its path below spec."""
    schema: Schema | None = spec_schema()
    for part in path.split(".") if path and path != "spec" else ():
        schema = inside(schema).get(part.partition("[")[0]) if schema else None
    return schema


def field_names(schema: Schema, path: str) -> Iterator[str]:
    """Paths of all described fields below a schema."""
    for name, part in inside(schema).items():
        if "description" in part:
            yield f"{path}{name}"
            yield from field_names(part, f"{path}{name}.")


def _show_field(path: str, schema: Schema) -> None:
    out.print(f"[bold]{escape(path)}[/]  [dim]{type_of(schema)}[/]")
    if schema.get("description"):
        out.print(escape(schema["description"]))
    for label, value in limits(schema):
        out.print(f"[dim]{label}:[/] {escape(value)}")
    changes_when = dict(changes(spec_schema())).get(path.removeprefix("spec."))
    if changes_when:
        out.print(f"[dim]changes:[/] {CHANGES[changes_when]}")
    fields = table("fields", "name", "type", "default", "what it does")
    for name, part in inside(schema).items():
        default = escape(shown(part["default"])) if "default" in part else ""
        fields.add_row(name, type_of(part), default, escape(part.get("description", "as in Kubernetes")))
    if fields.row_count:
        show_table(fields)


def _show_argument(argument: Argument) -> None:
    out.print(f"[bold]spec.args.{argument.name}[/]  [dim]{argument.type}, group {argument.group}[/]")
    out.print(escape(argument.help))
    facts = [
        ("default", default(argument)),
        ("one of", ", ".join(argument.choices or ())),
        ("unit", argument.unit),
        ("tasks", ", ".join(argument.applies_to)),
        ("other names", ", ".join((*argument.aliases, *argument.inverted_aliases))),
        ("taken from config.json", ", ".join(argument.hf_config_keys)),
        ("status", argument.status + (f": {argument.reason}" if argument.reason else "")),
        *((shown(value), f"refused: {reason}") for value, reason in argument.refused_choices.items()),
        *((shown(value), remark) for value, remark in argument.warned_choices.items()),
    ]
    for label, value in facts:
        if value:
            out.print(f"[dim]{label}:[/] {escape(value)}")


def _show_arguments() -> None:
    arguments = table("spec.args", "name", "type", "default", "status", "what it does")
    for argument in ARGUMENTS.values():
        help_text = escape(argument.help.partition(". ")[0])
        arguments.add_row(argument.name, argument.type, escape(default(argument)), argument.status, help_text)
    show_table(arguments)
