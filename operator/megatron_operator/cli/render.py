"""mtj render: prints the Kubernetes objects that the operator would create for a manifest, as YAML."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from megatron_operator.cli.load import add_manifest, load
from megatron_operator.cli.output import INVALID, OK, out, show_violations
from megatron_operator.core.desired import build
from megatron_operator.core.desired.config_map import plain


class _Dumper(yaml.SafeDumper):
    """Writes multi-line text as a block, as people do, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401 (the base class takes anything)
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("render", help="print the Kubernetes objects of a manifest")
    add_manifest(command)
    command.add_argument("--attempt", type=int, default=0, help="restart attempt to render (default 0)")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 with the objects on standard output, 2 with every problem."""
    loaded = load(arguments, local=False)
    if loaded.job is None:
        show_violations(arguments.file, loaded.violations)
        return INVALID
    objects = [plain(each) for each in build.everything(loaded.job, arguments.attempt)]
    out.print(documents(objects), end="", markup=False)
    return OK


def documents(objects: list[Any]) -> str:
    """The objects as a stream of YAML documents."""
    return "---\n".join(yaml.dump(each, Dumper=_Dumper, sort_keys=False, allow_unicode=True) for each in objects)
