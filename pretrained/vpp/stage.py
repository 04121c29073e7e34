"""The first stage of VPP: the video model learns, from clips of demonstrations, what happens next."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.build import build
from envs.types import EnvSpec
from pretrained.types import DemoBatch, Metrics, PolicySpec, rand, randn
from pretrained.vpp.policy import chosen_cameras
from pretrained.vpp.video import AUGMENTATION, LOG_SIGMA, VideoModel


class VideoStage(nn.Module):
    """What the imitation loop trains with `stage=video`: it has its losses and its weights, and decides nothing."""

    frozen_encoder = False
    looks_ahead = True  # windows hold what follows instead of what came before

    def __init__(
        self,
        *,
        env: EnvSpec,
        video: Mapping[str, Any],
        cameras: Sequence[str] | None = None,
        shares: Sequence[float] | None = None,
        stride: int = 2,
        drop_text: float = 0.05,
        augment: bool = False,
        checkpointing: bool = False,
        pictures_per_pass: int = 16,
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
    ) -> None:
        """`shares`: how often each camera's clip is taken, three times the first to one of the rest if left out;
        `stride`: steps between two frames; `augment` adds noise to the first picture."""
        super().__init__()
        self.video: VideoModel = build(video, quirks=quirks, switches=switches, learning=True)
        seen = chosen_cameras(env, cameras)
        default = [3.0 * max(1, len(seen) - 1)] + [1.0] * (len(seen) - 1)
        weights = torch.tensor(default if shares is None else list(shares), dtype=torch.float32)
        if len(weights) != len(seen) or bool((weights < 0).any()) or float(weights.sum()) <= 0:
            raise ValueError(f"shares {shares}: expected a positive number for each camera of {list(seen)}")
        if stride < 1 or not 0 <= drop_text <= 1:
            raise ValueError(f"expected stride >= 1 and 0 <= drop_text <= 1, got {stride} and {drop_text:g}")
        self.shares = weights / weights.sum()
        self.stride, self.drop_text, self.augment, self.at_once = stride, drop_text, augment, pictures_per_pass
        if checkpointing:
            self.video.unet.enable_gradient_checkpointing()
        self.spec = PolicySpec(
            cameras=seen,
            proprio=tuple(env.proprio),
            actions=env.actions,
            low=env.low,
            high=env.high,
            action_convention=env.action_convention,
            control_hz=env.control_hz,
            num_actions=env.num_actions,
            history=1 + (self.video.frames - 1) * stride,
        )

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """EDM's loss on one camera's clip of each window; noise levels, noise and dropped texts come from `rng`."""
        place = self.video.vae.device
        rows = torch.arange(len(demo.obs))
        camera = torch.multinomial(self.shares, len(rows), replacement=True, generator=rng)
        clips = [torch.as_tensor(demo.obs.images[c])[:, :: self.stride] for c in self.spec.cameras]
        pixels = torch.stack([self.video.pixels(clips[int(c)][i].to(place)) for i, c in zip(rows, camera, strict=True)])
        parts = pixels.flatten(0, 1).split(self.at_once)  # [B, T, 3, Y, X] before
        latents = torch.cat([self.video.latents(p) for p in parts]).unflatten(0, pixels.shape[:2])
        first, strength = latents[:, 0], torch.zeros(len(rows), device=place)
        if self.augment:
            strength = torch.exp(AUGMENTATION[0] + AUGMENTATION[1] * randn((len(rows),), rng, place))
            noise = randn(pixels[:, 0].shape, rng, place)
            first = self.video.latents(pixels[:, 0] + strength[:, None, None, None] * noise)
        sigma = torch.exp(LOG_SIGMA[0] + LOG_SIGMA[1] * randn((len(rows),), rng, place))
        loss = self.video.loss(
            latents.float() * self.video.scale,
            first.float(),
            self.video.sentences(demo.obs.texts)[0],
            sigma=sigma,
            noise=randn(latents.shape, rng, place),
            keep=rand((len(rows),), rng, place) > self.drop_text,
            augmentation=strength,
        )
        return loss, {"video_loss": float(loss.detach())}

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`, for wrappers that call the module."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Nothing is normalised."""
