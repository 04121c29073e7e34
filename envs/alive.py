"""Whether a picture that stays the same is a stuck renderer, or shows a robot that stands still."""

import math
from collections.abc import Iterable

import numpy as np

# By unit of proprioception: what is seen at any resolution, whatever hides the fingers. Commands, quaternions and
# velocities are left out: they change while nothing moves.
VISIBLE = {"m": 0.1, "rad": 0.5}


def moved(change: np.ndarray, units: Iterable[str]) -> bool:
    """Whether proprioception [P] that has changed by so much tells of motion that every camera must show.

    Angles go round: one that jumps from pi to -pi has not moved."""
    return any(
        (min(by % math.tau, -by % math.tau) if unit == "rad" else by) > VISIBLE[unit]
        for by, unit in zip(np.abs(change).tolist(), units, strict=True)
        if unit in VISIBLE
    )
