"""How a material or an object looks, from its name alone: a colour, a pattern, and the patterns' pixels.

The models and textures of AI2-THOR are not here. Names such as `DarkWoodPlanks` or `bathroomTilesBlue` say enough for a
colour and a pattern; what they do not say is drawn from a hash of the name, so that a name always looks the same.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import numpy as np

from envs.thor_mini.scene import Colour

PATTERNS = ("plain", "wood", "planks", "tiles", "brick", "fabric", "marble", "plaster", "metal", "leaves", "print")
METRES = (1.0, 1.0, 1.6, 1.2, 1.0, 0.5, 1.5, 2.0, 0.8, 0.3, 0.4)  # that one repetition of each pattern covers
TEXELS = 128  # of a pattern's side
LEVELS = 8  # 128, 64, ... 1
MIDDLE = 160  # of a pattern's values: the colour as it is

# First match wins. Words of material names, and the pattern they mean.
_PATTERN_WORDS = (
    ("brick", "brick"),
    ("plank", "planks"),
    ("woodfloor", "planks"),
    ("bedroomfloor", "planks"),
    ("greyfloor", "planks"),
    ("floors", "planks"),
    ("tile", "tiles"),
    ("kitchenfloor", "tiles"),
    ("checker", "tiles"),
    ("marble", "marble"),
    ("granite", "marble"),
    ("counter", "marble"),
    ("wood", "wood"),
    ("cabinet", "wood"),
    ("wicker", "wood"),
    ("carpet", "fabric"),
    ("rug", "fabric"),
    ("fabric", "fabric"),
    ("cloth", "fabric"),
    ("leather", "fabric"),
    ("drywall", "plaster"),
    ("wall", "plaster"),
    ("plaster", "plaster"),
    ("concrete", "plaster"),
    ("metal", "metal"),
    ("steel", "metal"),
    ("alumin", "metal"),
)
_COLOUR_WORDS: Tuple[Tuple[str, Colour], ...] = (
    ("eggshell", (236, 226, 204)),
    ("offwhite", (232, 226, 214)),
    ("off_white", (232, 226, 214)),
    ("white", (238, 237, 233)),
    ("while", (238, 237, 233)),
    ("cream", (234, 222, 192)),
    ("black", (48, 46, 46)),
    ("darkgreen", (62, 92, 66)),
    ("darktiles", (82, 80, 84)),
    ("darkgranite", (70, 68, 72)),
    ("dark", (92, 64, 46)),
    ("lightwood", (206, 168, 118)),
    ("mediumwood", (158, 112, 70)),
    ("grey", (156, 154, 150)),
    ("beige", (220, 204, 172)),
    ("tan", (204, 180, 140)),
    ("brown", (134, 96, 66)),
    ("pink", (222, 176, 172)),
    ("rose", (202, 150, 146)),
    ("red", (168, 74, 62)),
    ("orange", (212, 146, 84)),
    ("yellow", (228, 204, 126)),
    ("green", (142, 170, 126)),
    ("turquoise", (98, 176, 172)),
    ("robinegg", (148, 196, 198)),
    ("blue", (120, 152, 190)),
    ("concrete", (164, 162, 156)),
    ("subway", (224, 222, 214)),
    ("drywall", (224, 220, 210)),
)
_DEFAULTS: Dict[str, Tuple[Colour, ...]] = {  # where the name has no colour: one of these, by its hash
    "wood": ((176, 124, 76), (150, 100, 60), (198, 154, 104), (120, 82, 54)),
    "planks": ((182, 132, 84), (148, 104, 66), (204, 166, 118), (122, 88, 62)),
    "tiles": ((206, 202, 192), (178, 186, 190), (216, 206, 180), (170, 160, 150)),
    "brick": ((162, 92, 72), (176, 112, 88)),
    "fabric": ((128, 120, 140), (110, 130, 150), (160, 138, 116), (126, 146, 118)),
    "marble": ((214, 210, 206), (190, 186, 182), (206, 198, 184)),
    "plaster": ((222, 214, 200), (206, 212, 210), (226, 220, 196), (204, 200, 214)),
    "metal": ((170, 172, 176), (140, 142, 148)),
    "plain": ((200, 196, 190), (180, 184, 190), (206, 196, 180)),
}

# Types whose colour everybody knows: hue in degrees, saturation, value. All others share the circle of hues.
_KNOWN: Dict[str, Tuple[float, float, float]] = {
    "Apple": (356, 0.82, 0.78),
    "Tomato": (9, 0.86, 0.86),
    "Lettuce": (96, 0.62, 0.66),
    "Bread": (34, 0.58, 0.78),
    "Potato": (38, 0.46, 0.62),
    "Egg": (36, 0.18, 0.95),
    "BasketBall": (22, 0.85, 0.85),
    "HousePlant": (118, 0.6, 0.5),
    "Toilet": (210, 0.03, 0.96),
    "Sink": (200, 0.06, 0.92),
    "Fridge": (205, 0.06, 0.78),
    "Television": (220, 0.3, 0.14),
    "Laptop": (215, 0.12, 0.42),
    "Bed": (226, 0.42, 0.72),
    "Sofa": (188, 0.42, 0.52),
    "ArmChair": (350, 0.46, 0.56),
    "Chair": (26, 0.62, 0.54),
    "DiningTable": (28, 0.56, 0.46),
    "CoffeeTable": (20, 0.5, 0.38),
    "Desk": (36, 0.5, 0.62),
    "SideTable": (14, 0.48, 0.58),
    "Dresser": (22, 0.66, 0.42),
    "ShelvingUnit": (42, 0.34, 0.74),
    "TVStand": (16, 0.5, 0.3),
    "CounterTop": (40, 0.12, 0.86),
    "GarbageCan": (258, 0.42, 0.34),
    "Mug": (268, 0.62, 0.74),
    "Bowl": (174, 0.66, 0.7),
    "Vase": (290, 0.5, 0.62),
    "AlarmClock": (338, 0.82, 0.72),
    "Book": (214, 0.7, 0.56),
    "CellPhone": (230, 0.3, 0.2),
    "RemoteControl": (0, 0.0, 0.16),
    "Pillow": (46, 0.3, 0.94),
    "Cup": (200, 0.5, 0.85),
    "Plate": (190, 0.12, 0.95),
    "Pot": (205, 0.14, 0.54),
    "Pan": (20, 0.2, 0.24),
    "Painting": (160, 0.45, 0.6),
    "Microwave": (215, 0.08, 0.34),
    "Toaster": (6, 0.5, 0.66),
    "CoffeeMachine": (350, 0.3, 0.26),
    "FloorLamp": (48, 0.5, 0.96),
    "DeskLamp": (54, 0.62, 0.9),
    "WineBottle": (130, 0.7, 0.28),
    "TeddyBear": (28, 0.6, 0.58),
    "Box": (32, 0.46, 0.7),
    "Stool": (50, 0.5, 0.6),
    "Ottoman": (320, 0.3, 0.56),
    "SprayBottle": (150, 0.7, 0.72),
    "SoapBottle": (312, 0.55, 0.8),
    "Statue": (40, 0.2, 0.6),
    "ToiletPaper": (30, 0.03, 0.97),
    "Doorway": (30, 0.5, 0.56),
    "Television.screen": (215, 0.5, 0.2),
}


@dataclass(frozen=True)
class Look:
    """A colour and the pattern that modulates it."""

    colour: Colour
    pattern: int  # index into PATTERNS


def code(name: str) -> int:
    """A number that depends on nothing but the name."""
    return zlib.crc32(name.encode("utf-8"))


def look(name: str, tint: Optional[Colour] = None) -> Look:
    """Of a material's name; `tint` is the house file's own colour for it and wins."""
    word = name.lower().replace(" ", "")
    pattern = next((p for w, p in _PATTERN_WORDS if w in word), "plain")
    if tint is not None:
        return Look(tint, PATTERNS.index(pattern if pattern != "plain" else "plaster"))
    default = _DEFAULTS.get(pattern, _DEFAULTS["plain"])
    colour = next((c for w, c in _COLOUR_WORDS if w in word), default[code(name) % len(default)])
    return Look(_jitter(colour, code(name), 10), PATTERNS.index(pattern))


def sky_colour(time_of_day: Optional[str]) -> Colour:
    """Overhead, at one of ProcTHOR's times of day; midday for any other."""
    return {"GoldenHour": (226, 172, 116), "BlueHour": (74, 92, 150)}.get(str(time_of_day), (116, 172, 232))


def type_colours(object_type: str, asset_id: str, tint: Optional[Colour] = None) -> Tuple[Colour, Colour, Colour]:
    """Main colour, a second one and an accent. The main hue belongs to the type, its shade to the model."""
    key = code(object_type)
    hue, saturation, value = _KNOWN.get(
        object_type, (key * 137.508 % 360, 0.45 + 0.4 * (key >> 8 & 255) / 255, 0.5 + 0.4 * (key >> 16 & 255) / 255)
    )
    shade = code(asset_id)
    value = min(1.0, max(0.1, value * (0.86 + 0.28 * (shade & 255) / 255)))
    hue = (hue + 12 * ((shade >> 8 & 255) / 255 - 0.5)) % 360
    main = tint if tint is not None else _hsv(hue, saturation, value)
    second = _hsv(hue, saturation * 0.7, value * 0.62 if value > 0.45 else value * 1.8 + 0.12)
    accent = _hsv((hue + 150 + 60 * (shade >> 16 & 255) / 255) % 360, 0.5, 0.85)
    return main, second, accent


def textures(seed: int) -> np.ndarray:
    """uint8 [pattern, LEVELS packed]: every pattern with its halvings one after the other; MIDDLE keeps a colour."""
    rng = np.random.default_rng(seed)
    rows = []
    for name in PATTERNS:
        level = np.clip(MIDDLE * _pattern(name, rng), 0, 255)
        parts = []
        for _ in range(LEVELS):
            parts.append(level.reshape(-1))
            if len(level) > 1:
                level = level.reshape(len(level) // 2, 2, len(level) // 2, 2).mean(axis=(1, 3))
        rows.append(np.concatenate(parts))
    return np.round(np.stack(rows)).astype(np.uint8)


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise [TEXELS, TEXELS] around 0, that repeats: `rows` x `columns` random values, interpolated."""
    grid = rng.uniform(-1, 1, (rows, columns))
    for axis, count in ((0, rows), (1, columns)):
        at = np.arange(TEXELS) * count / TEXELS
        low = at.astype(int)
        share = at - low
        share = (share * share * (3 - 2 * share)).reshape((-1, 1) if axis == 0 else (1, -1))
        grid = np.take(grid, low, axis) * (1 - share) + np.take(grid, (low + 1) % count, axis) * share
    return grid


def _pattern(name: str, rng: np.random.Generator) -> np.ndarray:
    """Brightness [TEXELS, TEXELS] around 1, rows along v."""
    fine = rng.uniform(-1, 1, (TEXELS, TEXELS))
    rows, columns = np.mgrid[0:TEXELS, 0:TEXELS]
    if name == "wood":
        return 1 + 0.10 * _noise(rng, 32, 4) + 0.08 * _noise(rng, 64, 2) + 0.02 * fine
    if name == "planks":
        plank = rows // 16
        tone = rng.uniform(-0.14, 0.14, 8)[plank]
        seam = (rows % 16 == 0) | ((columns + rng.integers(0, TEXELS, 8)[plank]) % TEXELS == 0)
        return np.where(seam, 0.62, 1 + tone + 0.07 * _noise(rng, 64, 4) + 0.02 * fine)
    if name == "tiles":
        row, column = rows // 32, columns // 32
        tone = rng.uniform(-0.07, 0.07, (4, 4))[row, column]
        seam = (rows % 32 < 2) | (columns % 32 < 2)
        return np.where(seam, 0.72, 1 + tone + 0.03 * _noise(rng, 16, 16))
    if name == "brick":
        row = rows // 16
        column = (columns + 16 * (row % 2)) // 32 % 4
        seam = (rows % 16 < 2) | ((columns + 16 * (row % 2)) % 32 < 2)
        return np.where(seam, 1.3, 1 + rng.uniform(-0.18, 0.18, (8, 4))[row, column] + 0.06 * fine)
    if name == "fabric":
        return 1 + 0.04 * np.where((rows // 2 + columns // 2) % 2 == 0, 1, -1) + 0.05 * _noise(rng, 8, 8) + 0.05 * fine
    if name == "marble":
        veins = np.abs(_noise(rng, 6, 6) + 0.5 * _noise(rng, 16, 16))
        return 1.04 - 0.22 * np.exp(-8 * veins) + 0.02 * fine
    if name == "plaster":
        return 1 + 0.035 * _noise(rng, 8, 8) + 0.02 * fine
    if name == "metal":
        return 1 + 0.05 * _noise(rng, 64, 2) + 0.03 * _noise(rng, 4, 4)
    if name == "leaves":
        return 1 + 0.35 * _noise(rng, 16, 16) + 0.12 * fine
    if name == "print":  # pictures on walls, book covers
        return 1 + 0.30 * np.sign(_noise(rng, 6, 6)) * np.abs(_noise(rng, 4, 4)) ** 0.3
    return np.ones((TEXELS, TEXELS))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue / 360 % 1, min(1.0, saturation), min(1.0, value))
    return round(255 * r), round(255 * g), round(255 * b)


def _jitter(colour: Colour, key: int, amount: int) -> Colour:
    shift = [(key >> (8 * i) & 255) / 127.5 - 1 for i in range(3)]
    r, g, b = (int(min(255, max(0, c + amount * s))) for c, s in zip(colour, shift))
    return r, g, b
