"""Let the scripted expert make demonstrations, in parallel, and keep the successful ones.

The same settings give the same file whatever the number of workers and the order in which they finish; a collection
that was stopped goes on when the same one is asked for again.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from envs.experts import Expert, make_expert
from envs.types import EnvConfig, EnvSpec, Observation
from envs.vector import Arrival, SimVector
from pretrained.demos.chores import export, refuse_present
from pretrained.demos.libero import DemoWriter, Recorded
from pretrained.progress import Bar

SEED_STRIDE = 100_003  # seeds of two collections do not overlap below this many attempts
DEMO_SEEDS = 3_000_000_000  # evaluation uses seeds below 1,000,000, fine-tuning those below 2,100,000,000
TRIES = 3  # of one attempt, if it is the simulator that fails
LABELS = ("clean", "executed")
NOTES = ("task", "house", "category")  # entries of a reset's notes that are kept
POSES = ("joint_poses", "gripper_pose", "gripper_open", "camera/", "intrinsics/")  # privileged entries that are kept

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectRun:
    """Settings of a collection."""

    env: EnvConfig | Mapping[str, Any]
    out: str  # a *.hdf5 file (its manifest is the *.json beside it), or a folder, for demo.hdf5 in it
    episodes: int = 100  # successful ones to keep, divided evenly among the tasks
    workers: int = 0  # environments in parallel; 0: as many as processors
    noise: float = 0.0  # of the expert's actions
    label: str = "clean"  # what a policy is to imitate: the action without noise ("clean") or the one "executed"
    seed: int = 0
    keep_failures: bool = False  # store failed episodes too (they do not count towards `episodes`)
    max_attempts: int = 0  # per task; 0: ten per episode wanted, and at least 50
    compression: str | None = "lzf"
    chores: str = ""  # a new folder that gets the episodes in the CHORES layout too, of env=ai2thor
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"label = '{self.label}' is unknown; expected one of {LABELS}")
        if self.episodes < 1:
            raise ValueError(f"episodes = {self.episodes}; expected at least 1")


def env_config(env: EnvConfig | Mapping[str, Any]) -> EnvConfig:
    """An `env` node of the configuration, with or without its `_target_`, as EnvConfig."""
    if isinstance(env, EnvConfig):
        return env
    fields = {k: v for k, v in env.items() if k != "_target_"}
    return EnvConfig(**{**fields, "tasks": tuple(env.get("tasks") or ())})


def collect(run: CollectRun) -> Path:
    """Collect, or go on collecting; the path of the finished file."""
    config, path = env_config(run.env), Path(run.out)
    path = path if path.suffix == ".hdf5" else path / "demo.hdf5"
    identity = {"sim": config.sim, "tasks": list(config.tasks), "noise": run.noise, "label": run.label,
                "seed": run.seed, "keep_failures": run.keep_failures}  # fmt: skip
    if run.chores:
        refuse_present(Path(run.chores))
    if _finished(path, identity, run.episodes):
        log.info("%s is already there", path)
    else:
        _collect(run, config, path, identity)
    if run.chores:
        export(path, Path(run.chores))
    return path


def _collect(run: CollectRun, config: EnvConfig, path: Path, identity: Mapping[str, Any]) -> None:
    """Make what is missing of the file."""
    workers = min(run.workers or os.cpu_count() or 1, run.episodes)
    vector = SimVector([config] * workers, max_chunk=1)
    try:
        spec = vector.env_spec
        writer = DemoWriter(path, env=spec, identity=identity, compression=run.compression)
        plan = _Plan(tasks=tuple(config.tasks) or spec.tasks, run=run, writer=writer)
        with Bar("collect", total=run.episodes, done=plan.successes(), quiet=run.quiet) as bar:
            _drive(vector, plan, run, bar)
    finally:
        vector.close()
    writer.finish(plan.keep(), plan.summary())


@dataclass
class _Take:
    """One attempt under way."""

    attempt: int
    task: str
    seed: int
    expert: Expert
    teacher: Expert  # whose actions are recorded
    seen: list[dict[str, Any]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    executed: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    instruction: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def decide(self, obs: Observation) -> np.ndarray:
        """Record what is seen, and the action for it; return the action to execute [1, A]."""
        action = np.asarray(self.expert.act(obs), dtype=np.float64)
        label = action if self.teacher is self.expert else np.asarray(self.teacher.act(obs), dtype=np.float64)
        images = {camera: image.copy() for camera, image in obs.images.items()}
        poses = {k: v.copy() for k, v in obs.privileged.items() if k.startswith(POSES)}
        self.seen.append({"images": images, "proprio": obs.proprio.copy(), "state": _state(obs), "poses": poses})
        self.actions.append(label)
        self.executed.append(action)
        return action[None]

    def recorded(self, success: bool) -> Recorded:
        images = {c: np.stack([s["images"][c] for s in self.seen]) for c in self.seen[0]["images"]}
        return Recorded(
            images=images,
            proprio=np.stack([s["proprio"] for s in self.seen]).astype(np.float32),
            actions=np.stack(self.actions),
            executed=np.stack(self.executed),
            rewards=np.asarray(self.rewards, dtype=np.float32),
            states=np.stack([s["state"] for s in self.seen]),
            instruction=self.instruction,
            task=self.task,
            seed=self.seed,
            success=success,
            poses={k: np.stack([s["poses"][k] for s in self.seen]) for k in self.seen[0]["poses"]},
            notes=self.notes,
        )


class _Plan:
    """Which attempt is next. Attempt k is try k // n of task k % n, with n tasks.

    An attempt starts only if all earlier ones together cannot fill its task's quota. So the attempts made, and the
    episodes kept, do not depend on who finishes first.
    """

    def __init__(self, *, tasks: tuple[str, ...], run: CollectRun, writer: DemoWriter) -> None:
        self.tasks, self.run, self.writer = tasks, run, writer
        self.quota = [run.episodes // len(tasks) + (j < run.episodes % len(tasks)) for j in range(len(tasks))]
        self.limit = [run.max_attempts or max(50, 10 * quota) for quota in self.quota]
        self.under_way: set[int] = set()
        self.simulator_failures = 0
        self.began = time.monotonic()

    def next(self) -> int | None:
        """An attempt to start now, or None if none may."""
        best: int | None = None
        for j in range(len(self.tasks)):
            good = sum(o == "success" for o in self._of(j).values())
            flying = sum(k % len(self.tasks) == j for k in self.under_way)
            if good + flying >= self.quota[j]:
                continue
            k = next(k for k in range(j, 1 << 62, len(self.tasks)) if not self._taken(k))
            if k // len(self.tasks) >= self.limit[j]:
                raise RuntimeError(
                    f"the expert succeeded in {good} of {self.limit[j]} attempts at '{self.tasks[j]}', expected "
                    f"{self.quota[j]} successes; lower the noise or the number of episodes, or raise max_attempts"
                )
            best = k if best is None else min(best, k)
        return best

    def successes(self) -> int:
        return sum(o == "success" for o in self.writer.outcomes.values())

    def keep(self) -> list[int]:
        """Attempts whose episodes go into the file, in order."""
        wanted = ("success", "failure") if self.run.keep_failures else ("success",)
        return sorted(k for k, outcome in self.writer.outcomes.items() if outcome in wanted)

    def summary(self) -> dict[str, Any]:
        """What the manifest says about the collection."""
        outcomes = list(self.writer.outcomes.values())
        judged = sum(o in ("success", "failure") for o in outcomes)
        return {
            "success_rate": self.successes() / max(1, judged),
            "attempts": {str(k): self.writer.outcomes[k] for k in sorted(self.writer.outcomes)},
            "simulator_failures": self.simulator_failures,
            "seeds": {str(k): attempt_seed(self.run.seed, k) for k in self.keep()},
            "expert": {"noise": self.run.noise, "label": self.run.label},
            "env": asdict(env_config(self.run.env)),
            "wall_s": round(time.monotonic() - self.began, 1),
        }

    def _of(self, j: int) -> dict[int, str]:
        return {k: o for k, o in self.writer.outcomes.items() if k % len(self.tasks) == j}

    def _taken(self, attempt: int) -> bool:
        return attempt in self.under_way or attempt in self.writer.outcomes


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of one attempt's initial state and noise; evaluation and fine-tuning use none of these."""
    return DEMO_SEEDS + seed % 10_000 * SEED_STRIDE + attempt


def _drive(vector: SimVector, plan: _Plan, run: CollectRun, bar: Bar) -> None:
    """Keep all rows busy until the quotas are filled."""
    takes: dict[int, _Take] = {}
    tries: dict[int, int] = {}
    idle = list(range(vector.num_envs))
    while True:
        while idle and (attempt := plan.next()) is not None:
            row = idle.pop()
            plan.under_way.add(attempt)
            takes[row] = _begin(vector.env_spec, plan, run, attempt)
            vector.send_reset(row, takes[row].task, takes[row].seed)
        if not takes:
            return
        for row in vector.wait():
            arrival, take = vector.take(row), takes[row]
            if arrival.kind == "failed":
                outcome = _simulator_failed(plan, take, arrival, tries)
            else:
                outcome = _advance(vector, row, take, arrival)
            if outcome is None:
                continue
            del takes[row]
            idle.append(row)
            plan.under_way.discard(take.attempt)
            if outcome == "success" or (outcome == "failure" and run.keep_failures):
                plan.writer.add(take.attempt, take.recorded(outcome == "success"))
            if outcome != "retry":
                plan.writer.note(take.attempt, outcome)
            made = len(plan.writer.outcomes)
            bar.advance(int(outcome == "success"), attempts=str(made), failures=str(made - plan.successes()))


def _begin(spec: EnvSpec, plan: _Plan, run: CollectRun, attempt: int) -> _Take:
    task, seed = plan.tasks[attempt % len(plan.tasks)], attempt_seed(run.seed, attempt)
    expert = make_expert(spec.env_id, task, noise=run.noise, seed=seed)
    clean = run.label == "clean" and run.noise > 0
    teacher = make_expert(spec.env_id, task, noise=0.0, seed=seed) if clean else expert
    return _Take(attempt, task, seed, expert, teacher)


def _advance(vector: SimVector, row: int, take: _Take, arrival: Arrival) -> str | None:
    """Take one answer of a row, and ask for the next step; the outcome if the episode is over."""
    obs = arrival.obs
    assert obs is not None
    if arrival.kind == "reset":
        take.instruction = obs.instruction
        take.notes = {k: v for k, v in obs.notes.items() if k in NOTES}
        take.expert.reset(obs)
        if take.teacher is not take.expert:
            take.teacher.reset(obs)
    else:
        take.rewards.append(float(arrival.rewards[0]))
        if arrival.terminated or arrival.truncated:
            return "success" if arrival.success else "failure"
    vector.send_step(row, take.decide(obs), render="last")
    return None


def _simulator_failed(plan: _Plan, take: _Take, arrival: Arrival, tries: dict[int, int]) -> str:
    """The same attempt again, from its start; after a few tries it is given up, and counted apart from failures."""
    plan.simulator_failures += 1
    tries[take.attempt] = tries.get(take.attempt, 0) + 1
    cause = arrival.failure.cause if arrival.failure else "?"
    log.warning("attempt %d: the simulator failed (%s), try %d of %d", take.attempt, cause, tries[take.attempt], TRIES)
    return "retry" if tries[take.attempt] < TRIES else "simulator_failed"


def _state(obs: Observation) -> np.ndarray:
    """The simulator's state [D] if it tells, else all that is privileged."""
    if "state" in obs.privileged:
        size = obs.privileged.get("state_size")  # some states are padded to the longest of a suite
        return np.array(obs.privileged["state"], dtype=np.float64).ravel()[: None if size is None else int(size[0])]
    parts = [np.asarray(obs.privileged[k], dtype=np.float64).ravel() for k in sorted(obs.privileged)]
    return np.concatenate([np.zeros(0), *parts])


def _finished(path: Path, identity: Mapping[str, Any], episodes: int) -> bool:
    """Whether `path` already holds this collection."""
    manifest = path.with_suffix(".json")
    if not (path.is_file() and manifest.is_file()):
        return False
    try:
        said = json.loads(manifest.read_text())
        kept = sum(outcome == "success" for outcome in said["attempts"].values())
    except (json.JSONDecodeError, KeyError):
        return False
    if kept > episodes and said["identity"] == json.loads(json.dumps(identity)):
        log.warning("%s already holds %d episodes, %d were asked for; use max_demos to train on fewer", path, kept,
                    episodes)  # fmt: skip
    return kept >= episodes and said["identity"] == json.loads(json.dumps(identity))
