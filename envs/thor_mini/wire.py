"""The two ways in which AI2-THOR talks to its Controller: named pipes, and HTTP posts to it.

Protocol as read in the `ai2thor` package 5.0.0 (`fifo_server.py`, `wsgi_server.py`). Needs the standard library, and
msgpack for pipes; Python 3.8 syntax.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import struct
import uuid
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Union, cast

from envs.thor_mini.reply import Reply

HEADER = struct.Struct("!BI")
METADATA, ACTION, PATCH, END = 1, 2, 11, 255
FIELDS = {  # kind of picture -> type of frame, name of form field
    "rgb": (4, "image"),
    "depth": (5, "image_depth"),
    "classes": (8, "image_classes"),
    "ids": (9, "image_ids"),
    "third_rgb": (10, "image-thirdParty-camera"),
    "third_depth": (12, "image_thirdParty_depth"),
    "third_ids": (14, "image_thirdParty_image_ids"),
    "third_classes": (15, "image_thirdParty_classes"),
}
PIPE_BYTES = 1 << 20  # so that a whole reply fits, where the system allows it
SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of Linux; Python names it from 3.10 on
Buffer = Union[bytes, memoryview]


class WireError(RuntimeError):
    """What came over the wire makes no sense, or the environment does not say where the Controller listens."""


@dataclass
class Fifo:
    """Named pipes. The Controller must have made them; opening waits for it."""

    server_path: str
    client_path: str
    _server: Optional[int] = None
    _client: Optional[BinaryIO] = None

    @property
    def patches(self) -> bool:
        """Whether replies may be patches."""
        return True

    def send(self, reply: Reply, *, cut: Optional[float] = None) -> None:
        """Send one message; with `cut`, only that share of its bytes."""
        import msgpack

        body = cast(bytes, msgpack.packb(reply.metadata, use_bin_type=True))
        parts: List[Buffer] = [HEADER.pack(PATCH if reply.patch else METADATA, len(body)), body]
        for kind, picture in reply.pictures:
            parts += [HEADER.pack(FIELDS[kind][0], picture.nbytes), picture]
        parts.append(HEADER.pack(END, 0))
        if self._server is None:
            self._server = os.open(self.server_path, os.O_WRONLY)
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._server, SET_PIPE_SIZE, PIPE_BYTES)
        whole = b"".join(parts) if cut is not None else b""
        _write(self._server, [whole[: int(len(whole) * cut)]] if cut is not None else parts)

    def receive(self) -> Optional[Dict[str, Any]]:
        """The next action; None when the Controller has gone."""
        if self._client is None:
            self._client = open(self.client_path, "rb")  # noqa: SIM115 (kept open until the program ends)
        action: Optional[Dict[str, Any]] = None
        while True:
            header = self._client.read(HEADER.size)
            if len(header) < HEADER.size:
                return None
            kind, length = HEADER.unpack(header)
            if kind == END:
                if action is None:
                    raise WireError("the Controller's message ended without an action")
                return action
            if kind != ACTION:
                raise WireError(f"frame of type {kind} from the Controller; expected {ACTION}, an action")
            body = self._client.read(length)
            if len(body) < length:
                return None
            action = json.loads(body.decode("utf-8"))


def _write(descriptor: int, parts: List[Buffer]) -> None:
    """Write buffers without joining them first."""
    waiting = [memoryview(p) for p in parts]
    while waiting:
        written = os.writev(descriptor, waiting[:64])
        while waiting and written >= waiting[0].nbytes:
            written -= waiting.pop(0).nbytes
        if written:
            waiting[0] = waiting[0][written:]


@dataclass
class Wsgi:
    """Posts to the Controller's HTTP server; the answer to one is the next action. One connection is kept."""

    host: str
    port: int
    token: str
    _connection: Optional[http.client.HTTPConnection] = None
    _next: Optional[Dict[str, Any]] = field(default=None)

    @property
    def patches(self) -> bool:
        """Whether replies may be patches."""
        return False

    def send(self, reply: Reply, *, cut: Optional[float] = None) -> None:
        """Post one message and keep the action that comes back; with `cut`, post only that share of it and hang up."""
        boundary = uuid.uuid4().hex
        body = multipart(reply, self.token, boundary)
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.host, self.port)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(len(body))}
        if cut is not None:
            self._connection.putrequest("POST", "/train")
            for name, value in headers.items():
                self._connection.putheader(name, value)
            self._connection.endheaders(body[: int(len(body) * cut)])
            self._connection.close()
            return
        self._connection.request("POST", "/train", body=body, headers=headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise WireError(f"the Controller answered with HTTP status {response.status}: {text[:200]!r}")
        answer = json.loads(text.decode("utf-8"))
        self._next = answer if "action" in answer else None

    def receive(self) -> Optional[Dict[str, Any]]:
        """The next action; None when the Controller is done."""
        action, self._next = self._next, None
        return action


def multipart(reply: Reply, token: str, boundary: str) -> bytes:
    """A form with the metadata, the token and the pictures; header names are spelt as the Controller looks for them."""
    text = json.dumps(reply.metadata).encode("utf-8")
    parts: List[Buffer] = []
    for name, value in (("metadata", text), ("token", token.encode("ascii"))):
        parts += [_part(boundary, name, "", "text/plain; charset=utf-8"), value, b"\r\n"]
    for i, (kind, picture) in enumerate(reply.pictures):
        parts += [_part(boundary, FIELDS[kind][1], f"{kind}{i}", "application/octet-stream"), picture, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode("ascii"))
    return b"".join(parts)


def _part(boundary: str, name: str, filename: str, kind: str) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    lines = (f"--{boundary}", f'Content-disposition: form-data; name="{name}"{file}', f"Content-Type: {kind}", "", "")
    return "\r\n".join(lines).encode("ascii")


def connect(environment: Mapping[str, str]) -> Union[Fifo, Wsgi]:
    """The wire that the Controller asks for in the environment."""
    kind = environment.get("AI2THOR_SERVER_TYPE", "")
    try:
        if kind == "FIFO":
            return Fifo(environment["AI2THOR_FIFO_SERVER_PIPE_PATH"], environment["AI2THOR_FIFO_CLIENT_PIPE_PATH"])
        if kind == "WSGI":
            host, port = environment["AI2THOR_HOST"], int(environment["AI2THOR_PORT"])
            return Wsgi(host, port, environment["AI2THOR_CLIENT_TOKEN"])
    except KeyError as e:
        raise WireError(f"{e.args[0]} is not set; ai2thor's Controller sets it when it starts this program") from e
    raise WireError(
        f"AI2THOR_SERVER_TYPE is '{kind}'; expected FIFO or WSGI. This program is started by ai2thor's Controller: "
        "pass local_executable_path='python -u -m envs.thor_mini'"
    )
