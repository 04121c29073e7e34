"""Whether learned rewards tell the truth: what they said of evaluated episodes against what the simulator knew, and an
alarm while training if they rise as true success falls.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from envs.types import Observation
from rl.rewards import build_terms
from rl.rewards.learned import Learned
from rl.scorer import ScorerLost
from rl.stats import auroc, correlation, ranks, wilson

BINS = 10  # of the calibration table
WINDOW = 10  # iterations on either side of a comparison
SURE = 3.0  # standard errors by which a learned reward must have risen


@dataclass
class Trail:
    """One episode: at each decision's observation, the last one included."""

    scores: list[float]  # Phi
    truth: list[float]  # the simulator's own measure; empty if it has none
    success: bool


def measures(trails: Sequence[Trail]) -> dict[str, Any]:
    """Correlation with the true measure over all moments, AUROC of the last score for success, and calibration."""
    ends, won = [t.scores[-1] for t in trails], [t.success for t in trails]
    told = [t for t in trails if t.truth]
    said, true = [s for t in told for s in t.scores], [s for t in told for s in t.truth]
    area = auroc(ends, won)
    low, high = wilson(sum(won), len(won)) if won else (0.0, 1.0)
    mean = float(np.mean(ends)) if ends else float("nan")
    return {
        "episodes": len(trails),
        "correlation": correlation(said, true),
        "rank_correlation": correlation(ranks(said), ranks(true)),
        "auroc": area.value,
        "auroc_low": area.low,
        "auroc_high": area.high,
        "calibration_error": calibration_error(ends, won),
        "brier": float(np.mean((np.array(ends) - np.array(won)) ** 2)) if ends else float("nan"),
        "mean_score": mean,
        "success": sum(won) / len(won) if won else float("nan"),
        "overrates": bool(mean > high),  # on the whole it promises more than there is
        "underrates": bool(mean < low),
        "bins": table(ends, won),
    }


def table(scores: Sequence[float], labels: Sequence[bool]) -> list[dict[str, float]]:
    """Of each tenth of the scores that occurs: how many episodes, their mean score, and their share of successes."""
    place = np.minimum((np.asarray(scores, dtype=float) * BINS).astype(int), BINS - 1)
    y, s = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    return [{"from": b / BINS, "episodes": int((place == b).sum()), "score": float(s[place == b].mean()),
             "success": float(y[place == b].mean())} for b in sorted(set(place.tolist()))]  # fmt: skip


def calibration_error(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Mean distance of score and share of successes over the table, weighted by episodes."""
    rows = table(scores, labels)
    total = sum(r["episodes"] for r in rows)
    return sum(r["episodes"] * abs(r["score"] - r["success"]) for r in rows) / total if total else float("nan")


class Audit:
    """Follows the episodes of an evaluation, and lets every learned term judge them."""

    def __init__(self, terms: Mapping[str, Any]) -> None:
        """`terms`: built reward terms, as from `build_terms`; those without a judge are left alone."""
        self.terms: dict[str, Learned] = {k: v["term"] for k, v in terms.items() if isinstance(v["term"], Learned)}
        self.trails: dict[str, list[Trail]] = {name: [] for name in self.terms}
        self.lost: dict[str, str] = {}
        self._seen: dict[int, list[Observation]] = {}

    @staticmethod
    def of(rewards: Mapping[str, Any]) -> "Audit":
        """Of {weight, term} nodes, judged in this process."""
        nodes = {k: {**v, "term": {**v["term"], **({"remote": False} if "remote" in v["term"] else {})}}
                 for k, v in rewards.items()}  # fmt: skip
        return Audit(build_terms(nodes))

    def see(self, episode: int, obs: Observation, *, first: bool) -> None:
        """An observation at a decision, or the final one. `first` begins the episode anew."""
        if not self.terms:
            return
        images = {t.camera: obs.images[t.camera].copy() for t in self.terms.values() if t.camera in obs.images}
        privileged = {t.truth: obs.privileged[t.truth].copy() for t in self.terms.values() if t.truth in obs.privileged}
        kept = Observation(images, obs.proprio.copy(), obs.instruction, privileged)
        if first:
            self._seen[episode] = []
        self._seen[episode].append(kept)

    def end(self, episode: int, *, success: bool) -> None:
        """Judge the episode and forget its pictures."""
        seen = self._seen.pop(episode, [])
        for name, term in self.terms.items() if seen else ():
            if name in self.lost:
                continue
            if any(term.camera not in o.images for o in seen):
                self.lost[name] = f"the policy's environment has no camera '{term.camera}'"
                continue
            try:
                scores = term.potential(np.stack([o.images[term.camera] for o in seen]), [o.instruction for o in seen])
            except ScorerLost as e:
                self.lost[name] = str(e)
                continue
            truth = [float(o.privileged[term.truth].reshape(-1)[0]) for o in seen if term.truth in o.privileged]
            self.trails[name].append(Trail(scores.tolist(), truth, success))

    def summary(self) -> dict[str, Any]:
        """Name of the term -> its measures, or why there are none; {} without learned terms."""
        return {name: {"lost": self.lost[name]} if name in self.lost else measures(trails)
                for name, trails in self.trails.items()}  # fmt: skip


@dataclass
class Watch:
    """Raises the alarm when a learned reward rises and true success falls between two windows of iterations."""

    window: int = WINDOW
    said: dict[str, deque[float]] = field(default_factory=dict)
    won: deque[tuple[int, int]] = field(default_factory=deque)  # successes, episodes of each iteration

    def state(self) -> dict[str, Any]:
        """What it has seen, for a run that goes on from a checkpoint."""
        return {"said": {k: list(v) for k, v in self.said.items()}, "won": [list(w) for w in self.won]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; from nothing if that is empty."""
        self.said = {k: deque(v) for k, v in state.get("said", {}).items()}
        self.won = deque((int(a), int(b)) for a, b in state.get("won", []))

    def look(self, metrics: Mapping[str, float], successes: int, episodes: int) -> dict[str, str]:
        """What an iteration reported; term -> the alarm's words."""
        self._push(self.won, (successes, episodes))
        alarms = {}
        for key in [k for k in metrics if k.startswith("audit/") and k.endswith("_potential")]:
            name = key.removeprefix("audit/").removesuffix("_potential")
            said = self.said.setdefault(name, deque())
            self._push(said, float(metrics[key]))
            if len(said) == len(self.won) == 2 * self.window and (words := self._alarm(list(said))):
                alarms[name] = words
        return alarms

    def _push(self, kept: "deque[Any]", value: Any) -> None:
        kept.append(value)
        while len(kept) > 2 * self.window:
            kept.popleft()

    def _alarm(self, said: list[float]) -> str:
        before, after = np.array(said[: self.window]), np.array(said[self.window :])
        error = sqrt((before.var(ddof=1) + after.var(ddof=1)) / self.window)
        won = list(self.won)
        (a, n), (b, m) = (tuple(map(sum, zip(*part, strict=True))) for part in (won[: self.window], won[self.window :]))
        if not n or not m or after.mean() - before.mean() <= SURE * error or wilson(b, m)[1] >= wilson(a, n)[0]:
            return ""
        return (
            f"it rose from {before.mean():.3f} to {after.mean():.3f} while success fell from {a} of {n} episodes to "
            f"{b} of {m}: the policy games it; lower its weight, let it anneal, or train its model on these episodes"
        )
