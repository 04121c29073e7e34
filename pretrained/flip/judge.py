"""LIV's progress as a calibrated potential: how likely pictures are to show the end of what a sentence asks for.

Similarities have no scale of their own (Ma et al. 2023), so a logistic curve (Platt 1999) puts them on one. It is
fitted to the first and last pictures of demonstrations: a first picture is not the goal, a last one is if the episode
succeeded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pretrained import checkpoint
from pretrained.demos.tracks import Shard
from pretrained.flip.value import ValueModel

RIDGE = 1e-3  # keeps the curve finite where the classes do not overlap
NEWTON_STEPS = 50
BATCH = 128


class Calibration(NamedTuple):
    """Phi = sigmoid(slope (score - middle))."""

    slope: float
    middle: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """[M] in [0, 1]."""
        return 1 / (1 + np.exp(-np.clip(self.slope * (scores - self.middle), -60, 60)))


class LivJudge:
    """Pictures and sentences to potentials; the judge of `rl.rewards.learned.Learned`."""

    def __init__(
        self,
        *,
        checkpoint_path: str = "",
        value: ValueModel | None = None,
        calibration: Sequence[float] | None = None,
        shard: str = "",
        device: str = "",
    ) -> None:
        """`checkpoint_path`: of stage=value. `calibration`: slope and middle; else they are fitted to a `shard`."""
        self.value = _value_model(checkpoint_path, value, device)
        self.device = next(self.value.parameters()).device
        if calibration is None and not shard:
            raise ValueError("a judge needs its calibration [slope, middle], or a shard of demonstrations to fit it to")
        self.calibration = Calibration(*calibration) if calibration is not None else self._fit(shard)

    def __call__(self, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Potentials [M] of pictures uint8 [M, Y, X, 3]."""
        return self.calibration(self.scores(frames, texts))

    @torch.no_grad()
    def scores(self, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Similarities [M] in [-1, 1]."""
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2).float() / 255
        return self.value.score(pictures, texts).double().cpu().numpy()

    def _fit(self, folder: str) -> Calibration:
        shard = Shard(Path(folder))
        first = np.array([e["frame"] for e in shard.episodes])
        last = first + np.array([e["frames"] for e in shard.episodes]) - 1
        texts = [e["instruction"] for e in shard.episodes]
        scores = np.concatenate([self.scores(shard.frames[rows], texts) for rows in (first, last)])
        done = [bool(e.get("success", True)) for e in shard.episodes]
        return fit(scores, np.array([False] * len(first) + done))


class LivEmbedder:
    """Pictures to vectors, which plan and robot are compared in (`rl.rewards.plan_tracking`)."""

    def __init__(self, *, checkpoint_path: str = "", value: ValueModel | None = None, device: str = "") -> None:
        """`checkpoint_path`: of stage=value."""
        self.value = _value_model(checkpoint_path, value, device)

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """float32 [M, D] of pictures uint8 [M, Y, X, 3]."""
        device = next(self.value.parameters()).device
        parts = [torch.from_numpy(np.ascontiguousarray(frames[i : i + BATCH])) for i in range(0, len(frames), BATCH)]
        found = [self.value.pictures(p.to(device).permute(0, 3, 1, 2).float() / 255) for p in parts]
        return torch.cat(found).cpu().numpy()


def _value_model(path: str, value: ValueModel | None, device: str) -> ValueModel:
    if value is None:
        policy: Any = checkpoint.load_policy(checkpoint.find(path))
        value = getattr(policy, "value", None)
        if not isinstance(value, ValueModel):
            raise ValueError(f"{path} holds a {type(policy).__name__}, expected one of stage=value")
    return value.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def fit(scores: np.ndarray, labels: np.ndarray) -> Calibration:
    """Logistic regression of labels on scores [M]. Raises ValueError if a class is missing, or scores fall with it."""
    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError(f"{int(labels.sum())} of {len(labels)} pictures show the goal; a calibration needs both kinds")
    centre, spread = float(scores.mean()), max(float(scores.std()), 1e-9)
    x = np.stack([(scores - centre) / spread, np.ones(len(scores))], 1)
    # Platt's targets: not quite 0 and 1, so that a few examples do not make it sure.
    yes, no = labels.sum(), (~labels).sum()
    target = np.where(labels, (yes + 1) / (yes + 2), 1 / (no + 2))
    w = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (target - p) - RIDGE * w)
        w = w + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    if w[0] <= 0:
        raise ValueError(
            f"scores fall towards the goal (slope {w[0]:.3g}): the value model has not learned this task, or the "
            "camera is another; train it longer, or on these demonstrations"
        )
    slope = w[0] / spread
    return Calibration(float(slope), float(centre - w[1] / slope))
