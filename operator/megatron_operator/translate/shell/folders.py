"""The folder that a script is in (`cd`, `pwd`), and the paths that it makes of it, as in a pod. Runs nothing.

A script starts in WORKDIR, which stands for the folder that it is started in. None: a folder that is not known.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_operator.translate.shell.nodes import is_evaluated

WORKDIR = "/workdir"
HOME = "/root"


def absolute(name: str, folder: str | None) -> str | None:
    """The path in the pod, without `..`; None where only a machine knows it, as above the folder of the start."""
    if not is_evaluated(name):
        return None
    name = re.sub(r"^~(?=/|$)", HOME, name)
    if name.startswith("/"):
        return posixpath.normpath(re.sub("^/+", "/", name))
    path = None if folder is None else posixpath.normpath(posixpath.join(folder, name))
    return None if path is None or (is_below(folder or "", WORKDIR) and not is_below(path, WORKDIR)) else path


def is_below(path: str, folder: str) -> bool:
    """Whether the path is the folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def changed(folder: str | None, given: Sequence[str]) -> str | None:
    """The folder after `cd` with these words."""
    names = _without_options(given)
    return absolute(names[0] if names else HOME, folder) if names[:1] != ["-"] else None


def written(given: Sequence[str], folder: str | None) -> str | None:
    """What `pwd`, `realpath NAME` or `readlink -f NAME` writes; None for any other command."""
    program, names = given[0].rpartition("/")[2], _without_options(given[1:])
    if program == "pwd":
        return None if folder is None else f"{folder}\n"
    follows = program == "realpath" or (program == "readlink" and re.match(r"-[a-z]*[fem]|--can", "".join(given[1:2])))
    is_plain = not any(each.startswith("--rel") for each in given)
    path = absolute(names[0], folder) if follows and is_plain and len(names) == 1 else None
    return None if path is None else f"{path}\n"


def _without_options(given: Sequence[str]) -> list[str]:
    return [word for word in given if not re.match(r"--?[A-Za-z]|--$", word)]


def of_this_machine(name: str, folder: str | None) -> Path | None:
    """Where a file of the script lies here, if it is in the folder that it is started in."""
    path = absolute(name, folder)
    if path is None:
        return None
    inner = path.removeprefix(WORKDIR + "/")
    return Path(inner)
