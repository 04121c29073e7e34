"""Furniture and appliances as boxes and prisms, within a bounding box of any size."""

from __future__ import annotations

from typing import List

from envs.thor_mini.parts import ACCENT, DARK, MAIN, SECOND, STEEL, WHITE, Part, Size, box, prism


def legs(size: Size, top: float, colour: int = SECOND, width: float = 0.06) -> List[Part]:
    """Four, at the corners."""
    a, b = min(0.2, width / size[0]), min(0.2, width / size[2])
    return [box(x, x + a, 0, top, z, z + b, colour) for x in (0.01, 0.99 - a) for z in (0.01, 0.99 - b)]


def table(size: Size) -> List[Part]:
    """A top on four legs."""
    top = max(0.5, 1 - 0.05 / size[1])
    return [box(0, 1, top, 1, 0, 1, MAIN, "wood"), *legs(size, top)]


def coffee_table(size: Size) -> List[Part]:
    """A top on four legs with a board below."""
    top = max(0.5, 1 - 0.05 / size[1])
    return [box(0, 1, top, 1, 0, 1, MAIN, "wood"), box(0.06, 0.94, 0.25, 0.32, 0.06, 0.94, SECOND), *legs(size, top)]


def desk(size: Size) -> List[Part]:
    """A top on drawers, perhaps with shelves above."""
    high = desk_height(size) / size[1]
    top = high - min(0.2 * high, 0.05 / size[1])
    parts = [box(0, 1, top, high, 0, 1, MAIN, "wood"), box(0.01, 0.28, 0.05 * high, top, 0.05, 0.95, SECOND, "wood")]
    parts += [box(0.05, 0.24, top * f, top * f + 0.02, 0.95, 0.97, STEEL) for f in (0.3, 0.55, 0.8)]
    parts += [box(0.93, 0.99, 0, top, 0.05, 0.95, SECOND, "wood")]
    if high < 0.9:  # shelves above
        parts += [
            box(0.01, 0.99, high, 0.99, 0.01, 0.08, SECOND, "wood"),
            box(0, 0.03, high, 1, 0, 0.5, MAIN),
            box(0.97, 1, high, 1, 0, 0.5, MAIN),
            box(0, 1, 0.97, 1, 0, 0.5, MAIN),
        ]
    return parts


def desk_height(size: Size) -> float:
    """Of its top, in metres: some have shelves above."""
    return size[1] if size[1] < 1.1 else 0.76


def seat_height(size: Size) -> float:
    """Of what one sits on, in metres."""
    return min(0.45, 0.55 * size[1])


def chair(size: Size) -> List[Part]:
    """Seat, back and legs."""
    seat = seat_height(size) / size[1]
    return [
        box(0, 1, seat - 0.06, seat, 0, 1, ACCENT, "fabric"),
        box(0.05, 0.95, seat, 1, 0, 0.12, MAIN, "wood"),
        *legs(size, seat - 0.06, MAIN, 0.05),
    ]


def stool(size: Size) -> List[Part]:
    """A round seat on four legs."""
    return [prism(0.88, 1, 1, MAIN, "fabric"), *legs(size, 0.88, SECOND, 0.045)]


def sofa(size: Size) -> List[Part]:
    """As many cushions as fit; an armchair has one."""
    seat, arm = seat_height(size) / size[1], min(0.2, 0.16 / size[0])
    cushions = max(1, round(size[0] / 0.75))
    wide = (1 - 2 * arm) / cushions
    parts = [
        box(0.01, 0.99, 0.06, 0.6 * seat, 0.01, 0.99, SECOND, "fabric"),
        box(arm, 1 - arm, 0.6 * seat, 1, 0, 0.25, MAIN, "fabric"),
    ]
    parts += [box(x, x + arm, 0.08, min(1.0, seat + 0.25), 0, 1, MAIN, "fabric") for x in (0, 1 - arm)]
    gap = 0.006
    parts += [
        box(arm + i * wide + gap, arm + (i + 1) * wide - gap, 0.6 * seat, seat, 0.25, 0.98, MAIN, "fabric")
        for i in range(cushions)
    ]
    return parts


def bed_height(size: Size) -> float:
    """Of its blanket, in metres."""
    return min(size[1] * 0.9, 0.55)


def bed(size: Size) -> List[Part]:
    """Board, mattress and blanket; the pillow end is at the back."""
    top = bed_height(size) / size[1]
    board = min(0.08, 0.08 / size[2])
    return [
        box(0, 1, 0.1 * top, 0.5 * top, board, 1, SECOND, "wood"),
        box(0, 1, 0, max(top, 0.98), 0, board, SECOND, "wood"),
        box(0.02, 0.98, 0.5 * top, 0.97 * top, board, 0.98, WHITE, "fabric"),
        box(0.0, 1.0, 0.55 * top, top, 0.4, 0.99, MAIN, "fabric"),
    ]


def drawers(size: Size) -> List[Part]:
    """A chest of them."""
    rows, columns = max(1, round(size[1] / 0.27)), max(1, round(size[0] / 0.65))
    parts = [box(0, 1, 0.06, 1, 0, 0.97, MAIN, "wood"), box(0.03, 0.97, 0, 0.06, 0.05, 0.9, DARK)]
    for row in range(rows):
        y0, y1 = 0.1 + 0.87 * row / rows, 0.1 + 0.87 * (row + 1) / rows - 0.03
        for column in range(columns):
            x0, x1 = 0.03 + 0.94 * column / columns, 0.03 + 0.94 * (column + 1) / columns - 0.02
            parts += [box(x0, x1, y0, y1, 0.97, 0.985, SECOND, "wood")]
            parts += [
                box(
                    (x0 + x1) / 2 - 0.04,
                    (x0 + x1) / 2 + 0.04,
                    (y0 + y1) / 2 - 0.01,
                    (y0 + y1) / 2 + 0.02,
                    0.985,
                    1,
                    STEEL,
                )
            ]
    return parts


def side_table(size: Size) -> List[Part]:
    """One drawer on legs."""
    return [
        box(0, 1, 0.94, 1, 0, 1, MAIN, "wood"),
        box(0.04, 0.96, 0.62, 0.94, 0.04, 0.96, SECOND, "wood"),
        box(0.42, 0.58, 0.76, 0.8, 0.96, 0.99, STEEL),
        *legs(size, 0.62, MAIN, 0.04),
    ]


def shelves(size: Size) -> List[Part]:
    """Boards between two sides, open in front."""
    a = min(0.06, 0.03 / size[0])
    rows = shelf_rows(size)
    parts = [box(0, a, 0, 1, 0, 1, MAIN, "wood"), box(1 - a, 1, 0, 1, 0, 1, MAIN, "wood")]
    parts += [box(a, 1 - a, 0, 1, 0, 0.04, SECOND, "wood")]
    thick = 0.025 / size[1]
    parts += [
        box(a, 1 - a, (1 - thick) * i / rows, (1 - thick) * i / rows + thick, 0.04, 1, MAIN, "wood")
        for i in range(rows + 1)
    ]
    return parts


def shelf_rows(size: Size) -> int:
    """How many compartments a shelving unit has, one above the other."""
    return max(1, round(size[1] / 0.4))


def counter(size: Size) -> List[Part]:
    """A stone top over cupboards."""
    top = 1 - min(0.2, 0.045 / size[1])
    doors = max(1, round(size[0] / 0.55))
    parts = [
        box(0, 1, top, 1, 0, 1, MAIN, "marble"),
        box(0, 1, 0.1, top, 0, 0.95, SECOND, "wood"),
        box(0, 1, 0, 0.1, 0, 0.88, DARK),
    ]
    for i in range(doors):
        x0, x1 = i / doors + 0.01, (i + 1) / doors - 0.01
        parts += [
            box(x0, x1, 0.13, top - 0.03, 0.95, 0.965, SECOND, "wood"),
            box(x1 - 0.06, x1 - 0.03, 0.5, 0.65, 0.965, 0.98, STEEL),
        ]
    return parts


def fridge(size: Size) -> List[Part]:
    """Two doors with handles."""
    return [
        box(0, 1, 0.03, 1, 0, 0.92, MAIN, "metal"),
        box(0, 1, 0.36, 0.995, 0.92, 0.97, MAIN, "metal"),
        box(0, 1, 0.04, 0.345, 0.92, 0.97, MAIN, "metal"),
        box(0.06, 0.1, 0.45, 0.8, 0.97, 1, DARK),
        box(0.06, 0.1, 0.14, 0.3, 0.97, 1, DARK),
    ]


def washer(size: Size) -> List[Part]:
    """A washing machine or a dryer."""
    return [
        box(0, 1, 0, 1, 0, 0.96, MAIN, "metal"),
        Part("disc", 0.2, 0.8, 0.2, 0.74, 0.96, 0.99, DARK),
        Part("disc", 0.27, 0.73, 0.26, 0.68, 0.99, 1, STEEL),
        box(0.05, 0.95, 0.85, 0.97, 0.96, 0.98, SECOND),
    ]


def toilet(size: Size) -> List[Part]:
    """Tank, bowl and lid."""
    return [
        box(0.08, 0.92, 0.45, 0.98, 0.01, 0.26, MAIN),
        box(0.05, 0.95, 0.95, 1, 0, 0.28, SECOND),
        Part("prism", 0.12, 0.88, 0, 0.4, 0.24, 0.98, MAIN, "plain", 1.1),
        box(0.1, 0.9, 0.4, 0.45, 0.26, 0.96, SECOND),
    ]


def sink(size: Size) -> List[Part]:
    """A basin on a column."""
    return [
        box(0, 1, 0.8, 0.985, 0, 1, MAIN),
        box(0.15, 0.85, 0.9, 1, 0.2, 0.85, STEEL),
        Part("prism", 0.35, 0.65, 0, 0.8, 0.3, 0.7, SECOND),
    ]


def floor_lamp(size: Size) -> List[Part]:
    """A shade on a pole."""
    return [prism(0, 0.03, 0.6, DARK), prism(0.03, 0.8, 0.08, DARK), prism(0.78, 1, 0.95, MAIN, "fabric", 0.65)]


def door(size: Size) -> List[Part]:
    """A leaf with two panels."""
    return [
        box(0, 1, 0, 1, 0.12, 0.88, MAIN, "wood"),
        box(0.12, 0.88, 0.55, 0.92, 0, 1.0, SECOND, "wood"),
        box(0.12, 0.88, 0.08, 0.45, 0, 1.0, SECOND, "wood"),
        box(0.9, 0.96, 0.46, 0.5, 0, 1, STEEL),
    ]
