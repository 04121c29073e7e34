"""Target pictures per second and core: `python -m benchmarks.targets [--seconds S]`.

A made-up robot before four cameras of 256x256; each tile draws four spheres on every view and copies nothing twice. The
goal is 200 tiles per second. Processor time of one thread, so that other work on the machine counts little.
"""

import argparse
import statistics
import sys
import time

import numpy as np

from benchmarks.tables import hardware, table, write_results, write_section
from pretrained.genima.spheres import Camera, Moment, Style, draw
from pretrained.genima.tiles import ORDER, tile

GOAL = 200.0  # tiles per second
SIZE = (256, 256)
ROUNDS = 5
PLACES = {"wrist": (0.3, 0.05, 1.3), "front": (1.4, 0.0, 1.6), "right_shoulder": (-0.4, -0.9, 1.7),
          "left_shoulder": (-0.4, 0.9, 1.7)}  # fmt: skip


def looking(position: tuple[float, float, float], at: tuple[float, float, float]) -> Camera:
    """A camera of 40 degrees that looks at a point, upright."""
    ahead = np.subtract(at, position) / np.linalg.norm(np.subtract(at, position))
    right = np.cross(ahead, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(ahead, right), ahead], 1)
    pose[:3, 3] = position
    focal = SIZE[0] / 2 / np.tan(np.deg2rad(20))
    return Camera(np.array([[focal, 0, SIZE[1] / 2], [0, focal, SIZE[0] / 2], [0, 0, 1]]), pose, SIZE)


def moments(count: int) -> list[Moment]:
    """Places of a robot about the middle of the pictures."""
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        joints, gripper = np.zeros((7, 7)), np.eye(4)
        joints[:, :3] = np.array([0.2, 0.0, 1.1]) + rng.uniform(-0.25, 0.25, (7, 3))
        joints[:, 3:] = rng.standard_normal((7, 4))
        gripper[:3, 3] = np.array([0.3, 0.0, 1.1]) + rng.uniform(-0.1, 0.1, 3)
        out.append(Moment(joints, gripper, float(rng.random())))
    return out


def measure(seconds: float, opacity: float) -> float:
    """Tiles per second of processor time."""
    cameras = {c: looking(PLACES[c], (0.25, 0.0, 1.1)) for c in ORDER}
    rng, style, poses = np.random.default_rng(1), Style(), moments(50)
    scenes = {c: rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for c in ORDER}
    count, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        now = poses[count % len(poses)]
        tile({c: draw(cameras[c], style.spheres(c, now), scenes[c], opacity=opacity) for c in ORDER})
        count += 1
    return count / (time.process_time() - began)


def main() -> int:
    """Measure and write; 1 beside the goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    args = parser.parse_args()
    rates = {name: statistics.median(measure(args.seconds, share) for _ in range(ROUNDS))
             for name, share in (("opaque", 1.0), ("blended", 0.8))}  # fmt: skip
    write_results({f"targets/{name}": {"ratio": rate / GOAL, "goal": 1.0, "tiles_per_s": rate, "goal_tiles_per_s": GOAL,
                                       "rounds": ROUNDS} for name, rate in rates.items()})  # fmt: skip
    text = table(["spheres", "tiles/s per core", "of the goal"],
                 [[name, f"{rate:.0f}", f"{rate / GOAL:.2f}"] for name, rate in rates.items()])  # fmt: skip
    print(text)
    write_section("targets", f"## Target pictures\n\nFour views of 256x256 with four spheres each, tiled.\n\n"
                  f"{hardware()}\n\n{text}\n\nCommand: `python -m benchmarks.targets`.")  # fmt: skip
    return 0 if min(rates.values()) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
