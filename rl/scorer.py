"""Where a judge of pictures lives: in this process, or in a Ray actor that may die without ending the run."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from envs.build import build

FORGIVEN = 20  # answers in a row, after which a judge may be started anew as often as at first
START_S = 300.0  # that a judge may take to start, before its first deadline
TIMEOUT_S = 300.0  # for an answer, if nothing else is said

log = logging.getLogger(__name__)


class ScorerLost(RuntimeError):
    """There is no answer, and why."""


class Scorer(Protocol):
    """Questions are asked first and answered later, so that an actor works while its caller does."""

    def ask(self, frames: np.ndarray, texts: Sequence[str]) -> None:
        """Pictures uint8 [M, Y, X, 3] and their instructions."""
        ...

    def answer(self) -> np.ndarray:
        """float [M] of what was asked last. Raises ScorerLost."""
        ...


class Judging:
    """A judge, made when it is first needed, asked in batches."""

    def __init__(self, node: Mapping[str, Any], batch: int) -> None:
        self.node, self.batch, self.judge = node, batch, None

    def open(self) -> None:
        """Make the judge, unless it is there."""
        if self.judge is None:
            self.judge = build(self.node)

    def scores(self, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """float [M]. Raises ValueError if a score is not a number in [0, 1]."""
        self.open()
        judge: Any = self.judge
        parts = [
            np.asarray(judge(frames[i : i + self.batch], list(texts[i : i + self.batch])), dtype=np.float64)
            for i in range(0, len(frames), self.batch)
        ]
        found = np.concatenate(parts)
        if found.shape != (len(frames),) or not np.isfinite(found).all() or found.min() < 0 or found.max() > 1:
            raise ValueError(f"the judge answers {found.shape} in [{found.min():g}, {found.max():g}], expected "
                             f"[{len(frames)}] numbers in [0, 1]")  # fmt: skip
        return found


class LocalScorer:
    """In this process."""

    def __init__(self, judging: Judging) -> None:
        self.judging = judging
        self.asked: tuple[np.ndarray, list[str]] | None = None

    def ask(self, frames: np.ndarray, texts: Sequence[str]) -> None:
        """Keep the question."""
        self.asked = frames, list(texts)

    def answer(self) -> np.ndarray:
        """Judge now."""
        assert self.asked is not None, "answer before ask"
        try:
            return self.judging.scores(*self.asked)
        except (ValueError, RuntimeError, OSError) as e:
            raise ScorerLost(f"{type(e).__name__}: {e}") from e


class RemoteScorer:
    """In a Ray actor beside the learner (rl/placement.py).

    One that dies, or does not answer within `timeout_s` of being up, is replaced; after `restarts` of that without
    FORGIVEN answers in a row there is none. So a long run survives any number of rare losses, and one that cannot be
    helped is soon given up.
    """

    def __init__(
        self, node: Mapping[str, Any], *, num_gpus: float, restarts: int, timeout_s: float, batch: int
    ) -> None:
        self.node, self.num_gpus, self.restarts, self.timeout_s, self.batch = node, num_gpus, restarts, timeout_s, batch
        self.left, self.answers = restarts + 1, 0  # actors that may be started, answers since the last was lost
        self.actor: Any = None
        self.opening: Any = None  # until the actor is up
        self.reference: Any = None
        self.why = ""  # the last actor ended

    def ask(self, frames: np.ndarray, texts: Sequence[str]) -> None:
        """Send the question; returns at once."""
        import ray

        from rl.placement import beside

        if self.actor is None and self.left > 0:
            self.left -= 1
            options = {"num_cpus": 0, "num_gpus": self.num_gpus, "scheduling_strategy": beside()}
            self.actor = ray.remote(Judging).options(**options).remote(self.node, self.batch)
            self.opening = self.actor.open.remote()
        self.reference = self.actor.scores.remote(frames, list(texts)) if self.actor is not None else None

    def answer(self) -> np.ndarray:
        """Wait for the actor."""
        import ray
        from ray.exceptions import RayError

        if self.reference is None:
            raise ScorerLost(f"its actor is not started again; the last one ended so: {self.why}")
        try:
            if self.opening is not None:
                ray.get(self.opening, timeout=START_S)
                self.opening = None
            scores: Any = ray.get(self.reference, timeout=self.timeout_s)
        except (RayError, ValueError, OSError) as e:
            self.why = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[-1][:300]}"
            ray.kill(self.actor)
            self.actor = self.opening = self.reference = None
            self.answers = 0
            raise ScorerLost(self.why) from e
        self.answers += 1
        if self.answers >= FORGIVEN:
            self.left = self.restarts
        return scores


def longest(rewards: Mapping[str, Any]) -> float:
    """Seconds for which the judges of these terms (name -> {weight, term}) may keep one update waiting."""
    terms = [v["term"] for v in rewards.values() if v["weight"]]
    return sum(START_S + float(t.get("timeout_s", TIMEOUT_S)) for t in terms if t.get("remote"))


def make_scorer(
    node: Mapping[str, Any], *, remote: bool, num_gpus: float, restarts: int, timeout_s: float, batch: int
) -> Scorer:
    """A scorer that starts nothing before the first question."""
    if batch < 1 or restarts < 0 or not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ValueError(f"learned reward: expected batch >= 1, restarts >= 0 and timeout_s > 0, got {batch}, "
                         f"{restarts} and {timeout_s:g}")  # fmt: skip
    if remote:
        return RemoteScorer(node, num_gpus=num_gpus, restarts=restarts, timeout_s=timeout_s, batch=batch)
    return LocalScorer(Judging(node, batch))
