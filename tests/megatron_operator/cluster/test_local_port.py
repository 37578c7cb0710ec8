"""The port at which the ranks of `mtj run` meet: no one takes it before they start, and they can meet there."""

import errno
import socket

import pytest

from megatron_operator.cluster.local.cluster import LOOPBACK, hold_port


@pytest.mark.parametrize("address", [LOOPBACK, ""], ids=["loopback", "every address"])
def test_another_program_cannot_take_the_port_before_the_ranks_start(address):
    with hold_port() as held, socket.socket() as other, pytest.raises(OSError, match="in use") as refused:
        other.bind((address, held.getsockname()[1]))
    assert refused.value.errno == errno.EADDRINUSE


def test_torchs_store_serves_at_the_held_port():
    dist = pytest.importorskip("torch.distributed")
    with hold_port() as held:
        port = held.getsockname()[1]
        master = dist.TCPStore(LOOPBACK, port, world_size=1, is_master=True)
        client = dist.TCPStore(LOOPBACK, port, is_master=False)
        master.set("step", "7")
        assert client.get("step") == b"7"
