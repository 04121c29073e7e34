"""Demonstrations to shards of tracks: every episode is played again in its simulator, which says what the camera sees.

    python -m pretrained.demos.track runs/demos/demos.hdf5 runs/tracks --camera agentview --size 64

Nothing is learned and nothing is guessed: points are lifted to the bodies that are seen, and follow them
(`pretrained.demos.tracks.follow`). The last frame of an episode, which demonstrations leave out, is in the shard. With
`--stride 4 --hold` a clip's positions are four frames apart, and an episode's last moment is held, so that plans look
further ahead and there is one from every frame.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.types import EnvConfig
from envs.vector import Arrival, SimVector
from pretrained.demos.collect import env_config
from pretrained.demos.libero import reading
from pretrained.demos.tracks import Scene, TrackedEpisode, follow, write
from pretrained.progress import Bar

POINTS, CLIP = 529, 16  # FLIP's
REACH = 500.0  # pixels from the corner at which tracks are cut off
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """What it takes to play an episode again."""

    task: str
    seed: int
    actions: np.ndarray  # [T, A] as executed
    success: bool
    instruction: str


@dataclass(frozen=True)
class Played:
    """An episode, played again: T + 1 moments."""

    frames: np.ndarray  # uint8 [T + 1, Y, X, 3]
    scene: Scene
    progress: np.ndarray | None  # [T + 1]


def track(
    demos: Sequence[Path], out: Path, *, camera: str, size: int = 0, points: int = POINTS, clip: int = CLIP,
    stride: int = 1, hold: bool = False, max_demos: int | None = None, quiet: bool = False,
) -> int:  # fmt: skip
    """Write the shard `out`; how many episodes it has. Those shorter than a clip are left out, unless their last moment
    is held (`hold`).

    `size`: pixels of the picture's sides; 0 leaves those of the demonstrations. Raises ValueError if a file does not
    say how it was collected, or if a replay ends otherwise than the episode did."""
    if stride < 1:
        raise ValueError(f"stride = {stride} frames, expected at least 1")
    told = [(config, episode) for path in demos for config, episode in _told(Path(path), camera, size)][:max_demos]
    kept: list[TrackedEpisode] = []
    vectors: dict[str, SimVector] = {}
    try:
        with Bar("track", total=len(told), quiet=quiet) as bar:
            for config, episode in told:
                key = json.dumps(config.sim, sort_keys=True)
                if key not in vectors:
                    vectors[key] = SimVector([config], max_chunk=1)
                found = _follow(_play(vectors[key], episode, camera), episode, points, clip, stride, hold)
                kept += [found] if found else []
                bar.advance(1)
    finally:
        for vector in vectors.values():
            vector.close()
    write(out, kept, stride=stride)
    return len(kept)


def inner_grid(size: Sequence[int], count: int) -> np.ndarray:
    """Query points [count, 2] as a planner asks for them: a square grid over a picture of `size` (Y, X)."""
    from pretrained.flip.planner import grid  # needs torch, replaying does not

    return grid(size, count).double().numpy()


def _told(path: Path, camera: str, size: int) -> Iterator[tuple[EnvConfig, Told]]:
    manifest = path.with_suffix(".json")
    if not manifest.is_file():
        raise ValueError(f"{path} has no manifest {manifest.name}, which says how to play it again; expected a file "
                         "that 'launch.py collect' wrote")  # fmt: skip
    config = env_config(json.loads(manifest.read_text())["env"])
    cameras = config.sim.get("cameras") or {}
    if not size and camera not in cameras:
        raise ValueError(f"{path} was collected with cameras {sorted(cameras)}; name one of them, or give a size")
    pixels = [size, size] if size else list(cameras[camera])
    config = replace(config, sim={**config.sim, "cameras": {camera: pixels}, "surfaces": camera})
    with reading(path) as file:
        data = file["data"]
        for name in sorted(data, key=lambda k: int(k[5:])):
            group, attributes = data[name], data[name].attrs
            if "executed_actions" not in group:
                raise ValueError(f"{path}, {name}: executed_actions are missing; expected a file that 'launch.py "
                                 "collect' wrote")  # fmt: skip
            yield config, Told(str(attributes["task"]), int(attributes["seed"]), group["executed_actions"][()],
                               bool(attributes["success"]), str(attributes["instruction"]))  # fmt: skip


def _play(vector: SimVector, told: Told, camera: str) -> Played:
    vector.send_reset(0, told.task, told.seed)
    arrival = _answer(vector, told)
    seen: list[dict[str, Any]] = []
    for action in [*told.actions, None]:
        assert arrival.obs is not None
        kept = {k: v.copy() for k, v in arrival.obs.privileged.items() if k.startswith("scene/") or k == "progress"}
        seen.append({"frame": arrival.obs.images[camera].copy(), **kept})
        if action is not None:
            if arrival.terminated or arrival.truncated:
                raise ValueError(f"the replay of {told.task}, seed {told.seed}, ended after {len(seen) - 1} of "
                                 f"{len(told.actions)} steps; expected a simulator that repeats itself")  # fmt: skip
            vector.send_step(0, action[None], render="last")
            arrival = _answer(vector, told)
    if arrival.success != told.success:
        raise ValueError(f"the replay of {told.task}, seed {told.seed}, ends with success {arrival.success}, the "
                         f"episode with {told.success}; expected a simulator that repeats itself")  # fmt: skip
    stacked = {k: np.stack([s[k] for s in seen]) for k in seen[0]}
    places, eye = stacked["scene/places"], stacked["scene/camera"]
    scene = Scene(
        positions=places[..., :3],
        rotations=places[..., 3:].reshape(*places.shape[:2], 3, 3),
        camera_positions=eye[:, :3],
        camera_rotations=eye[:, 3:12].reshape(-1, 3, 3),
        fovy=float(eye[0, 12]),
        depth=stacked["scene/depth"],
        bodies=stacked["scene/bodies"].astype(int),
    )
    progress = stacked["progress"].reshape(len(seen)) if "progress" in stacked else None
    return Played(stacked["frame"], scene, progress)


def _answer(vector: SimVector, told: Told) -> Arrival:
    vector.wait()
    arrival = vector.take(0)
    if arrival.failure is not None:
        raise ValueError(f"the replay of {told.task}, seed {told.seed}, failed ({arrival.failure.cause}): "
                         f"{arrival.failure.detail}")  # fmt: skip
    return arrival


def _follow(
    played: Played, told: Told, points: int, clip: int, stride: int = 1, hold: bool = False
) -> TrackedEpisode | None:
    """Clips from every frame that has a whole one after it, or from every one (`hold`); None if there is none."""
    clips = len(played.frames) - (0 if hold else stride * (clip - 1))
    if clips < 1:
        log.warning("seed %d has %d frames, too few for a clip of %d; left out", told.seed, len(played.frames), clip)
        return None
    asked, tracks, seen = inner_grid(played.frames.shape[1:3], points), [], []
    for start in range(clips):
        part = np.minimum(start + stride * np.arange(clip), len(played.frames) - 1)
        s = played.scene
        found = follow(Scene(s.positions[part], s.rotations[part], s.camera_positions[part], s.camera_rotations[part],
                             s.fovy, s.depth[part], s.bodies[part]), asked)  # fmt: skip
        # A point that passes behind the camera, or far outside, would not fit into the file; none is visible there.
        tracks.append(np.clip(found.tracks, -REACH, REACH))
        seen.append(found.visible)
    return TrackedEpisode(played.frames, np.stack(tracks), np.stack(seen), told.instruction, told.success,
                          played.progress)  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.demos.track", description=__doc__)
    parser.add_argument("demos", nargs="+", type=Path, help="files that 'launch.py collect' wrote")
    parser.add_argument("out", type=Path, help="folder of the shard")
    parser.add_argument("--camera", default="agentview")
    parser.add_argument("--size", type=int, default=0, help="pixels of a side; default: as collected")
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--clip", type=int, default=CLIP)
    parser.add_argument("--stride", type=int, default=1, help="frames between two positions of a clip")
    parser.add_argument("--hold", action="store_true", help="hold the last moment: clips from every frame")
    parser.add_argument("--max-demos", type=int, default=None)
    given = parser.parse_args(words)
    count = track(given.demos, given.out, camera=given.camera, size=given.size, points=given.points, clip=given.clip,
                  stride=given.stride, hold=given.hold, max_demos=given.max_demos)  # fmt: skip
    sys.stdout.write(f"{count} episodes in {given.out}\n")


if __name__ == "__main__":
    main()
