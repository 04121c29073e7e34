"""The child process: builds one environment and answers open, map, reset, step and close until the line closes.

Started as `python -m envs.worker FD` by `envs.child`. Standard library and numpy only, Python 3.8 syntax.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, Dict, Optional

import numpy as np

from envs.build import build, locate
from envs.types import BadState, Env, EnvError, Observation, ResetNeeded
from envs.wire import Channel, WireClosed, map_slab, slab_layout


class Host:
    """One environment and the slab it writes to."""

    def __init__(self) -> None:
        self.env: Optional[Env] = None
        self.slab: Dict[str, np.ndarray] = {}
        self.running = False  # inside an episode
        self.instruction = ""

    def open(self, message: Dict[str, Any]) -> Dict[str, Any]:
        sim = message["sim"]
        if sim.get("perturb") and "perturb" not in inspect.signature(locate(sim["_target_"])).parameters:
            raise EnvError(f"{sim['_target_']} cannot be perturbed; expected an adapter that takes `perturb`")
        self.env = build(sim)
        return {"spec": self._env().spec.to_json()}

    def map(self, message: Dict[str, Any], fd: int) -> Dict[str, Any]:
        layout, size = slab_layout(self._env().spec, message["max_chunk"])
        self.slab = map_slab(fd, size, layout)
        os.close(fd)
        return {}

    def reset(self, message: Dict[str, Any]) -> Dict[str, Any]:
        obs = self._env().reset(message["task"], message["seed"])
        self._write(obs, images=obs.images)
        self.running, self.instruction = True, obs.instruction
        return {"instruction": obs.instruction, "notes": dict(obs.notes)}

    def step(self, message: Dict[str, Any]) -> Dict[str, Any]:
        """Execute n actions open loop, stop at the end of the episode or of a task in it, render as asked."""
        if not self.running:
            raise ResetNeeded(f"{self._env().spec.env_id}: step before reset; call reset after an episode has ended")
        env, n, render = self._env(), message["n"], message["render"]
        for j in range(n):
            step = env.step(self.slab["actions"][j], render=render == "all" or (render == "last" and j == n - 1))
            self.slab["rewards"][j] = step.reward
            if render == "all":
                for name, image in step.obs.images.items():
                    self.slab["video/" + name][j] = image
            if step.terminated or step.truncated:
                self.running = False
                break
            if step.obs.instruction != self.instruction:  # the rest of the chunk was meant for the task before
                self.instruction = step.obs.instruction
                break
        images = step.obs.images
        if not images and render != "none":  # it ended inside the chunk
            images = env.render()
        self._write(step.obs, images)
        return {
            "executed": j + 1,
            "terminated": bool(step.terminated),
            "truncated": bool(step.truncated),
            "success": bool(step.success),
            "instruction": step.obs.instruction,
            "unseen": bool(step.obs.unseen),
        }

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def _env(self) -> Env:
        if self.env is None:
            raise EnvError("the environment has not been opened")
        return self.env

    def _write(self, obs: Observation, images: Dict[str, np.ndarray]) -> None:
        np.copyto(self.slab["proprio"], obs.proprio)
        for name, value in obs.privileged.items():
            np.copyto(self.slab["privileged/" + name], value)
        for name, image in images.items():
            target = self.slab["image/" + name]
            if image.shape != target.shape or image.dtype != np.uint8:
                raise BadState(
                    f"{self._env().spec.env_id}: camera '{name}' gave {image.dtype} {image.shape}, "
                    f"expected uint8 {target.shape}"
                )
            np.copyto(target, image)


def answer(host: Host, message: Dict[str, Any], fd: int) -> Dict[str, Any]:
    """To one request: what it asks for, `error` if the caller is wrong, `failed` if the simulator is."""
    try:
        op = message["op"]
        if op == "open":
            return host.open(message)
        if op == "map":
            return host.map(message, fd)
        if op == "reset":
            return host.reset(message)
        if op == "ping":
            return {}
        if op == "step":
            return host.step(message)
        raise EnvError(f"unknown request '{op}'")
    except BadState as e:
        return {"failed": "bad_state", "message": str(e)}
    except EnvError as e:  # the caller's mistake: the environment itself is fine
        return {"error": type(e).__name__, "message": str(e)}
    except Exception as e:
        traceback.print_exc()
        return {"failed": "raised", "message": f"{type(e).__name__}: {e}"}


def _die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends: a stopped one could not leave."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def _leave_with_parent(parent: int) -> None:
    """A hung simulator would not notice a closed line; a changed parent process is noticed here."""
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


def main() -> None:
    """Serve one simulator over the socket whose number is the argument, until it closes."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    parent = os.getppid()
    _die_with_parent()
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    host = Host()
    with contextlib.suppress(WireClosed):
        while True:
            message, fd = channel.recv()
            if message.get("op") == "close":
                break
            channel.send(answer(host, message, fd))
    host.close()
    # Some GL libraries crash in their own exit handlers, after all work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
