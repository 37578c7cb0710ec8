"""A container whose program the runtime could not start: the image lacks it or cannot execute it.

Only permanent errors: a failed device, mount or cgroup has the same reason but may succeed on a retry.
"""

from __future__ import annotations

import re

START_REASONS = frozenset({"StartError", "ContainerCannotRun"})  # containerd and CRI-O, Docker
# runc: `exec: "NAME": executable file not found in $PATH`; crun: `executable file `NAME` not found in $PATH`.
# A hook that the node lacks (`fork/exec /usr/bin/hook: no such file`) is not quoted: it is not the image's fault.
ABSENT = re.compile(
    r"""(?:\bexec: |executable file )["'`](?P<program>[^"'`]+)["'`]:? (?:[^"]*?)"""
    r"(?P<problem>not found in \$PATH|no such file or directory|permission denied|is a directory|exec format error)",
    re.IGNORECASE,
)
FOREIGN = re.compile(r"(?<!/)\bexec (?P<program>/\S+): (?P<problem>exec format error)", re.IGNORECASE)


def refusal(reason: str, message: str) -> str:
    """The program that cannot be started and why, as in `"torchrun": not found in $PATH`; empty for anything else."""
    found = reason in START_REASONS and (ABSENT.search(message) or FOREIGN.search(message))
    return f'"{found["program"]}": {found["problem"]}' if found else ""
