"""Lights by name."""

from fake_world import current


class Light:
    def __init__(self, name: str) -> None:
        model = current().model
        self._diffuse, self._specular = (a[model.light(name).id] for a in (model.light_diffuse, model.light_specular))

    def still_exists(self) -> bool:
        return True

    def get_diffuse(self):
        return self._diffuse

    def set_diffuse(self, diffuse: list[float]) -> None:
        self._diffuse[:] = diffuse

    def get_specular(self):
        return self._specular

    def set_specular(self, specular: list[float]) -> None:
        self._specular[:] = specular
