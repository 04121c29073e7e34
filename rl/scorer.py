"""Where a judge of pictures lives: in this process, or in a Ray actor that may die without ending the run."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from envs.build import build

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

    def scores(self, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """float [M]. Raises ValueError if a score is not a number in [0, 1]."""
        if self.judge is None:
            self.judge = build(self.node)
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
    """In a Ray actor beside the learner (rl/placement.py); replaced `restarts` times if it dies, then there is none."""

    def __init__(
        self, node: Mapping[str, Any], *, num_gpus: float, restarts: int, timeout_s: float, batch: int
    ) -> None:
        self.node, self.num_gpus, self.left, self.timeout_s, self.batch = node, num_gpus, restarts + 1, timeout_s, batch
        self.actor: Any = None
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
        self.reference = self.actor.scores.remote(frames, list(texts)) if self.actor is not None else None

    def answer(self) -> np.ndarray:
        """Wait for the actor."""
        import ray
        from ray.exceptions import RayError

        if self.reference is None:
            raise ScorerLost(f"its actor is not started again; the last one ended so: {self.why}")
        try:
            return ray.get(self.reference, timeout=self.timeout_s)
        except (RayError, ValueError, OSError) as e:
            self.why = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[-1][:300]}"
            ray.kill(self.actor)
            self.actor = self.reference = None
            raise ScorerLost(self.why) from e


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
