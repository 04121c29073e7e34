"""The line between a supervisor and a simulator child: JSON messages over a socket, arrays in one shared slab.

Messages are small and length-prefixed; nothing is ever pickled. Frames, proprioception, actions and rewards never
travel: both sides map the same memory, which has no name in the file system and so cannot leak after a kill.
Standard library and numpy only, Python 3.8 syntax.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
import tempfile
from typing import Any, Dict, List, Tuple

import numpy as np

from envs.types import EnvError, EnvSpec

MAX_MESSAGE = 1 << 20
_HEAD = struct.Struct("<I")

Layout = Dict[str, Tuple[int, str, Tuple[int, ...]]]  # field -> (offset in bytes, dtype, shape)


class WireClosed(ConnectionError):
    """The other side is gone."""


class Channel:
    """Length-prefixed JSON messages over a stream socket, optionally carrying one file descriptor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Dict[str, Any], fd: int = -1) -> None:
        """Send one message. Raises WireClosed if the other side is gone."""
        body = json.dumps(message).encode()
        data = _HEAD.pack(len(body)) + body
        try:
            if fd >= 0:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                sent = self._sock.sendmsg([data], rights)
                data = data[sent:]
            self._sock.sendall(data)
        except OSError as e:
            raise WireClosed(str(e)) from e

    def recv(self) -> Tuple[Dict[str, Any], int]:
        """Wait for one message; returns it and the descriptor it carried, or -1. Raises WireClosed."""
        head, fd = self._exactly(_HEAD.size)
        (length,) = _HEAD.unpack(head)
        if length > MAX_MESSAGE:
            raise WireClosed(f"message of {length} bytes announced, at most {MAX_MESSAGE} allowed")
        body, other = self._exactly(length)
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as e:
            raise WireClosed(f"message is not JSON: {e}") from e
        if not isinstance(message, dict):
            raise WireClosed(f"message is a {type(message).__name__}, expected an object")
        return message, max(fd, other)

    def _exactly(self, n: int) -> Tuple[bytes, int]:
        parts: List[bytes] = []
        fd = -1
        while n > 0:
            try:
                data, rights, _, _ = self._sock.recvmsg(n, socket.CMSG_SPACE(4))
            except OSError as e:
                raise WireClosed(str(e)) from e
            if not data:
                raise WireClosed("the other side closed the line")
            for level, kind, value in rights:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fd = array.array("i", value[:4])[0]
            parts.append(data)
            n -= len(data)
        return b"".join(parts), fd

    def close(self) -> None:
        self._sock.close()


def slab_layout(spec: EnvSpec, max_chunk: int) -> Tuple[Layout, int]:
    """Where each field lives in the slab of one environment, and the slab's size in bytes."""
    fields: List[Tuple[str, str, Tuple[int, ...]]] = [
        ("actions", "float64", (max_chunk, spec.action_dim)),
        ("rewards", "float32", (max_chunk,)),
        ("proprio", "float32", (spec.proprio_dim,)),
    ]
    fields += [("privileged/" + name, "float64", tuple(shape)) for name, shape in spec.privileged.items()]
    fields += [("image/" + name, "uint8", (y, x, 3)) for name, (y, x) in spec.cameras.items()]
    fields += [("video/" + name, "uint8", (max_chunk, y, x, 3)) for name, (y, x) in spec.cameras.items()]
    layout: Layout = {}
    offset = 0
    for name, dtype, shape in fields:
        layout[name] = (offset, dtype, shape)
        size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        offset += (size + 63) // 64 * 64  # fields start on cache lines
    return layout, max(offset, 64)


def make_slab(size: int) -> int:
    """Reserve nameless shared memory and return its descriptor. Raises EnvError if there is too little memory."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("temper-slab", os.MFD_CLOEXEC)
    else:  # not Linux: an unlinked file does the same
        with tempfile.TemporaryFile() as f:
            fd = os.dup(f.fileno())
    try:
        os.posix_fallocate(fd, 0, size)  # a sparse file would fail much later, with SIGBUS
    except OSError as e:
        os.close(fd)
        raise EnvError(
            f"too little shared memory: could not reserve {size / 2**20:.1f} MiB for one environment ({e}); "
            "use fewer environments or smaller cameras, or raise the memory limit of the container"
        ) from e
    return fd


def map_slab(fd: int, size: int, layout: Layout) -> Dict[str, np.ndarray]:
    """Arrays over the shared memory, one per field."""
    memory = mmap.mmap(fd, size)
    return {
        name: np.frombuffer(memory, dtype=dtype, count=int(np.prod(shape, dtype=np.int64)), offset=offset).reshape(
            shape
        )
        for name, (offset, dtype, shape) in layout.items()
    }
