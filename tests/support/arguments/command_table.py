"""The commands of reference_commands.yaml through `mtj from-args` and validation; as a program it prints them."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_operator import manifest
from megatron_operator.cli import from_args
from megatron_operator.core.job import Job
from megatron_trainjob.args.cli import parse_command_line

_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str) -> Any:
    """The content of a safe document, by libyaml where it is there: every pytest worker reads all manifests."""
    return yaml.load(text, Loader=_FAST_LOADER)


COMMANDS = read_yaml((Path(__file__).parent / "reference_commands.yaml").read_text())
GENERATES = ("grpo", "gkd")
VERSIONS = {"3.8": "3.8", "3.9": "3.9", "4.x": "4"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one command: its manifest (or the command that it is), its problems and its warnings."""

    version: str
    name: str
    text: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return "refused" if self.problems else "warned" if self.warnings else "accepted"


def script(command: dict) -> str:
    """The command as a user's script has it."""
    flags = []
    for name, value in command["settings"].items():
        words = value if isinstance(value, list) else [value]
        flags.append(" ".join([f"--{name}", *(shlex.quote(str(word)) for word in words)]))
    where = {"NPROC_PER_NODE": command.get("nproc_per_node"), "NNODES": command.get("nnodes")}
    before = [f"{name}={value}" for name, value in where.items() if value is not None]
    return " \\\n    ".join([" ".join([*before, "megatron", command["command"]]), *flags]) + "\n"


def outcome(command: dict, *, tells_version: bool = True) -> Outcome:
    """The command written as a manifest and validated, as `mtj from-args` and `mtj validate` do it."""
    source = from_args.read(script(command))
    (launch,) = source.launches
    version = VERSIONS[command["version"]] if tells_version else None
    written, unread = from_args.translated(source, launch, version=version)
    if launch.task == "export":
        parsed = parse_command_line(shlex.split(written.text, comments=True)[2:], "export")
        problems, warnings = parsed.violations, parsed.warnings
    else:
        job = manifest.parse(read_yaml(written.text))
        problems, warnings = ((), job.warnings) if isinstance(job, Job) else (job, ())
    return Outcome(
        version=command["version"],
        name=command["name"],
        text=written.text,
        problems=tuple(map(str, (*unread, *problems))),
        warnings=tuple(map(str, warnings)),
    )


def counts(outcomes: list[Outcome]) -> dict[str, Counter]:
    """Accepted, warned and refused of each version."""
    return {
        version: Counter(each.verdict for each in outcomes if each.version == version)
        for version in dict.fromkeys(each.version for each in outcomes)
    }


def lines(outcomes: list[Outcome]) -> list[str]:
    """The table, the reasons of refusals by how many commands have them, and the counts."""
    table = [
        f"{each.version:<4} {each.verdict:<9} {each.name:<44} {'; '.join(each.problems)[:150]}" for each in outcomes
    ]
    reasons = Counter(problem for each in outcomes for problem in each.problems)
    why = [f"{count:>4} {reason[:170]}" for reason, count in reasons.most_common()]
    totals = [
        f"{version}: " + ", ".join(f"{n} {verdict}" for verdict, n in found.items())
        for version, found in counts(outcomes).items()
    ]
    return [*table, "", *why, "", *totals]


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines([outcome(command) for command in COMMANDS]))
