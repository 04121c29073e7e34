"""Point tracks of demonstrations, as FLIP learns them: an exact tracker, and compact shards on disk.

For every frame that has a whole clip after it, the points of a grid are followed through the clip; or for every frame,
where the last moment of an episode is held. Positions of a clip are `stride` frames apart. `follow` needs no network:
it knows where bodies are. Other trackers, such as CoTracker, are functions of the same form as `Tracker`.

    <folder>/index.json   layout, clip length, stride; per episode: first frame, frames, first clip, clips, sentence
             frames.npy   uint8 [M, Y, X, 3]
             tracks.npy   int16 [C, P, F, 2] in 1/64 pixel
             seen.npy     uint8 [C, P, ceil(F / 8)] visibility, packed
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LAYOUT, UNITS = 1, 64  # units per pixel
REACH = 32767 / UNITS  # pixels that an int16 holds
NEAR = 0.01  # metres (and share of the distance) by which a surface may lie before a point that is still seen


class Tracked(NamedTuple):
    """Points of a clip, followed."""

    tracks: np.ndarray  # float [P, F, 2] pixels (x, y); pixel centres are whole numbers
    visible: np.ndarray  # bool [P, F]


Tracker = Callable[[np.ndarray, np.ndarray], Tracked]  # frames uint8 [F, Y, X, 3], points [P, 2]


@dataclass(frozen=True)
class Scene:
    """What a simulator knows about a clip. F frames; bodies are numbered from 0, -1 is nothing."""

    positions: np.ndarray  # [F, bodies, 3] metres
    rotations: np.ndarray  # [F, bodies, 3, 3] body to world
    camera_positions: np.ndarray  # [F, 3]
    camera_rotations: np.ndarray  # [F, 3, 3] camera to world; it looks along -z, y is up (MuJoCo's convention)
    fovy: float  # degrees, vertical
    depth: np.ndarray  # [F, Y, X] metres along the viewing axis
    bodies: np.ndarray  # int [F, Y, X] which body is seen


def follow(scene: Scene, points: np.ndarray) -> Tracked:
    """Follow points [P, 2] of the first frame: lift them to the bodies that are seen there, and project those.

    A point is visible where it lies in the picture and its own body is seen there at its depth. A point on nothing
    stays on its ray. Raises ValueError for points outside of the picture."""
    y, x = scene.depth.shape[1:]
    points = np.asarray(points, dtype=np.float64)
    outside = ((points < -0.5) | (points > np.array([x, y]) - 0.5)).any(1)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} points to track lie outside of the picture of {y}x{x}, such as "
            f"{points[outside][0].tolist()}; expected 0 to {x - 1} and 0 to {y - 1}"
        )
    column, row = np.clip(np.rint(points).astype(int), 0, [x - 1, y - 1]).T
    body, depth = scene.bodies[0, row, column], scene.depth[0, row, column]
    place = lift(scene, 0, points, depth)
    owned = body >= 0
    held = np.where(owned, body, 0)
    local = np.einsum("pji,pj->pi", scene.rotations[0, held], place - scene.positions[0, held])
    tracks, visible = (
        np.empty((len(points), len(scene.depth), 2)),
        np.empty((len(points), len(scene.depth)), dtype=bool),
    )
    for t in range(len(scene.depth)):
        moved = np.einsum("pij,pj->pi", scene.rotations[t, held], local) + scene.positions[t, held]
        seen, distance = project(scene, t, np.where(owned[:, None], moved, place))
        inside = (distance > 0) & (seen > -0.5).all(1) & (seen < np.array([x, y]) - 0.5).all(1)
        c, r = np.clip(np.rint(np.where(inside[:, None], seen, 0)).astype(int), 0, [x - 1, y - 1]).T
        same = scene.bodies[t, r, c] == body
        close = scene.depth[t, r, c] >= distance * (1 - NEAR) - NEAR
        tracks[:, t], visible[:, t] = seen, inside & same & close
    tracks[:, 0], visible[:, 0] = points, True
    return Tracked(tracks, visible)


def lift(scene: Scene, t: int, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """World places [P, 3] of pixels [P, 2] at depths [P]."""
    y, x = scene.depth.shape[1:]
    focal = y / 2 / np.tan(np.radians(scene.fovy) / 2)
    u, v = (pixels[:, 0] + 0.5 - x / 2) / focal, (pixels[:, 1] + 0.5 - y / 2) / focal
    local = np.stack([u * depth, -v * depth, -depth], 1)
    return local @ scene.camera_rotations[t].T + scene.camera_positions[t]


def project(scene: Scene, t: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [P, 2] and depths [P] of world places [P, 3]; behind the camera the depth is not positive."""
    y, x = scene.depth.shape[1:]
    focal = y / 2 / np.tan(np.radians(scene.fovy) / 2)
    local = (places - scene.camera_positions[t]) @ scene.camera_rotations[t]
    depth = -local[:, 2]
    safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    return np.stack([focal * local[:, 0] / safe + x / 2, -focal * local[:, 1] / safe + y / 2], 1) - 0.5, depth


@dataclass(frozen=True)
class TrackedEpisode:
    """One episode to write: T frames, and a clip from each of the first C; from all T if the last one is held."""

    frames: np.ndarray  # uint8 [T, Y, X, 3]
    tracks: np.ndarray  # float [C, P, F, 2] pixels
    visible: np.ndarray  # bool [C, P, F]
    instruction: str
    success: bool = True
    progress: np.ndarray | None = None  # [T] the simulator's own measure, if it has one


def write(folder: Path | str, episodes: Sequence[TrackedEpisode], *, stride: int = 1) -> None:
    """Write a shard; it appears complete or not at all. Raises ValueError if an episode does not fit."""
    folder = Path(folder).absolute()
    if not episodes:
        raise ValueError("no episode to write; track at least one")
    for i, episode in enumerate(episodes):
        _check(episode, episodes[0], i, stride)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    clips, points, length = sum(len(e.tracks) for e in episodes), *episodes[0].tracks.shape[1:3]
    frames = sum(len(e.frames) for e in episodes)
    shapes = {"frames": (np.uint8, (frames, *episodes[0].frames.shape[1:])),
              "tracks": (np.int16, (clips, points, length, 2)),
              "seen": (np.uint8, (clips, points, (length + 7) // 8))}  # fmt: skip
    files = {k: np.lib.format.open_memmap(new / f"{k}.npy", "w+", dtype=d, shape=s) for k, (d, s) in shapes.items()}
    frame = clip = 0
    rows: list[dict[str, Any]] = []
    for e in episodes:
        rows.append({"frame": frame, "frames": len(e.frames), "clip": clip, "clips": len(e.tracks),
                     "instruction": e.instruction, "success": e.success,
                     "progress": None if e.progress is None else np.round(e.progress, 4).tolist()})  # fmt: skip
        files["frames"][frame : frame + len(e.frames)] = e.frames
        files["tracks"][clip : clip + len(e.tracks)] = np.rint(e.tracks * UNITS).astype(np.int16)
        files["seen"][clip : clip + len(e.tracks)] = np.packbits(e.visible, axis=-1)
        frame, clip = frame + len(e.frames), clip + len(e.tracks)
    for file in files.values():
        file.flush()
    (new / "index.json").write_text(json.dumps({"layout": LAYOUT, "clip": length, "stride": stride, "episodes": rows}))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


class Shard:
    """A shard, read through the system's page cache. Clips are numbered over all episodes."""

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        try:
            index = json.loads((folder / "index.json").read_text())
            parts = {k: np.load(folder / f"{k}.npy", mmap_mode="r") for k in ("frames", "tracks", "seen")}
        except (OSError, ValueError) as e:
            raise ValueError(f"{folder} is no shard of tracks ({e}); write one, or check the name") from e
        if index.get("layout") != LAYOUT:
            raise ValueError(f"{folder} has layout {index.get('layout')}, this version reads {LAYOUT}; write it again")
        self.frames, self.tracks, self.seen = parts["frames"], parts["tracks"], parts["seen"]
        self.clip, self.stride = int(index["clip"]), int(index.get("stride", 1))
        self.episodes = index["episodes"]
        self.episode_of = np.repeat(np.arange(len(self.episodes)), [e["clips"] for e in self.episodes])

    def __len__(self) -> int:
        return len(self.episode_of)

    def split(self, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips to train on and to validate on; an episode's clips are all on one side."""
        held = round(fraction * len(self.episodes))
        if not 0 <= held < len(self.episodes):
            raise ValueError(f"a share of {fraction} of {len(self.episodes)} episodes leaves none to train on")
        chosen = np.random.default_rng(seed).permutation(len(self.episodes))[:held]
        aside = np.isin(self.episode_of, chosen)
        return np.flatnonzero(~aside), np.flatnonzero(aside)

    def flow(self, clips: np.ndarray) -> Tracked:
        """float32 [B, P, F, 2] pixels and bool [B, P, F]."""
        seen = np.unpackbits(self.seen[clips], axis=-1, count=self.clip).astype(bool)
        return Tracked(self.tracks[clips].astype(np.float32) / UNITS, seen)

    def pictures(self, clips: np.ndarray, *, history: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [B, history, Y, X, 3] up to each clip's first frame, and [B, F-1, Y, X, 3] after it, `stride` apart.

        Before an episode its first frame is repeated, and behind it its last one."""
        rows = [self.episodes[i] for i in self.episode_of[clips]]
        first = np.array([r["frame"] for r in rows])
        last = first + np.array([r["frames"] for r in rows]) - 1
        now = first + clips - np.array([r["clip"] for r in rows])
        behind = np.maximum(now[:, None] - self.stride * np.arange(history)[::-1], first[:, None])
        ahead = np.minimum(now[:, None] + self.stride * np.arange(1, self.clip), last[:, None])
        return self.frames[behind], self.frames[ahead]

    def instructions(self, clips: np.ndarray) -> list[str]:
        """One per clip."""
        return [self.episodes[i]["instruction"] for i in self.episode_of[clips]]


def pad_clips(clips: np.ndarray, *, history: int) -> np.ndarray:
    """Clips [C, F, P, 2] as the original's files have them: history - 1 clips of zeros in front, and behind the last
    clip 2 (F - 1) more, which end earlier and repeat the last position."""
    length = clips.shape[1]
    places = np.minimum(np.arange(1, 2 * length - 1)[:, None] + np.arange(length), length - 1)
    return np.concatenate([np.zeros_like(clips[:1]).repeat(history - 1, 0), clips, clips[-1][places]])


def _check(episode: TrackedEpisode, first: TrackedEpisode, number: int, stride: int) -> None:
    where, length = f"episode {number}", episode.tracks.shape[2]
    if episode.frames.shape[1:] != first.frames.shape[1:] or episode.tracks.shape[1:] != first.tracks.shape[1:]:
        raise ValueError(
            f"{where} has another resolution, grid or clip length than the first; write shards of one kind"
        )
    if episode.frames.dtype != np.uint8:
        raise ValueError(f"{where}: frames are {episode.frames.dtype}, expected uint8")
    held = len(episode.tracks) == len(episode.frames)
    clips = len(episode.frames) if held else len(episode.frames) - stride * (length - 1)
    if clips < 1:
        raise ValueError(f"{where} has {len(episode.frames)} frames, too short for a clip of {length}; leave it out")
    if len(episode.tracks) != clips or episode.visible.shape != episode.tracks.shape[:3]:
        raise ValueError(f"{where}: {len(episode.tracks)} clips, expected {clips}, with visibility of each position")
    if not np.isfinite(episode.tracks).all() or np.abs(episode.tracks).max() > REACH:
        raise ValueError(
            f"{where} has tracks that are not finite or more than {REACH:.0f} pixels outside; leave it out"
        )
    starts = episode.tracks[:, :, 0]
    if (starts < -0.5).any() or (starts > np.array(episode.frames.shape[2:0:-1]) - 0.5).any():
        raise ValueError(f"{where} has tracks that begin outside of the picture; use the repaired grid")
