"""One node of a cluster on this machine: its containerd and its kubelet, in a folder of its own.

The bridge, the control plane, services and DNS are one_node.py's.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from local_cluster import node_binaries
from local_cluster.control_plane import ControlPlane
from local_cluster.node_machine import CNI_FOLDER
from local_cluster.wait import wait_until

PAUSE_IMAGE = "localhost/pause:1"
NAMESPACE = ("-n", "k8s.io")  # where containerd keeps what the kubelet asked for


def run(*command: str, environment: Mapping[str, str] = {}) -> str:
    """What a program printed; raises with the end of all its output when it failed."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class KubeNode:
    """A node of this name; `address` is this machine's on the bridge, another for each node."""

    plane: ControlPlane
    name: str
    address: str

    @property
    def folder(self) -> Path:
        """What is the node's own."""
        return self.plane.folder / self.name

    @property
    def logs(self) -> list[Path]:
        """Of containerd and of the kubelet."""
        return [self.plane.folder / f"{program}.log" for program in self._programs]

    @property
    def _programs(self) -> tuple[str, str]:
        return f"containerd-{self.name}", f"kubelet-{self.name}"

    def start(self, dns: str, kubelet: Mapping[str, object] = {}) -> None:
        """Starts both programs; returns once the node is ready.

        dns: address of the cluster's name server. kubelet: more of its settings. A node that was lost comes back as a
        machine does that has booted again: its images are there, and none of its containers runs.
        """
        self.folder.mkdir(exist_ok=True)
        sweep(f"{self.folder}/")
        (self.folder / "containerd.sock").unlink(missing_ok=True)
        (self.folder / "containerd.toml").write_text(_containerd(self.folder, self.plane.folder / "cni"))
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump({**self._kubelet(dns), **kubelet}))
        (self.folder / "resolv.conf").write_text("")
        containerd, node_agent = self._programs
        self.plane.launch(containerd, "containerd", "--config", f"{self.name}/containerd.toml")
        wait_until(lambda: (self.folder / "containerd.sock").exists(), bool, "containerd")
        self.plane.launch(
            node_agent,
            node_binaries.find_or_get() / "kubelet",
            f"--config={self.name}/kubelet.yaml",
            f"--kubeconfig={self.plane.kubeconfig}",
            f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/kubelet/pki",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )
        wait_until(lambda: self.plane.ended() or self.is_ready(), bool, f"{self.name} to be ready")
        if self.plane.ended():
            raise RuntimeError(f"{', '.join(self.plane.ended())} ended")

    def is_ready(self) -> bool:
        """Whether the node says that it can run pods."""
        node = self.plane.get(f"/api/v1/nodes/{self.name}") or {}
        conditions = node.get("status", {}).get("conditions", ())
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def is_on(self) -> bool:
        """Whether its containerd was started and neither lost nor stopped."""
        return self._programs[0] in self.plane.processes

    def ctr(self, *arguments: str) -> str:
        """What containerd's own client printed."""
        return run("ctr", "--address", f"{self.folder}/containerd.sock", *NAMESPACE, *arguments)

    def tasks(self) -> dict[str, int]:
        """Process ids, on this machine, of the containers' first processes, by container."""
        rows = [line.split() for line in self.ctr("tasks", "ls").splitlines()[1:]]
        return {row[0]: int(row[1]) for row in rows}

    def lose(self) -> None:
        """Ends the node as a failure of its power looks from outside: nothing answers, no connection is closed."""
        for pid in self.tasks().values():
            for each in (pid, *descendants(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGSTOP)
        for program in reversed(self._programs):
            self.plane.stop_process(program)

    def _kubelet(self, dns: str) -> dict[str, object]:
        """Settings that keep the kubelet out of the machine's own cgroups, and off the ports of another."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "healthzPort": 0,
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "containerRuntimeEndpoint": f"unix://{self.folder}/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": f"{self.plane.folder}/ca.crt"},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "clusterDNS": [dns],
            "clusterDomain": "cluster.local",
            "resolvConf": f"{self.folder}/resolv.conf",
            "evictionHard": {"imagefs.available": "1%", "nodefs.available": "1%", "memory.available": "100Mi"},
            "podLogsDir": f"{self.folder}/podlogs",
        }


def _containerd(folder: Path, network: Path) -> str:
    """Settings of containerd 1.6.

    restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing runc otherwise dies with "can't get final child's PID
    from pipe: EOF". netns_mounts_under_state_dir: so that what a lost or killed node leaves is found below its folder.
    """
    return f"""version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-run"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_FOLDER}"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def sweep(marker: str) -> None:
    """Ends the containers, and removes the mounts, of nodes whose programs are gone; by a part of their paths."""
    for pid in processes():
        command = _command(pid)
        if marker in command and "containerd-shim" in command:
            for each in (pid, *descendants(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
    time.sleep(0.1)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([each for each in mounts if marker in each]):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def processes() -> list[int]:
    """Every process of this machine."""
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    found: list[int] = []
    for each in processes():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            parent = re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)
            if parent and int(parent[1]) == pid:
                found += [each, *descendants(each)]
    return found
