"""Shapes by name."""

import numpy as np
from fake_world import current
from PIL import Image


class Texture:
    def __init__(self, path: str) -> None:
        with Image.open(path) as image:
            self.mean = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0) / 255


class Carrier:
    """The plane that PyRep makes to load a texture with."""

    live: list["Carrier"] = []  # noqa: RUF012

    def __init__(self) -> None:
        Carrier.live.append(self)

    def remove(self) -> None:
        Carrier.live.remove(self)


class Shape:
    def __init__(self, name: str) -> None:
        self._rgba = current().model.geom_rgba[current().model.geom(name).id]  # KeyError if there is none
        self._plain = self._rgba[:3].copy()

    def still_exists(self) -> bool:
        return True

    def get_color(self) -> list[float]:
        return self._rgba[:3].tolist()

    def set_color(self, color: list[float]) -> None:
        self._rgba[:3] = color

    def set_texture(self, texture: Texture, mapping_mode, interpolate=True, decal_mode=False, repeat_along_u=False,
                    repeat_along_v=False, uv_scaling=(1.0, 1.0)) -> None:  # fmt: skip
        self._plain = self._rgba[:3].copy()
        self._rgba[:3] = texture.mean

    def remove_texture(self) -> None:
        self._rgba[:3] = self._plain
