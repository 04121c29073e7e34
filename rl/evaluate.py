"""The evaluation loop: a list of episodes, each named by task and seed, with the same noise for every checkpoint.

A simulator failure is not a task failure: the episode is tried again in a fresh simulator, and if that fails too it is
reported apart and left out of the success rate. Videos are replays of the first episodes (see envs/film.py), made when
all has been measured.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.build import build
from envs.film import Film, States, Take
from envs.types import EnvConfig
from envs.vector import Arrival, SimVector
from pretrained.checkpoint import choose, load_policy, read_card
from pretrained.progress import Bar
from pretrained.types import ObsBatch, Policy
from rl.audit import Audit
from rl.captions import caption
from rl.collect import TRAINING_SEEDS
from rl.hint_pictures import HintPictures
from rl.history import History
from rl.records import summarise, write_records, write_summary
from rl.replay import Tape, initial_state, write_environment, write_tapes
from rl.sequential import RateTest, confidence_sequence, rate_test
from rl.stats import wilson
from rl.tables import NoTables, Tables, make_tables
from rl.types import EpisodeRecord, Proposal
from rl.videos import film_takes

ATTEMPTS = 3  # of an episode whose simulator fails


@dataclass(frozen=True)
class EvaluateRun:
    """What to evaluate and where to write it."""

    checkpoint: str
    env: EnvConfig
    out: str
    episodes: int = 100
    seed_start: int = 0  # episode k uses seed seed_start + k // tasks: equal seeds are equal initial states
    workers: int = 0  # simulators side by side; 0: twice the processor cores
    greedy: bool = True
    videos: int = 4  # of the first episodes, as the cameras of `env.video` and those of the policy see them
    policy_overrides: Mapping[str, Any] = field(default_factory=dict)
    proposal: Mapping[str, Any] | None = None  # node
    hint_pictures: int = 0  # episodes whose painted pictures are written to `pictures`
    eval_type: str | int = "latest"  # of a run folder: latest (or last), last_three, or the number of a step
    rewards: Mapping[str, Any] = field(default_factory=dict)  # of which learned ones are audited
    stop: Mapping[str, float] = field(default_factory=dict)  # of rl.sequential.rate_test: stop when it has decided
    threads: int = 0  # of torch; 0: leave as it is
    command: str = ""
    quiet: bool = False

    def __post_init__(self) -> None:
        self.test()  # before anything is started
        if self.hint_pictures and not self.proposal:
            raise ValueError("hint_pictures needs a proposal that paints; choose proposal=target_image")
        last = self.seed_start + self.episodes
        if self.episodes < 1 or self.seed_start < 0 or last > TRAINING_SEEDS:
            raise ValueError(
                f"evaluation seeds [{self.seed_start}, {last}) must be at least one episode within "
                f"[0, {TRAINING_SEEDS}); larger seeds belong to training"
            )

    def test(self) -> RateTest | None:
        """What ends the run early, if anything does."""
        known = {"low", "high", "alpha", "beta"}
        if self.stop and not {"low", "high"} <= set(self.stop) <= known:
            raise ValueError(f"stop has {sorted(self.stop)}; expected low and high (success rates), and alpha and beta")
        if not self.stop:
            return None
        errors = {k: float(v) for k, v in self.stop.items() if k in ("alpha", "beta")}
        return rate_test(float(self.stop["low"]), float(self.stop["high"]), **errors)


@dataclass
class _Live:
    """The episode that a row is running."""

    plan: int
    task: str
    seed: int
    attempt: int
    rng: torch.Generator
    states: States
    length: int = 0
    reward: float = 0.0
    actions: list[np.ndarray] = field(default_factory=list)  # [n, A] each
    captions: list[str] = field(default_factory=list)  # of discrete actions; kept for videos
    initial: np.ndarray | None = None  # the state at the reset
    hints: dict[str, torch.Tensor] = field(default_factory=dict)  # of the proposal
    planned: int = 0  # decisions since they came


def evaluate(run: EvaluateRun) -> dict[str, Any]:
    """Run the episodes, write records, tables and videos to `run.out`, and return the summary.

    With eval_type=last_three there is a folder for each checkpoint, and `run.out` has the summary of all together.
    Raises RuntimeError if not a single episode could be evaluated.
    """
    if run.threads:
        torch.set_num_threads(run.threads)
    found = choose(Path(run.checkpoint), str(run.eval_type))
    return _evaluate(run, found[0]) if len(found) == 1 else _several(run, found)


def _several(run: EvaluateRun, found: Sequence[Path]) -> dict[str, Any]:
    """The same episodes with each of several checkpoints."""
    out = Path(run.out)
    each = {path.name: _evaluate(replace(run, out=str(out / path.name)), path) for path in found}
    wins = sum(round(s["success"] * s["episodes"]) for s in each.values())
    count = sum(s["episodes"] for s in each.values())
    low, high = wilson(wins, count)
    # The interval takes all episodes as independent, which those of the same initial state are not quite.
    kept = ("success", "low", "high", "episodes", "infrastructure_failures", "mean_length")
    summary = {"success": wins / count, "low": low, "high": high, "episodes": count,
               "checkpoints": {name: {k: s[k] for k in kept} for name, s in each.items()},
               "eval_type": run.eval_type, "checkpoint": run.checkpoint, "command": run.command}  # fmt: skip
    write_summary(out, summary)
    return summary


def _evaluate(run: EvaluateRun, checkpoint: Path) -> dict[str, Any]:
    workers = min(run.workers or 2 * (os.cpu_count() or 1), run.episodes)
    started, out = time.time(), Path(run.out)
    with contextlib.ExitStack() as open_:
        vector = SimVector([run.env] * workers, max_chunk=read_card(checkpoint).policy.horizon)
        open_.callback(vector.close)
        policy = load_policy(checkpoint, env=vector.env_spec, overrides=dict(run.policy_overrides), spare_cameras=True)
        # Before the episodes, so that a camera that is not there is noticed before hours of them.
        film = open_.enter_context(Film(run.env, vector.env_spec, max_chunk=vector.max_chunk)) if run.videos else None
        (out / "videos").mkdir(parents=True, exist_ok=True)
        episodes = _episodes(run, vector, policy, build(run.proposal) if run.proposal else None)
        spec, restarts = vector.env_spec, vector.restarts
        vector.close()
        write_environment(out, run.env, spec)
        write_tapes(out, episodes.tapes)
        tabled = episodes.tables.write(out, episodes.records)
        write_records(out, episodes.records, tabled.columns)
        videos = film_takes(film, episodes.takes, out / "videos", quiet=run.quiet) if film else {}
    summary = (
        summarise(episodes.records)
        | dict(tabled.summary)
        | {
            "env": spec.env_id,
            "checkpoint": str(checkpoint),
            "seed_start": run.seed_start,
            "greedy": run.greedy,
            "restarts": restarts,
            **_stopped(run, episodes),
            "cameras": {name: list(size) for name, size in spec.cameras.items()},
            "perturbation": spec.perturbation,
            "videos": videos,
            **({"audit": episodes.audit.summary()} if episodes.audit.terms else {}),
            "wall_s": round(time.time() - started, 1),
            "command": run.command,
        }
    )
    write_summary(out, summary)
    if not summary["episodes"]:
        records = episodes.records
        causes = sorted({r.cause for r in records if not r.valid})
        raise RuntimeError(f"nothing was evaluated: all {len(records)} episodes failed in the simulator: {causes[:3]}")
    return summary


def _stopped(run: EvaluateRun, episodes: "Episodes") -> dict[str, Any]:
    """What the test said, with an interval that holds although the test chose when to stop."""
    if episodes.test is None:
        return {}
    good = [r.success for r in episodes.records if r.valid]
    low, high = confidence_sequence(sum(good), len(good))
    verdict = {"decision": episodes.decision or "undecided", "low": low, "high": high}
    return {"stopped": verdict | {"planned": run.episodes, "test": dict(run.stop)}}


def _episodes(run: EvaluateRun, vector: SimVector, policy: Policy, proposal: Proposal | None) -> "Episodes":
    """All episodes of the run, done."""
    tasks = len(vector.tasks)
    plan = [(vector.tasks[k % tasks], run.seed_start + k // tasks) for k in range(run.episodes)]
    with Bar("evaluate", total=len(plan), quiet=run.quiet) as bar:

        def report(done: Sequence[EpisodeRecord]) -> None:
            good = [r for r in done if r.valid]
            bar.advance(1, success=sum(r.success for r in good) / max(1, len(good)))

        options: dict[str, Any] = {"greedy": run.greedy, "videos": run.videos, "proposal": proposal}
        options |= {"audit": Audit.of(run.rewards), "test": run.test(), "tables": make_tables(run.env)}
        if run.hint_pictures:
            options["pictures"] = HintPictures(Path(run.out) / "pictures", episodes=run.hint_pictures)
        episodes = Episodes(vector, policy, plan, report=report, **options)
        episodes.run()
    return episodes


class Episodes:
    """Runs a plan of (task, seed) episodes over the rows of a vector."""

    def __init__(
        self,
        vector: SimVector,
        policy: Policy,
        plan: Sequence[tuple[str, int]],
        *,
        greedy: bool = True,
        videos: int = 0,
        report: Callable[[Sequence[EpisodeRecord]], None] | None = None,
        proposal: Proposal | None = None,
        audit: Audit | None = None,
        test: RateTest | None = None,
        tables: Tables | None = None,
        pictures: HintPictures | None = None,
    ) -> None:
        self.vector, self.policy, self.plan, self.greedy, self.num_videos = vector, policy, list(plan), greedy, videos
        self.audit, self.tables = audit or Audit({}), tables or NoTables()
        self.report, self.proposal, self.pictures = report, proposal, pictures
        self.history = History(vector, policy.spec.history)
        self.memory = policy.initial_memory(vector.num_envs)
        self.live: list[_Live | None] = [None] * vector.num_envs
        self.pending = deque((k, 0) for k in range(len(self.plan)))
        self.done: dict[int, EpisodeRecord] = {}
        self.takes: dict[str, Take] = {}  # file name of the video -> episode
        self.tapes: dict[int, Tape] = {}  # valid episodes
        self.test, self.decision, self.prefix = test, "", 0  # `prefix` episodes of the plan are done

    @property
    def records(self) -> list[EpisodeRecord]:
        """What is done, in the order of the plan; if a test has decided, what it has decided by."""
        return [self.done[k] for k in sorted(self.done) if not self.decision or k < self.prefix]

    @torch.no_grad()
    def run(self) -> list[EpisodeRecord]:
        """Records in the order of the plan."""
        ready: set[int] = set()
        for i in range(self.vector.num_envs):
            self._start(i)
        while not self._decided() and len(self.done) < len(self.plan):
            running = sum(1 for live in self.live if live is not None)
            if ready and len(ready) >= min(max(1, self.vector.num_envs // 2), running):
                self._decide(sorted(ready))
                ready.clear()
                continue
            for i in self.vector.wait():
                if self._arrive(i, self.vector.take(i)):
                    ready.add(i)
        if self.decision:  # what came after the decision has no say, nor a record
            self.tapes = {k: tape for k, tape in self.tapes.items() if k < self.prefix}
            self.takes = {name: take for name, take in self.takes.items() if int(name.split("_")[0]) < self.prefix}
        return self.records

    def _start(self, i: int) -> None:
        if not self.pending:
            self.live[i] = None
            return
        k, attempt = self.pending.popleft()
        task, seed = self.plan[k]
        # The policy's noise belongs to the episode, not to the row or the batch it happens to run in.
        rng = torch.Generator().manual_seed(seed * 7919 + self.vector.env_spec.tasks.index(task))
        self.live[i] = _Live(k, task, seed, attempt, rng, States(list(self.vector.env_spec.privileged)))
        self._forget(i)
        if self.pictures is not None:
            self.pictures.begin(k)
        self.vector.send_reset(i, task, seed)

    def _forget(self, i: int) -> None:
        for name, value in self.policy.initial_memory(1).items():
            self.memory[name][i] = value[0]
        if (live := self.live[i]) is not None:
            live.hints = {}

    def _attach_hints(self, rows: list[int], obs: ObsBatch) -> None:
        """As in collection, but a plan's noise, like the policy's, belongs to the episode."""
        if self.proposal is None:
            return
        lives = [live for i in rows if (live := self.live[i]) is not None]
        due = [k for k, live in enumerate(lives) if not live.hints or live.planned >= self.proposal.every]
        if due:
            seen = self.history.batch([rows[k] for k in due])
            new = self.proposal(seen, [lives[k].rng for k in due])
            for place, k in enumerate(due):
                lives[k].hints, lives[k].planned = {name: v[place] for name, v in new.items()}, 0
                if self.pictures is not None:
                    images = {c: v[place] for c, v in seen.images.items()}
                    self.pictures.add(lives[k].plan, lives[k].seed, images, lives[k].hints)
        for live in lives:
            live.planned += 1
        obs.hints = {name: torch.stack([live.hints[name] for live in lives]) for name in lives[0].hints}

    def _decide(self, rows: list[int]) -> None:
        index = torch.tensor(rows)
        obs = self.history.batch(rows)
        self._attach_hints(rows, obs)
        features = self.policy.encode(obs)
        lives = [self.live[i] for i in rows]
        memory = {k: v[index] for k, v in self.memory.items()}
        rng = [live.rng for live in lives if live is not None]
        decision, memory = self.policy.act(features, memory, rng, greedy=self.greedy)
        for k, v in memory.items():
            self.memory[k][index] = v
        chunk = decision.chunk.double().numpy()
        for row, (i, live) in enumerate(zip(rows, lives, strict=True)):
            assert live is not None
            actions = chunk[row, : self.policy.spec.execute]
            live.actions.append(actions.copy())
            if live.plan < self.num_videos and self.policy.spec.num_actions:
                live.captions.append(caption(self.vector.env_spec, decision, row))
            self.vector.send_step(i, actions)

    def _arrive(self, i: int, arrival: Arrival) -> bool:
        """Absorb an answer; True if row i now waits for a decision."""
        live = self.live[i]
        assert live is not None
        if arrival.kind == "failed":
            assert arrival.failure is not None
            if live.attempt + 1 < ATTEMPTS:
                self.pending.append((live.plan, live.attempt + 1))
            else:
                self._finish(live, success=False, cause=f"{arrival.failure.cause}: {arrival.failure.detail}")
            self._start(i)
            return False
        assert arrival.obs is not None
        self.history.push(i, arrival.obs, first=arrival.kind == "reset" or arrival.renewed)
        self.audit.see(live.plan, arrival.obs, first=arrival.kind == "reset")
        live.states.add(arrival.obs)
        if arrival.kind == "reset":
            live.initial = initial_state(arrival.obs)
            self.tables.begin(live.plan, self.vector.env_spec, arrival.obs)
            return True
        if arrival.renewed:  # another task: no memory of the one before
            self._forget(i)
        live.actions[-1] = live.actions[-1][: arrival.executed]  # an episode or a task may end inside its chunk
        self.tables.follow(live.plan, live.actions[-1], arrival.obs)
        live.length += arrival.executed
        live.reward += float(arrival.rewards.sum())
        if not (arrival.terminated or arrival.truncated):
            return True
        self._finish(live, success=arrival.success)
        self._start(i)
        return False

    def _finish(self, live: _Live, *, success: bool, cause: str = "") -> None:
        env = self.vector.env_spec.env_id
        record = EpisodeRecord(env, live.task, live.seed, success, live.length, live.reward, not cause, cause)
        self.done[live.plan] = record
        if not cause:
            self.audit.end(live.plan, success=success)
        if not cause:
            self._keep(live, success)
        if self.report is not None:
            self.report(list(self.done.values()))

    def _keep(self, live: _Live, success: bool) -> None:
        """What it takes to see the episode again."""
        assert live.initial is not None
        actions, chunks = np.concatenate(live.actions), np.array([len(a) for a in live.actions])
        self.tapes[live.plan] = Tape(actions, chunks, live.initial, str(live.states))
        if live.plan < self.num_videos:
            name = f"{live.plan:03d}_seed{live.seed}_{'success' if success else 'failure'}.mp4"
            state = {"chunks": chunks.tolist(), "states": str(live.states), "entries": live.states.entries}
            self.takes[name] = Take(live.task, live.seed, actions, success, live.reward, tuple(live.captions), **state)

    def _decided(self) -> bool:
        """Whether the test that may end the run has decided, by the episodes in the order of the plan.

        In the order in which they end, quick successes would come first."""
        while self.test is not None and not self.decision and self.prefix in self.done:
            self.prefix += 1
            good = [self.done[k].success for k in range(self.prefix) if self.done[k].valid]
            self.decision = self.test.decide(good)
        return bool(self.decision)
