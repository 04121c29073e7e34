"""What FLIP's planner searches in: flow, then the video that follows it, then what its last picture is worth."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrained.flip.flow import FlowModel
from pretrained.flip.planner import Future, grid
from pretrained.flip.text import TextEncoder
from pretrained.flip.vae import IMAGENET, Autoencoder
from pretrained.flip.value import ValueModel
from pretrained.flip.video import VideoModel
from pretrained.types import randn

CLIP = 4.0


class Imagination(nn.Module):
    """The three models and the autoencoder, for one instruction. Pictures are in [0, 1]."""

    def __init__(
        self,
        *,
        flow: FlowModel | None,
        video: VideoModel | None,
        vae: Autoencoder | None,
        value: ValueModel | None,
        text: TextEncoder,
        points: int = 529,
        steps: int = 20,
        eta: float | None = 0.0,
        clip: float = CLIP,
        common: bool = False,
    ) -> None:
        """`clip`: bound of clean latents, which are of about unit variance; 0: none. A sampler's first steps multiply
        the network's error, and without a bound some videos of a small model break. `common`: all videos begin with
        the same noise (DDIM only), so that candidates differ by their tracks alone. Raises ValueError if a model is
        missing, or if they do not fit each other."""
        super().__init__()
        parts = {"flow": flow, "video": video, "vae": vae, "value": value}
        if missing := [name for name, part in parts.items() if part is None]:
            raise ValueError(f"a plan needs the models flow, video, vae and value; missing: {', '.join(missing)}")
        assert flow is not None
        assert video is not None
        assert vae is not None
        assert value is not None
        self.flow, self.video, self.vae, self.value = flow, video, vae, value
        self.text, self.steps, self.eta, self.clip, self.common = text, steps, eta, clip, common
        self.points = grid(flow.size, points, quirks=flow.quirks)
        latent = (flow.size[0] // vae.factor, flow.size[1] // vae.factor)
        dims = {"text encoder": text.dim, "flow": flow.text_dim, "video": video.text_dim}
        if len(set(dims.values())) > 1:
            raise ValueError(f"texts are of different widths ({dims}); use models trained with one text encoder")
        if latent != video.size:
            raise ValueError(
                f"the flow model sees {flow.size[0]}x{flow.size[1]} pixels, of which the autoencoder makes latents of "
                f"{latent[0]}x{latent[1]}, but the video model has {video.size[0]}x{video.size[1]}; use models of one "
                "resolution"
            )
        if flow.horizon != video.horizon or flow.history < video.history:
            raise ValueError(
                f"the flow model has horizon {flow.horizon} and history {flow.history}, the video model "
                f"{video.horizon} and {video.history}; expected one horizon, and no longer history of the video model"
            )

    @property
    def history(self) -> int:
        """Pictures that a plan starts from."""
        return self.flow.history

    @property
    def size(self) -> tuple[int, int]:
        """Y, X of the pictures."""
        return self.flow.size

    @property
    def horizon(self) -> int:
        """Positions of a track."""
        return self.flow.horizon

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.flow.parameters()).device

    @torch.no_grad()
    def imagine(self, pictures: Tensor, texts: Sequence[str], rngs: Sequence[torch.Generator]) -> Future:
        """Futures of pictures [M, L, 3, Y, X] for M texts; row i follows generator i."""
        device = pictures.device
        words = self.text(texts).to(device)
        mean, std = (torch.tensor(s, device=device).view(3, 1, 1) for s in IMAGENET)
        points = self.points.to(device).expand(len(pictures), -1, -1)
        tracks = self.flow.sample((pictures - mean) / std, words, points, list(rngs))
        known = self.vae.encode(pictures[:, -self.video.history :])
        latents = self.video.sample(known, tracks.flow, words, list(rngs), steps=self.steps, eta=self.eta,
                                    clip=self.clip, noise=self._noise(known) if self.common else None)  # fmt: skip
        video = self.vae.decode(latents)
        return Future(tracks.flow, video, self.value.score(video[:, -1], texts))

    def _noise(self, known: Tensor) -> list[Tensor]:
        """The one start of all videos that go on from latents [M, L, C, Y, X]. Raises ValueError unless it is all that
        is drawn."""
        if self.eta != 0.0:
            raise ValueError(f"common noise goes with eta=0, where nothing else is drawn, not with eta={self.eta}")
        shape = (1, known.shape[1] + self.video.frames, *known.shape[2:])
        start = randn(shape, torch.Generator().manual_seed(0), known.device)
        return [start.expand(len(known), *shape[1:])]
