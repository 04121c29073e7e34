"""A reach task seen in pixels, fast enough to test everything above it. Needs numpy alone; Python 3.8 syntax.

A white hand moves on the plane [-1, 1] x [-1, 1] and has to reach, and for `hold` steps stay at, the disc whose
colour the instruction names; a disc of the other colour is in the picture too. Where the discs are is not in the
proprioception, so a policy has to look. It can also misbehave on command, for tests of supervision.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from envs.types import EnvError, EnvSpec, Observation, ResetNeeded, Step, check_action

TASKS = ("red", "blue")
MOVES = np.array([[0, 0], [0, 1], [0, -1], [-1, 0], [1, 0]], dtype=np.float64)  # stay, up, down, left, right
STEP = 0.15  # how far a unit action moves the hand
RADIUS = 0.2  # the hand is at the target within this distance
FIELD = 0.7  # discs and hand start within [-FIELD, FIELD]
APART = 0.7  # and at least this far from one another
CLOSE_UP = 0.5  # half the side of the square that camera "hand" shows
BACKGROUND = 50
PAINT = {"red": (220, 40, 40), "blue": (50, 80, 230), "hand": (240, 240, 240)}
DISC = {"red": 0.17, "blue": 0.17, "hand": 0.11}  # radii as drawn

Cameras = Union[Mapping[str, Sequence[int]], Sequence[str], None]


class Toy:
    """`toy/reach` (action: velocity [dx, dy]) and `toy/reach_discrete` (action: one of five moves)."""

    def __init__(
        self,
        *,
        name: str = "reach",
        size: Sequence[int] = (32, 32),
        cameras: Cameras = None,
        discrete: bool = False,
        max_steps: int = 24,
        tasks: Sequence[str] = TASKS,
        hold: int = 2,
        relay: bool = False,
        crash_at: Optional[int] = None,
        hang_at: Optional[int] = None,
        nan_at: Optional[int] = None,
        black_at: Optional[int] = None,
        fault_seed: Optional[int] = None,
        step_ms: float = 0.0,
        wait_ms: float = 0.0,
        leak_mib: float = 0.0,
        stills: int = 0,
    ) -> None:
        """The `*_at` are step numbers of an episode (0: the reset) at which the process dies, sleeps for ever, or from
        which on proprioception is NaN or frames are black; with `fault_seed`, in episodes of that seed only.
        A step uses up `step_ms` of processor time, as a slow simulator would, and sleeps for `wait_ms`, as one whose
        physics run on another machine would; a reset leaks `leak_mib`. With `relay` both discs are wanted, one after
        the other: the instruction changes inside the episode, and each pays 1. `stills` are so many pictures drawn
        beforehand and shown in turn, whatever the state: a simulator that costs nothing, to measure what is around it.
        """
        if name not in ("reach", "reach_discrete"):
            raise EnvError(f"toy: there is no '{name}'; expected 'reach' or 'reach_discrete'")
        unknown = sorted(set(tasks) - set(TASKS))
        if unknown or not tasks:
            raise EnvError(f"toy: tasks {list(tasks)} are not all known; expected some of {list(TASKS)}")
        self.discrete = discrete or name == "reach_discrete"
        self.hold, self.step_ms, self.wait_ms = hold, step_ms, wait_ms
        self.relay, self.legs = relay, 1
        self.leak_mib = leak_mib
        self.leaked: List[np.ndarray] = []
        self.faults = {"crash": crash_at, "hang": hang_at, "nan": nan_at, "black": black_at}
        self.fault_seed = fault_seed
        self.spec = _spec(self.discrete, _cameras(cameras, size), max_steps, tuple(tasks))
        self.hand = np.zeros(2)
        self.discs = {colour: np.zeros(2) for colour in TASKS}
        self.task, self.seed, self.steps, self.held, self.first = "", 0, 0, 0, 1.0
        self.running = self.closed = False
        self.stills: List[Dict[str, np.ndarray]] = []
        self.shown = 0
        for number in range(stills):
            self.hand, self.discs["red"], self.discs["blue"] = _layout(np.random.default_rng(number))
            self.stills.append(self._draw())

    def reset(self, task: str, seed: int) -> Observation:
        """Start an episode; the picture depends on the seed alone, so that only the instruction tells the target."""
        if self.closed:
            raise EnvError("toy: reset after close; make a new environment")
        if task not in self.spec.tasks:
            raise EnvError(f"toy: there is no task '{task}'; expected one of {list(self.spec.tasks)}")
        if self.leak_mib:
            self.leaked.append(np.ones(int(self.leak_mib * 2**17)))
        rng = np.random.default_rng(seed)
        self.hand, self.discs["red"], self.discs["blue"] = _layout(rng)
        self.task, self.seed, self.steps, self.held = task, seed, 0, 0
        self.legs = 2 if self.relay else 1
        self.first = self._distance()
        self.running = True
        self._misbehave()
        return self._observe(render=True)

    def step(self, action: np.ndarray, render: bool = True) -> Step:
        """Move the hand; `action` [dx, dy] in [-1, 1], or [i] with i an index into `MOVES`."""
        if not self.running:
            raise ResetNeeded(f"{self.spec.env_id}: step before reset or after the end of the episode; call reset")
        action = check_action(self.spec, action)
        deadline = time.thread_time() + self.step_ms / 1e3  # not the wall clock: others may need the processor too
        self.steps += 1
        self._misbehave()
        move = MOVES[int(action[0])] if self.discrete else action
        self.hand = np.clip(self.hand + STEP * move, -1.0, 1.0)
        self.held = self.held + 1 if self._distance() <= RADIUS else 0
        reached = self.held >= self.hold
        success = reached and self.legs == 1
        if reached and not success:
            self.task, self.held, self.legs = ("blue" if self.task == "red" else "red"), 0, 1
            self.first = self._distance()
        truncated = not success and self.steps >= self.spec.max_steps
        self.running = not (success or truncated)
        obs = self._observe(render)
        while time.thread_time() < deadline:
            pass
        if self.wait_ms:
            time.sleep(self.wait_ms / 1e3)
        return Step(obs, float(reached), success, truncated, success)

    def render(self) -> Dict[str, np.ndarray]:
        """Pictures of the present state: "top" shows the whole plane, "hand" the surroundings of the hand."""
        if self._faulty("black"):
            return {name: np.zeros((*size, 3), dtype=np.uint8) for name, size in self.spec.cameras.items()}
        if self.stills:
            self.shown += 1
            return self.stills[self.shown % len(self.stills)]
        return self._draw()

    def close(self) -> None:
        """End it; calling it again does nothing."""
        self.closed, self.running = True, False

    def _draw(self) -> Dict[str, np.ndarray]:
        images = {}
        for name, size in self.spec.cameras.items():
            centre, half = (self.hand, CLOSE_UP) if name == "hand" else (np.zeros(2), 1.0)
            image = np.full((*size, 3), BACKGROUND, dtype=np.uint8)
            for what in ("red", "blue", "hand"):
                place = self.hand if what == "hand" else self.discs[what]
                _paint(image, (place - centre) / half, DISC[what] / half, PAINT[what])
            images[name] = image
        return images

    def _distance(self) -> float:
        return float(np.hypot(*(self.hand - self.discs[self.task])))

    def _faulty(self, what: str) -> bool:
        at = self.faults[what]
        return at is not None and self.steps >= at and self.fault_seed in (None, self.seed)

    def _misbehave(self) -> None:
        if self._faulty("crash"):
            os.kill(os.getpid(), signal.SIGKILL)
        while self._faulty("hang"):
            time.sleep(3600)

    def _observe(self, render: bool) -> Observation:
        hand = self.hand.astype(np.float32)
        state = np.concatenate([self.hand, self.discs["red"], self.discs["blue"]])
        privileged = {
            "hand": self.hand.copy(),
            "target": self.discs[self.task].copy(),
            "progress": np.array(min(max(1.0 - self._distance() / self.first, 0.0), 1.0)),
            "state": state,
        }
        proprio = np.full_like(hand, np.nan) if self._faulty("nan") else hand
        instruction = f"reach the {self.task} target"
        return Observation(self.render() if render else {}, proprio, instruction, privileged)


def _spec(discrete: bool, cameras: Dict[str, Tuple[int, int]], max_steps: int, tasks: Tuple[str, ...]) -> EnvSpec:
    return EnvSpec(
        env_id="toy/reach_discrete" if discrete else "toy/reach",
        cameras=cameras,
        proprio={"hand_x": "m", "hand_y": "m"},
        actions=("move",) if discrete else ("dx", "dy"),
        low=(0.0,) if discrete else (-1.0, -1.0),
        high=(len(MOVES) - 1.0,) if discrete else (1.0, 1.0),
        control_hz=10.0,
        max_steps=max_steps,
        tasks=tasks,
        action_convention="toy_move" if discrete else "toy_velocity",
        num_actions=len(MOVES) if discrete else 0,
        privileged={"hand": (2,), "target": (2,), "progress": (), "state": (6,)},
    )


def _cameras(cameras: Cameras, size: Sequence[int]) -> Dict[str, Tuple[int, int]]:
    """Camera names with sizes; names alone get `size`."""
    chosen = ["top"] if cameras is None else cameras
    sizes = dict(chosen) if isinstance(chosen, Mapping) else {name: size for name in chosen}
    unknown = sorted(set(sizes) - {"top", "hand"})
    if unknown or not sizes:
        raise EnvError(f"toy: cameras {sorted(sizes)} are not all known; expected 'top', 'hand' or both")
    return {name: (int(s[0]), int(s[1])) for name, s in sizes.items()}


def _layout(rng: np.random.Generator) -> List[np.ndarray]:
    """Hand, red and blue disc, pairwise apart."""
    while True:
        hand, red, blue = rng.uniform(-FIELD, FIELD, size=(3, 2))
        if min(np.hypot(*(hand - red)), np.hypot(*(hand - blue)), np.hypot(*(red - blue))) >= APART:
            return [hand, red, blue]


def _paint(image: np.ndarray, centre: np.ndarray, radius: float, colour: Tuple[int, int, int]) -> None:
    """Draw a disc given in [-1, 1] coordinates with y up. Its edge is smooth, so that every movement shows."""
    height, width = image.shape[:2]
    x, y = (centre[0] + 1) / 2 * width - 0.5, (1 - centre[1]) / 2 * height - 0.5
    rx, ry = radius / 2 * width, radius / 2 * height
    x0, x1 = max(int(x - rx) - 1, 0), min(int(x + rx) + 2, width)  # touch only the box around it
    y0, y1 = max(int(y - ry) - 1, 0), min(int(y + ry) + 2, height)
    if x0 >= x1 or y0 >= y1:
        return
    across = ((np.arange(x0, x1) - x) / rx) ** 2
    down = ((np.arange(y0, y1) - y) / ry) ** 2
    cover = (1.0 - np.sqrt(down[:, None, None] + across[None, :, None])) * min(rx, ry) + 0.5
    np.clip(cover, 0.0, 1.0, out=cover)
    box = image[y0:y1, x0:x1]
    box[...] = box + cover * (np.asarray(colour) - box.astype(np.float64)) + 0.5
