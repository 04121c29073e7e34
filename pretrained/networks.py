"""Networks: a small image encoder, velocity networks conditioned by AdaLN, the noise head, critic and memory.

Letters: B rows, M links of a chain, H chunk length, A action dim, D width, C channels.
No dropout and no batch statistics anywhere: a log-prob must not depend on the mode or on the batch.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SmallCnn(nn.Module):
    """uint8 [B, Y, X, 3] -> [B, out]. Convolutions, then where each channel fires (spatial softmax) or all of it.

    Spatial softmax: Levine et al. 2016, section 5. docs/results.md compares the two."""

    rows: Tensor  # places of pixels from -1 to 1
    columns: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        *,
        out: int = 128,
        channels: Sequence[int] = (32, 32, 64),
        kernels: Sequence[int] = (5, 3, 3),
        strides: Sequence[int] = (2, 2, 1),
        pool: str = "softmax",
    ) -> None:
        super().__init__()
        if pool not in ("flatten", "softmax"):
            raise ValueError(f"pool '{pool}' is unknown; expected flatten or softmax")
        self.pool = pool
        self.convs = nn.ModuleList()
        last, (y, x) = 3, size
        for c, k, s in zip(channels, kernels, strides, strict=True):
            pad = (k - s + 1) // 2
            self.convs.append(nn.Conv2d(last, c, k, s, pad))
            last, y, x = c, (y + 2 * pad - k) // s + 1, (x + 2 * pad - k) // s + 1
        if min(y, x) < 1:
            raise ValueError(f"images of {size} are too small for strides {list(strides)}; use smaller strides")
        cast(Any, self).to(memory_format=torch.channels_last)  # images are stored so, and CPU convolutions are faster
        self.project = nn.Linear(last * y * x if pool == "flatten" else 2 * last, out)
        self.norm = nn.LayerNorm(out)
        self.register_buffer("rows", torch.linspace(-1, 1, y), persistent=False)
        self.register_buffer("columns", torch.linspace(-1, 1, x), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 images [B, Y, X, 3]."""
        first, *others = cast(Sequence[Any], self.convs)
        h = pixel_conv(images, first.weight / 127.5, first.bias, first.stride, first.padding)  # pixels from -1 to 1
        h = F.relu(h, inplace=True)
        for conv in others:
            h = F.relu(F.conv2d(h, conv.weight, conv.bias, conv.stride, conv.padding), inplace=True)
        h = h.flatten(1) if self.pool == "flatten" else self._keypoints(h)
        return F.silu(self.norm(self.project(h)))

    def _keypoints(self, h: Tensor) -> Tensor:
        """Expected position of each channel, [B, 2 C]."""
        weights = F.softmax(h.flatten(2), -1).view_as(h)
        y = (weights.sum(3) * self.rows).sum(-1)
        x = (weights.sum(2) * self.columns).sum(-1)
        return torch.cat([y, x], -1)


def pixel_conv(
    images: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Convolution of uint8 [B, Y, X, 3] less 127.5. On a CPU pixels become floats a few pictures at a time, in both
    directions: as much memory as the cache has, instead of four times the batch, which takes longer than the sums."""
    plain = images.is_cuda or torch.compiler.is_compiling() or torch.is_autocast_enabled(images.device.type)
    if not plain:
        conv = _PixelConv.apply if torch.is_grad_enabled() else _slab_conv
        return conv(images, weight, bias, stride, padding)
    h = images.permute(0, 3, 1, 2).to(weight.dtype, copy=True).sub_(127.5)
    return F.conv2d(h, weight, bias, stride, padding)


class _PixelConv(torch.autograd.Function):
    """`pixel_conv` on a CPU; keeps the bytes for the way back."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.window = stride, padding
        return _slab_conv(images, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding = ctx.window
        total = torch.zeros_like(weight)
        for rows, h in _slabs(images, weight.dtype):
            back = torch.ops.aten.convolution_backward
            wanted = [False, True, False]  # of input, weight and bias
            total += back(grad[rows], h, weight, None, stride, padding, [1, 1], False, [0, 0], 1, wanted)[1]
        return None, total, grad.sum((0, 2, 3)), None, None


def _slab_conv(
    images: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    parts = [F.conv2d(h, weight, bias, stride, padding) for _, h in _slabs(images, weight.dtype)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


SLAB = 2**19  # numbers per thread that are floats at a time


def _slabs(images: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their pixels less 127.5 as [n, 3, Y, X], always in the same memory."""
    most = max(1, SLAB // images[0].numel()) * torch.get_num_threads() if len(images) else 1
    memory = torch.empty(min(most, len(images)), *images.shape[1:], dtype=dtype)
    for i in range(0, max(1, len(images)), most):
        rows = slice(i, min(i + most, len(images)))
        h = memory[: rows.stop - i].copy_(images[rows]).sub_(127.5)
        yield rows, h.permute(0, 3, 1, 2)


def random_shift(images: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """Shift each image uint8 [B, Y, X, 3] by up to `pad` pixels, edges repeated (DrQ, Kostrikov et al. 2020)."""
    b, y, x = images.shape[:3]
    shift = torch.randint(-pad, pad + 1, (b, 2), generator=rng).to(images.device)
    rows = (torch.arange(y, device=images.device) + shift[:, :1]).clamp(0, y - 1)
    columns = (torch.arange(x, device=images.device) + shift[:, 1:]).clamp(0, x - 1)
    batch = torch.arange(b, device=images.device)[:, None, None]
    return images[batch, rows[:, :, None], columns[:, None, :]]


def mlp(sizes: Sequence[int], *, norm: bool = False) -> nn.Sequential:
    """Linear layers with SiLU between them; `norm` puts a LayerNorm before each SiLU."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(b), nn.SiLU()] if norm else [nn.SiLU()]
    return nn.Sequential(*layers)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t, then two layers: [...] -> [..., D]."""

    frequencies: Tensor

    def __init__(self, width: int, *, waves: int = 256) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(waves // 2) / (waves // 2))
        self.register_buffer("frequencies", 1000.0 * frequencies, persistent=False)
        self.layers = mlp([waves, width, width])

    def forward(self, time: Tensor) -> Tensor:
        """Embed times of any shape."""
        angles = time[..., None] * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], -1))


class AdaLnBlock(nn.Module):
    """x + MLP(LayerNorm(x) scaled and shifted by the condition)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = mlp([width, width, width])

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Both [..., D]; c is past its activation."""
        scale, shift = self.modulation(c).chunk(2, -1)
        return x + self.layers(self.norm(x) * (1 + scale) + shift)


class VelocityMlp(nn.Module):
    """Residual MLP over the flattened chunk, modulated by condition and time; output starts at zero."""

    def __init__(
        self, *, horizon: int, action_dim: int, outputs: int, cond_dim: int, width: int = 256, layers: int = 3
    ) -> None:
        super().__init__()
        self.shape = (horizon, outputs)
        self.input = nn.Linear(horizon * action_dim, width)
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(cond_dim, width) if cond_dim != width else nn.Identity()
        self.blocks = nn.ModuleList(AdaLnBlock(width) for _ in range(layers))
        self.output = zero_linear(width, horizon * outputs)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """x [B, M, H, A], time [B or 1, M], cond [B, D] -> [B, M, H, outputs]."""
        c = F.silu(self.time(time) + self.cond(cond)[:, None])
        h = self.input(x.flatten(2))
        for block in self.blocks:
            h = block(h, c)
        return self.output(h).unflatten(-1, self.shape)


class TransformerBlock(nn.Module):
    """Attention between the actions of a chunk, then an AdaLN block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.block = AdaLnBlock(width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, H, D], c [B, 1, D]."""
        scale, shift = self.modulation(c).chunk(2, -1)
        q, k, v = self.qkv(self.norm(x) * (1 + scale) + shift).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.block(x + self.merge(mixed), c)


class VelocityTransformer(nn.Module):
    """One token per action of the chunk; condition and time enter every block through AdaLN."""

    def __init__(
        self,
        *,
        horizon: int,
        action_dim: int,
        outputs: int,
        cond_dim: int,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"transformer width {width} is not a multiple of its {heads} heads")
        self.input = nn.Linear(action_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(cond_dim, width) if cond_dim != width else nn.Identity()
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.output = zero_linear(width, outputs)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """x [B, M, H, A], time [B or 1, M], cond [B, D] -> [B, M, H, outputs]."""
        c = F.silu(self.time(time) + self.cond(cond)[:, None]).flatten(0, 1)[:, None]
        h = self.input(x.flatten(0, 1)) + self.position
        for block in self.blocks:
            h = block(h, c)
        return self.output(h).unflatten(0, x.shape[:2])


class StateNoise(nn.Module):
    """Raw size of the noise of every element, from time and condition (ReinFlow); both detached, starts at zero."""

    def __init__(self, *, horizon: int, action_dim: int, cond_dim: int, width: int = 64) -> None:
        super().__init__()
        self.shape = (horizon, action_dim)
        self.time = TimeEmbedding(width, waves=32)
        self.cond = nn.Linear(cond_dim, width)
        self.output = zero_linear(width, horizon * action_dim)

    def forward(self, time: Tensor, cond: Tensor) -> Tensor:
        """time [B or 1, M], cond [B, D] -> [B, M, H, A]."""
        h = torch.tanh(self.time(time.detach()) + self.cond(cond.detach())[:, None])
        return self.output(h).unflatten(-1, self.shape)


class FreeNoise(nn.Module):
    """Raw size of the noise of every element, a parameter that starts at zero."""

    def __init__(self, *, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(horizon, action_dim))

    def forward(self, time: Tensor, cond: Tensor) -> Tensor:
        """[1, 1, H, A], which broadcasts."""
        return self.raw[None, None]


class Critic(nn.Module):
    """[B, D] -> [B]."""

    def __init__(self, inputs: int, *, width: int = 256) -> None:
        super().__init__()
        self.layers = mlp([inputs, width, width, 1], norm=True)

    def forward(self, x: Tensor) -> Tensor:
        """Value of each row."""
        return self.layers(x).squeeze(-1)


class GruMemory(nn.Module):
    """A GRU over decisions. The same cell runs step by step and over a sequence, so both agree."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.cell = nn.GRUCell(inputs, width)
        self.merge = nn.Linear(width, inputs)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """One decision: x [N, D], h [N, W] -> condition [N, D] and the next h."""
        h = self.cell(x, h)
        return x + self.merge(h), h

    def sequence(self, x: Tensor, starts: Tensor, h: Tensor) -> Tensor:
        """T decisions: x [N, T, D], starts bool [N, T] forgets -> condition [N, T, D]."""
        conds = []
        for t in range(x.shape[1]):
            h = torch.where(starts[:, t, None], 0.0, h)
            cond, h = self(x[:, t], h)
            conds.append(cond)
        return torch.stack(conds, 1)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def recomputable(module: nn.Module) -> list[nn.Module]:
    """The blocks, none inside another, that hold much more than they return while gradients are computed.

    Frozen ones are left out: they hold nothing."""
    kinds = (SmallCnn, AdaLnBlock, TransformerBlock)
    if isinstance(module, kinds):
        return [module] if any(p.requires_grad for p in module.parameters()) else []
    return [block for child in module.children() for block in recomputable(child)]
