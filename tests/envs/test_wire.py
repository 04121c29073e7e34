"""The line and the slab between a supervisor and its child."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from envs.types import EnvError, EnvSpec
from envs.wire import Channel, WireClosed, make_slab, map_slab, slab_layout


@pytest.fixture
def line() -> Iterator[tuple[Channel, Channel, socket.socket]]:
    """Two ends, and the raw socket of the second."""
    a, b = socket.socketpair()
    yield Channel(a), Channel(b), b
    a.close()
    b.close()


def test_messages_arrive_whole_and_in_order(line: Any) -> None:
    one, two, _ = line
    for i in range(3):
        one.send({"op": "step", "n": i, "text": "ä" * 5000})
    assert [two.recv() for _ in range(3)] == [({"op": "step", "n": i, "text": "ä" * 5000}, -1) for i in range(3)]
    two.send({})
    assert one.recv() == ({}, -1)


def test_a_descriptor_travels_with_its_message(line: Any, tiny_spec: EnvSpec) -> None:
    one, two, _ = line
    layout, size = slab_layout(tiny_spec, 4)
    ours = make_slab(size)
    one.send({"op": "map"}, ours)
    message, theirs = two.recv()
    assert message == {"op": "map"}
    assert theirs not in (-1, ours)
    here, there = map_slab(ours, size, layout), map_slab(theirs, size, layout)
    os.close(ours)
    os.close(theirs)
    there["image/front"][3, 4] = 7
    here["actions"][1] = [0.5, -0.5]
    assert (here["image/front"][3, 4] == 7).all()
    assert there["actions"][1].tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", 1 << 30),
        struct.pack("<I", 3) + b"{,}",
        struct.pack("<I", 2) + b"[]",
        struct.pack("<I", 50) + b"{}",
        b"\x01",
        b"",
    ],
    ids=["huge", "not JSON", "not an object", "cut short", "cut in the head", "silent"],
)
def test_garbage_closes_the_line(line: Any, raw: bytes) -> None:
    one, _, sock = line
    sock.sendall(raw)
    sock.shutdown(socket.SHUT_WR)
    with pytest.raises(WireClosed):
        one.recv()


def test_a_dead_end_is_noticed(line: Any) -> None:
    one, _, sock = line
    sock.close()
    with pytest.raises(WireClosed):
        one.send({"op": "ping"})
    with pytest.raises(WireClosed):
        one.recv()


def test_fields_of_the_slab_do_not_overlap(tiny_spec: EnvSpec) -> None:
    layout, size = slab_layout(tiny_spec, 5)
    assert layout["video/hand"][1:] == ("uint8", (5, 16, 16, 3))
    slab = map_slab(make_slab(size), size, layout)
    for i, (name, array) in enumerate(slab.items()):
        assert (array.shape, array.dtype.name) == (layout[name][2], layout[name][1])
        array[...] = i + 1
    for i, array in enumerate(slab.values()):
        assert (array == i + 1).all()
    assert sum(a.nbytes for a in slab.values()) <= size


def test_too_little_shared_memory_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EnvError, match=r"could not reserve 2.0 MiB .*No space left.*fewer environments"):
        make_slab(2 << 20)
    assert len(os.listdir("/proc/self/fd")) == before


def test_shared_memory_is_reserved_not_sparse() -> None:
    fd = make_slab(1 << 20)
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    os.close(fd)
    assert not [name for name in os.listdir("/dev/shm") if "temper" in name]
