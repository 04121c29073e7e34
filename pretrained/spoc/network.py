"""One trainable tower of SPOC: a fusion encoder for each moment, a causal decoder over time, and heads.

    camera maps, sentence ─► fusion ─┐
    last action, in hand, time ──────┴─► + ─► decoder with a cache of the past ─► hidden [N, T, D] ─► logits or value

After SPOC (Ehsani et al. 2024, arXiv:2312.02976), PoliFormer (Zeng et al. 2024, arXiv:2406.20083) and FLaRe
(Hu et al. 2024, arXiv:2409.16578). The fusion is a post-norm Transformer without positions: which camera a token is
from, a learnt vector says. The decoder is pre-norm with RMS norms, SwiGLU and no biases; its position is the sinusoid
of the time step that is added to its input. Letters: B rows, C cached moments, Ly layers; others as elsewhere.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BIN_LOW, BIN_HIGH, BINS, BIN_SIGMA = -5.0, 15.0, 101, 0.15  # of the categorical value head
VALUE_HEADS = ("linear", "mlp", "hl_gauss")


@dataclass(frozen=True)
class Sizes:
    """How large a tower is; the defaults are those of the published weights."""

    image_dim: int  # channels of a camera's map
    text_dim: int
    cameras: int
    num_actions: int
    width: int = 512  # D
    heads: int = 8
    fusion_layers: int = 3
    fusion_hidden: int = 2048
    decoder_layers: int = 3
    dropout: float = 0.1  # of the fusion, where it is asked for
    value_head: str = "linear"  # linear | mlp | hl_gauss

    def __post_init__(self) -> None:
        if self.value_head not in VALUE_HEADS:
            raise ValueError(f"value_head '{self.value_head}' is unknown; expected one of {', '.join(VALUE_HEADS)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads; change one of them")

    @property
    def start(self) -> int:
        """The last action of an episode's first moment."""
        return self.num_actions

    @property
    def pad(self) -> int:
        """The last action beyond the end of a demonstration."""
        return self.num_actions + 1


class Moments(NamedTuple):
    """What a tower sees of N streams of T moments."""

    maps: Tensor  # [N, T, cameras, C, grid Y, grid X]
    text: Tensor  # [N, T, S, text_dim]
    words: Tensor  # bool [N, T, S] tokens that the fusion may look at
    last_action: Tensor  # int64 [N, T]
    in_hand: Tensor  # int64 [N, T] 0, 1, or 2 where padded
    time: Tensor  # int64 [N, T] steps since the start of the episode


class Past(NamedTuple):
    """Keys and values of cached moments, [N, Ly, C, D] each."""

    keys: Tensor
    values: Tensor


class Tower(nn.Module):
    """Moments -> hidden [N, T, D]. Has both heads; the one that its role does not need is kept, frozen."""

    def __init__(self, sizes: Sizes, *, role: str) -> None:
        super().__init__()
        d = sizes.width
        self.sizes, self.role = sizes, role
        self.compress = nn.Sequential(nn.Conv2d(sizes.image_dim, d, 1), nn.ReLU(), nn.Conv2d(d, d, 1), nn.ReLU())
        self.adapt = nn.Sequential(nn.Linear(d, d), nn.LayerNorm(d), nn.ReLU())
        self.adapt_text = nn.Sequential(nn.Linear(sizes.text_dim, d), nn.LayerNorm(d), nn.ReLU())
        self.camera = nn.Parameter(0.1 * torch.rand(sizes.cameras, d))
        self.token = nn.Parameter(0.1 * torch.rand(d))
        self.fusion = nn.ModuleList(FusionLayer(sizes) for _ in range(sizes.fusion_layers))
        self.last_action = nn.Embedding(sizes.num_actions + 2, d, padding_idx=sizes.pad)
        self.in_hand = nn.Embedding(3, d)
        for table in (self.last_action, self.in_hand):
            nn.init.uniform_(table.weight, -0.01, 0.01)
        self.decoder = Decoder(sizes)
        self.action_head = nn.Linear(d, sizes.num_actions)
        self.value_head = value_head(sizes)
        spare = self.value_head if role == "actor" else self.action_head
        spare.requires_grad_(False)
        self.register_buffer("waves", torch.exp(torch.arange(0, d, 2) * (-math.log(10000.0) / d)), persistent=False)

    def forward(self, x: Moments, past: Past, visible: Tensor, *, dropout: float = 0.0) -> tuple[Tensor, Past]:
        """Hidden [N, T, D], and keys and values of the T new moments.

        `visible` bool [N, T, C + T]: which cached and which new moments each moment attends to."""
        n, t = x.last_action.shape
        fused = self.fuse(x.maps.flatten(0, 1), x.text.flatten(0, 1), x.words.flatten(0, 1), dropout=dropout)
        h = fused.view(n, t, -1) + self.last_action(x.last_action) + self.in_hand(x.in_hand) + self.clock(x.time)
        return self.decoder(h, past, visible)

    def fuse(self, maps: Tensor, text: Tensor, words: Tensor, *, dropout: float = 0.0) -> Tensor:
        """One vector per row: maps [B, cameras, C, Y, X], text [B, S, text_dim], words bool [B, S] -> [B, D]."""
        b, cameras = maps.shape[:2]
        seen = self.compress(maps.flatten(0, 1).float()).flatten(2).transpose(1, 2)  # [B cameras, Y X, D]
        seen = self.adapt(seen).view(b, cameras, -1, self.sizes.width) + self.camera[:, None]
        seen = seen.flatten(1, 2)
        x = torch.cat([self.token.expand(b, 1, -1), seen, self.adapt_text(text)], 1)
        always = words.new_ones(b, 1 + seen.shape[1])
        keys = None if bool(words.all()) else torch.cat([always, words], 1)[:, None, None]
        for i, layer in enumerate(self.fusion, 1):
            x = layer(x, keys, dropout, rows=1 if i == len(self.fusion) else x.shape[1])
        return x[:, 0]

    def clock(self, time: Tensor) -> Tensor:
        """Sinusoid of the time step, sine on even and cosine on odd entries; [N, T, D]."""
        angle = time[..., None] * self.get_buffer("waves")
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)

    def value(self, hidden: Tensor) -> Tensor:
        """[...]: of hidden [..., D], in the units of the return."""
        return read_value(self.value_head, hidden, self.sizes)


class ValueHead(nn.Module):
    """The critic that has no tower of its own; its weights are named as those of a tower's."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.value_head = sizes, value_head(sizes)

    def value(self, hidden: Tensor) -> Tensor:
        """[...]: of the actor's hidden [..., D], in the units of the return."""
        return read_value(self.value_head, hidden, self.sizes)


class FusionLayer(nn.Module):
    """Post-norm Transformer encoder layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d = sizes.width
        self.heads = sizes.heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, sizes.fusion_hidden), nn.Linear(sizes.fusion_hidden, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, keys: Tensor | None, dropout: float, *, rows: int) -> Tensor:
        """x [B, S, D] -> its first `rows`; `keys` bool, broadcast to [B, heads, rows, S], or None for all."""
        d, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
        head = x[:, :rows]
        q = F.linear(head, weight[:d], bias[:d])
        k, v = F.linear(x, weight[d:], bias[d:]).chunk(2, -1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)
        x = self.norm1(head + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), dropout))
        inner = F.dropout(F.relu(self.up(x)), dropout)
        return self.norm2(x + F.dropout(self.down(inner), dropout))


class Decoder(nn.Module):
    """Causal Transformer; what is visible, the caller says."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.decoder_layers))
        self.norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, h: Tensor, past: Past, visible: Tensor) -> tuple[Tensor, Past]:
        """h [N, T, D], past [N, Ly, C, D], visible bool [N, T, C + T] -> hidden and the new keys and values."""
        mask = visible[:, None]
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            h, k, v = layer(h, past.keys[:, i], past.values[:, i], mask)
            keys.append(k)
            values.append(v)
        return self.out(self.norm(h)), Past(torch.stack(keys, 1), torch.stack(values, 1))


class DecoderLayer(nn.Module):
    """Pre-norm attention and SwiGLU, without biases."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d = sizes.width
        inner = 256 * math.ceil(int(2 * 4 * d / 3) / 256)
        self.heads = sizes.heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.down, self.up = (nn.Linear(*s, bias=False) for s in ((d, inner), (inner, d), (d, inner)))
        self.norm1, self.norm2 = nn.RMSNorm(d, eps=1e-5), nn.RMSNorm(d, eps=1e-5)

    def forward(self, h: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next h [N, T, D], and this layer's new keys and values [N, T, D]."""
        x = self.norm1(h)
        k, v = self.k(x), self.v(x)
        q, ks, vs = (
            split_heads(p, self.heads) for p in (self.q(x), torch.cat([keys, k], 1), torch.cat([values, v], 1))
        )
        mixed = F.scaled_dot_product_attention(q, ks, vs, attn_mask=mask)
        h = h + self.o(mixed.transpose(1, 2).flatten(2))
        x = self.norm2(h)
        return h + self.down(F.silu(self.gate(x)) * self.up(x)), k, v


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, D] -> [B, heads, S, D / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


# --- value heads -----------------------------------------------------------------------------------------------------


def value_head(sizes: Sizes) -> nn.Module:
    """`linear`: orthogonal, zero bias; `mlp`: two hidden layers of 256; `hl_gauss`: logits of bins of the return."""
    d = sizes.width
    if sizes.value_head == "mlp":
        return nn.Sequential(nn.Linear(d, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    if sizes.value_head == "hl_gauss":
        return nn.Sequential(nn.Linear(d, 256), nn.ReLU(), nn.Linear(256, BINS))
    head = nn.Linear(d, 1)
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def read_value(head: nn.Module, hidden: Tensor, sizes: Sizes) -> Tensor:
    """[...] of hidden [..., D]."""
    out = head(hidden).float()
    return expected_value(out) if sizes.value_head == "hl_gauss" else out.squeeze(-1)


def bin_edges(like: Tensor) -> Tensor:
    """The edges of the bins of the return, [BINS + 1]."""
    return torch.linspace(BIN_LOW, BIN_HIGH, BINS + 1, device=like.device, dtype=like.dtype)


def expected_value(logits: Tensor) -> Tensor:
    """Mean return under logits [..., BINS]."""
    edges = bin_edges(logits)
    return (F.softmax(logits, -1) * (edges[:-1] + edges[1:]) / 2).sum(-1)


def bin_targets(returns: Tensor) -> Tensor:
    """Probability of each bin, [..., BINS], under a Gaussian around the return, cut off at the outer edges.

    HL-Gauss: Farebrother et al. 2024, arXiv:2403.03950, section 3.1."""
    z = (bin_edges(returns) - returns[..., None]) / (math.sqrt(2) * BIN_SIGMA)
    below = torch.erf(z)
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def bin_loss(logits: Tensor, returns: Tensor) -> Tensor:
    """Cross-entropy [...] of logits [..., BINS] against the bins' probabilities."""
    return -(bin_targets(returns) * F.log_softmax(logits, -1)).sum(-1)
