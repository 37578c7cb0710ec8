"""What is known at a place of a script: its variables, arrays, arguments, and the folder that it is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from megatron_operator.translate.shell.folders import WORKDIR


@dataclass
class Values:
    """What is known at a place of a script. arguments: $1, $2 ...; None where whoever calls it decides.

    arrays: their values by index or, for those of `declare -A` (tables), by key. used: names of the variables whose
    values stand in words. file: the text of a file that is known, else None. assumed: names whose value hangs on a
    condition that is not known. folder: the one that the script is in. script, sourced: the paths of $0 and of the file
    that is read. These three are None where they are not known.
    """

    variables: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, dict[str, str]] = field(default_factory=dict)
    arguments: list[str] | None = None
    tables: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    file: Callable[[str], str | None] = lambda name: None
    assumed: set[str] = field(default_factory=set)
    folder: str | None = WORKDIR
    script: str | None = None
    sourced: str | None = None

    def copy(self) -> Values:
        """The same, to be changed apart."""
        arrays = {name: dict(each) for name, each in self.arrays.items()}
        return replace(
            self, variables=dict(self.variables), arrays=arrays, tables=set(self.tables), assumed=set(self.assumed)
        )

    def listed(self, name: str) -> list[str] | None:
        """The values of an array in their order."""
        array = self.arrays.get(name)
        return None if array is None else [array[key] for key in in_order(array)]


OF_THE_PLACE: Mapping[str, Callable[[Values], str | None]] = {
    "0": lambda values: values.script,
    "BASH_SOURCE": lambda values: values.sourced,
    "PWD": lambda values: values.folder,
}


def in_order(array: Mapping[str, str]) -> list[str]:
    """The keys of an array, by number if they are numbers."""
    return sorted(array, key=int) if all(key.isdigit() for key in array) else list(array)
