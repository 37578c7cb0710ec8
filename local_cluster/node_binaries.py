"""Finds the programs of a node (kubelet, kube-proxy, CoreDNS) or gets them; run it to print their folder.

As control_plane_binaries.py does it: the project's cache folder, the official releases, a build from the Go modules
(about six minutes on two cores, once). containerd, runc, CNI plugins and iptables are the distribution's.
"""

from __future__ import annotations

import logging
from pathlib import Path

from local_cluster.control_plane_binaries import (
    Programs,
    build_kubernetes,
    build_program,
    cache_folder,
    download_archived,
    download_kubernetes,
    get,
    go_toolchain,
    platform_name,
    released,
)

# Two minor versions behind the control plane, as Kubernetes allows: kubelet 1.36 wants containerd 2, Debian 12 has 1.6.
NODE_VERSION = "v1.35.4"
NODE_PROGRAMS = ("kubelet", "kube-proxy")
COREDNS_VERSION = "v1.12.1"
logger = logging.getLogger("node")


def find_or_get() -> Path:
    """The folder with every program of a node."""
    folder = cache_folder().parent / f"node-{NODE_VERSION}"
    return get(Programs(names=(*NODE_PROGRAMS, "coredns"), folder=folder, ways=(download, build)))


def download(work: Path) -> bool:
    """Whether the official releases could be fetched and their checksums held."""
    release = f"https://github.com/coredns/coredns/releases/download/{COREDNS_VERSION}"
    archive = f"{release}/coredns_{COREDNS_VERSION.removeprefix('v')}_{{}}.tgz"
    return released(
        lambda: download_kubernetes(work, NODE_VERSION, NODE_PROGRAMS),
        lambda: download_archived(
            work, "coredns", archive.format(platform_name("_")), f"{archive.format(platform_name('_'))}.sha256"
        ),
    )


def build(work: Path) -> bool:
    """Whether the programs could be built from the Go modules into `work`."""
    with go_toolchain(work) as go:
        if not go:
            return False
        logger.info("building CoreDNS %s and Kubernetes %s with %s", COREDNS_VERSION, NODE_VERSION, go)
        build_program(go, work, "coredns", "github.com/coredns/coredns", COREDNS_VERSION)
        build_kubernetes(go, work, NODE_VERSION, NODE_PROGRAMS)
    return True


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    print(find_or_get())
