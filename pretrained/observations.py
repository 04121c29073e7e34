"""Observations as a policy wants them: on its device, of the shapes that its spec names, finite."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pretrained.types import ObsBatch, PolicySpec


def checked(
    obs: ObsBatch, spec: PolicySpec, device: torch.device, *, history: int | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Images uint8 [N, L, Y, X, 3] by camera and proprioception float32 [N, L, P]; any L if `history` is None.

    Raises ValueError naming what is missing, of the wrong shape or dtype, or not finite.
    """
    proprio = on(obs.proprio, device).float()
    steps = history or (proprio.shape[1] if proprio.dim() > 1 else 1)
    expected = (len(obs), steps, len(spec.proprio))
    if tuple(proprio.shape) != expected:
        raise ValueError(f"proprioception has shape {tuple(proprio.shape)}, expected {expected}, [N, L, P]")
    if not bool(torch.isfinite(proprio).all()):
        row, _, entry = (int(i) for i in (~torch.isfinite(proprio)).nonzero()[0])
        name = spec.proprio[entry]
        raise ValueError(f"proprioception '{name}' of row {row} is not finite; check the simulator's state")
    return {
        c: _image(obs, c, spec.cameras, (len(obs), steps, *size, 3), device) for c, size in spec.cameras.items()
    }, proprio


def on(value: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """On `device`, and never a view of the caller's array, which the simulator may overwrite."""
    return torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value.to(device)


def _image(
    obs: ObsBatch, camera: str, cameras: Iterable[str], expected: tuple[int, ...], device: torch.device
) -> Tensor:
    if camera not in obs.images:
        raise ValueError(f"camera '{camera}' is missing; got {list(obs.images)}, expected {list(cameras)}")
    image = on(obs.images[camera], device)
    if image.dtype != torch.uint8 or tuple(image.shape) != expected:
        raise ValueError(
            f"camera '{camera}': expected uint8 {expected}, [N, L, Y, X, 3], got {image.dtype} "
            f"{tuple(image.shape)}; set the camera size of the environment to that of the policy"
        )
    return image
