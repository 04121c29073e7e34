"""The Video Former: the predictive features of a clip, thousands of tokens, become a few.

    features [B, T, S, C] --MLP, + frame--> D --cross-attention, attention over frames, MLP, each layer--> [B, Q, D]

After VPP (Hu et al. 2024, arXiv:2412.14803); the resampler is Perceiver's (Jaegle et al. 2021). Each frame has its own
Q / T learned latents. In its 2D form the frames do not talk to each other. Letters: B rows, T frames, S features of a
frame, C their channels, Q latents of all frames together, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VideoFormer(nn.Module):
    """Features [B, T, S, C] -> tokens [B, Q, D], frame after frame."""

    def __init__(
        self,
        *,
        channels: int,
        frames: int = 16,
        latents: int = 224,
        width: int = 384,
        depth: int = 6,
        heads: int = 8,
        head_width: int = 64,
        embeddings: int | None = None,
        temporal: bool = True,
        frame_mask: str = "attention",
    ) -> None:
        """`embeddings`: how many frames have an embedding, at least `frames`; `temporal`: 3D, otherwise 2D."""
        super().__init__()
        embeddings = frames if embeddings is None else embeddings
        if latents % frames or width % heads:
            raise ValueError(
                f"{latents} latents cannot be divided among {frames} frames, or width {width} among {heads} heads; "
                "choose multiples"
            )
        if embeddings < frames:
            raise ValueError(f"{frames} frames need as many embeddings, got embeddings={embeddings}")
        self.channels, self.frames, self.frame_mask = channels, frames, frame_mask
        self.project = nn.Sequential(nn.Linear(channels, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.frame = nn.Parameter(torch.randn(embeddings, 1, width))
        self.latents = nn.Parameter(torch.randn(frames, latents // frames, width))
        self.layers = nn.ModuleList(FormerLayer(width, heads, head_width, temporal=temporal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, shown: Tensor | None = None) -> Tensor:
        """`shown` bool [B, T] says which frames there are; a row without any is an error."""
        if tuple(features.shape[1::2]) != (self.frames, self.channels):
            raise ValueError(
                f"features have shape {tuple(features.shape)}, expected [B, {self.frames}, S, {self.channels}]; the "
                "video model is not the one that this Former was trained with"
            )
        b, t = features.shape[:2]
        if shown is not None and not bool(shown.any(1).all()):
            raise ValueError("a row without a frame has no tokens; show at least one frame of each clip")
        frame = self.frame[:t].expand(b, -1, -1, -1)
        if shown is not None:
            frame = frame * shown[:, :, None, None]
        x = (self.project(features) + frame).flatten(0, 1)  # [B T, S, D]
        h = self.latents.repeat(b, 1, 1)  # [B T, Q / T, D]
        hidden = shown if self.frame_mask == "attention" else None
        for layer in self.layers:
            h = layer(h, x, t, hidden)
        return self.norm(h).unflatten(0, (b, t)).flatten(1, 2)


class FormerLayer(nn.Module):
    """Cross-attention of each frame's latents, attention among the frames, MLP; each added to its input."""

    def __init__(self, width: int, heads: int, head_width: int, *, temporal: bool) -> None:
        super().__init__()
        self.cross = CrossAttention(width, heads, head_width)
        self.temporal = FrameAttention(width, heads) if temporal else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, h: Tensor, x: Tensor, frames: int, shown: Tensor | None) -> Tensor:
        """Latents h [B T, Q / T, D] and features x [B T, S, D] -> latents."""
        h = h + self.cross(h, x, None if shown is None else shown.flatten())
        if self.temporal is not None:
            rows = h.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # [B Q / T, T, D]
            each = h.shape[1]
            rows = rows + self.temporal(rows, None if shown is None else shown.repeat_interleave(each, 0))
            h = rows.unflatten(0, (-1, each)).transpose(1, 2).flatten(0, 1)
        return h + self.mlp(h)


class CrossAttention(nn.Module):
    """Latents ask the features of their frame, and themselves; each side has its own norm."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor, x: Tensor, shown: Tensor | None) -> Tensor:
        """Of frames that are not `shown` [B T] only the latents are asked."""
        h = self.norm_latents(h)
        both = torch.cat([self.norm_media(x), h], 1)
        mask = None
        if shown is not None:
            own = shown.new_ones(len(shown), h.shape[1])
            mask = torch.cat([shown[:, None].expand(-1, x.shape[1]), own], 1)[:, None, None]
        return self.out(_attend(self.q(h), self.k(both), self.v(both), self.heads, mask))


class FrameAttention(nn.Module):
    """Every frame asks every frame, for one latent of each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, shown: Tensor | None) -> Tensor:
        """x [B, T, D]; frames that are not `shown` [B, T] are not asked."""
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(_attend(q, k, v, self.heads, None if shown is None else shown[:, None, None]))


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """[B, S, heads * W] each; mask bool, broadcast against [B, heads, queries, keys]."""
    q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
