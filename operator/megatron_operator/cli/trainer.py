"""mtj export and mtj data: the trainer's own commands, started as processes with this command line's paths.

mtj data job.yaml                         the data of a manifest, without training
mtj export --to_hf true --mcore_model RUN passed on as it is
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from megatron_operator.cli.load import add_manifest, load
from megatron_operator.cli.output import INVALID, show_violations
from megatron_operator.cluster.local.paths import rewritten_yaml
from megatron_operator.core.desired.config_map import FILE_NAME, args_text

PASSED_ON = ("export", "data")
MANIFEST_SUFFIXES = (".yaml", ".yml")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands to the help; `main` passes them on before parsing any of their words."""
    commands.add_parser("export", help="convert a checkpoint (arguments of the trainer's export)")
    commands.add_parser("data", help="show how a manifest's data are encoded: mtj data job.yaml")


def run(name: str, words: Sequence[str]) -> int:
    """The exit code of `python -m megatron_trainer NAME ...`; 2 if a manifest is invalid."""
    if name == "data" and words and Path(words[0]).suffix in MANIFEST_SUFFIXES:
        return _run_with_manifest(name, words)
    return _start([name, *words])


def _run_with_manifest(name: str, words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"mtj {name}")
    add_manifest(parser)
    arguments, rest = parser.parse_known_args(words)
    loaded = load(arguments, local=True)
    if loaded.job is None:
        show_violations(arguments.file, loaded.violations)
        return INVALID
    paths = {mount: str(folder) for mount, folder in loaded.mounts.items() if folder}
    with tempfile.TemporaryDirectory(prefix="mtj-") as folder:
        file = Path(folder) / FILE_NAME
        file.write_text(rewritten_yaml(args_text(loaded.job), paths))
        return _start([name, "--task", loaded.job.task, "--config", str(file), *rest])


def _start(words: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "megatron_trainer", *words], check=False).returncode
