"""Imports once what every rank needs, then forks a rank on each request of the launcher, its parent.

A program of its own, so that the launcher stays small and free of torch. It holds no CUDA context, no process group and
no threads of Python's; a trial fork shows whether a child can compute and use CUDA, or why ranks must be spawned.

The two speak JSON lines over a socket pair. Launcher: {"argv", "variables"}. Server: {"ready"} or {"refusal"}, then
{"started": pid} and {"ended": pid, "code"} (-n after signal n).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_trainer import environment
from megatron_trainer.orphans import die_with_parent

if TYPE_CHECKING:
    from megatron_trainer.backend import Backend

ALSO_IMPORTED = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.utils.type_validators",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.models.mimo.model.base",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader",
    "megatron.core.dist_checkpointing.strategies.fully_parallel",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron_trainer.report.sinks",
    "torch._inductor.config",
)
"""What is imported only where it is used: by configurations of models, optimizers, checkpoints, deterministic torch."""
HANDED_ON = (signal.SIGINT, signal.SIGTERM)
"""The launcher sends these to the ranks. Here they are held back, also from a rank until it can hear them."""
TRIAL_S = 30.0
OOM_SCORE = Path("/proc/self/oom_score_adj")
RANKS_SCORE, MOST_SCORE = 200, 1000
"""A cgroup out of memory loses a rank, by a fifth of its limit, before the process that forks ranks: it has as many
pages at first, its end is that of all ranks of the node, and those after it have to import again."""
GPU_IS_LOST = 3


def main(descriptor: int) -> Mapping[str, Any] | None:
    """Serves until the launcher is gone. Returns a request in a child, which then is that rank, else None."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    connection = socket.socket(fileno=descriptor)
    backend = _import_everything()
    refusal = why_not_fork(backend)
    _say(connection, {"refusal": refusal} if refusal else {"ready": True})
    return None if refusal else _serve(connection)


def _import_everything() -> Backend:
    gc.disable()  # what an import makes stays: collecting meanwhile takes a quarter of its time
    from megatron_trainer import backend

    selected = backend.select()
    selected.install()
    for module in ("megatron_trainer.process.run", *ALSO_IMPORTED):
        importlib.import_module(module)
    gc.enable()
    gc.collect()
    gc.freeze()  # a collection in a rank then copies none of the shared pages
    return selected


def why_not_fork(backend: Backend) -> str:
    """Why this process must fork no ranks, "" when it may."""
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threads:
        return f"an import has started the thread {threads[0]}"
    code = _trial(backend)
    if code == GPU_IS_LOST:
        return "an import has initialized CUDA, which a forked process could then not use"
    return "" if code == 0 else f"a trial fork ended with {code}"


def _trial(backend: Backend) -> int | None:
    """Exit code of a child that computes a little; None when it hangs, on a lock that some thread held."""
    pid = os.fork()
    if pid == 0:
        os._exit(_compute(backend))
    deadline = time.monotonic() + TRIAL_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _compute(backend: Backend) -> int:
    try:
        from megatron_trainer.backend import fork_loses_gpu

        torch, numpy = sys.modules["torch"], sys.modules["numpy"]
        numpy.ones((64, 64)) @ numpy.ones((64, 64))
        (torch.ones(256, 256) @ torch.ones(256, 256)).sum().item()
        return GPU_IS_LOST if fork_loses_gpu(backend) else 0
    except Exception:  # noqa: BLE001 - whatever it is, ranks are spawned
        return 1


@dataclass
class _Requests:
    """Requests of the launcher, line by line. is_over: it is gone."""

    connection: socket.socket
    is_over: bool = False
    _received: bytes = b""
    _whole: list[bytes] = field(default_factory=list)

    def next(self) -> Mapping[str, Any] | None:
        """The next one that has arrived in full."""
        if not self._whole:
            return None
        request: Mapping[str, Any] = json.loads(self._whole.pop(0))
        return request

    def receive(self) -> None:
        """Takes in what has arrived."""
        piece = self.connection.recv(65536)
        self.is_over = not piece
        *lines, self._received = (self._received + piece).split(b"\n")
        self._whole += lines


def _serve(connection: socket.socket) -> Mapping[str, Any] | None:
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    requests = _Requests(connection)
    while not requests.is_over:
        readable = select.select([connection.fileno(), woken], [], [])[0]
        if woken in readable:
            os.read(woken, 4096)
            _tell_of_ends(connection)
        if connection.fileno() in readable:
            requests.receive()
        while request := requests.next():
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                _become_a_rank(request["variables"], parent, (connection.fileno(), woken, wakes))
                return request
            _say(connection, {"started": pid})
    return None


def _tell_of_ends(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(connection, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _become_a_rank(variables: Mapping[str, str], parent: int, descriptors: tuple[int, ...]) -> None:
    """Leaves in this child nothing of the server but its modules."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for number in (*HANDED_ON, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    for descriptor in descriptors:
        os.close(descriptor)
    environment.become(variables)
    with contextlib.suppress(OSError):  # not every sandbox has it
        OOM_SCORE.write_text(str(min(MOST_SCORE, int(OOM_SCORE.read_text()) + RANKS_SCORE)))
    atexit.register(gc.unfreeze)  # or objects that live to the end are reported as leaked
    sys.modules["numpy"].random.seed()  # as a process of its own has it; Python's own does so by itself


def _say(connection: socket.socket, said: Mapping[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(said).encode() + b"\n")
    except OSError:
        os._exit(1)  # the launcher is gone; the system kills the ranks with this process


if __name__ == "__main__":
    request = main(int(sys.argv[1]))
    if request is not None:
        from megatron_trainer.process import rank

        sys.argv = [str(rank.__file__), *request["argv"]]
        rank.run(request["argv"])
