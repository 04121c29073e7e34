"""The flow model of FLIP: a conditional VAE that says where the points of a picture go next, given a sentence.

Gao et al. 2024, "FLIP", section 3.1 and repository HeegerGao/FLIP. It answers a length and a direction per point and
step, and flow is their running sum from the query point, in pixels. Repaired: see `pretrained.flip.quirks`, fields
`latent_std` and `weighting`. Letters as in `pretrained.types`; here P points, F positions of a track, S words.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.flip.quirks import choose
from pretrained.flip.tokens import Patches, check_sizes, check_text, sincos_2d, transformer
from pretrained.types import Rng, randn

WEIGHTS = {"direction": 10.0, "scale": 10.0, "ade": 1.0, "kl": 1e-4, "pictures": 1e-5, "tracks": 1e-5}
HARD, SQUARED, MOVES = 100.0, 2.0, 1.0  # weight; squared error above which, and pixels above which it is given
LOGVAR = 10.0  # bound of the latent's log-variance


class Tracks(NamedTuple):
    """Tracks of points, in pixels (x, y)."""

    scale: Tensor  # [B, P, F-1, 1] length of each step
    direction: Tensor  # [B, P, F-1, 2] unit vectors
    flow: Tensor  # [B, P, F, 2] positions; the first is the query point


class Reconstruction(NamedTuple):
    """What the model makes of tracks that it was shown."""

    tracks: Tracks
    mu: Tensor  # [B, D]
    logvar: Tensor  # [B, D]
    z: Tensor  # [B, D]
    pictures: Tensor  # [B, patches, L * 3 * patch**2] read off the encoder
    shown: Tensor  # [B, P, F, 2] the tracks, read off the encoder


class FlowModel(nn.Module):
    """Tracks of any number of points, from L pictures, a sentence and a latent."""

    def __init__(
        self,
        *,
        width: int = 768,
        encoder_layers: int = 4,
        decoder_layers: int = 10,
        heads: int = 4,
        horizon: int = 16,
        history: int = 16,
        size: Sequence[int] = (128, 128),
        patch: int = 8,
        text_dim: int = 4096,
        dropout: float = 0.1,
        kl_weight: float = WEIGHTS["kl"],
        motion_weight: float = HARD,
        units: str = "pixels",
        latent: str = "token",
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
    ) -> None:
        """The published sizes are S (384, 4, 8, 4), B (768, 4, 10, 4: the default) and L (768, 6, 12, 8).

        `kl_weight`: more of it brings what the prior draws nearer to what was learned, where videos go several ways.
        `motion_weight`: of points that move; with a large one those that stand still are made to move too. `units` of
        what the layers see: pixels, as the original, or shares of the picture ("picture"), from which a small model
        learns faster. `latent`: one token among many, which a small model does not heed, or added to every point's
        token too ("everywhere")."""
        super().__init__()
        self.size = (int(size[0]), int(size[1]))
        check_sizes("FlowModel", width=width, heads=heads, size=self.size, patch=patch)
        if units not in ("pixels", "picture") or latent not in ("token", "everywhere"):
            raise ValueError(f"FlowModel: units '{units}' and latent '{latent}'; expected pixels or picture, and token "
                             "or everywhere")  # fmt: skip
        if motion_weight <= 0 or kl_weight < 0:
            raise ValueError(f"FlowModel: motion_weight {motion_weight}, kl_weight {kl_weight}; expected more than 0")
        if horizon < 2 or history < 1:
            raise ValueError(f"FlowModel: expected horizon >= 2 and history >= 1, got {horizon} and {history}")
        self.width, self.horizon, self.history, self.patch, self.text_dim = width, horizon, history, patch, text_dim
        self.unit = 1.0 if units == "pixels" else max(self.size) / 4  # pixels; about as large as the latent then
        self.motion_weight, self.everywhere = motion_weight, latent == "everywhere"
        self.weights, self.quirks = {**WEIGHTS, "kl": kl_weight}, choose(quirks, switches)
        rows, columns = self.size[0] // patch, self.size[1] // patch
        values = 3 * history * patch**2
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.img_pos_embedding = nn.Parameter(sincos_2d(rows, columns, width), requires_grad=False)
        self.language_encoder = nn.Linear(text_dim, width)
        self.vision_encoder = Patches(3 * history, width, patch)
        self.vision_decoder = nn.Linear(width, values)
        self.query_point_encoder = nn.Linear(2, width)
        self.flow_encoder = nn.Linear(2 * horizon, width)
        self.flow_decoder = nn.Linear(width, 2 * horizon)
        self.cvae_encoder = transformer(width, heads, encoder_layers, dropout)
        self.cvae_decoder = transformer(width, heads, decoder_layers, dropout)
        self.z_mu, self.z_logvar = nn.Linear(width, width), nn.Linear(width, width)
        self.scale_head = nn.Sequential(nn.Linear(width, horizon), nn.Softplus())
        self.direction_head = nn.Linear(width, 2 * horizon)

    def std(self, logvar: Tensor) -> Tensor:
        """Of the latent."""
        std = (0.5 * logvar).exp()
        return std.exp() if self.quirks.latent_std == "double" else std

    def forward(self, flow: Tensor, history: Tensor, text: Tensor, noise: Tensor) -> Reconstruction:
        """Encode tracks [B, P, F, 2] to a latent, drawn with `noise` [B, D], and decode it at the same points.

        `history`: normalised pictures [B, L, 3, Y, X]; `text` [B, S, Dl] with rows of zeros as padding."""
        self._check(flow, history, text)
        points, tail, mask = flow.shape[1], *self._seen(history, text)
        shown = self.flow_encoder(self._units(flow).flatten(2))
        tokens = torch.cat([self.cls_token.expand(len(flow), -1, -1), shown, tail], 1)
        hidden = self.cvae_encoder(tokens, src_key_padding_mask=self._padded(mask, 1 + points))
        mu, logvar = self.z_mu(hidden[:, 0]), self.z_logvar(hidden[:, 0]).clamp(-LOGVAR, LOGVAR)
        z = mu + self.std(logvar) * noise
        patches = hidden[:, 1 + points : 1 + points + self.img_pos_embedding.shape[1]]
        shown = self.unit * self.flow_decoder(hidden[:, 1 : 1 + points]).view_as(flow)
        tracks = self.decode(z, flow[:, :, 0], history, text)
        return Reconstruction(tracks, mu, logvar, z, self.vision_decoder(patches), shown)

    def decode(self, z: Tensor, points: Tensor, history: Tensor, text: Tensor) -> Tracks:
        """Tracks from points [B, P, 2] for latents [B, D]."""
        tail, mask = self._seen(history, text)
        queries = self.query_point_encoder(self._units(points))
        tokens = torch.cat([z[:, None], queries + z[:, None] if self.everywhere else queries, tail], 1)
        hidden = self.cvae_decoder(tokens, src_key_padding_mask=self._padded(mask, 1 + points.shape[1]))
        asked = hidden[:, 1 : 1 + points.shape[1]]
        # The heads also say the step after the last position, which nothing uses.
        scale = self.unit * self.scale_head(asked)[..., :-1, None]
        direction = F.normalize(self.direction_head(asked).unflatten(-1, (-1, 2))[:, :, :-1], dim=-1)
        return Tracks(scale, direction, integrate(points, scale, direction))

    def sample(self, history: Tensor, text: Tensor, points: Tensor, rng: Rng) -> Tracks:
        """Tracks drawn from the prior. With a generator per row, row i depends on generator i alone."""
        noise = randn((len(points), self.width), rng, points.device)
        scale = math.e if self.quirks.latent_std == "double" else 1.0  # exp(exp(0))
        self._check(points[:, :, None].expand(-1, -1, self.horizon, -1), history, text)
        return self.decode(scale * noise, points, history, text)

    def losses(self, out: Reconstruction, flow: Tensor, history: Tensor) -> dict[str, Tensor]:
        """The six terms, each with its weight; their sum is the loss."""
        scale, direction = steps(flow)
        by_error, weight = self.quirks.weighting == "error", self.motion_weight
        moves = None if by_error else scale[..., 0] > MOVES
        tracks = out.tracks
        distance = (tracks.flow - flow)[:, :, 1:].norm(dim=-1)
        kl = -0.5 * (1 + out.logvar - out.mu**2 - out.logvar.exp()).sum()
        terms = {
            "direction": _weighted(((tracks.direction - direction) ** 2).sum(-1), SQUARED, moves, weight).mean(),
            "scale": _weighted(((tracks.scale - scale) ** 2).sum(-1), SQUARED, moves, weight).mean(),
            "ade": _weighted(distance, MOVES, moves, weight).mean(),
            "kl": (1 + kl**2).sqrt() - 1,
            "pictures": F.mse_loss(out.pictures, self.patches(history)),
            "tracks": F.mse_loss(out.shown, flow),
        }
        return {k: self.weights[k] * v for k, v in terms.items()}

    def patches(self, history: Tensor) -> Tensor:
        """Pictures [B, L, 3, Y, X] -> [B, patches, patch * patch * L * 3]: row, column, picture, channel."""
        p = self.patch
        cut = history.unflatten(4, (-1, p)).unflatten(3, (-1, p))  # [B, L, 3, rows, p, columns, p]
        return cut.permute(0, 3, 5, 4, 6, 1, 2).flatten(1, 2).flatten(2)

    def _units(self, places: Tensor) -> Tensor:
        """Of places in pixels; those of the picture are counted from its middle."""
        if self.unit == 1.0:
            return places
        middle = torch.tensor([self.size[1] - 1, self.size[0] - 1], device=places.device) / 2
        return (places - middle) / self.unit

    def _seen(self, history: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of pictures and words [B, patches + S, D], and which of the words are padding [B, S]."""
        pictures = self.vision_encoder(history.flatten(1, 2)) + self.img_pos_embedding
        return torch.cat([pictures, self.language_encoder(text)], 1), (text == 0).all(-1)

    def _padded(self, mask: Tensor, first: int) -> Tensor:
        rest = mask.new_zeros(len(mask), first + self.img_pos_embedding.shape[1])
        return torch.cat([rest, mask], 1)

    def _check(self, flow: Tensor, history: Tensor, text: Tensor) -> None:
        check_text(text, self.text_dim, "the flow model")
        if tuple(history.shape[1:]) != (self.history, 3, *self.size):
            raise ValueError(
                f"the flow model sees pictures [B, {self.history}, 3, {self.size[0]}, {self.size[1]}], got "
                f"{list(history.shape)}; resize them, or use the model of this resolution"
            )
        if flow.shape[2] != self.horizon:
            raise ValueError(
                f"the flow model has tracks of {self.horizon} positions, got {flow.shape[2]}; cut clips of that length"
            )


def integrate(points: Tensor, scale: Tensor, direction: Tensor) -> Tensor:
    """Positions [B, P, F, 2] from points [B, P, 2], lengths [B, P, F-1, 1] and directions [B, P, F-1, 2]."""
    return torch.cat([points[:, :, None], points[:, :, None] + (scale * direction).cumsum(2)], 2)


def steps(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths [..., F-1, 1] and unit directions [..., F-1, 2] of tracks; a point at rest has direction zero."""
    moved = flow.diff(dim=-2)
    scale = moved.norm(dim=-1, keepdim=True)
    return scale, moved / scale.clamp(min=1e-12)


def displacement(flow: Tensor, target: Tensor) -> dict[str, float]:
    """ADE (pixels) and LTDR (mean share within 2, 4 and 8 pixels) over the steps in which the target moves by more than
    one pixel; NaN if none does."""
    moves = steps(target)[0][..., 0] > MOVES
    distance = (flow - target)[..., 1:, :].norm(dim=-1)[moves]
    within = torch.stack([(distance < limit).float().mean() for limit in (2.0, 4.0, 8.0)])
    return {"ade": float(distance.mean()), "ltdr": float(within.mean())}


def _weighted(error: Tensor, limit: float, moves: Tensor | None, weight: float) -> Tensor:
    return torch.where(error > limit if moves is None else moves, weight * error, error)
