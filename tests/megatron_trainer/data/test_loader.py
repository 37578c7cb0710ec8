"""Processes that read ahead end with their rank, whatever ends it and whatever they do."""

import os
import signal
import socket
import subprocess
import sys

from tests.support.processes import is_alive, wait_for

RANK = """
import os, socket, sys, time
from megatron_trainer.data.loader import micro_batches

class Slow:
    def __getitem__(self, index):
        print(os.getpid(), flush=True)
        time.sleep(600)

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
next(micro_batches(Slow(), [[0]], shape=None, num_workers=1))
"""


def test_a_worker_leaves_the_port_of_its_killed_rank_to_the_next():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    rank = subprocess.Popen([sys.executable, "-c", RANK], env=environment, stdout=subprocess.PIPE, text=True)
    port, worker = int(rank.stdout.readline()), int(rank.stdout.readline())
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    wait_for(lambda: not is_alive(worker))  # it would read on for ten minutes
    socket.create_server(("127.0.0.1", port)).close()
