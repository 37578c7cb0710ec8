"""Images for the one-node cluster, made without any registry: pause, Debian with this Python, and the project's two.

debootstrap makes the Debian, buildah the images. The trainer's image holds the trainer alone: its gigabytes of
Python packages are mounted from this environment, read only, at ENVIRONMENT. Run, it makes what is made only once.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

from local_cluster import node_binaries, node_machine, one_node
from local_cluster.control_plane import ControlPlane
from local_cluster.control_plane_binaries import go_toolchain, run_go
from local_cluster.kube_node import PAUSE_IMAGE, KubeNode, run
from local_cluster.node_machine import Unavailable

ROOT = Path(__file__).parent.parent
PYTHON_IMAGE = f"localhost/python:{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OPERATOR_IMAGE = f"localhost/megatron-train-operator:{VERSION}"
TRAINER_IMAGE = f"localhost/megatron-trainer:{VERSION}"
VALUES = {"image.registry": "localhost", "image.pullPolicy": "Never"}  # of the chart, for these images
ENVIRONMENT = "/environment"
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
# What Python's own extension modules, torch and a Debian without recommendations need.
LIBRARIES = (
    "ca-certificates libssl3 libffi8 libsqlite3-0 libbz2-1.0 liblzma5 libreadline8 libncursesw6 zlib1g libuuid1 "
    "libexpat1 libgomp1 libstdc++6"
)
PAUSE_PROGRAM = """package main

import (
\t"os"
\t"os/signal"
\t"syscall"
)

func main() {
\tstop := make(chan os.Signal, 1)
\tsignal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
\t<-stop
}
"""
BUILDAH = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
# What pip needs to reach its index from inside a build: this machine's authorities and settings.
MOUNTED = ("/etc/ssl/certs", "/etc/pip.conf")


def make_ready() -> None:
    """Makes, once, what a node and its images are made from (some ten minutes); raises Unavailable where it cannot."""
    node_machine.check()
    try:
        node_binaries.find_or_get()
        if not exists(PAUSE_IMAGE):
            build_pause()
        if not exists(PYTHON_IMAGE):
            build_python()
    except (SystemExit, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"what a node is made from could not be made here: {error}") from error


def load_all(plane: ControlPlane) -> None:
    """Gives the node all its images, the project's two newly built; raises Unavailable when it runs no pod at all."""
    with one_node.explained(plane):
        load(one_node.first(plane), PAUSE_IMAGE)
        one_node.run_a_pod(plane)
    build_project()
    for name in (OPERATOR_IMAGE, TRAINER_IMAGE):
        load(one_node.first(plane), name)


def exists(name: str) -> bool:
    """Whether buildah has this image."""
    command = ["buildah", "inspect", "--type", "image", name]
    return subprocess.run(command, env={**os.environ, **BUILDAH}, capture_output=True, check=False).returncode == 0


def buildah(*arguments: str) -> str:
    """What buildah printed."""
    return run("buildah", *arguments, environment=BUILDAH).strip()


def load(node: KubeNode, name: str) -> None:
    """Gives a node an image that buildah has."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        buildah("push", "--quiet", name, f"docker-archive:{archive}:{name}")
        node.ctr("images", "import", str(archive))


def build_pause() -> None:
    """The image that holds a pod's namespaces: a static program that waits."""
    with tempfile.TemporaryDirectory() as folder, go_toolchain(Path(folder)) as go:
        if not go:
            raise SystemExit("the pause image needs Go")
        content = Path(folder) / "content"
        content.mkdir()
        (Path(folder) / "pause.go").write_text(PAUSE_PROGRAM)
        run_go(go, Path(folder), "build", "-o", f"{content}/pause", "pause.go")
        commit(content, PAUSE_IMAGE, "--entrypoint", '["/pause"]')


def build_python() -> None:
    """Debian with the Python that runs this, under /usr/local: what both Dockerfiles take as BASE."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        included = ",".join(LIBRARIES.split())
        run("debootstrap", "--variant=minbase", f"--include={included}", debian_release(), str(root), mirror())
        shutil.rmtree(root / "var" / "cache" / "apt", ignore_errors=True)
        copy_python(root / "usr" / "local")
        commit(root, PYTHON_IMAGE, "--env", "PATH=/usr/local/bin:/usr/bin:/bin")


def copy_python(target: Path) -> None:
    """This interpreter with its library, without what other projects installed into it."""
    prefix = Path(sys.base_prefix)
    if prefix == Path("/usr"):
        raise SystemExit("the image takes a Python of its own prefix (pyenv, or built): this one is the distribution's")
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    keep_out = shutil.ignore_patterns("__pycache__", "test", "*.a", "config-3*")
    shutil.copytree(prefix / "lib" / name, target / "lib" / name, ignore=keep_out, dirs_exist_ok=True, symlinks=True)
    for library in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(library, target / "lib" / library.name, follow_symlinks=False)
    shutil.copy2(prefix / "bin" / name, target / "bin" / name)
    for link in ("python", "python3"):
        (target / "bin" / link).symlink_to(name)
    run("chroot", str(target.parent.parent), "/sbin/ldconfig")


def build_project() -> None:
    """Both images of the project, by the command that users have: docker/build."""
    mounts = " ".join(f"--volume {path}:{path}:ro" for path in MOUNTED if Path(path).exists())
    environment = BUILDAH | {"BUILDER": "buildah", "BASE": PYTHON_IMAGE, "TRAINER_BASE": PYTHON_IMAGE}
    for image, flags in (("operator", ""), ("trainer", " --build-arg PIP_FLAGS=--no-deps")):
        run(str(ROOT / "docker" / "build"), environment=environment | {"IMAGES": image, "BUILD_FLAGS": mounts + flags})


def commit(content: Path, name: str, *settings: str) -> None:
    """Makes an image of a folder's content."""
    container = buildah("from", "scratch")
    try:
        buildah("copy", "--quiet", container, str(content), "/")
        buildah("config", *settings, container)
        buildah("commit", "--quiet", container, name)
    finally:
        buildah("rm", container)


def debian_release() -> str:
    """The code name of this machine's Debian, whose libraries this Python was linked with."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.split("=")[1].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def mirror() -> str:
    """Where this machine gets its packages from."""
    for path in Path("/etc/apt/sources.list.d").glob("*.sources"):
        for line in path.read_text().splitlines():
            if line.startswith("URIs:"):
                return line.split()[1]
    lines = Path("/etc/apt/sources.list").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("deb "))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        make_ready()
    except Unavailable as reason:
        print(reason)
