"""Things that stand on furniture, and a few that stand beside it, as boxes, prisms and balls."""

from __future__ import annotations

from typing import List

from envs.thor_mini.parts import ACCENT, DARK, LEAF, MAIN, SCREEN, SECOND, SOIL, STEEL, WHITE, Part, Size, box, prism


def television(size: Size) -> List[Part]:
    """Television."""
    z0, z1 = (0.4, 0.6) if size[2] > 0.15 else (0.0, 0.9)
    return [
        box(0, 1, 0.08, 1, z0, z1, MAIN),
        box(0.025, 0.975, 0.12, 0.97, z1, z1 + 0.04, SCREEN, "print"),
        box(0.46, 0.54, 0.02, 0.1, z0 + 0.02, z1 - 0.02, DARK),
        box(0.25, 0.75, 0, 0.025, 0.1, 0.9, DARK),
    ]


def laptop(size: Size) -> List[Part]:
    """Laptop."""
    return [
        box(0, 1, 0, 0.08, 0.25, 1, MAIN, "metal"),
        box(0.06, 0.94, 0.08, 0.09, 0.35, 0.7, DARK),
        box(0, 1, 0.06, 1, 0.12, 0.2, MAIN, "metal"),
        box(0.04, 0.96, 0.12, 0.95, 0.2, 0.23, SCREEN, "print"),
    ]


def microwave(size: Size) -> List[Part]:
    """Microwave."""
    return [
        box(0, 1, 0, 1, 0, 0.96, MAIN, "metal"),
        box(0.04, 0.7, 0.12, 0.88, 0.96, 0.98, DARK),
        box(0.72, 0.76, 0.1, 0.9, 0.96, 1, STEEL),
        box(0.8, 0.96, 0.55, 0.85, 0.96, 0.98, ACCENT),
    ]


def toaster(size: Size) -> List[Part]:
    """Toaster."""
    return [
        box(0, 1, 0.06, 0.9, 0.04, 0.96, MAIN, "metal"),
        box(0.2, 0.4, 0.9, 0.92, 0.15, 0.85, DARK),
        box(0.6, 0.8, 0.9, 0.92, 0.15, 0.85, DARK),
        box(0.4, 0.6, 0.5, 0.62, 0.96, 1, DARK),
        box(0.1, 0.9, 0, 0.06, 0.1, 0.9, DARK),
    ]


def coffee_machine(size: Size) -> List[Part]:
    """Coffee machine."""
    return [
        box(0, 1, 0, 0.12, 0, 1, MAIN),
        box(0, 1, 0.12, 1, 0, 0.4, MAIN),
        box(0, 1, 0.72, 1, 0.4, 0.95, SECOND, "metal"),
        Part("prism", 0.3, 0.7, 0.12, 0.5, 0.5, 0.9, DARK),
    ]


def plant(size: Size) -> List[Part]:
    """Plant."""
    return [
        prism(0, 0.32, 0.55, ACCENT, "plain", 1.25),
        prism(0.3, 0.34, 0.5, SOIL),
        Part("ball", 0, 1, 0.45, 1, 0, 1, MAIN, "leaves"),
        Part("ball", 0.1, 0.75, 0.3, 0.7, 0.2, 0.95, MAIN, "leaves"),
        prism(0.3, 0.55, 0.08, SOIL),
    ]


def desk_lamp(size: Size) -> List[Part]:
    """Desk lamp."""
    return [prism(0, 0.06, 0.65, DARK), prism(0.06, 0.65, 0.12, DARK), prism(0.58, 1, 0.95, MAIN, "plain", 0.55)]


def bottle(size: Size) -> List[Part]:
    """Body, label, neck and cap."""
    return [
        prism(0, 0.62, 0.95, MAIN),
        prism(0.15, 0.45, 0.98, ACCENT, "print"),
        prism(0.62, 0.75, 0.95, MAIN, "plain", 0.4),
        prism(0.75, 0.93, 0.38, MAIN),
        prism(0.93, 1, 0.42, DARK),
    ]


def spray(size: Size) -> List[Part]:
    """A bottle with a head that looks forward."""
    return [prism(0, 0.65, 0.9, MAIN), prism(0.65, 0.8, 0.5, WHITE), box(0.3, 0.7, 0.8, 1, 0.1, 1, ACCENT)]


def cup(size: Size) -> List[Part]:
    """A cup with a band."""
    return [prism(0, 1, 0.8, MAIN, "plain", 1.2), prism(0.96, 1.0, 0.86, SECOND), prism(0.4, 0.55, 0.96, ACCENT)]


def mug(size: Size) -> List[Part]:
    """Mug."""
    return [
        Part("prism", 0, 0.72, 0, 1, 0, 1, MAIN),
        Part("prism", 0.08, 0.64, 0.99, 1, 0.1, 0.9, SOIL),
        box(0.7, 1, 0.25, 0.75, 0.42, 0.58, MAIN),
    ]


def bowl(size: Size) -> List[Part]:
    """Bowl."""
    return [prism(0, 1, 0.55, MAIN, "plain", 1.8), prism(0.97, 1, 0.85, SECOND)]


def plate(size: Size) -> List[Part]:
    """Plate."""
    return [prism(0, 1, 0.8, MAIN, "plain", 1.25), prism(0.96, 1, 0.6, ACCENT)]


def pot(size: Size) -> List[Part]:
    """Pot."""
    return [
        Part("prism", 0.1, 0.9, 0, 1, 0.1, 0.9, MAIN, "metal"),
        Part("prism", 0.16, 0.84, 0.98, 1, 0.16, 0.84, DARK),
        box(0, 0.12, 0.7, 0.85, 0.4, 0.6, DARK),
        box(0.88, 1, 0.7, 0.85, 0.4, 0.6, DARK),
    ]


def pan(size: Size) -> List[Part]:
    """Pan."""
    return [
        Part("prism", 0, 1, 0, 0.7, 0.4, 1, MAIN, "metal"),
        Part("prism", 0.08, 0.92, 0.7, 0.75, 0.45, 0.95, DARK),
        box(0.43, 0.57, 0.5, 1, 0, 0.45, DARK),
    ]


def ball(size: Size) -> List[Part]:
    """A ball, or nearly one."""
    return [Part("ball", 0, 1, 0, 1, 0, 1, MAIN)]


def fruit(size: Size) -> List[Part]:
    """A ball with a stalk."""
    return [Part("ball", 0, 1, 0, 0.95, 0, 1, MAIN), prism(0.9, 1, 0.1, SOIL), prism(0.88, 0.93, 0.35, LEAF)]


def lettuce(size: Size) -> List[Part]:
    """Lettuce."""
    return [
        Part("ball", 0, 1, 0, 1, 0, 1, MAIN, "leaves"),
        Part("ball", 0.2, 0.8, 0.15, 0.8, 0.55, 1, SECOND, "leaves"),
    ]


def bread(size: Size) -> List[Part]:
    """Bread."""
    return [
        Part("ball", 0, 1, 0, 1, 0, 1, MAIN),
        box(0.2, 0.8, 0, 0.8, 0.1, 0.9, MAIN),
        box(0.3, 0.7, 0.8, 0.97, 0.3, 0.7, SECOND),
    ]


def book(size: Size) -> List[Part]:
    """Book."""
    return [
        box(0, 1, 0, 0.12, 0, 1, MAIN),
        box(0, 1, 0.88, 1, 0, 1, MAIN, "print"),
        box(0.005, 0.05, 0.01, 0.99, 0.005, 0.995, MAIN),
        box(0.03, 0.97, 0.12, 0.88, 0.02, 0.98, WHITE),
    ]


def clock(size: Size) -> List[Part]:
    """Clock."""
    return [
        box(0, 1, 0.06, 0.9, 0, 0.9, MAIN),
        box(0.1, 0.9, 0.2, 0.8, 0.9, 0.97, WHITE),
        box(0.46, 0.54, 0.45, 0.75, 0.95, 1, DARK),
        box(0.1, 0.35, 0.9, 1, 0.3, 0.7, SECOND),
        box(0.65, 0.9, 0.9, 1, 0.3, 0.7, SECOND),
        box(0.1, 0.9, 0, 0.06, 0.1, 0.8, DARK),
    ]


def slab(size: Size) -> List[Part]:
    """Flat things with something on top: telephones, remote controls."""
    return [
        box(0, 1, 0, 0.9, 0, 1, MAIN),
        box(0.12, 0.88, 0.9, 1, 0.1, 0.6, ACCENT),
        box(0.3, 0.7, 0.9, 1, 0.7, 0.85, SECOND),
    ]


def phone(size: Size) -> List[Part]:
    """A screen in a frame."""
    return [box(0, 1, 0, 0.9, 0, 1, MAIN), box(0.08, 0.92, 0.9, 1, 0.08, 0.92, SCREEN, "print")]


def pillow(size: Size) -> List[Part]:
    """Pillow."""
    return [Part("ball", 0, 1, 0, 1, 0, 1, MAIN, "fabric"), box(0.04, 0.96, 0.25, 0.75, 0.04, 0.96, MAIN, "fabric")]


def carton(size: Size) -> List[Part]:
    """An open box with its flaps up."""
    return [
        box(0.03, 0.97, 0, 0.85, 0.03, 0.97, MAIN, "fabric"),
        box(0, 0.12, 0.8, 1, 0, 1, SECOND),
        box(0.88, 1, 0.8, 1, 0, 1, SECOND),
        box(0.1, 0.9, 0.85, 0.87, 0.1, 0.9, DARK),
        box(0.44, 0.56, 0.2, 0.8, 0.97, 0.98, ACCENT),
    ]


def bin(size: Size) -> List[Part]:
    """A bucket with a rim, or a hamper."""
    return [prism(0, 0.9, 0.85, MAIN, "plain", 1.15), prism(0.88, 0.95, 1, SECOND), prism(0.94, 1, 0.8, DARK)]


def picture(size: Size) -> List[Part]:
    """A print in a frame."""
    return [
        box(0, 1, 0, 1, 0, 0.8, SECOND, "wood"),
        box(0.07, 0.93, 0.07, 0.93, 0.8, 0.9, WHITE),
        box(0.14, 0.86, 0.14, 0.86, 0.9, 1, MAIN, "print"),
    ]


def vase(size: Size) -> List[Part]:
    """Vase."""
    return [
        prism(0, 0.45, 0.6, MAIN, "plain", 1.6),
        prism(0.45, 0.8, 0.96, MAIN, "plain", 0.5),
        prism(0.8, 1, 0.48, MAIN, "plain", 1.4),
    ]


def statue(size: Size) -> List[Part]:
    """Statue."""
    return [
        box(0, 1, 0, 0.12, 0, 1, DARK),
        prism(0.12, 0.7, 0.7, MAIN, "marble", 0.6),
        Part("ball", 0.2, 0.8, 0.65, 1, 0.2, 0.8, MAIN, "marble"),
    ]


def teddy(size: Size) -> List[Part]:
    """Teddy."""
    return [
        Part("ball", 0.15, 0.85, 0, 0.6, 0.1, 0.9, MAIN, "fabric"),
        Part("ball", 0.2, 0.8, 0.5, 0.95, 0.2, 0.8, MAIN, "fabric"),
        Part("ball", 0.1, 0.35, 0.8, 1, 0.35, 0.6, SECOND),
        Part("ball", 0.65, 0.9, 0.8, 1, 0.35, 0.6, SECOND),
        Part("ball", 0, 0.3, 0.1, 0.5, 0.4, 0.8, SECOND),
        Part("ball", 0.7, 1, 0.1, 0.5, 0.4, 0.8, SECOND),
    ]


def roll(size: Size) -> List[Part]:
    """Of paper, standing."""
    return [prism(0, 1, 1, MAIN, "fabric"), prism(0.98, 1, 0.35, SOIL)]


def sheet(size: Size) -> List[Part]:
    """Cloth that hangs or lies folded."""
    return [box(0, 1, 0, 1, 0, 1, MAIN, "fabric")]


def stick(size: Size) -> List[Part]:
    """Cutlery and pens: a handle and a head, lying along z."""
    return [box(0.25, 0.75, 0.2, 0.8, 0, 0.7, MAIN), box(0, 1, 0, 1, 0.65, 1, STEEL)]


def pole(size: Size) -> List[Part]:
    """Upright on the floor: a bat, a plunger, a brush."""
    return [prism(0, 0.3, 1, ACCENT, "plain", 0.6), prism(0.3, 1, 0.4, MAIN, "wood")]
