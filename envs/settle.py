"""Waiting until a scene has come to rest, without waiting twice for the same scene.

A benchmark's stored states settle for some control steps before an episode begins. How that ends follows from the state
before it, so all but the last step are remembered, and only the last is computed again: it leaves contacts, poses and
sensors as they are after any step. Seeds that differ in what they draw for fixtures settle each on their own.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Callable, Optional, Protocol, Tuple

import numpy as np

KEPT = 600  # some 10 kB each: all stored states of a suite of ten tasks


@dataclass(frozen=True)
class Snapshot:
    """A running episode between two control steps."""

    integration: np.ndarray  # MuJoCo's mjSTATE_INTEGRATION
    sensors: np.ndarray  # the first physics step of the next control step reads them as they are now
    memory: bytes  # of the core
    timestep: int  # robosuite's count of control steps
    cur_time: float  # and its clock, s


class Arm(Protocol):
    """What settles; `envs.mujoco_arm` has it."""

    def start(self) -> Optional[bytes]: ...

    def snapshot(self) -> Snapshot: ...

    def resume(self, snapshot: Snapshot) -> None: ...

    def step(
        self, action: np.ndarray, *, observe: Optional[Callable[[], None]] = None, observe_after: int = 0
    ) -> float: ...


class Settling:
    """Settles scenes of many tasks; with `core: fast`, those seen before in one step."""

    def __init__(self, *, steps: int, action: np.ndarray, kept: int = KEPT) -> None:
        self._steps, self._action, self._kept = steps, action, kept
        self._ends: OrderedDict[Tuple[str, bytes], Snapshot] = OrderedDict()

    def __call__(self, arm: Arm, task: str, *, observe: Callable[[], None], observe_after: int) -> None:
        """Settle the scene of `task` that `arm` has just been reset to."""
        start = arm.start() if self._steps > 1 else None
        if start is None:
            self._play(arm, self._steps, observe, observe_after)
            return
        key = task, start
        if key in self._ends:
            self._ends.move_to_end(key)
            arm.resume(self._ends[key])
        else:
            self._play(arm, self._steps - 1, observe, observe_after)
            self._ends[key] = arm.snapshot()
            if len(self._ends) > self._kept:
                self._ends.popitem(last=False)
        self._play(arm, 1, observe, observe_after)

    def _play(self, arm: Arm, steps: int, observe: Callable[[], None], observe_after: int) -> None:
        for _ in range(steps):
            arm.step(self._action, observe=observe, observe_after=observe_after)
