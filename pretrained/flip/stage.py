"""FLIP's modules in the one imitation loop: `stage` is flow, video, value or vae.

Demonstrations come from shards of tracks through `pretrained.demos.clips.TrackReader`. What is trained decides nothing,
so there are no actions.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from envs.build import build
from envs.types import EnvSpec
from pretrained.demos.clips import FRAMES, SCENE, TRACKS
from pretrained.flip.flow import FlowModel, displacement
from pretrained.flip.text import text_encoder
from pretrained.flip.vae import IMAGENET, Autoencoder, psnr, ssim
from pretrained.flip.value import ValueModel
from pretrained.flip.video import VideoModel
from pretrained.types import DemoBatch, Metrics, PolicySpec, rand, randn

FEWEST = 100  # points that a lesson of the originals keeps, at least
JITTER = 1.0  # pixels of noise on the tracks that a video model learns from


class Flip:
    """Names the modules that imitation can train, and their settings; a plan puts them together."""

    stages = {  # noqa: RUF012  a constant
        "flow": "pretrained.flip.stage.FlowStage",
        "video": "pretrained.flip.stage.VideoStage",
        "value": "pretrained.flip.stage.ValueStage",
        "vae": "pretrained.flip.stage.VaeStage",
    }

    def __init__(
        self,
        *,
        env: EnvSpec | None = None,
        flow: Mapping[str, Any] | None = None,
        video: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        value: Mapping[str, Any] | None = None,
        text: str = "words",
        length: int = 32,
        fewest: int = FEWEST,
        jitter: float = JITTER,
        decoder_only: bool = True,
        text_weight: float = 0.0,
        remember: int = 0,
    ) -> None:
        raise ValueError("FLIP has no policy to train; name a module: stage=flow, video, value or vae")


def floats(frames: Tensor) -> Tensor:
    """uint8 [B, T, Y, X, 3] -> [B, T, 3, Y, X] in [0, 1]."""
    return frames.permute(0, 1, 4, 2, 3).float() / 255


def _pictures(demo: DemoBatch, before: int) -> tuple[Tensor, Tensor]:
    """The last `before` pictures up to a clip's first frame [B, before, 3, Y, X], and those behind it [B, F-1, ...].

    Raises ValueError if the reader gives fewer."""
    frames = torch.as_tensor(demo.obs.images[SCENE])
    behind = demo.obs.hints[TRACKS].shape[2] - 1
    seen = frames.shape[1] - behind
    if seen < before:
        raise ValueError(f"windows begin with {seen} pictures, the model sees {before}; set reader.history={before}")
    return floats(frames[:, seen - before : seen]), floats(frames[:, seen:])


def _tracks(demo: DemoBatch, rng: torch.Generator, fewest: int) -> Tensor:
    """The tracks of the points that this lesson keeps: a random number of random ones."""
    flow = demo.obs.hints[TRACKS]
    points = flow.shape[1]
    kept = int(torch.randint(min(fewest, points), points + 1, (), generator=rng))
    return flow[:, torch.randperm(points, generator=rng)[:kept].to(flow.device)]


class FlowStage(nn.Module):
    """Trains a FlowModel. Metrics: the loss's terms, ADE and LTDR."""

    def __init__(
        self, *, env: EnvSpec, flow: Mapping[str, Any], text: str = "words", length: int = 32, fewest: int = FEWEST
    ) -> None:
        super().__init__()
        self.spec, self.fewest, self.encoder = PolicySpec.of(env), fewest, text_encoder(text, length=length)
        self.flow: FlowModel = build({"text_dim": self.encoder.dim, **flow})

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """The six terms at a random subset of the points."""
        pictures, flow = _pictures(demo, self.flow.history)[0], _tracks(demo, rng, self.fewest)
        mean, std = (torch.tensor(s, device=flow.device).view(3, 1, 1) for s in IMAGENET)
        history = (pictures - mean) / std
        noise = randn((len(flow), self.flow.width), rng, flow.device)
        out = self.flow(flow, history, self.encoder(demo.obs.texts).to(flow.device), noise)
        terms = self.flow.losses(out, flow, history)
        metrics = {k: v.item() for k, v in terms.items()}
        found = displacement(out.tracks.flow.detach(), flow)
        return torch.stack(list(terms.values())).sum(), {**metrics, "ade": found["ade"], "ltdr": found["ltdr"]}

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Nothing is normalised."""


class VideoStage(nn.Module):
    """Trains a VideoModel on the latents of an autoencoder that is left as it is. Metrics: both terms of the loss."""

    def __init__(
        self,
        *,
        env: EnvSpec,
        video: Mapping[str, Any],
        vae: Mapping[str, Any],
        text: str = "words",
        length: int = 32,
        fewest: int = FEWEST,
        jitter: float = JITTER,
        remember: int = 0,
    ) -> None:
        """`remember`: pictures whose latents are kept, since every picture comes again in each epoch, in many clips."""
        super().__init__()
        if remember < 0:
            raise ValueError(f"remember = {remember} pictures, expected 0 or more")
        self.spec, self.fewest, self.jitter, self.remember = PolicySpec.of(env), fewest, jitter, remember
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}  # of a picture, mean and deviation of its latents
        self.encoder = text_encoder(text, length=length)
        self.video: VideoModel = build({"text_dim": self.encoder.dim, **video})
        self.vae: Autoencoder = build(vae).requires_grad_(False)

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Of a random step per row; the tracks get some noise, as those of a flow model have."""
        flow = _tracks(demo, rng, self.fewest)
        latents = self.clips(demo, rng)
        t = (rand((len(flow),), rng) * self.video.schedule.steps).long().clamp(max=self.video.schedule.steps - 1)
        noise, moved = randn(latents.shape, rng, flow.device), self.jitter * randn(flow.shape, rng, flow.device)
        text = self.encoder(demo.obs.texts).to(flow.device)
        terms = self.video.losses(latents, t.to(flow.device), noise, flow + moved, text)
        return (terms["mse"] + terms["bound"]).mean(), {k: v.mean().item() for k, v in terms.items()}

    @torch.no_grad()
    def clips(self, demo: DemoBatch, rng: torch.Generator) -> Tensor:
        """Latents of the frames that the model sees and of those that it makes."""
        seen, behind = _pictures(demo, self.video.history)
        if behind.shape[1] != self.video.frames:
            raise ValueError(
                f"clips hold {behind.shape[1]} pictures behind their first, the video model makes {self.video.frames}; "
                "set its horizon, or write a shard of other clips"
            )
        pictures = torch.cat([seen, behind], 1)
        if not self.remember:
            return self.vae.encode(pictures, rng)
        flat = pictures.flatten(0, 1)
        grey = (255 * flat).round().byte().cpu().numpy()
        keys = [hashlib.blake2b(p.tobytes(), digest_size=16).digest() for p in grey]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        found: dict[bytes, tuple[Tensor, Tensor]] = {}
        if new:
            found = dict(zip(new, zip(*self.vae.moments(flat[list(new.values())]), strict=True), strict=True))
        mean, std = (torch.stack([(found.get(k) or self._known[k])[i] for k in keys]) for i in (0, 1))
        self._known |= dict(list(found.items())[: max(0, self.remember - len(self._known))])
        return self.vae.drawn(mean, std, rng).unflatten(0, pictures.shape[:2])

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Nothing is normalised."""


class VaeStage(nn.Module):
    """Tunes the decoder of an autoencoder, or all of a small one. Metrics: PSNR (dB) and SSIM of what comes back."""

    def __init__(self, *, env: EnvSpec, vae: Mapping[str, Any], decoder_only: bool = True) -> None:
        super().__init__()
        self.spec = PolicySpec.of(env)
        self.vae: Autoencoder = build(vae)
        self.decoder_only = decoder_only
        if decoder_only:
            self.vae.tune_decoder()

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error of one random picture per window."""
        frames = torch.as_tensor(demo.obs.images[SCENE])
        chosen = torch.randint(frames.shape[1], (len(frames),), generator=rng).to(frames.device)
        pictures = floats(frames[torch.arange(len(frames), device=frames.device), chosen][:, None])[:, 0]
        loss = self.vae.loss(pictures) if self.decoder_only else self.vae.whole_loss(pictures, rng)
        with torch.no_grad():
            back = self.vae.decode(self.vae.encode(pictures))
        return loss, {"psnr": psnr(back, pictures), "ssim": ssim(back, pictures)}

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Nothing is normalised."""


class ValueStage(nn.Module):
    """Trains a ValueModel on five frames per episode. Metrics: NCE, and VIP with the last picture as goal and, given
    `text_weight`, with the sentence as goal."""

    def __init__(self, *, env: EnvSpec, value: Mapping[str, Any], text_weight: float = 0.0) -> None:
        """`text_weight`: of VIP with the sentence as goal. FLIP tunes without, LIV's pre-training has 1. Where all
        demonstrations share one sentence, nothing else ties it to pictures: InfoNCE has nothing to tell apart."""
        super().__init__()
        if text_weight < 0:
            raise ValueError(f"text_weight = {text_weight:g}, expected 0 or more")
        self.spec, self.text_weight = PolicySpec.of(env), text_weight
        self.value: ValueModel = build(value)

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """InfoNCE and VIP."""
        if FRAMES not in demo.obs.hints:
            raise ValueError(
                "the shard has an episode of fewer than 16 frames, four clips of four, which the value model learns "
                "from; write a shard without it"
            )
        pictures = floats(demo.obs.hints[FRAMES])
        none = torch.zeros(0, len(pictures), dtype=torch.int64) if self.text_weight else None  # no negatives
        terms = self.value.losses(pictures, self.value.tokens(demo.obs.texts).to(pictures.device), negatives=none)
        loss = terms["nce"] + terms["vip"]
        if self.text_weight:
            loss = loss + self.text_weight * terms["vip_text"]
        return loss, {k: v.item() for k, v in terms.items()}

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Nothing is normalised."""
