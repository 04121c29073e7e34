"""The video model of FLIP: a transformer over latent frames that makes them follow the flow.

Gao et al. 2024, section 3.2 and repository HeegerGao/FLIP. Blocks alternate between the patches of a frame and the
frames of a patch. Each has a second attention whose keys are the same video tokens and one token per track; these are
computed once per sample and shared by all its sequences. Repaired: `schedule` of `pretrained.flip.quirks`. Here T
frames, P points, F positions of a track, S words; latents [B, T, C, Y, X].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.flip import noise as noises
from pretrained.flip.quirks import choose
from pretrained.flip.tokens import Patches, check_sizes, check_text, sincos, sincos_2d, transformer
from pretrained.types import Rng

SENTENCE_LAYERS, SENTENCE_HEADS, TIMES = 3, 8, 256


class VideoModel(nn.Module):
    """Noise and variances of latent frames, given the tracks of points and a sentence."""

    def __init__(
        self,
        *,
        size: Sequence[int] = (16, 16),
        channels: int = 4,
        patch: int = 2,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        horizon: int = 16,
        history: int = 4,
        text_dim: int = 4096,
        steps: int = noises.STEPS,
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
    ) -> None:
        """`size` of a latent frame. The published sizes are S (width 384, depth 8, 6 heads), B (768, 12, 12: the
        default) and L (1024, 16, 16)."""
        super().__init__()
        self.size = (int(size[0]), int(size[1]))
        check_sizes("VideoModel", width=width, heads=heads, size=self.size, patch=patch)
        if horizon < 2 or history < 1:
            raise ValueError(f"VideoModel: expected horizon >= 2 and history >= 1, got {horizon} and {history}")
        self.channels, self.patch, self.horizon, self.history, self.text_dim = (
            channels,
            patch,
            horizon,
            history,
            text_dim,
        )
        self.quirks, self.schedule = choose(quirks, switches), noises.linear(steps)
        frames = history + horizon - 1
        self.pos_embed = nn.Parameter(
            sincos_2d(self.size[0] // patch, self.size[1] // patch, width), requires_grad=False
        )
        self.temp_embed = nn.Parameter(sincos(torch.arange(frames), width).float()[None], requires_grad=False)
        self.x_embedder = Patches(channels, width, patch)
        self.t_embedder = _Time(width)
        self.flow_embedder = nn.Sequential(
            nn.Linear(2 * horizon, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_encoder = _Sentence(text_dim, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.final_layer = _Final(width, patch**2 * 2 * channels)

    @property
    def frames(self) -> int:
        """Of the future."""
        return self.horizon - 1

    def forward(self, x: Tensor, t: Tensor, flow: Tensor, text: Tensor) -> Tensor:
        """[B, T, 2C, Y, X] for latents x at steps t [B], tracks [B, P, F, 2] in pixels and texts [B, S, Dl]."""
        return self.answer(x, t, *self.condition(flow, text))

    def condition(self, flow: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """What does not change from step to step: a token per track [B, P, D], and one for the sentence [B, D]."""
        check_text(text, self.text_dim, "the video model")
        if flow.shape[2] != self.horizon:
            raise ValueError(
                f"the video model follows tracks of {self.horizon} positions, got {flow.shape[2]}; take a flow model "
                "of that horizon"
            )
        return self.flow_embedder(flow.flatten(2)), self.language_encoder(text)

    def answer(self, x: Tensor, t: Tensor, tracks: Tensor, sentence: Tensor) -> Tensor:
        """As `forward`, from what `condition` answers."""
        self._check(x)
        c = self.t_embedder(t) + sentence
        n, frames = x.shape[:2]
        h = self.x_embedder(x.flatten(0, 1)).unflatten(0, (n, frames))  # [B, T, patches, D]
        h = h + self.pos_embed[:, None] + self.temp_embed[:, :, None]
        for i, block in enumerate(self.blocks):
            h = block(h, c, tracks) if i % 2 == 0 else block(h.transpose(1, 2), c, tracks).transpose(1, 2)
        return self._pictures(self.final_layer(h, c))

    def losses(self, clean: Tensor, t: Tensor, noise: Tensor, flow: Tensor, text: Tensor) -> dict[str, Tensor]:
        """`mse` and `bound`, each [B], of latents whose first frames are the history; the loss is their sum."""
        condition = self.condition(flow, text)
        quiet = torch.cat([torch.zeros_like(noise[:, : self.history]), noise[:, self.history :]], 1)
        return noises.losses(
            self.schedule, lambda x, t: self.answer(x, t, *condition), clean, t, quiet, known=self.history
        )

    def sample(
        self, history: Tensor, flow: Tensor, text: Tensor, rng: Rng | None = None, *, steps: int = 20,
        eta: float | None = 0.0, noise: Sequence[Tensor] | None = None, clip: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Latents of the future [B, F-1, C, Y, X] after a history [B, L, C, Y, X].

        DDIM with `eta`, or ancestral if it is None, in `steps` network calls. `clip` bounds what is taken for the clean
        latents, unless it is 0."""
        if history.shape[1] != self.history:
            raise ValueError(f"the video model goes on from {self.history} frames, got {history.shape[1]}")
        condition = self.condition(flow, text)
        out = noises.sample(self.sampler(steps), lambda x, t: self.answer(x, t, *condition), history, self.frames, rng,
                            eta=eta, noises=noise, clip=clip)  # fmt: skip
        return out[:, self.history :]

    def sampler(self, steps: int) -> noises.Schedule:
        """The schedule of a sampler of that many steps."""
        if self.quirks.schedule == "short":
            return noises.linear(steps)
        return noises.respaced(self.schedule, steps)

    def _pictures(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, patches, p * p * 2C] -> [B, T, 2C, Y, X]."""
        p, rows = self.patch, self.size[0] // self.patch
        cut = tokens.unflatten(3, (p, p, -1)).unflatten(2, (rows, -1))  # [B, T, rows, columns, p, p, 2C]
        return cut.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _check(self, x: Tensor) -> None:
        expected = (self.history + self.frames, self.channels, *self.size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"the video model has latents {list(expected)} (frames, channels, rows, columns), got "
                f"{list(x.shape[1:])}; resize the pictures, or use the model and autoencoder of this resolution"
            )


class _Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIMES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = TIMES // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device).float() / half)
        angles = t.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], 1).to(next(self.mlp.parameters()).dtype))


class _Sentence(nn.Module):
    """One vector of a sentence; rows whose sum is zero are padding."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.compress_fn = nn.Linear(text_dim, width)
        self.transformer = transformer(width, SENTENCE_HEADS, SENTENCE_LAYERS, 0.1)
        self.output_head = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        padded = F.pad(text.sum(-1) == 0, (1, 0))
        tokens = torch.cat([self.cls_token.expand(len(text), -1, -1), self.compress_fn(text)], 1)
        return self.output_head(self.transformer(tokens, src_key_padding_mask=padded)[:, 0])


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, also: Tensor | None = None) -> Tensor:
        """x [B, M, tokens, D]: M sequences per sample; `also` [B, P, D] are keys of all of them."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)  # [B, M, tokens, heads, .]
        if also is not None:
            width = self.proj.in_features
            both = F.linear(also, self.qkv.weight[width:], self.qkv.bias[width:])
            extra = both.unflatten(-1, (2, self.heads, -1))[:, None].expand(-1, x.shape[1], -1, -1, -1, -1)
            k, v = torch.cat([k, extra[:, :, :, 0]], 2), torch.cat([v, extra[:, :, :, 1]], 2)
        q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(out.unflatten(0, x.shape[:2]))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Block(nn.Module):
    """Attention and MLP that time and sentence modulate (adaLN-Zero), and attention to tracks in between."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = _Attention(width, heads), _Attention(width, heads)
        self.mlp = _Mlp(width)
        modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, x: Tensor, c: Tensor, tracks: Tensor) -> Tensor:
        parts = self.adaLN_modulation(c)[:, None, None].chunk(6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        x = x + gate * self.self_attn(_normed(x) * (1 + scale) + shift)
        x = x + self.cross_attn(_normed(x), tracks)
        return x + gate_mlp * self.mlp(_normed(x) * (1 + scale_mlp) + shift_mlp)


class _Final(nn.Module):
    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        for layer in (self.linear, self.adaLN_modulation[1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None, None].chunk(2, -1)
        return self.linear(_normed(x) * (1 + scale) + shift)


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
