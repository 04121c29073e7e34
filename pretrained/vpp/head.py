"""The action head: a transformer that answers, for a noisy chunk and a noise level, what EDM's preconditioning asks.

    goal, tokens, proprioception --encoder--> context --keys and values of each decoder layer--> condition
    noisy chunk [H, A] --causal attention, condition, MLP, each modulated by the noise level--> answer [H, A]

After MDT (Reuss et al. 2024, arXiv:2407.05996) as VPP uses it. The encoder runs once per decision, and so do the keys
and values that the decoder asks; the links of a chain repeat the rest. Letters: B rows, M links, S tokens, C their
channels, G size of the goal, D width, Ly decoder layers; others as in `pretrained.types`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = (0.3, 0.1, 0.05)  # of attention weights, of what attention adds, of what an MLP adds


class ActionHead(nn.Module):
    """Chunks [B, M, H, A] at times [B, M] under conditions [B, Ly, 2, S, D] -> answers [B, M, H, A]."""

    waves: Tensor

    def __init__(
        self,
        *,
        channels: int,
        goal_dim: int,
        horizon: int,
        action_dim: int,
        proprio_dim: int = 0,
        width: int = 384,
        encoder_layers: int = 4,
        decoder_layers: int = 4,
        heads: int = 8,
        dropout: Sequence[float] = DROPOUT,
        cross_attention: str = "full",
        action_positions: str = "none",
    ) -> None:
        """`action_positions` "learned" tells the actions of a chunk apart; it starts at zero, which changes nothing."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be divided among {heads} heads; change one of them")
        if len(dropout) != 3:
            raise ValueError(f"dropout {list(dropout)}: expected three shares, of attention, its output, and the MLPs")
        self.causal_cross = cross_attention == "causal"
        self.horizon = horizon
        self.tokens = nn.Linear(channels, width)
        self.goal = _two_layers(goal_dim, width, nn.GELU())
        self.proprio = _two_layers(proprio_dim, width, nn.Mish()) if proprio_dim else None
        self.encoder = nn.ModuleList(EncoderBlock(width, heads, dropout) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(width, bias=False)
        self.action = nn.Linear(action_dim, width)
        learned = action_positions == "learned"
        self.position = nn.Parameter(torch.zeros(horizon, width)) if learned else None
        self.sigma = _two_layers(width, width, nn.Mish())
        self.decoder = nn.ModuleList(DecoderBlock(width, heads, dropout) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(width, bias=False)
        self.answer = nn.Linear(width, action_dim)
        waves = torch.exp(-math.log(10000.0) * torch.arange(width // 2) / (width // 2 - 1))
        self.register_buffer("waves", waves, persistent=False)

    def context(self, tokens: Tensor, goal: Tensor, proprio: Tensor | None = None, *, drop: bool = False) -> Tensor:
        """Tokens [B, S, C], goal [B, G] and, where the head knows it, proprioception [B, P] -> [B, 1 + S (+ 1), D]."""
        parts = [self.goal(goal)[:, None], self.tokens(tokens)]
        if self.proprio is not None:
            if proprio is None:
                raise ValueError("this action head was trained with proprioception; give it")
            parts.append(self.proprio(proprio)[:, None])
        x = torch.cat(parts, 1)
        for block in self.encoder:
            x = block(x, drop=drop)
        return self.encoder_norm(x)

    def condition(self, context: Tensor) -> Tensor:
        """Keys and values of every decoder layer, [B, Ly, 2, S, D]."""
        asked = [torch.stack(block.cross.keys_values(context), 1) for block in self.decoder]  # pyright: ignore
        return torch.stack(asked, 1)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, *, drop: bool = False) -> Tensor:
        """`time` is -ln(sigma) / 4, and x is divided by the size that it has at this noise level."""
        level = self.embed(time)
        mask = None
        if self.causal_cross:
            mask = torch.ones(self.horizon, condition.shape[3], dtype=torch.bool, device=x.device).tril()
        h = self.action(x) if self.position is None else self.action(x) + self.position  # [B, M, H, D]
        for i, block in enumerate(self.decoder):
            h = block(h, level, condition[:, i, 0], condition[:, i, 1], mask, drop=drop)
        return self.answer(self.decoder_norm(h))

    def embed(self, time: Tensor) -> Tensor:
        """[B, M] -> [B, M, D]."""
        angles = -time[..., None] * self.waves
        return self.sigma(torch.cat([angles.sin(), angles.cos()], -1))


class EncoderBlock(nn.Module):
    """Attention among the tokens, then an MLP."""

    def __init__(self, width: int, heads: int, dropout: Sequence[float]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads, dropout)
        self.mlp = Mlp(width, dropout[2])

    def forward(self, x: Tensor, *, drop: bool) -> Tensor:
        """[B, S, D]."""
        h = self.norm1(x)
        x = x + self.attention(h, *self.attention.keys_values(h), drop=drop)
        return x + self.mlp(self.norm2(x), drop=drop)


class DecoderBlock(nn.Module):
    """Causal attention among the actions, attention to the context, MLP; the first and last modulated and gated."""

    def __init__(self, width: int, heads: int, dropout: Sequence[float]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.norm_cross = nn.LayerNorm(width)
        self.attention, self.cross = Attention(width, heads, dropout), Attention(width, heads, dropout)
        self.mlp = Mlp(width, dropout[2])
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, level: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, drop: bool) -> Tensor:
        """x [B, M, H, D], level [B, M, D], keys and values [B, S, D], mask bool [H, S]."""
        m, horizon = x.shape[1:3]
        parts = self.modulation(F.silu(level))[:, :, None].chunk(6, -1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        h = (shift + self.norm1(x) * scale).flatten(0, 1)  # [B M, H, D]
        h = self.attention(h, *self.attention.keys_values(h), causal=True, drop=drop)
        x = x + gate * h.unflatten(0, (-1, m))
        # All links of a row ask the same context, so that they are the queries of one attention.
        asked = self.norm_cross(x).flatten(1, 2)
        x = x + self.cross(asked, k, v, mask=None if mask is None else mask.repeat(m, 1), drop=drop).unflatten(
            1, (m, horizon)
        )
        return x + mlp_gate * self.mlp(mlp_shift + self.norm2(x) * mlp_scale, drop=drop)


class Attention(nn.Module):
    """Scaled dot products; biases on queries, keys and values only."""

    def __init__(self, width: int, heads: int, dropout: Sequence[float]) -> None:
        super().__init__()
        self.heads, self.weights_dropout, self.output_dropout = heads, float(dropout[0]), float(dropout[1])
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens [B, S, D]."""
        return self.key(x), self.value(x)

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, *, drop: bool, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Queries of x [B, Q, D] on keys and values [B, S, D]; `mask` bool [Q, S]."""
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (self.query(x), k, v))
        share = self.weights_dropout if drop else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=share, is_causal=causal)
        return F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.output_dropout, training=drop)


class Mlp(nn.Module):
    """Two layers without biases."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = float(dropout)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, *, drop: bool) -> Tensor:
        """[..., D]."""
        return F.dropout(self.down(F.gelu(self.up(x))), self.dropout, training=drop)


def _two_layers(inputs: int, width: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 2 * width), activation, nn.Linear(2 * width, width))
