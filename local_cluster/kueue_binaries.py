"""Finds the Kueue controller with the manifests of its CRDs and webhooks, or builds it; run it to print their folder.

As control_plane_binaries.py does it: the project's cache folder, else a build from the Go module (once). There is no
official release of the bare program. The manifests are those of the same module, so they fit the program.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from local_cluster.control_plane_binaries import Programs, build_program, cache_folder, get, go_toolchain, run_go

KUEUE_VERSION = "v0.19.2"
MODULE = "sigs.k8s.io/kueue"
PROGRAM = "kueue"
MANIFESTS = "manifests"
logger = logging.getLogger("kueue")


def find_or_get() -> Path:
    """The folder with the program and, in a folder of their own, its manifests."""
    folder = cache_folder().parent / f"kueue-{KUEUE_VERSION}"
    return get(Programs(names=(PROGRAM, MANIFESTS), folder=folder, ways=(build,)))


def build(work: Path) -> bool:
    """Whether program and manifests could be built from the Go module into `work`."""
    with go_toolchain(work) as go:
        if not go:
            return False
        logger.info("building Kueue %s with %s", KUEUE_VERSION, go)
        flags = f"-s -w -X {MODULE}/pkg/version.GitVersion={KUEUE_VERSION}"
        build_program(go, work, PROGRAM, f"{MODULE}/cmd/kueue", KUEUE_VERSION, flags)
        answer = run_go(go, work, "mod", "download", "-json", f"{MODULE}@{KUEUE_VERSION}")
        copy_manifests(Path(json.loads(answer)["Dir"]) / "config" / "components", work / MANIFESTS)
    return True


def copy_manifests(components: Path, target: Path) -> None:
    """Puts the manifests that a running controller needs side by side into `target`."""
    target.mkdir()
    for each in (*components.glob("crd/bases/*.yaml"), components / "webhook" / "manifests.yaml"):
        shutil.copyfile(each, target / each.name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    print(find_or_get())
