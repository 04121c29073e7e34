"""PyRep's constants."""

from enum import Enum


class RenderMode(Enum):
    OPENGL = 0
    OPENGL3 = 7


class TextureMappingMode(Enum):
    PLANE = 0
    CYLINDER = 1
    SPHERE = 2
    CUBE = 3
