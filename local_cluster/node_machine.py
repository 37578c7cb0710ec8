"""Whether this machine can be a Kubernetes node: its packages, and what the kernel lets them do.

Run, it prints the Debian packages that are missing. Standard library only, so that any Python can run it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

CNI_FOLDER = Path("/usr/lib/cni")
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "iptables": "iptables",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    f"{CNI_FOLDER}/bridge": "containernetworking-plugins",
}
# What a node does all day, by the words that say so; each runs in a new empty folder.
PROBES = {
    "make mount and network namespaces": "unshare --mount --net true",
    "mount": "unshare --mount mount -t tmpfs probe .",
    "mount overlays": (
        "mkdir lower upper work merged && "
        "unshare --mount mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged"
    ),
    "make a bridge": "ip link add mtj-probe$$ type bridge && ip link delete mtj-probe$$",
    "set rules of iptables": "unshare --net iptables -w -t nat -N PROBE",
    "put a process into a cgroup": (
        "groups=/sys/fs/cgroup; [ -e $groups/cgroup.controllers ] || groups=$groups/memory; group=$groups/mtj-probe$$; "
        "mkdir $group && (sh -c 'echo $$ > '$group/cgroup.procs); entered=$?; rmdir $group; exit $entered"
    ),
}
PROBE_PATIENCE_S = 20.0


class Unavailable(Exception):
    """This machine cannot be a node; the message says why and what to do."""


def missing_packages() -> list[str]:
    """The Debian packages without whose programs there is no node."""
    return sorted(package for program, package in PACKAGES.items() if not shutil.which(program))


def check(probes: Mapping[str, str] = PROBES) -> None:
    """Raises Unavailable unless this machine has what a node needs and may do what a node does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Unavailable("a node needs Linux and root")
    if absent := missing_packages():
        raise Unavailable(f"a node needs more programs: apt-get install --no-install-recommends {' '.join(absent)}")
    refused = [f"{what} ({answer})" for what, command in probes.items() if (answer := problem(command))]
    if refused:
        raise Unavailable(f"a node needs a privileged machine; this one may not {'; '.join(refused)}")


def problem(command: str) -> str:
    """Why a shell command failed in a folder of its own; empty when it did not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                ["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=PROBE_PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {PROBE_PATIENCE_S:.0f} s"
    if not done.returncode:
        return ""
    return done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"


if __name__ == "__main__":
    print(*missing_packages())
