"""Reward from a model that looks at pictures, such as LIV's progress: a potential Phi in [0, 1], without the simulator.

A judge may look back at the last few decisions' pictures, as likelihoods of videos do; what lies before an episode, or
before the segment, is its first picture repeated.
Whole segments are judged after collection, in batches, each picture once; a judge may live in a Ray actor beside the
learner (`rl.scorer`). If it cannot answer, the term pays nothing, training goes on with the other terms, and log,
metrics (`audit/<name>_lost`) and ledger say so.
"""

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.rewards.progress import shaped
from rl.scorer import TIMEOUT_S, Scorer, ScorerLost, make_scorer
from rl.stats import correlation
from rl.types import Metrics, Segment

MODES = ("pbrs", "dense", "sparse")
CACHE = 20_000  # scores that are remembered

log = logging.getLogger(__name__)


class Learned:
    """A term on what a judge says of the pictures before and after each decision.

    "pbrs" is potential-based shaping as in `rl.rewards.progress`: whatever the judge says, the best policy stays the
    best. "dense" pays Phi(s') itself, times a weight that falls to 0 over `anneal` policy versions if that is set; it
    can be gamed while it lasts. "sparse" pays 1 where an episode ends with Phi >= `threshold`."""

    def __init__(
        self,
        *,
        judge: Mapping[str, Any],
        camera: str,
        mode: str = "pbrs",
        anneal: int = 0,
        threshold: float = 0.5,
        pictures: int = 1,
        truth: str = "progress",
        remote: bool = False,
        num_gpus: float = 0.0,
        restarts: int = 2,
        timeout_s: float = TIMEOUT_S,
        batch: int = 128,
    ) -> None:
        """`judge`: node of what maps pictures uint8 [M, Y, X, 3] and texts to [M], or with `pictures` > 1 clips of so
        many, the oldest first; `truth`: a privileged scalar that the audit compares it with, or ""; `remote`: in an
        actor that is started anew, `restarts` times unless it worked well in between (`rl.scorer`)."""
        if mode not in MODES:
            raise ValueError(f"learned reward: mode '{mode}' is not known; expected one of {', '.join(MODES)}")
        if anneal < 0 or (anneal and mode != "dense"):
            raise ValueError(f"learned reward: anneal = {anneal} with mode '{mode}'; expected 0, or mode: dense")
        if pictures < 1:
            raise ValueError(f"learned reward: pictures = {pictures}, expected at least 1")
        self.mode, self.camera, self.anneal, self.threshold, self.truth = mode, camera, anneal, threshold, truth
        self.pictures = pictures
        self.needs: frozenset[str] = frozenset({"frames", "privileged"} if truth else {"frames"})
        self._scorer: Scorer = make_scorer(judge, remote=remote, num_gpus=num_gpus, restarts=restarts,
                                           timeout_s=timeout_s, batch=batch)  # fmt: skip
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._asked: list[bytes] = []
        self.report: Metrics = {}
        self.lost = ""  # why there is no answer

    def begin(self, segment: Segment) -> None:
        """Send what is new to the judge; other terms are computed meanwhile."""
        frames, texts, self._asked = [], [], []
        for picture, text in self._pictures(segment):
            key = _key(picture, text)
            if key not in self._known and key not in self._asked:
                frames.append(picture)
                texts.append(text)
                self._asked.append(key)
        if self._asked:
            self._scorer.ask(np.stack(frames), texts)

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] reward of each decision; 0 where the segment is not valid, or everywhere if the judge is lost."""
        try:
            if not self._asked:
                self.begin(segment)
            phi = self._potential(segment)
        except ScorerLost as e:
            self.lost, self._asked = str(e), []
            self.report = {"lost": 1.0}
            log.warning("a learned reward has no judge (%s); this update learns from the other terms alone", e)
            return torch.zeros_like(segment.env_reward)
        before, after = phi[..., 0], phi[..., 1]
        self.lost, self.report = "", self._audit(segment, after)
        if self.mode == "pbrs":
            return shaped(before, after, segment, gamma)
        if self.mode == "sparse":
            ends = segment.terminated | segment.truncated
            return (ends & segment.valid & (after >= self.threshold)).to(after.dtype)
        weight = max(0.0, 1.0 - segment.version / self.anneal) if self.anneal else 1.0
        return torch.where(segment.valid, weight * after, torch.zeros_like(after))

    def potential(self, frames: np.ndarray, texts: list[str]) -> np.ndarray:
        """Phi [M] along the pictures uint8 [M, Y, X, 3] of one episode, for evaluations. Raises ScorerLost."""
        places = np.maximum(np.arange(len(frames))[:, None] - np.arange(self.pictures)[::-1], 0)
        self._scorer.ask(frames[places] if self.pictures > 1 else frames, texts)
        return self._scorer.answer()

    def _pictures(self, segment: Segment) -> list[tuple[np.ndarray, str]]:
        """Of all valid decisions, those before and those after them."""
        if self.camera not in segment.frames:
            raise ValueError(
                f"learned reward: the segment has no pictures of '{self.camera}', only of {sorted(segment.frames)}; "
                "choose one of these cameras, or drop this reward term"
            )
        frames, owners = segment.frames[self.camera].numpy(), segment.text_id
        rows = segment.valid.nonzero().tolist()
        texts = [segment.texts[int(owners[n, t])] for n, t in rows]
        if self.pictures == 1:
            return [(frames[n, t, i], text) for (n, t), text in zip(rows, texts, strict=True) for i in (0, 1)]
        first, back = _begun(segment), np.arange(self.pictures)[::-1]
        out = []
        for (n, t), text in zip(rows, texts, strict=True):
            seen = frames[n, np.maximum(t - back, first[n, t]), 0]
            out += [(seen, text), (np.concatenate([seen[1:], frames[n, t, 1:]]), text)]
        return out

    def _potential(self, segment: Segment) -> Tensor:
        """Phi [N, T, 2] before and after each decision."""
        if self._asked:
            for key, score in zip(self._asked, self._scorer.answer().tolist(), strict=True):
                self._known[key] = score
            self._asked = []
        phi = torch.zeros(*segment.shape, 2, dtype=segment.env_reward.dtype)
        scores = [self._known[_key(picture, text)] for picture, text in self._pictures(segment)]
        phi[segment.valid] = torch.tensor(scores, dtype=phi.dtype).view(-1, 2)
        while len(self._known) > CACHE:
            self._known.popitem(last=False)
        return phi

    def _audit(self, segment: Segment, after: Tensor) -> Metrics:
        """Mean potential, and how it goes with the simulator's own measure."""
        said = after[segment.valid]
        out = {"lost": 0.0, "potential": float(said.mean()) if len(said) else 0.0}
        if self.truth in segment.privileged:
            true = segment.privileged[self.truth].reshape(*segment.shape, 2)[..., 1][segment.valid]
            found = correlation(said.tolist(), true.tolist())
            out |= {"correlation": found} if math.isfinite(found) else {}
        return out


def _begun(segment: Segment) -> np.ndarray:
    """[N, T] decision at which the episode of each decision began, 0 if that was before the segment."""
    places = np.where(segment.starts.numpy(), np.arange(segment.shape[1]), 0)
    return np.maximum.accumulate(places, 1)


def _key(picture: np.ndarray, text: str) -> bytes:
    return hashlib.blake2b(picture.tobytes() + text.encode(), digest_size=16).digest()
