"""The part of PyRep that the adapter and the fake RLBench touch."""

import fake_world


class PyRep:
    def launch(self, scene: str = "", headless: bool = False) -> None:
        fake_world.launch()

    def shutdown(self) -> None:
        fake_world.shutdown()

    def step(self) -> None:
        fake_world.current().step()

    def create_texture(self, filename: str):
        from pyrep.objects.shape import Carrier, Texture

        return Carrier(), Texture(filename)
