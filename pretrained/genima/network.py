"""ACT, the action-chunking transformer (Zhao et al. 2023), as GENIMA has it: several views, state, text to a chunk.

    views --FiLM ResNet, 1x1 convolution--> tokens, side by side -.
    latent, state, text --> one token each ------------------------+-> encoder -> decoder with H queries -> chunk
    training: CLS, state, demonstrated chunk --style encoder--> mean and log-variance of the latent

Tokens are normalised after each layer; positions are added to queries and keys only, as in DETR (Carion et al. 2020).
Dropout is an argument, not a mode: whoever computes a log-prob gives none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.genima.resnet import FilmResNet

STATE_DROPOUT = 0.3  # between the two layers that project the state, where there is any dropout
EXTRA = 3  # latent, state and text token


@dataclass(frozen=True)
class Sizes:
    """All sizes of the network."""

    state_dim: int
    action_dim: int
    text_dim: int
    horizon: int
    width: int = 256
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 4
    decoder_layers: int = 6
    style_layers: int = 4
    latent: int = 32
    planes: Sequence[int] = (64, 128, 256, 512)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be divisible by heads ({self.heads}) and by 4")


class Style(NamedTuple):
    """The style encoder's answer."""

    mean: Tensor  # [B, Z]
    log_var: Tensor  # [B, Z]


class Attention(nn.Module):
    """Multi-head attention; the names of the weights are torch's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, seen: Tensor | None = None, dropout: float = 0.0
    ) -> Tensor:
        """[B, Q, D] and [B, S, D]; keys with `seen` [B, S] false are not attended to."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        parts = [
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]
        mask = None if seen is None else seen[:, None, None]
        out = F.scaled_dot_product_attention(*parts, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, *, seen: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """[B, S, D]."""
        placed = x + position
        x = self.norm1(x + _drop(self.self_attn(placed, placed, x, seen=seen, dropout=dropout), dropout))
        return self.norm2(x + _drop(self.linear2(_drop(F.relu(self.linear1(x)), dropout)), dropout))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the encoder's tokens, and a feed-forward part."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = Attention(width, heads), Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, query: Tensor, tokens: Tensor, position: Tensor, *, dropout: float = 0.0) -> Tensor:
        """x [B, H, D] with query positions [H, D]; tokens [B, S, D] with positions."""
        placed = x + query
        x = self.norm1(x + _drop(self.self_attn(placed, placed, x, dropout=dropout), dropout))
        seen = self.multihead_attn(x + query, tokens + position, tokens, dropout=dropout)
        x = self.norm2(x + _drop(seen, dropout))
        return self.norm3(x + _drop(self.linear2(_drop(F.relu(self.linear1(x)), dropout)), dropout))


class Views(nn.Module):
    """Pictures to tokens: the part that is as large as the pictures are many."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.width = sizes.width
        self.text = nn.Linear(sizes.text_dim, sizes.width)
        self.backbone = FilmResNet(text_dim=sizes.width, planes=sizes.planes)
        self.project = nn.Conv2d(sizes.planes[-1], sizes.width, 1)

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Views [B, V, 3, Y, X] and text [B, text_dim], to a map [B, D, y, V x] and the projected text [B, D]."""
        b, v = images.shape[:2]
        text = self.text(text)
        maps = self.project(self.backbone(images.flatten(0, 1), text.repeat_interleave(v, 0)))
        return maps.unflatten(0, (b, v)).permute(0, 2, 3, 1, 4).flatten(3), text


class Act(nn.Module):
    """From the views' map to the chunk."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, layer = sizes.width, (sizes.width, sizes.heads, sizes.ffn)
        self.state = nn.ModuleList([nn.Linear(sizes.state_dim, width), nn.Linear(width, width)])
        self.latent = nn.Linear(sizes.latent, width)
        self.positions = nn.Embedding(EXTRA, width)
        self.query = nn.Embedding(sizes.horizon, width)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(sizes.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(sizes.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sizes.action_dim)

    def forward(
        self,
        maps: Tensor,
        text: Tensor,
        state: Tensor,
        latent: Tensor | None = None,
        *,
        views: int,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Hidden [B, H, D] of the chunk and tokens [B, S, D]; no `latent` is its prior's mean, 0."""
        b, _, y, x = maps.shape
        latent = state.new_zeros(b, self.sizes.latent) if latent is None else latent
        project, out = self.state
        state = out(_drop(project(state), STATE_DROPOUT if dropout else 0.0))
        tokens = torch.cat([torch.stack([self.latent(latent), state, text], 1), maps.flatten(2).transpose(1, 2)], 1)
        code = sine_positions(y, x // views, self.sizes.width, maps.device).repeat(1, 1, views)
        position = torch.cat([self.positions.weight, code.flatten(1).T])
        for layer in self.encoder:
            tokens = layer(tokens, position, dropout=dropout)
        hidden = tokens.new_zeros(b, self.sizes.horizon, self.sizes.width)
        for layer in self.decoder:
            hidden = layer(hidden, self.query.weight, tokens, position, dropout=dropout)
        return self.norm(hidden), tokens


class StyleEncoder(nn.Module):
    """What imitation alone uses: the latent of a demonstrated chunk, and whether a step is padding."""

    table: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.cls = nn.Embedding(1, width)
        self.state, self.action = nn.Linear(sizes.state_dim, width), nn.Linear(sizes.action_dim, width)
        self.layers = nn.ModuleList(EncoderLayer(width, sizes.heads, sizes.ffn) for _ in range(sizes.style_layers))
        self.latent = nn.Linear(width, 2 * sizes.latent)
        self.pad_head = nn.Linear(width, 1)
        self.register_buffer("table", _sine_table(2 + sizes.horizon, width))

    def forward(self, state: Tensor, actions: Tensor, is_pad: Tensor, *, dropout: float = 0.0) -> Style:
        """State [B, P], normalised chunk [B, H, A], padding bool [B, H]."""
        first = torch.stack([self.cls.weight.expand(len(state), -1), self.state(state)], 1)
        tokens = torch.cat([first, self.action(actions)], 1)
        seen = torch.cat([is_pad.new_ones(len(state), 2), ~is_pad], 1)
        for layer in self.layers:
            tokens = layer(tokens, self.table, seen=seen, dropout=dropout)
        return Style(*self.latent(tokens[:, 0]).chunk(2, -1))


def sine_positions(y: int, x: int, width: int, device: torch.device) -> Tensor:
    """[width, y, x]: sines and cosines of row and column, scaled to 2 pi (DETR)."""
    half = width // 2
    rates = 10000 ** (2 * (torch.arange(half, device=device) // 2) / half)
    codes = []
    for count in (y, x):
        place = torch.arange(1, count + 1, device=device) / (count + 1e-6) * 2 * math.pi
        angle = place[:, None] / rates
        codes.append(torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1).T)  # [half, count]
    rows, columns = codes
    return torch.cat([rows[:, :, None].expand(-1, -1, x), columns[:, None].expand(-1, y, -1)])


def _sine_table(count: int, width: int) -> Tensor:
    """[1, count, width] (Vaswani et al. 2017)."""
    rates = 10000 ** (2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angle = torch.arange(count, dtype=torch.float64)[:, None] / rates
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle.float()[None]


def _drop(x: Tensor, share: float) -> Tensor:
    return F.dropout(x, share) if share else x
