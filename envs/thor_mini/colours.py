"""The colours that stand for objects and types in segmentation pictures. Needs numpy alone; Python 3.8 syntax."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import numpy as np

from envs.thor_mini.scene import Body

FACTOR = 0x9E3779  # has no divisor in common with 2**24 - 1, so that all colours differ


def colour_of(number: int) -> List[int]:
    """A colour of its own for every number below 2**24 - 1; never black, which stands for everything else."""
    mixed = (number + 1) * FACTOR % 0xFFFFFF or 0xFFFFFF
    return [mixed >> 16, mixed >> 8 & 0xFF, mixed & 0xFF]


def named_colours(bodies: Sequence[Body]) -> List[Dict[str, Any]]:
    """As in metadata: the colours of all objects, then those of all types, whose names have no "|"."""
    names = [b.object_id for b in bodies] + sorted({b.object_type for b in bodies})
    return [{"name": name, "color": colour_of(i)} for i, name in enumerate(names)]


def table(bodies: Sequence[Body], *, types: bool) -> np.ndarray:
    """What to paint for an object number, or for its type: RGBA as uint32 [B + 1]; black at -1, the last."""
    kinds = sorted({b.object_type for b in bodies})
    numbers = [len(bodies) + kinds.index(b.object_type) if types else i for i, b in enumerate(bodies)]
    colours = [*([*colour_of(i), 255] for i in numbers), [0, 0, 0, 255]]
    return np.array(colours, dtype=np.uint8).view(np.uint32).ravel()
