"""N supervised simulators behind one object: a Gymnasium vector environment with an asynchronous face.

    send_reset / send_step ─► children (one process each) ─► wait ─► take ─► Arrival

Dead, silent, blind or non-finite children are replaced; only their own episode is lost. Autoreset is disabled, so the
observation at the end of an episode is the true final one.
"""

import math
import selectors
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.alive import moved
from envs.child import Child, Failure
from envs.inline import InlineChild, make_child
from envs.restarts import RestartBudget, Restarts
from envs.spaces import action_space, observation_space
from envs.types import EnvConfig, EnvError, EnvSpec, Observation, ResetNeeded

FROZEN_AFTER = 3  # identical frames in a row, while the robot moves, mean a stuck renderer


@dataclass(frozen=True)
class Arrival:
    """The answer of one row. Arrays are views into shared memory, valid until the next request to that row."""

    kind: str  # reset | step | failed
    obs: Observation | None  # None if failed
    rewards: np.ndarray  # float32 [executed]
    executed: int = 0
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    frames: dict[str, np.ndarray] = field(default_factory=dict)  # uint8 [executed, Y, X, 3] if all were rendered
    failure: Failure | None = None
    renewed: bool = False  # the instruction changed inside the episode: another task begins, the chunk was cut short


@dataclass
class _Row:
    child: Child | InlineChild
    restarts: Restarts
    asked: str = ""  # reset | step
    render: str = "last"
    instruction: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    frame_sum: int = -1
    frame_proprio: np.ndarray | None = None
    same_frames: int = 0


class SimVector(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """N environments of one specification, each in its own supervised process."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012 (Gymnasium's name)

    def __init__(
        self, configs: Sequence[EnvConfig], *, max_chunk: int = 16, budget: RestartBudget | None = None
    ) -> None:
        self._rows: list[_Row] = []
        self._selector = selectors.DefaultSelector()
        if not configs:
            raise EnvError("SimVector needs at least one EnvConfig")
        self.num_envs = len(configs)
        self.max_chunk = max_chunk
        self.restarts = 0  # of all rows
        self.recycled = 0  # children replaced because of their memory
        self._episode = np.zeros(self.num_envs, dtype=bool)  # Gymnasium face: inside an episode
        try:
            for config in configs:
                child = make_child(config, max_chunk=max_chunk)
                self._rows.append(_Row(child, Restarts(budget or RestartBudget())))
            self.env_spec = self._open()
        except BaseException:
            self.close()
            raise
        self.tasks = tuple(configs[0].tasks) or self.env_spec.tasks
        self.single_observation_space = observation_space(self.env_spec)
        self.single_action_space = action_space(self.env_spec)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._low = np.asarray(self.env_spec.low) - 1e-6
        self._high = np.asarray(self.env_spec.high) + 1e-6

    # --- asynchronous face ---------------------------------------------------------------------------------------

    def send_reset(self, i: int, task: str, seed: int) -> None:
        """Ask row i for a new episode. A row that failed is started again first. Raises EnvError when out of budget."""
        row = self._free(i)
        if row.child.failure is not None:
            row.restarts.spend(f"environment {i} ({self.env_spec.env_id})", row.child.failure)
            self.restarts += 1
        elif row.child.resident_mib > row.child.config.memory_mib:  # simulators leak; this is no failure
            self._unwatch(i)
            row.child.kill()
            self.recycled += 1
        row.asked, row.same_frames, row.frame_sum = "reset", 0, -1
        self._ask(i, {"op": "reset", "task": task, "seed": int(seed)})

    def send_step(self, i: int, chunk: np.ndarray, render: str = "last") -> None:
        """Ask row i to execute `chunk` [n, A] open loop; render after the last step, after all, or never ("none").

        Raises EnvError for actions of a wrong shape, out of bounds or not finite; the row stays as it was.
        """
        row = self._free(i)
        n = self._check_chunk(i, chunk)
        row.asked, row.render = "step", render
        if row.child.failure is not None:  # it died unasked; `take` says so, a new child would know no episode
            return
        row.child.slab["actions"][:n] = chunk
        self._ask(i, {"op": "step", "n": n, "render": render})

    def wait(self, limit: float = math.inf) -> list[int]:
        """Block until at least one asked row has an answer, or `limit` seconds; return all that have."""
        until = time.monotonic() + limit
        while True:
            ready = any(row.asked and not row.child.busy for row in self._rows)
            deadlines = [(row.child.deadline, i) for i, row in enumerate(self._rows) if row.child.busy]
            if deadlines:
                first, i = min(deadlines)
                for key, _ in self._selector.select(0.0 if ready else max(0.0, min(first, until) - time.monotonic())):
                    self._receive(key.data)
                child = self._rows[i].child
                if child.busy and time.monotonic() >= child.deadline:  # also while the others keep answering
                    self._unwatch(i)
                    child.fail("hung", f"no answer to {child.asking}")
            rows = [i for i, row in enumerate(self._rows) if row.asked and not row.child.busy]
            if rows:
                return rows
            if not deadlines:
                raise EnvError("wait: no request is under way; call send_reset or send_step first")
            if time.monotonic() >= until:
                return []

    def take(self, i: int) -> Arrival:
        """The answer of row i. Raises the environment's own EnvError if the request was refused."""
        row = self._rows[i]
        if not row.asked or row.child.busy:
            raise EnvError(f"take({i}): this row has no answer; call wait first")
        kind, row.asked = row.asked, ""
        reply = row.child.reply
        if reply is not None and "error" in reply:
            raise {"ResetNeeded": ResetNeeded}.get(reply["error"], EnvError)(reply["message"])
        if reply is not None:
            self._check_alive(i, kind)
        if row.child.failure is not None or reply is None:
            return Arrival("failed", None, np.zeros(0, np.float32), failure=row.child.failure)
        if kind == "reset":
            row.instruction, row.notes = reply["instruction"], reply["notes"]
            return Arrival("reset", self._observation(row), np.zeros(0, np.float32))
        n, renewed = reply["executed"], reply["instruction"] != row.instruction
        row.instruction = reply["instruction"]
        row.restarts.whole += reply["terminated"] or reply["truncated"]
        every = row.render == "all"
        frames = {c: row.child.slab["video/" + c][:n] for c in self.env_spec.cameras} if every else {}
        return Arrival(
            "step",
            self._observation(row),
            row.child.slab["rewards"][:n],
            n,
            reply["terminated"],
            reply["truncated"],
            reply["success"],
            frames,
            renewed=renewed,
        )

    def seen(self, i: int) -> Observation:
        """The last observation of row i: views, valid until the next request to it."""
        return self._observation(self._rows[i])

    def pids(self) -> list[int]:
        """Process ids of the children, -1 where one is down."""
        return [row.child.pid for row in self._rows]

    # --- Gymnasium's face ----------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset all rows, or those in options["reset_mask"]; options["task"] names the task."""
        options = options or {}
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs, dtype=bool)), dtype=bool)
        task = options.get("task", self.tasks[0])
        seeds = [seed + i if isinstance(seed, int) else None for i in range(self.num_envs)]
        if isinstance(seed, list):
            seeds = seed
        for i in np.flatnonzero(mask):
            chosen = seeds[i]
            self.send_reset(int(i), task, int(np.random.randint(2**31)) if chosen is None else chosen)
        failed = np.zeros(self.num_envs, dtype=bool)
        for i, arrival in self._arrivals(mask):
            failed[i] = arrival.kind == "failed"
        self._episode[mask] = ~failed[mask]
        return self._batch(), {"failed": failed}

    def step(self, actions: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step [N, A] or one chunk [N, n, A] of every row; a row that fails ends truncated, with info["failed"]."""
        if not self._episode.all():
            rows = np.flatnonzero(~self._episode).tolist()
            raise ResetNeeded(f"rows {rows} have no running episode; reset them with options={{'reset_mask': ...}}")
        chunks = np.asarray(actions, dtype=np.float64)
        if chunks.ndim == 1 and self.env_spec.num_actions:  # Gymnasium's MultiDiscrete
            chunks = chunks[:, None]
        chunks = chunks[:, None] if chunks.ndim == 2 else chunks
        if chunks.ndim != 3 or len(chunks) != self.num_envs:
            n, dims = self.num_envs, self.env_spec.action_dim
            raise EnvError(f"actions have shape {np.shape(actions)}, expected [{n}, {dims}] or [{n}, steps, {dims}]")
        for i in range(self.num_envs):
            self._check_chunk(i, chunks[i])
        for i in range(self.num_envs):
            self.send_step(i, chunks[i])
        rewards, flags = np.zeros(self.num_envs), np.zeros((4, self.num_envs), dtype=bool)
        executed = np.zeros(self.num_envs, dtype=int)
        for i, arrival in self._arrivals(np.ones(self.num_envs, dtype=bool)):
            failed = arrival.kind == "failed"
            rewards[i], executed[i] = arrival.rewards.sum(), arrival.executed
            flags[:, i] = arrival.terminated, arrival.truncated or failed, arrival.success, failed
        self._episode = ~(flags[0] | flags[1])
        info = {"success": flags[2], "failed": flags[3], "executed": executed}
        return self._batch(), rewards, flags[0], flags[1], info

    def close_extras(self, **kwargs: Any) -> None:
        """Stop all children; Gymnasium's `close` calls it once."""
        for i, row in enumerate(self._rows):
            self._unwatch(i)
            row.child.close()
        self._rows = []
        self._selector.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _open(self) -> EnvSpec:
        """Start all children at once; a child that cannot start at all is an error, not a failure to recover from."""
        for i in range(self.num_envs):
            self._rows[i].asked = "open"
            self._rows[i].child.ask({"op": "ping"})
            self._watch(i)
        while any(row.asked for row in self._rows):
            for i in self.wait():
                self._unwatch(i)
                child = self._rows[i].child
                self._rows[i].asked = ""
                if child.failure is not None:
                    raise EnvError(f"{child.config.sim} did not start ({child.failure.cause}): {child.failure.detail}")
                if child.reply and "error" in child.reply:
                    raise EnvError(child.reply["message"])
        specs = [row.child.spec for row in self._rows]
        first = specs[0]
        assert first is not None
        if any(s is None or _interface(s) != _interface(first) for s in specs):
            raise EnvError(f"environments of one vector must have one interface, got {[s and s.env_id for s in specs]}")
        return first

    def _free(self, i: int) -> _Row:
        row = self._rows[i]
        if row.asked:
            raise EnvError(f"row {i} still owes an answer to '{row.asked}'; call wait and take first")
        return row

    def _ask(self, i: int, message: dict[str, Any]) -> None:
        fd = self._rows[i].child.fileno()
        self._rows[i].child.ask(message)
        if 0 <= fd != self._rows[i].child.fileno() and fd in self._selector.get_map():
            self._selector.unregister(fd)  # the child was found dead while asking
        self._watch(i)

    def _watch(self, i: int) -> None:
        fd = self._rows[i].child.fileno()
        if fd >= 0 and fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_READ, i)

    def _unwatch(self, i: int) -> None:
        fd = self._rows[i].child.fileno() if self._rows else -1
        if fd >= 0 and fd in (self._selector.get_map() or {}):
            self._selector.unregister(fd)

    def _receive(self, i: int) -> None:
        child = self._rows[i].child
        fd = child.fileno()
        if not child.busy:  # an idle child only becomes readable when it dies
            self._selector.unregister(fd)
            child.fail("crashed", "it died between two requests")
            return
        child.receive()
        if child.failure is not None:  # its line is closed now
            self._selector.unregister(fd)

    def _check_chunk(self, i: int, chunk: np.ndarray) -> int:
        n, dims = (chunk.shape[0], chunk.shape[1:]) if np.ndim(chunk) == 2 else (0, ())
        if not 1 <= n <= self.max_chunk or dims != (self.env_spec.action_dim,):
            wanted = f"(1..{self.max_chunk}, {self.env_spec.action_dim})"
            raise EnvError(f"row {i}: chunk has shape {np.shape(chunk)}, expected {wanted}")
        inside = (chunk >= self._low) & (chunk <= self._high)  # no number that is not finite is
        if not inside.all():
            if not np.isfinite(chunk).all():
                raise EnvError(f"row {i}: an action is not finite: {chunk.tolist()}; check the policy's output")
            j, k = np.argwhere(~inside)[0]
            raise EnvError(
                f"row {i}: action '{self.env_spec.actions[k]}' = {chunk[j, k]:.6g} is outside "
                f"[{self.env_spec.low[k]:g}, {self.env_spec.high[k]:g}]; clip it, or check the action convention"
            )
        return n

    def _check_alive(self, i: int, kind: str) -> None:
        """Liveness is also semantic: non-finite state, black or frozen frames are failures of the simulator."""
        row = self._rows[i]
        proprio = row.child.slab["proprio"]
        cause = ""
        if not np.isfinite(proprio).all():
            names = [n for n, v in zip(self.env_spec.proprio, proprio, strict=True) if not np.isfinite(v)]
            cause, detail = "bad_state", f"proprioception {names} is not finite"
        elif self.env_spec.cameras and (kind == "reset" or row.render != "none"):
            for camera in self.env_spec.cameras:
                if not row.child.slab["image/" + camera].any():
                    cause, detail = "bad_frame", f"camera '{camera}' is black"
            if not cause and self._frozen(row, proprio, unseen=bool((row.child.reply or {}).get("unseen"))):
                cause, detail = "bad_frame", f"no camera changed for {FROZEN_AFTER} observations while the robot moved"
        if cause:
            self._unwatch(i)
            row.child.fail(cause, detail)

    def _frozen(self, row: _Row, proprio: np.ndarray, *, unseen: bool) -> bool:
        total = 0
        for camera in self.env_spec.cameras:
            total = zlib.adler32(row.child.slab["image/" + camera].data, total)
        if unseen or total != row.frame_sum or row.frame_proprio is None:
            row.frame_sum, row.frame_proprio, row.same_frames = total, proprio.copy(), 0
        elif moved(proprio - row.frame_proprio, self.env_spec.proprio.values()):
            row.same_frames += 1
        return row.same_frames >= FROZEN_AFTER

    def _observation(self, row: _Row) -> Observation:
        slab = row.child.slab
        return Observation(
            images={c: slab["image/" + c] for c in self.env_spec.cameras},
            proprio=slab["proprio"],
            instruction=row.instruction,
            privileged={n[11:]: v for n, v in slab.items() if n.startswith("privileged/")},
            notes=row.notes,
        )

    def _arrivals(self, mask: np.ndarray) -> list[tuple[int, Arrival]]:
        pending, arrivals = set(np.flatnonzero(mask).tolist()), []
        refused: list[EnvError] = []
        while pending:
            for i in self.wait():
                pending.discard(i)
                try:
                    arrivals.append((i, self.take(i)))
                except EnvError as e:  # hear the others out first, so that they stay usable
                    refused.append(e)
        if refused:
            raise refused[0]
        return arrivals

    def _batch(self) -> dict[str, Any]:
        """Observations of all rows, copied."""
        slabs = [row.child.slab for row in self._rows]
        images = {c: np.stack([s["image/" + c] for s in slabs]) for c in self.env_spec.cameras}
        proprio = np.stack([s["proprio"] for s in slabs])
        return {"images": images, "proprio": proprio, "instruction": tuple(r.instruction for r in self._rows)}


def _interface(spec: EnvSpec) -> tuple[Any, ...]:
    """What must agree between the rows of one vector (the simulator itself need not)."""
    return (spec.cameras, spec.proprio, spec.actions, spec.low, spec.high, spec.action_convention, spec.num_actions)
