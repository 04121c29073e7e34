"""Normalisers of actions and proprioception. Their numbers are buffers, so they travel with the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MODES = ("quantile", "minmax", "identity")


class ActionNormalizer(nn.Module):
    """Env units <-> [-1, 1] per entry: 1-99 % quantile, smallest and largest, or unchanged.

    Entries that never move in the demonstrations pass through unchanged. Entries in `binary` become -1 or +1, and
    come back as the smallest or largest legal action. Until `fit`, the legal bounds are the range.
    """

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    is_binary: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float], *, mode: str, binary: Sequence[int] = ()) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"normalize '{mode}' is unknown; expected one of {', '.join(MODES)}")
        bad = [i for i in binary if not 0 <= i < len(low)]
        if bad:
            raise ValueError(f"binary entries {bad} do not exist; expected indices below {len(low)}, the action dim")
        self.mode, self.any_binary = mode, bool(binary)
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32), persistent=False)
        is_binary = torch.zeros(len(low), dtype=torch.bool)
        is_binary[list(binary)] = True
        self.register_buffer("is_binary", is_binary, persistent=False)
        self.register_buffer("offset", torch.zeros(len(low)))
        self.register_buffer("scale", torch.ones(len(low)))
        if mode != "identity" and bool(torch.isfinite(self.high - self.low).all()):
            self._set_range(self.low, self.high)

    def _set_range(self, bottom: Tensor, top: Tensor) -> None:
        moves = (top - bottom) > 1e-6
        self.offset.copy_(torch.where(moves, (top + bottom) / 2, 0.0))
        self.scale.copy_(torch.where(moves, (top - bottom) / 2, 1.0))

    def fit(self, actions: Tensor) -> None:
        """Set the range from actions [M, A]."""
        if actions.dim() != 2 or actions.shape[1] != len(self.low):
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected [M, {len(self.low)}]")
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("demonstrated actions are not finite; drop the broken episodes")
        actions = actions.to(self.low)
        if self.mode == "minmax":
            self._set_range(actions.amin(0), actions.amax(0))
        elif self.mode == "quantile":
            ordered = actions.sort(0).values  # torch.quantile refuses more than 16 million elements
            last = len(ordered) - 1
            self._set_range(ordered[round(0.01 * last)], ordered[round(0.99 * last)])

    def encode(self, actions: Tensor) -> Tensor:
        """Env units -> normalised."""
        x = (actions - self.offset) / self.scale
        sign = torch.where(actions > (self.low + self.high) / 2, 1.0, -1.0)
        return torch.where(self.is_binary, sign, x)

    def decode(self, x: Tensor) -> Tensor:
        """Normalised -> env units, inside the legal bounds."""
        actions = x * self.scale + self.offset
        if self.any_binary:
            actions = torch.where(self.is_binary, torch.where(x > 0, self.high, self.low), actions)
        return torch.minimum(torch.maximum(actions, self.low), self.high)


class ProprioNormalizer(nn.Module):
    """Z-score per entry, with a floor on the standard deviation and a bound of 10 on the result.

    q and -q are the same rotation, so quaternions (found by their names, or given as groups of four indices, x y z w)
    get one sign: that of the demonstrations' mean rotation, w >= 0 before there are any. Always taking w >= 0 would be
    a trap: a hand that points down has w = 0, and noise would choose the sign of the rest.
    """

    mean: Tensor
    std: Tensor
    reference: Tensor

    def __init__(
        self, names: Sequence[str], *, floor: float = 0.01, quaternions: Sequence[Sequence[int]] | None = None
    ):
        super().__init__()
        self.floor = floor
        self.quaternions = find_quaternions(names) if quaternions is None else [tuple(q) for q in quaternions]
        self.register_buffer("mean", torch.zeros(len(names)))
        self.register_buffer("std", torch.ones(len(names)))
        self.register_buffer("reference", torch.eye(4)[3].repeat(len(self.quaternions), 1))

    def canonical(self, proprio: Tensor) -> Tensor:
        """Quaternions on the reference's side."""
        if not self.quaternions:
            return proprio
        proprio = proprio.clone()
        for q, reference in zip(self.quaternions, self.reference.to(proprio), strict=True):
            part = proprio[..., list(q)]
            flip = (part * reference).sum(-1, keepdim=True) < 0
            proprio[..., list(q)] = torch.where(flip, -part, part)
        return proprio

    def fit(self, proprio: Tensor) -> None:
        """Set mean and standard deviation from [M, P]."""
        if proprio.dim() != 2 or proprio.shape[1] != len(self.mean):
            raise ValueError(f"proprioception has shape {tuple(proprio.shape)}, expected [M, {len(self.mean)}]")
        if not bool(torch.isfinite(proprio).all()):
            raise ValueError("demonstrated proprioception is not finite; drop the broken episodes")
        proprio = proprio.double()
        for i, q in enumerate(self.quaternions):
            part = proprio[:, list(q)]
            mean = torch.linalg.eigh(part.T @ part).eigenvectors[:, -1]  # blind to signs
            self.reference[i] = mean * (1 if mean[3] >= 0 else -1)
        proprio = self.canonical(proprio)
        self.mean.copy_(proprio.mean(0))
        self.std.copy_(proprio.std(0, correction=0).clamp(min=self.floor))

    def forward(self, proprio: Tensor) -> Tensor:
        """[..., P] -> z-scores."""
        return ((self.canonical(proprio) - self.mean) / self.std).clamp(-10.0, 10.0)


def find_quaternions(names: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of four entries named `<x>qx`, `qy`, `qz`, `qw`, or `<x>quat_x` and so on."""
    index = {name: i for i, name in enumerate(names)}
    groups = []
    for name in names:
        if name.endswith(("qw", "quat_w")):
            members = [name[:-1] + c for c in "xyzw"]
            if all(m in index for m in members):
                groups.append(tuple(index[m] for m in members))
    return groups
