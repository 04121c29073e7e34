"""A simulator in the caller's own process, with the face of `envs.child.Child`.

A step of a light simulator can cost less than waking another process. What is given up is supervision: one that hangs
or crashes takes its rollout worker with it, and the worker is replaced instead; one that raises is built again.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import numpy as np

from envs.child import Child, Failure, interpreter
from envs.types import EnvConfig, EnvError, EnvSpec
from envs.wire import slab_layout
from envs.worker import Host, answer


def make_child(config: EnvConfig, *, max_chunk: int) -> Child | InlineChild:
    """A process of its own or none, as `config.process` says."""
    return Child(config, max_chunk=max_chunk) if config.process == "own" else InlineChild(config, max_chunk=max_chunk)


class InlineChild:
    """Answers while it is asked, so that it is never busy."""

    busy = False
    deadline = 0.0
    asking = ""
    pid = -1
    resident_mib = 0.0  # what it has is the caller's

    def __init__(self, config: EnvConfig, *, max_chunk: int) -> None:
        """Raises EnvError if the simulator needs another interpreter than the present one."""
        if (wanted := interpreter(config)) != sys.executable:
            raise EnvError(
                f"env.process=shared: {config.sim['_target_']} runs in {wanted}, not in {sys.executable}; set "
                "env.process=own, or env.python to the present interpreter if it has the simulator's packages"
            )
        self.config = config
        self.max_chunk = max_chunk
        self.spec: EnvSpec | None = None
        self.slab: dict[str, np.ndarray] = {}
        self.reply: dict[str, Any] | None = None
        self.failure: Failure | None = None
        self._host: Host | None = None

    def fileno(self) -> int:
        """There is no line to it."""
        return -1

    def ask(self, message: dict[str, Any]) -> None:
        """Build the simulator if there is none, and have the request answered."""
        self.reply, self.failure = None, None
        if self._host is None:
            self._host = Host()
            reply = answer(self._host, {"op": "open", "sim": self.config.sim}, -1)
            if "spec" in reply:
                self._opened(EnvSpec.from_json(reply["spec"]))
            else:
                self._host = None
                self._take(reply)
                return
        self._take(answer(self._host, message, -1))

    def receive(self) -> None:
        """Nothing is ever under way."""

    def fail(self, cause: str, detail: str) -> None:
        """Drop the simulator and remember why; the next request builds a new one."""
        self.kill()
        self.reply, self.failure = None, Failure(cause, detail)

    def kill(self) -> None:
        """Drop the simulator."""
        host, self._host = self._host, None
        if host is not None:
            with contextlib.suppress(Exception):  # it may be broken
                host.close()

    def close(self, timeout_s: float = 5.0) -> None:
        """The same."""
        self.kill()
        self.slab = {}

    def _opened(self, spec: EnvSpec) -> None:
        if self.spec is None:
            self.spec = spec
            layout, _ = slab_layout(spec, self.max_chunk)
            self.slab = {name: np.zeros(shape, dtype) for name, (_, dtype, shape) in layout.items()}
        assert self._host is not None
        self._host.slab = self.slab

    def _take(self, reply: dict[str, Any]) -> None:
        if "failed" in reply:
            self.fail(reply["failed"], reply["message"])
        else:
            self.reply = reply
