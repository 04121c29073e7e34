"""What a house is made of: the hand-over between house files, the world, and the renderer.

AI2-THOR's axes: metres, x right, y up, z forward; a yaw is in degrees, clockwise seen from above, 0 along +z.
Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import numpy as np

Colour = Tuple[int, int, int]  # sRGB


@dataclass
class Opening:
    """A hole in a wall. Agents pass a door that stands open, nothing else."""

    opening_id: str  # as in the house file, "door|2|5"
    kind: str  # door | window | empty
    start: float  # metres along the wall, from its first end
    end: float
    bottom: float  # metres above the floor
    top: float
    is_open: bool = True
    asset_id: str = ""


@dataclass
class Wall:
    """An upright rectangle seen from one room; neighbouring rooms each have their own face of a shared wall.

    From house files the room lies to the right of the way from `start` to `end`.
    """

    wall_id: str
    room_id: str
    start: Tuple[float, float]  # (x, z)
    end: Tuple[float, float]
    height: float
    material: str = ""
    colour: Colour = (200, 200, 200)
    openings: List[Opening] = field(default_factory=list)


@dataclass
class Room:
    """A floor polygon with a ceiling over it."""

    room_id: str
    room_type: str  # Kitchen | LivingRoom | Bedroom | Bathroom
    polygon: np.ndarray  # [V, 2], x and z of the corners in order
    material: str = ""
    colour: Colour = (150, 130, 110)


@dataclass
class Body:
    """One object: a box that collides, and what is drawn for it."""

    object_id: str  # "Apple|surface|2|7", unique in the house
    object_type: str
    asset_id: str
    position: np.ndarray  # [3], centre of the box in the world
    size: np.ndarray  # [3], full extents in the object's own frame
    yaw: float = 0.0
    pickupable: bool = False
    receptacle: bool = False
    fixed: bool = True  # never moves: furniture, doors
    mass: float = 1.0  # kg
    parent: Optional[str] = None  # object_id of what it stands on
    colours: Tuple[Colour, ...] = ((128, 128, 128),)
    material: str = ""
    on_wall: bool = False  # hangs on a wall: a picture, a switch


@dataclass
class Scene:
    """A house ready to be lived in and drawn."""

    name: str
    rooms: List[Room]
    walls: List[Wall]
    bodies: List[Body]
    ceiling: float  # metres
    start: Tuple[float, float, float] = (0.0, 0.0, 0.0)  # x, z, yaw of the agent
    ceiling_colour: Colour = (235, 235, 235)
    seed: int = 0  # of textures
    sky_colour: Colour = (150, 190, 230)


@dataclass
class Camera:
    """Where one picture is taken from."""

    position: np.ndarray  # [3], world
    yaw: float
    pitch: float  # degrees, down is positive
    fov: float  # degrees, vertical


@dataclass
class Frame:
    """One picture, row 0 on top."""

    rgb: np.ndarray  # uint8 [Y, X, 3]
    depth: np.ndarray  # float32 [Y, X], metres along the viewing direction
    ids: np.ndarray  # int32 [Y, X]: index into Scene.bodies, or -1 for walls, floors, ceilings and what is outside
