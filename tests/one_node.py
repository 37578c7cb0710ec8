"""A true one-node cluster on this machine: containers with their own network, a real kubelet, services and DNS.

containerd, runc, the CNI plugins and iptables are the distribution's; the rest is built with the control plane. What
the machine must have and allow: node_machine.py. One at a time; `running` clears what a killed one left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

import control_plane
import node_binaries
import node_machine
from control_plane import ControlPlane, Refused
from job_client import wait_until
from node_machine import CNI_FOLDER, Unavailable

FOLDER_NAME = "mtj-node"  # by it the leftovers of a killed node are known
LOCK = Path("/run/lock/mtj-node")
NODE = "node-1"
BRIDGE, GATEWAY, POD_RANGE = "mtj0", "10.213.0.1", "10.213.0.0/24"
PAUSE_IMAGE = "localhost/pause:1"
NAMESPACE = ("-n", "k8s.io")  # where containerd keeps what the kubelet asked for


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ControlPlane]:
    """A control plane with one ready node that has no image; all gone afterwards.

    Raises Unavailable, with the ends of the node's logs, when this machine cannot be a node.
    """
    node_machine.check()
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear()
        plane = _prepare(folder / FOLDER_NAME)
        try:
            with explained(plane):
                _start(plane)
            yield plane
        finally:
            _stop(plane)
            clear()


@contextlib.contextmanager
def explained(plane: ControlPlane) -> Iterator[None]:
    """Makes a failure inside it, before the node has proved itself, an Unavailable with the ends of the node's logs."""
    try:
        yield
    except (AssertionError, OSError, Refused, RuntimeError) as error:
        logs = [plane.folder / f"{name}.log" for name in ("containerd", "kubelet")]
        ends = [f"{log.name} ends with:\n{end_of(log)}" for log in logs if log.exists()]
        raise Unavailable("\n".join([f"no node came up here: {error}", *ends])) from error


def end_of(log: Path) -> str:
    """The last lines of a log, each cut where it says no more to a reader."""
    return "\n".join(f"  {line[:300]}" for line in log.read_text(errors="replace").splitlines()[-8:])


def run(*command: str, environment: Mapping[str, str] = {}) -> str:
    """What a program printed; raises with the end of all its output when it failed."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def ctr(plane: ControlPlane, *arguments: str) -> str:
    """What containerd's own client printed."""
    return run("ctr", "--address", str(plane.folder / "containerd.sock"), *NAMESPACE, *arguments)


def load_image(plane: ControlPlane, archive: Path) -> None:
    """Gives the node the image in this archive."""
    ctr(plane, "images", "import", str(archive))


def container_pid(plane: ControlPlane, namespace: str, pod: str) -> int:
    """Process id, on this machine, of the first container of a pod."""
    status = plane.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"]["containerStatuses"][0]
    container = status["containerID"].removeprefix("containerd://")
    lines = ctr(plane, "tasks", "ls").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(container))


def _prepare(folder: Path) -> ControlPlane:
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    return control_plane.prepare(folder, address=GATEWAY)


def _start(plane: ControlPlane) -> None:
    programs = node_binaries.find_or_get()
    plane.start_etcd()
    plane.start_apiserver(
        f"--advertise-address={GATEWAY}",
        "--kubelet-preferred-address-types=InternalIP",
        "--kubelet-client-certificate=admin.crt",
        "--kubelet-client-key=admin.key",
    )
    plane.start_controller_manager()
    plane.start_scheduler()
    _write_settings(plane)
    plane.launch("containerd", "containerd", "--config", "containerd.toml")
    plane.launch("coredns", programs / "coredns", "-conf", "Corefile")
    plane.launch("kube-proxy", programs / "kube-proxy", "--config=proxy.yaml")
    wait_until(lambda: (plane.folder / "containerd.sock").exists(), bool, "containerd")
    kubelet = ("--config=kubelet.yaml", f"--kubeconfig={plane.kubeconfig}", f"--root-dir={plane.folder}/kubelet")
    names = (f"--cert-dir={plane.folder}/kubelet/pki", f"--hostname-override={NODE}", f"--node-ip={GATEWAY}")
    plane.launch("kubelet", programs / "kubelet", *kubelet, *names)
    wait_until(lambda: ended(plane) or is_ready(plane), bool, f"{NODE} to be ready")
    if ended(plane):
        raise RuntimeError(f"{', '.join(ended(plane))} ended")


def ended(plane: ControlPlane) -> list[str]:
    """The programs that no longer run."""
    return [name for name, process in plane.processes.items() if process.poll() is not None]


def is_ready(plane: ControlPlane) -> bool:
    """Whether the node says that it can run pods."""
    node = plane.get(f"/api/v1/nodes/{NODE}") or {}
    conditions = node.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _write_settings(plane: ControlPlane) -> None:
    folder = plane.folder
    (folder / "cni").mkdir(exist_ok=True)
    (folder / "cni" / "10-bridge.conflist").write_text(json.dumps(_network()))
    (folder / "containerd.toml").write_text(_containerd(folder))
    (folder / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(folder)))
    (folder / "proxy.yaml").write_text(yaml.safe_dump(_proxy(plane)))
    (folder / "resolv.conf").write_text("")
    kubernetes = f"kubernetes cluster.local {{\n    kubeconfig {plane.kubeconfig} test\n    ttl 1\n  }}"
    (folder / "Corefile").write_text(f".:53 {{\n  bind {GATEWAY}\n  {kubernetes}\n}}\n")


def run_a_pod(plane: ControlPlane) -> None:
    """Returns once a pod of the pause image has run; the kubelet may be ready where runc starts no container."""
    pods = "/api/v1/namespaces/default/pods"
    container = {"name": "proof", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}
    spec = {"nodeName": NODE, "automountServiceAccountToken": False, "containers": [container]}
    wait_until(lambda: plane.get("/api/v1/namespaces/default/serviceaccounts/default"), bool, "the namespace")
    plane.create(pods, {"metadata": {"name": "proof"}, "spec": spec})
    wait_until(lambda: plane.get(f"{pods}/proof")["status"]["phase"], "Running".__eq__, "a pod to run")
    plane.delete(f"{pods}/proof", {"gracePeriodSeconds": 0})


def _network() -> dict[str, object]:
    addresses = {"type": "host-local", "subnet": POD_RANGE, "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


def _containerd(folder: Path) -> str:
    """Settings of containerd 1.6.

    restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing runc otherwise dies with "can't get final child's PID
    from pipe: EOF".
    """
    return f"""version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-run"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_FOLDER}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def _kubelet(folder: Path) -> dict[str, object]:
    """Settings that keep the kubelet out of the machine's own cgroups."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{folder}/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [GATEWAY],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{folder}/resolv.conf",
        "evictionHard": {"imagefs.available": "1%", "nodefs.available": "1%", "memory.available": "100Mi"},
        "podLogsDir": f"{folder}/podlogs",
    }


def _proxy(plane: ControlPlane) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "clientConnection": {"kubeconfig": str(plane.kubeconfig)},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "hostnameOverride": NODE,
        "metricsBindAddress": "127.0.0.1:10249",
    }


def _stop(plane: ControlPlane) -> None:
    """Has the kubelet end every container, then ends everything else."""
    with contextlib.suppress(Refused, OSError, KeyError, AssertionError):
        for pod in plane.get("/api/v1/pods")["items"]:
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
            plane.delete(path, {"gracePeriodSeconds": 0})
        wait_until(lambda: ctr(plane, "tasks", "ls", "-q"), lambda left: not left.strip(), "no container", 20)
    plane.stop()
    subprocess.run([node_binaries.find_or_get() / "kube-proxy", "--cleanup"], capture_output=True, check=False)


def clear() -> None:
    """Removes what an earlier node left on this machine: containers, mounts, the bridge. Its folder stays."""
    marker = f"/{FOLDER_NAME}/"
    for pid in _processes():
        if marker in _command(pid) and "containerd-shim" in _command(pid):
            for each in (pid, *_children(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
    time.sleep(0.1)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([each for each in mounts if marker in each]):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


def _processes() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    """All descendants."""
    found: list[int] = []
    for each in _processes():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            parent = re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)
            if parent and int(parent[1]) == pid:
                found += [each, *_children(each)]
    return found
