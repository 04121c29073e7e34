"""Speed of thor_mini's pictures: `python -m benchmarks.thor_render [--rounds N] [--views N] [--no-write]`.

One process draws the same views of the same houses, in turns, with

    ours      envs/thor_mini/render.py: colours, depth and object ids in one call
    mujoco    MuJoCo's offscreen renderer (MUJOCO_GL; osmesa if it is not set): the same parts as boxes, ellipsoids and
              cylinders, without textures; colours alone, then colours and ids, which it draws one after the other

Times are of the processor, so that others on the machine count less; a figure is the median over the rounds.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.tables import hardware, table, write_results, write_section
from envs.thor_mini import data, generate, house, shapes
from envs.thor_mini.mesh import pieces
from envs.thor_mini.render import Renderer
from envs.thor_mini.scene import Camera, Frame, Scene

SIZES = ((396, 224), (112, 64))
SEEDS = (3, 4, 8)  # of houses with four and five rooms
AT_MOST_MS = {(396, 224): 2.0, (112, 64): 0.5}  # two cameras at 200 and at 1000 steps per second


def views(scene: Scene, count: int) -> list[Camera]:
    """As an agent sees: from where it can stand, 1.4 m up, 27 degrees down."""
    rng = np.random.default_rng(0)
    middles = [room.polygon.mean(axis=0) for room in scene.rooms]
    at = [middles[k % len(middles)] for k in range(count)]
    return [Camera(np.array([x, 1.4, z]), float(rng.uniform(0, 360)), 27.0, 59.0) for x, z in at]


# --- MuJoCo -----------------------------------------------------------------------------------------------------------


def _row(kind: str, at: np.ndarray, half: np.ndarray, yaw: float, rgb: Any) -> str:
    """One shape. MuJoCo's z is up and its axes are right-handed: y and z swap places and a yaw turns the other way."""
    x, y, z = at
    colour = " ".join(f"{c / 255:.3f}" for c in rgb)
    size = (
        f"{half[0]:.5f} {half[2]:.5f} {half[1]:.5f}"
        if kind != "cylinder"
        else f"{max(half[0], half[2]):.5f} {half[1]:.5f}"
    )
    return (f'<geom type="{kind}" pos="{x:.5f} {z:.5f} {y:.5f}" size="{size}" euler="0 0 {-yaw:.3f}" '
            f'rgba="{colour} 1" contype="0" conaffinity="0"/>')  # fmt: skip


def mujoco_model(scene: Scene) -> Any:
    """The same floors, walls and parts of objects."""
    import mujoco

    rows = []
    for room in scene.rooms:
        low, high = room.polygon.min(axis=0), room.polygon.max(axis=0)
        (x, z), half = (low + high) / 2, (high - low) / 2
        for y, colour in ((-0.01, room.colour), (scene.ceiling + 0.01, scene.ceiling_colour)):
            rows.append(_row("box", np.array([x, y, z]), np.array([half[0], 0.01, half[1]]), 0.0, colour))
    for wall in scene.walls:
        along = (np.array(wall.end) - wall.start) / house.length(wall)
        yaw = float(np.degrees(np.arctan2(-along[1], along[0])))
        for a, b, bottom, top in pieces(wall):
            x, z = np.array(wall.start) + along * (a + b) / 2
            half = np.array([(b - a) / 2, (top - bottom) / 2, 0.005])
            rows.append(_row("box", np.array([x, (bottom + top) / 2, z]), half, yaw, wall.colour))
    kinds = {"box": "box", "ball": "ellipsoid", "prism": "cylinder", "disc": "box"}
    for body in scene.bodies:
        angle, size = np.radians(body.yaw), np.asarray(body.size)
        for part in shapes.parts(body.object_type, (float(size[0]), float(size[1]), float(size[2]))):
            low, high = np.array([part.x0, part.y0, part.z0]), np.array([part.x1, part.y1, part.z1])
            x, y, z = ((low + high) / 2 - 0.5) * size
            at = body.position + np.array(
                [np.cos(angle) * x + np.sin(angle) * z, y, np.cos(angle) * z - np.sin(angle) * x]
            )
            rows.append(
                _row(kinds[part.kind], at, np.maximum((high - low) / 2 * size, 1e-4), body.yaw, body.colours[0])
            )
    xml = ('<mujoco><compiler angle="degree"/><visual><global offwidth="800" offheight="600" fovy="59"/>'
           '<map znear="0.005" zfar="20"/><quality shadowsize="0" offsamples="0"/></visual>'
           f'<worldbody><light pos="0 0 3"/>{"".join(rows)}</worldbody></mujoco>')  # fmt: skip
    return mujoco.MjModel.from_xml_string(xml)


class Theirs:
    """MuJoCo's offscreen renderer on the same scene."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        os.environ.setdefault("MUJOCO_GL", "osmesa")
        import mujoco

        self.model = mujoco_model(scene)
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.renderer = mujoco.Renderer(self.model, height, width)
        self.flags = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FREE

    def draw(self, camera: Camera, ids: bool) -> None:
        """Colours, and the ids of shapes if asked for."""
        self.camera.distance = 0.01
        self.camera.lookat[:] = camera.position[[0, 2, 1]]
        self.camera.azimuth, self.camera.elevation = 90 - camera.yaw, -camera.pitch
        self.renderer.update_scene(self.data, self.camera)
        flags = self.renderer.scene.flags
        for on in (False, True)[: 1 + ids]:  # the second time every shape in the colour of its number, not decoded
            flags[self.flags] = on
            self.renderer.render()


# --- measuring --------------------------------------------------------------------------------------------------------


def timed(play: Callable[[Camera], Any], cameras: list[Camera]) -> float:
    """Milliseconds of processor time per picture."""
    started = time.process_time()
    for camera in cameras:
        play(camera)
    return (time.process_time() - started) / len(cameras) * 1e3


def measure(width: int, height: int, rounds: int, count: int) -> dict[str, float]:
    """Milliseconds per picture of every variant, medians over rounds and houses."""
    databases, found = data.databases(), {"ours": [], "mujoco": [], "mujoco with ids": []}
    for seed in SEEDS:
        scene = house.load(generate.house(seed, databases), databases)
        ours, theirs, cameras = Renderer(scene, width, height), Theirs(scene, width, height), views(scene, count)
        positions, yaws = np.array([b.position for b in scene.bodies]), np.array([b.yaw for b in scene.bodies])
        frame: Frame = ours.draw(cameras[0], positions, yaws)
        plays: dict[str, Callable[[Camera], Any]] = {
            "ours": lambda camera, r=ours, p=positions, y=yaws, f=frame: r.draw(camera, p, y, None, f),
            "mujoco": lambda camera, r=theirs: r.draw(camera, False),
            "mujoco with ids": lambda camera, r=theirs: r.draw(camera, True),
        }
        for play in plays.values():
            play(cameras[0])
        assert theirs.renderer.render().std() > 5, "MuJoCo drew nothing"
        for _ in range(rounds):
            for name, play in plays.items():
                found[name].append(timed(play, cameras))
        theirs.renderer.close()  # a context that is dropped later takes the next one's away
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Measure both sizes; print a table and keep it in RESULTS.md and results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    results, rows = {}, []
    for width, height in SIZES:
        ms = measure(width, height, args.rounds, args.views)
        for name in ("mujoco", "mujoco with ids"):
            ratio = ms[name] / ms["ours"]
            milliseconds = {k: round(ms[k], 3) for k in ("ours", name)}
            results[f"thor_render/{width}x{height}/{name}"] = {
                "ratio": round(ratio, 2), "goal": 1.0, "ms": milliseconds, "rounds": args.rounds,
            }  # fmt: skip
            rows.append([f"{width}x{height}", name, f"{ms[name]:.2f}", f"{ms['ours']:.2f}", f"{ratio:.1f}"])
        limit = AT_MOST_MS[width, height]
        print(f"{width}x{height}: {ms['ours']:.2f} ms per camera (at most {limit} asked)")
    text = table(["size", "other", "other, ms", "ours, ms", "other / ours"], rows)
    print(text)
    if not args.no_write:
        write_results(results)
        write_section("thor_render", f"## Pictures of thor_mini\n\n{hardware()}\n\n{text}")


if __name__ == "__main__":
    main()
