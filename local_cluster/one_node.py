"""A true one-node cluster on this machine: containers with their own network, a real kubelet, services and DNS.

containerd, runc, the CNI plugins and iptables are the distribution's; the rest is built with the control plane. What
the machine must have and allow: node_machine.py. One at a time; `running` clears what a killed one left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from local_cluster import control_plane, kube_node, node_binaries, node_machine
from local_cluster.control_plane import ControlPlane, Refused
from local_cluster.kube_node import PAUSE_IMAGE, KubeNode, run
from local_cluster.node_machine import Unavailable
from local_cluster.wait import wait_until

FOLDER_NAME = "mtj-node"  # by it the leftovers of a killed node are known
LOCK = Path("/run/lock/mtj-node")
BRIDGE, GATEWAY, MORE_ADDRESSES = "mtj0", "10.213.0.1", ("10.213.0.2", "10.213.0.3")
BRIDGE_ADDRESS = "02:6d:74:6a:00:01"  # locally administered
NETWORK, FIRST_POD = "10.213.0.0/24", "10.213.0.10"
NODE_GRACE_S = 30  # after its last heartbeat a node is not ready


@contextlib.contextmanager
def running(folder: Path, kubelet: Mapping[str, object] = {}) -> Iterator[ControlPlane]:
    """A control plane with one ready node that has no image; all gone afterwards. kubelet: more of its settings.

    Raises Unavailable, with the ends of the node's logs, when this machine cannot be a node.
    """
    node_machine.check()
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear()
        plane = _prepare(folder / FOLDER_NAME)
        try:
            with explained(plane):
                _start(plane, kubelet)
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
        ends = [f"{log.name} ends with:\n{end_of(log)}" for log in first(plane).logs if log.exists()]
        raise Unavailable("\n".join([f"no node came up here: {error}", *ends])) from error


def end_of(log: Path) -> str:
    """The last lines of a log, each cut where it says no more to a reader."""
    return "\n".join(f"  {line[:300]}" for line in log.read_text(errors="replace").splitlines()[-8:])


def container_pid(plane: ControlPlane, namespace: str, pod: str) -> int:
    """Process id, on this machine, of the first container of a pod."""
    raw = plane.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    return tasks(plane)[raw["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")]


def tasks(plane: ControlPlane) -> dict[str, int]:
    """Process ids, on this machine, of the first processes of all nodes' containers, by container."""
    return {name: pid for node in nodes(plane) if node.is_on() for name, pid in node.tasks().items()}


def _prepare(folder: Path) -> ControlPlane:
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    # Else it takes the lowest of its ports, and pods lose their gateway when one with a lower address comes or goes.
    run("ip", "link", "set", BRIDGE, "address", BRIDGE_ADDRESS)
    for address in (GATEWAY, *MORE_ADDRESSES):
        run("ip", "address", "add", f"{address}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    return control_plane.prepare(folder, address=GATEWAY)


def _start(plane: ControlPlane, kubelet: Mapping[str, object]) -> None:
    programs = node_binaries.find_or_get()
    plane.start_etcd()
    plane.start_apiserver(
        f"--advertise-address={GATEWAY}",
        "--kubelet-preferred-address-types=InternalIP",
        "--kubelet-client-certificate=admin.crt",
        "--kubelet-client-key=admin.key",
    )
    plane.start_controller_manager(f"--node-monitor-grace-period={NODE_GRACE_S}s")
    plane.start_scheduler()
    _write_settings(plane)
    plane.launch("coredns", programs / "coredns", "-conf", "Corefile")
    plane.launch("kube-proxy", programs / "kube-proxy", "--config=proxy.yaml")
    first(plane).start(dns=GATEWAY, kubelet=kubelet)


def first(plane: ControlPlane) -> KubeNode:
    """The node that is always there."""
    return KubeNode(plane=plane, name="node-1", address=GATEWAY)


def more(plane: ControlPlane) -> list[KubeNode]:
    """Nodes to be lost; they run nothing until they are started."""
    return [
        KubeNode(plane=plane, name=f"node-{number}", address=address)
        for number, address in enumerate(MORE_ADDRESSES, start=2)
    ]


def nodes(plane: ControlPlane) -> list[KubeNode]:
    """All of them, whether they run or not."""
    return [first(plane), *more(plane)]


def _write_settings(plane: ControlPlane) -> None:
    folder = plane.folder
    (folder / "cni").mkdir(exist_ok=True)
    (folder / "cni" / "10-bridge.conflist").write_text(json.dumps(_network(folder)))
    (folder / "proxy.yaml").write_text(yaml.safe_dump(_proxy(plane)))
    kubernetes = f"kubernetes cluster.local {{\n    kubeconfig {plane.kubeconfig} test\n    ttl 1\n  }}"
    (folder / "Corefile").write_text(f".:53 {{\n  bind {GATEWAY}\n  {kubernetes}\n}}\n")


def run_a_pod(plane: ControlPlane) -> None:
    """Returns once a pod of the pause image has run; the kubelet may be ready where runc starts no container."""
    pods = "/api/v1/namespaces/default/pods"
    container = {"name": "proof", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}
    spec = {"nodeName": first(plane).name, "automountServiceAccountToken": False, "containers": [container]}
    wait_until(lambda: plane.get("/api/v1/namespaces/default/serviceaccounts/default"), bool, "the namespace")
    plane.create(pods, {"metadata": {"name": "proof"}, "spec": spec})
    wait_until(lambda: plane.get(f"{pods}/proof")["status"]["phase"], "Running".__eq__, "a pod to run")
    plane.delete(f"{pods}/proof", {"gracePeriodSeconds": 0})


def _network(folder: Path) -> dict[str, object]:
    """Pods of all nodes are on one bridge; the addresses that are taken lie in `folder`."""
    addresses = {
        "type": "host-local",
        "subnet": NETWORK,
        "rangeStart": FIRST_POD,
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": f"{folder}/addresses",
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


def _proxy(plane: ControlPlane) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": NETWORK,
        "clientConnection": {"kubeconfig": str(plane.kubeconfig)},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "hostnameOverride": first(plane).name,
        "metricsBindAddress": "127.0.0.1:10249",
    }


def _stop(plane: ControlPlane) -> None:
    """Has the kubelet end every container, then ends everything else."""
    with contextlib.suppress(Refused, OSError, KeyError, AssertionError, RuntimeError):
        for pod in plane.get("/api/v1/pods")["items"]:
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
            plane.delete(path, {"gracePeriodSeconds": 0})
        for node in filter(KubeNode.is_on, nodes(plane)):
            wait_until(node.tasks, lambda left: not left, "no container", 20)
    plane.stop()
    subprocess.run([node_binaries.find_or_get() / "kube-proxy", "--cleanup"], capture_output=True, check=False)


def clear() -> None:
    """Removes what an earlier node left on this machine: containers, mounts, the bridge. Its folder stays."""
    kube_node.sweep(f"/{FOLDER_NAME}/")
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)
