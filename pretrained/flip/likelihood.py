"""How expected what a robot did is to the video model, as a judge of `rl.rewards.learned.Learned`.

    likelihood   of the last pictures, given those before and the sentence: VIPER (Escontrela et al. 2023)
    entropy      of what the model expects behind the pictures, small where it has seen their like: Diffusion Reward
                 (Huang et al. 2024)

Both come from how well the noise of pictures is told at some steps of the diffusion. `weights: bound` makes of it the
variational bound, in bits per latent number, as Diffusion Reward has it; there the smallest noises count most, which
say least of what happens. `weights: equal` is the error itself, a bound with other weights (Kingma and Gao 2023).
VIPER's own models have exact likelihoods, and both papers add a bonus for novelty, which is left out. The noise is the
same for every clip, so equal clips have equal scores. Scores have no scale; the demonstrations give one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrained import checkpoint
from pretrained.demos.glimpses import GlimpseReader
from pretrained.flip import noise as noises
from pretrained.flip.stage import VideoStage, floats

KINDS, WEIGHTS = ("likelihood", "entropy"), {"equal": "mse", "bound": "bound"}
FITTED = 256  # clips of demonstrations that the scale is taken from
BATCH = 64


class Scale(NamedTuple):
    """Phi = sigmoid((score - mean) / (spread std)) of the demonstrations' mean and standard deviation."""

    mean: float
    std: float

    def __call__(self, scores: np.ndarray, spread: float) -> np.ndarray:
        """[M] in [0, 1]."""
        return 1 / (1 + np.exp(-np.clip((scores - self.mean) / (spread * self.std), -60, 60)))


class VideoJudge:
    """Clips of pictures, as far apart as decisions are, and sentences to potentials."""

    def __init__(
        self,
        *,
        checkpoint_path: str = "",
        stage: VideoStage | None = None,
        kind: str = "likelihood",
        weights: str = "equal",
        levels: int = 8,
        steps: int = 5,
        spread: float = 3.0,
        calibration: Sequence[float] | None = None,
        shard: str = "",
        stride: int = 8,
        seed: int = 0,
        device: str = "",
    ) -> None:
        """`checkpoint_path`: of stage=video, trained by `pretrained.demos.glimpses.GlimpseReader`. `levels`: steps of
        the diffusion that the bound is taken over; `steps`: of the sampler, for the entropy. `calibration`: mean and
        standard deviation of demonstrations' scores; else those of a `shard`, whose pictures are `stride` apart."""
        if kind not in KINDS:
            raise ValueError(f"video judge: kind '{kind}' is not known; expected one of {', '.join(KINDS)}")
        if weights not in WEIGHTS:
            raise ValueError(f"video judge: weights '{weights}' are not known; expected one of {', '.join(WEIGHTS)}")
        if levels < 2 or steps < 1 or spread <= 0:
            raise ValueError(f"video judge: expected levels >= 2, steps >= 1, spread > 0, got {levels}, {steps}, "
                             f"{spread:g}")  # fmt: skip
        stage = stage or _load(checkpoint_path)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.stage: VideoStage = stage.to(self.device).eval()
        self.video, self.kind, self.levels, self.steps = self.stage.video, kind, levels, steps
        self.spread, self.seed, self.term = spread, seed, WEIGHTS[weights]
        if calibration is None and not shard:
            raise ValueError("a video judge needs its calibration [mean, std], or a shard of demonstrations")
        self.scale = Scale(*calibration) if calibration is not None else self._fit(shard, stride)

    @property
    def pictures(self) -> int:
        """Of a clip."""
        return self.video.history + (self.video.frames if self.kind == "likelihood" else 0)

    def __call__(self, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Potentials [M] of clips uint8 [M, L, Y, X, 3], oldest picture first."""
        return self.scale(self.scores(frames, texts), self.spread)

    @torch.no_grad()
    def scores(self, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Minus the mean error of the noise, or minus the bits per latent number [M]."""
        if frames.ndim != 5 or frames.shape[1] != self.pictures:
            raise ValueError(
                f"clips have shape {frames.shape}, expected [M, {self.pictures}, Y, X, 3]; set the reward's "
                f"pictures: {self.pictures}"
            )
        parts = [self._scores(frames[i : i + BATCH], texts[i : i + BATCH]) for i in range(0, len(frames), BATCH)]
        return torch.cat(parts).double().cpu().numpy()

    def _scores(self, frames: np.ndarray, texts: Sequence[str]) -> Tensor:
        pictures = floats(torch.from_numpy(np.ascontiguousarray(frames))).to(self.device)
        latents, model = self.stage.vae.encode(pictures), self.video
        condition = model.condition(latents.new_zeros(len(latents), 0, model.horizon, 2),
                                    self.stage.encoder(list(texts)).to(self.device))  # fmt: skip
        rng = torch.Generator().manual_seed(self.seed)

        def net(x: Tensor, t: Tensor) -> Tensor:
            return model.answer(x, t, *condition)

        if self.kind == "entropy":
            seen = latents[:, : model.history]
            drawn = [self._noise(seen, model.history + model.frames, rng) for _ in range(self.steps + 1)]
            latents = noises.sample(model.sampler(self.steps), net, seen, model.frames, noises=drawn)
        schedule, cost = noises.respaced(model.schedule, self.levels), latents.new_zeros(len(latents))
        for k in range(self.levels):
            noise = self._noise(latents, latents.shape[1], rng)
            noise[:, : model.history] = 0
            t = torch.full((len(latents),), k, dtype=torch.int64, device=self.device)
            cost = cost + noises.losses(schedule, net, latents, t, noise, known=model.history)[self.term]
        return -cost if self.term == "bound" else -cost / self.levels

    def _noise(self, like: Tensor, frames: int, rng: torch.Generator) -> Tensor:
        """[M, frames, C, Y, X], the same for each of M."""
        drawn = torch.randn(1, frames, *like.shape[2:], generator=rng)
        return drawn.repeat(len(like), 1, 1, 1, 1).to(self.device)

    def _fit(self, shard: str, stride: int) -> Scale:
        reader = GlimpseReader(paths=shard, history=self.video.history, horizon=self.video.horizon, stride=stride)
        chosen = np.unique(np.linspace(0, len(reader) - 1, FITTED).round().astype(int))
        demo = reader.batch(chosen)
        frames = torch.as_tensor(demo.obs.images["scene"]).numpy()[:, : self.pictures]
        found = self.scores(frames, demo.obs.texts)
        if not np.isfinite(found).all() or found.std() < 1e-9:
            raise ValueError(f"the video model scores all {len(found)} clips of {shard} alike, or not at all; train it "
                             "longer, or on these demonstrations")  # fmt: skip
        return Scale(float(found.mean()), float(found.std()))


def _load(path: str) -> VideoStage:
    policy: Any = checkpoint.load_policy(checkpoint.find(path))
    if not isinstance(policy, VideoStage):
        raise ValueError(f"{path} holds a {type(policy).__name__}, expected one of stage=video")
    return policy
