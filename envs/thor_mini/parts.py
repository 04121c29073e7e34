"""Pieces that objects are put together from."""

from __future__ import annotations

from typing import NamedTuple, Tuple

Size = Tuple[float, float, float]
MAIN, SECOND, ACCENT, WHITE, DARK, STEEL, LEAF, SOIL, SCREEN = range(9)  # of a part's colour
PALETTE = ((240, 240, 236), (40, 40, 44), (176, 180, 186), (70, 132, 60), (92, 66, 46), (34, 44, 62))  # WHITE and on


class Part(NamedTuple):
    """A piece of an object; `kind`: box, prism (eight sides, upright), ball, or disc (a prism lying along z)."""

    kind: str
    x0: float
    x1: float
    y0: float
    y1: float
    z0: float
    z1: float
    colour: int = MAIN
    pattern: str = "plain"
    top: float = 1.0  # of a prism: width at its top over the width at its bottom


def box(x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, colour: int = MAIN, pattern: str = "plain"):
    """A box part."""
    return Part("box", x0, x1, y0, y1, z0, z1, colour, pattern)


def prism(y0: float, y1: float, r: float, colour: int = MAIN, pattern: str = "plain", top: float = 1.0) -> Part:
    """An upright prism around the middle, `r` of the half width."""
    return Part("prism", 0.5 - r / 2, 0.5 + r / 2, y0, y1, 0.5 - r / 2, 0.5 + r / 2, colour, pattern, top)
