"""What is known at a place of a script: values, functions, files that it wrote, and the commands found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tree_sitter import Node

from megatron_operator.translate.shell.values import Values


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One simple command: its words, and the variables set before or in front of it.

    behind: the words of the programs that run the script it stands in, such as `docker run -v ... bash -c`.
    exported: names of the variables that only the programs it starts see. folder: the one that it is started in.
    private: names of variables that the shell puts into words and passes to no program.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    behind: tuple[str, ...] = ()
    exported: frozenset[str] = frozenset()
    folder: str | None = None
    private: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Script:
    """The commands in their order, and those of branches that are not taken (skipped).

    header: options of a batch system, such as `--nodes=2`. remarks: what is not known or not understood, by line.
    files: those that the script writes itself.
    """

    commands: tuple[Invocation, ...]
    skipped: tuple[Invocation, ...] = ()
    header: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    """What a name means outside of a function that makes it its own."""

    text: str | None
    array: dict[str, str] | None
    is_exported: bool


@dataclass
class Reader:
    """What a script has set, defined and written up to some place.

    input: the text that commands read here, None if it is not known. skips: on in a branch that is not taken. over:
    "exit", "return", "break" or "continue" after one, until what it ends has ended. inherited: the variables that the
    shell was started with. locals: of the function that is read, None outside of one. exports_all: after `set -a`.
    """

    values: Values
    folder: Path | None
    functions: dict[str, Node] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    found: list[Invocation] = field(default_factory=list)
    skipped: list[Invocation] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    remarks: dict[str, None] = field(default_factory=dict)
    behind: tuple[str, ...] = ()
    exported: set[str] = field(default_factory=set)
    depth: int = 0
    skips: bool = False
    input: str | None = None
    over: str = ""
    inherited: frozenset[str] = frozenset()
    locals: dict[str, Outer] | None = None
    exports_all: bool = False

    def tell(self, node: Node, text: str) -> None:
        self.remarks[f"line {node.start_point[0] + 1}: {text}"] = None

    def add(self, own: Mapping[str, str], given: Sequence[str]) -> None:
        """Notes a command with the assignments in front of it."""
        invocation = Invocation(
            words=tuple(given),
            environment={**self.values.variables, **own},
            behind=self.behind,
            exported=frozenset((*self.exported, *own)) - self.values.used,
            folder=self.values.folder,
            private=frozenset(self.values.used) - self.exported - own.keys() - self.inherited,
        )
        (self.skipped if self.skips else self.found).append(invocation)
