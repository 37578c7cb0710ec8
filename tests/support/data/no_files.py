"""What may lie where a file belongs: pipes, sockets, devices, folders, links that lead nowhere."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def lay(kind: str, path: Path) -> None:
    """Something of that kind at the path."""
    match kind:
        case "a named pipe":
            os.mkfifo(path)
        case "a socket":
            place = os.getcwd()
            os.chdir(path.parent)  # a socket's path has at most 108 bytes
            try:
                socket.socket(socket.AF_UNIX).bind(path.name)
            finally:
                os.chdir(place)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a folder":
            path.mkdir()
        case "a link to itself":
            path.symlink_to(path)
        case "a link to nothing":
            path.symlink_to(path.with_name("nothing"))


NO_FILES = ["a named pipe", "a socket", "a device", "a folder"]

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4967215360\n"
"""What `git clone` leaves of a large file where git-lfs is not installed."""
