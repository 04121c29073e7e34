"""Actions of a demonstration, and their mean and standard deviation, as GENIMA's controller has them.

A demonstration is dropped as a whole if one of its joint targets is outside the limits. Grippers, and other binary
entries, are not normalised. The official files `action_stats.json` and `proprio_stats.json` hold {mean, std}.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

PANDA_LOW = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973, 0.0)
PANDA_HIGH = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973, 1.0)
OFFICIAL_GRIPPER = (0.5, 1 / 6)  # mean and deviation that the official files hold for it, and nobody uses
TINY = 1e-10  # what the original adds to the deviations of the state, but not to those of the actions
STILL = 1e-6  # a joint that moves less is not normalised


def extract_actions(
    measured: np.ndarray, commanded: np.ndarray, has_commanded: np.ndarray, gripper_open: np.ndarray
) -> np.ndarray:
    """float32 [T - 1, J + 1]: action t is where frame t + 1 was commanded to be, if it says so, else where it was.

    Joints [T, J] in radians, `has_commanded` bool [T], the gripper [T]: 1 is open, everything else closed."""
    joints = np.where(has_commanded[:, None], commanded, measured)[1:]
    opened = (gripper_open[1:] == 1.0).astype(np.float32)
    return np.concatenate([joints.astype(np.float32), opened[:, None]], 1)


def within(actions: np.ndarray, low: Sequence[float] = PANDA_LOW, high: Sequence[float] = PANDA_HIGH) -> bool:
    """Whether a demonstration's actions [T, A] are all inside the limits."""
    bottom, top = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
    if actions.shape[1:] != bottom.shape:
        raise ValueError(f"actions have shape {actions.shape}, and the limits {bottom.shape}; expected [T, A] and [A]")
    return bool(((actions >= bottom) & (actions <= top)).all())


@dataclass(frozen=True)
class Stats:
    """Mean and standard deviation per entry."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of_actions(actions: np.ndarray) -> "Stats":
        """Of joint actions [M, J + 1], the gripper last, as the original writes them."""
        joints = actions[:, :-1]
        mean, std = OFFICIAL_GRIPPER
        return Stats((*joints.mean(0).tolist(), mean), (*joints.std(0).tolist(), std))

    def of_state(self) -> "Stats":
        """What the original takes for the state, which has the gripper first."""
        return Stats((self.mean[-1], *self.mean[:-1]), (self.std[-1], *self.std[:-1]))

    def write(self, path: Path | str) -> None:
        """As the original's JSON file."""
        Path(path).write_text(json.dumps({"mean": list(self.mean), "std": list(self.std)}))

    @staticmethod
    def read(path: Path | str) -> "Stats":
        """From the original's JSON file. Raises ValueError if it is none."""
        try:
            said = json.loads(Path(path).read_text())
            mean, std = (tuple(float(v) for v in said[k]) for k in ("mean", "std"))
        except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
            raise ValueError(
                f"{path} cannot be read ({type(e).__name__}: {e}); expected {{'mean': [...], 'std': [...]}}"
            ) from e
        if len(mean) != len(std) or not np.isfinite([*mean, *std]).all():
            raise ValueError(f"{path}: mean and std must be finite and of one length, got {said}")
        return Stats(mean, std)


class ActionScale(nn.Module):
    """Env units <-> z-scores; binary entries are -1 or +1, the smallest and the largest legal action.

    Until `fit`, the legal range has mean 0 and reaches from -1 to 1."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    is_binary: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float], *, binary: Sequence[int]) -> None:
        super().__init__()
        bad = [i for i in binary if not 0 <= i < len(low)]
        if bad:
            raise ValueError(f"binary entries {bad} do not exist; expected indices below {len(low)}, the action dim")
        for name, values in (("low", low), ("high", high)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        is_binary = torch.zeros(len(low), dtype=torch.bool)
        is_binary[list(binary)] = True
        self.register_buffer("is_binary", is_binary, persistent=False)
        bounded = bool(torch.isfinite(self.high - self.low).all())
        self.register_buffer("mean", (self.high + self.low) / 2 if bounded else torch.zeros(len(low)))
        self.register_buffer("std", (self.high - self.low) / 2 if bounded else torch.ones(len(low)))

    def fit(self, actions: Tensor) -> None:
        """From actions [M, A]; entries that never move get a deviation of 1."""
        if actions.dim() != 2 or actions.shape[1] != len(self.low):
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected [M, {len(self.low)}]")
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("demonstrated actions are not finite; drop the broken episodes")
        actions = actions.double()
        std = actions.std(0, correction=0)
        self.mean.copy_(actions.mean(0))
        self.std.copy_(torch.where(std > STILL, std, 1.0))

    def encode(self, actions: Tensor) -> Tensor:
        """Env units -> z-scores."""
        sign = torch.where(actions > (self.low + self.high) / 2, 1.0, -1.0)
        return torch.where(self.is_binary, sign, (actions - self.mean) / self.std)

    def decode(self, x: Tensor) -> Tensor:
        """z-scores -> env units, inside the legal bounds."""
        actions = torch.where(self.is_binary, torch.where(x > 0, self.high, self.low), x * self.std + self.mean)
        return torch.minimum(torch.maximum(actions, self.low), self.high)


class StateScale(nn.Module):
    """The controller's state to z-scores; entries in `plain` stay as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, *, plain: Sequence[int]) -> None:
        super().__init__()
        self.plain = tuple(plain)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, state: Tensor) -> None:
        """From states [M, P] of its own; entries that never move get a deviation of 1."""
        if state.dim() != 2 or state.shape[1] != len(self.mean):
            raise ValueError(f"proprioception has shape {tuple(state.shape)}, expected [M, {len(self.mean)}]")
        if not bool(torch.isfinite(state).all()):
            raise ValueError("demonstrated proprioception is not finite; drop the broken episodes")
        std = state.double().std(0, correction=0)
        self.set(state.double().mean(0), torch.where(std > 1e-4, std, 1.0))

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Take these numbers [P]; the plain entries keep 0 and 1."""
        self.mean.copy_(mean)
        self.std.copy_(std)
        for i in self.plain:
            self.mean[i], self.std[i] = 0.0, 1.0

    def forward(self, state: Tensor) -> Tensor:
        """[..., P]."""
        scaled = (state - self.mean) / (self.std + TINY)
        return scaled if not self.plain else torch.where(self._is_plain(state), state, scaled)

    def _is_plain(self, state: Tensor) -> Tensor:
        mask = torch.zeros(len(self.mean), dtype=torch.bool, device=state.device)
        mask[list(self.plain)] = True
        return mask
