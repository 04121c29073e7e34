"""One supervised simulator process: started, asked, watched, killed and started again.

A child answers one request at a time. Starting it is a queue of requests (open, map, then whatever was asked), so
that a vector never blocks on one child's start. Every request has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.types import EnvConfig, EnvError, EnvSpec
from envs.wire import Channel, WireClosed, make_slab, map_slab, slab_layout

ROOT = Path(__file__).resolve().parent.parent
# One simulator is one thread: parallelism comes from many children.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
# A simulator takes and returns the same big blocks at every step. Kept in the heap, in large pages, they cost no page
# faults (a hundred in a step of robosuite's stock core). Other C libraries than glibc ignore it.
_MALLOC = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=134217728:glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class Failure:
    """Why a simulator had to be replaced."""

    cause: str  # crashed | hung | raised | bad_frame | bad_state
    detail: str


def interpreter(config: EnvConfig) -> str:
    """The Python that runs this simulator. Raises EnvError if the configured one is missing."""
    simulator = config.sim["_target_"].split(".")[1]
    if config.python:
        path = Path(config.python) if Path(config.python).is_absolute() else ROOT / config.python
        if not path.exists():
            raise EnvError(
                f"interpreter '{config.python}' of {config.sim['_target_']} does not exist; "
                f"run `python launch.py install {simulator}` or correct env.python"
            )
        return str(path)
    own = ROOT / ".venvs" / simulator / "bin" / "python"
    return str(own) if own.exists() else sys.executable


class Child:
    """A simulator process and the memory shared with it."""

    def __init__(self, config: EnvConfig, *, max_chunk: int) -> None:
        self.config = config
        self.max_chunk = max_chunk
        self.spec: EnvSpec | None = None
        self.slab: dict[str, np.ndarray] = {}
        self.reply: dict[str, Any] | None = None  # the answer to the last request, once it is there
        self.failure: Failure | None = None
        self._python = interpreter(config)
        self._queue: deque[dict[str, Any]] = deque()
        self._fd = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        self._asked: dict[str, Any] | None = None
        self._limit = 0.0
        self._deadline = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else -1

    @property
    def busy(self) -> bool:
        return self._asked is not None or bool(self._queue)

    @property
    def deadline(self) -> float:
        return self._deadline

    @property
    def asking(self) -> str:
        """The request under way and its time limit, in words."""
        return f"'{self._asked['op'] if self._asked else ''}' within {self._limit:g} s"

    @property
    def resident_mib(self) -> float:
        """Memory of the process and of those it has started, at present; 0 if it is not running or /proc is silent.

        AI2-THOR's simulator, for one, is a process of its own."""
        return _pages(self.pid) * os.sysconf("SC_PAGE_SIZE") / 2**20 if self._process else 0.0

    def fileno(self) -> int:
        return self._channel.fileno() if self._channel else -1

    def ask(self, message: dict[str, Any]) -> None:
        """Queue a request; a child that is not running is started first."""
        if self._process is None:
            self._start()
        self.reply, self.failure = None, None
        self._queue.append(message)
        if self._asked is None:
            self._send_next()

    def receive(self) -> None:
        """Read the answer that is waiting on the line, and send the next queued request."""
        assert self._channel is not None
        assert self._asked is not None
        try:
            message, _ = self._channel.recv()
        except WireClosed:
            self.fail("crashed", self._exit_text())
            return
        op = self._asked["op"]
        self._asked = None
        if "failed" in message:
            self.fail(message["failed"], message["message"])
            return
        if op == "open" and "error" not in message:
            self._opened(EnvSpec.from_json(message["spec"]))
        if self._queue and "error" not in message:
            self._send_next()
            return
        self._queue.clear()
        self.reply = message

    def fail(self, cause: str, detail: str) -> None:
        """Kill the process group and remember why; the next request starts a new process."""
        tail = self._log_tail()
        self.kill()
        self.reply = None
        self.failure = Failure(cause, detail + (f"; last output: {tail}" if tail else ""))

    def kill(self) -> None:
        """Kill the process with everything it started."""
        self._queue.clear()
        self._asked = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the simulator shut down, then make sure that it did."""
        if self._channel is not None and not self.busy:
            with contextlib.suppress(WireClosed):
                self._channel.send({"op": "close"})
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout_s)
        self.kill()
        self.slab = {}
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._log.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ, **{name: os.environ.get(name, "1") for name in _THREADS})
        environment.setdefault("GLIBC_TUNABLES", _MALLOC)
        inherited = os.environ.get("PYTHONPATH", "") if self._python == sys.executable else ""
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), inherited]))
        environment.pop("PYTHONHOME", None)  # another interpreter has its own packages; ours must not shine through
        self._log.seek(0)
        self._log.truncate()
        with theirs:
            self._process = subprocess.Popen(
                [self._python, "-m", "envs.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                start_new_session=True,
            )
        self._channel = Channel(ours)
        self._queue.append({"op": "open", "sim": self.config.sim})
        self._queue.append({"op": "map", "max_chunk": self.max_chunk})

    def _opened(self, spec: EnvSpec) -> None:
        layout, size = slab_layout(spec, self.max_chunk)
        if self.spec is not None and spec != self.spec:
            raise EnvError(f"{spec.env_id}: the restarted simulator has another specification than before")
        if self.spec is None:
            self.spec = spec
            self._fd = make_slab(size)
            self.slab = map_slab(self._fd, size, layout)

    def _send_next(self) -> None:
        assert self._channel is not None
        self._asked = self._queue.popleft()
        opening = self._asked["op"] == "open"
        self._limit = self.config.open_deadline_s if opening else self.config.step_deadline_s
        self._deadline = time.monotonic() + self._limit
        try:
            self._channel.send(self._asked, self._fd if self._asked["op"] == "map" else -1)
        except WireClosed:
            self.fail("crashed", self._exit_text())

    def _exit_text(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "it closed the line without exiting"
        if code < 0:
            return f"process {self._process.pid} was killed by {signal.Signals(-code).name}"
        return f"process {self._process.pid} exited with status {code}"

    def _log_tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 600))
        return self._log.read().decode(errors="replace").strip()


def _pages(pid: int) -> int:
    """In memory, of a process and all that descend from it; 0 if it has ended."""
    folder, pages = Path(f"/proc/{pid}"), 0
    with contextlib.suppress(OSError, IndexError):  # it ended while we looked
        pages = int((folder / "statm").read_text().split()[1])
        started = [c for thread in (folder / "task").iterdir() for c in (thread / "children").read_text().split()]
        pages += sum(_pages(int(c)) for c in started)
    return pages
