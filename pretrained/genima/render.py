"""Demonstrations with targets drawn on them, from demonstrations that say where joints and cameras were.

    python -m pretrained.genima.render runs/demos/demos.hdf5 runs/demos/tiles.hdf5 --kind tiles --cameras C1,C2,C3,C4

Reads files of `collect` with `env.sim.poses=true`, and writes files of the same layout, so that `pretrain` needs no
reader of its own. `tiles`: two pictures, `tile(CAMERA,...)` (what was seen) and `target` (with the spheres of 20 steps
later), for the model that paints. `backgrounds`: the same cameras, spheres over random textures, for the controller.
Episodes are rendered in parallel; a rendering that was stopped goes on when it is asked for again, and ends with the
same file.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.types import EnvSpec
from pretrained.demos import stored_spec
from pretrained.demos.files import resolve
from pretrained.demos.libero import DemoWriter, Recorded, read_file
from pretrained.genima.spheres import BASE, ELBOW, WRIST, Camera, Moment, Style, draw, target_frame
from pretrained.genima.tiles import Backgrounds, grid, tile, tile_name
from pretrained.progress import Bar

KINDS = ("tiles", "backgrounds")
TARGET = "target"  # name of the picture with spheres; the other is named after the order of its views
POSES = ("joint_poses", "gripper_pose", "gripper_open")


@dataclass(frozen=True)
class RenderRun:
    """Settings of a rendering."""

    demos: str
    out: str  # a *.hdf5 file
    kind: str = "tiles"
    cameras: Sequence[str] = ()  # in the order of the tile; () takes all of the demonstrations
    scales: Mapping[str, float] | None = None  # of the spheres, by camera; others have `scale`
    scale: float = 6.5  # radii of 1 cm
    gripper_only: Sequence[str] = ()  # cameras that show no joints
    joints: Sequence[int] = (1, 3, 5)  # counted from 0; red, green, purple
    horizon: int = 20
    opacity: float = 0.7  # least, over textures
    textures: str = ""  # folder of pictures; "" makes some up
    workers: int = 0  # 0: as many as processors
    seed: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind '{self.kind}' is unknown; expected one of {KINDS}")
        if not 1 <= len(self.joints) <= 3:
            raise ValueError(f"joints {list(self.joints)}: expected one to three, which are red, green and purple")
        if not 0 < self.opacity <= 1 or self.horizon < 1:
            raise ValueError(f"expected 0 < opacity <= 1 and horizon >= 1, got {self.opacity} and {self.horizon}")


def render(run: RenderRun) -> Path:
    """Render, or go on rendering; the path of the finished file."""
    spec = stored_spec(run.demos)
    if spec is None:
        raise ValueError(f"{run.demos} does not say what it is of; expected a file of 'collect'")
    order = list(run.cameras or spec.cameras)
    missing = [c for c in order if c not in spec.cameras]
    if missing:
        raise ValueError(f"cameras {missing} are not in {run.demos}; it has {list(spec.cameras)}")
    jobs = [job for path in resolve(run.demos) for job in _jobs(path, spec)]
    identity = {"kind": run.kind, "cameras": order, "scales": dict(run.scales or {}), "scale": run.scale,
                "gripper_only": list(run.gripper_only), "joints": list(run.joints), "horizon": run.horizon,
                "opacity": run.opacity, "textures": run.textures, "seed": run.seed,
                "demos": [[name, seed] for _, name, seed, _ in jobs]}  # fmt: skip
    writer = DemoWriter(Path(run.out), env=_out_spec(run, spec, order), identity=identity)
    left = [i for i in range(len(jobs)) if i not in writer.stored]
    with Bar("render targets", total=len(jobs), done=len(jobs) - len(left), quiet=run.quiet) as bar:
        for i, episode in _rendered(run, spec, order, jobs, left):
            writer.add(i, episode)
            writer.note(i, "success")
            bar.advance(1)
    if left or not writer.path.exists():
        return writer.finish(range(len(jobs)), {"source": str(run.demos)})
    return writer.path


Job = tuple[Path, str, int, bool]  # file, demo, seed, whether it succeeded


def _jobs(path: Path, spec: EnvSpec) -> list[Job]:
    if path.is_dir():
        raise ValueError(f"{path} is not a file of 'collect', and others do not say where joints and cameras were")
    names = [e.name for e in read_file(path, env=spec, align="as_stored", drop_noops=False)]
    with h5py.File(path, "r") as file:
        data: Any = file["data"]
        for name in names:
            if "poses" not in data[name] or any(k not in data[name]["poses"] for k in POSES):
                raise ValueError(
                    f"{path}: {name} does not say where the joints were, so that no target can be drawn; collect it "
                    "again with env.sim.poses=true"
                )
        attrs = [data[name].attrs for name in names]
        return [
            (path, n, int(a.get("seed", 0)), bool(a.get("success", True))) for n, a in zip(names, attrs, strict=True)
        ]


def _out_spec(run: RenderRun, spec: EnvSpec, order: Sequence[str]) -> EnvSpec:
    cameras: dict[str, tuple[int, int]] = {c: spec.cameras[c] for c in order}
    if run.kind == "tiles":
        if len(set(cameras.values())) > 1:
            raise ValueError(f"the views of a tile must be of one size, got {cameras}; collect them so")
        (y, x), (rows, columns) = cameras[order[0]], grid(len(order))
        cameras = dict.fromkeys((tile_name(order), TARGET), (rows * y, columns * x))
    return replace(spec, cameras=cameras, privileged={})


def _rendered(
    run: RenderRun, spec: EnvSpec, order: list[str], jobs: list[Job], left: list[int]
) -> Iterator[tuple[int, Recorded]]:
    """Episodes as they are done; few wait in memory."""
    workers = min(run.workers or len(os.sched_getaffinity(0)), max(1, len(left)))
    if workers == 1:
        yield from ((i, render_episode(run, spec, order, jobs[i], i)) for i in left)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        flying: dict[Future[Recorded], int] = {}
        waiting = iter(left)
        while True:
            while len(flying) < 2 * workers and (i := next(waiting, None)) is not None:
                flying[pool.submit(render_episode, run, spec, order, jobs[i], i)] = i
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                yield flying.pop(future), future.result()


def render_episode(run: RenderRun, spec: EnvSpec, order: Sequence[str], job: Job, number: int) -> Recorded:
    """One demonstration, without the last two frames, which have no target."""
    path, name, seed, success = job
    episode = read_file(path, env=spec, align="as_stored", drop_noops=False, only=name)[0]
    images = {c: episode.images(c) for c in order}
    poses = _read_poses(path, name, order, len(episode))
    style = _style(run, order)
    rng = np.random.default_rng([run.seed, number])
    backgrounds = (
        {c: Backgrounds(run.textures, size=spec.cameras[c]) for c in order} if run.kind == "backgrounds" else {}
    )
    targets = [target_frame(t, len(episode), run.horizon) for t in range(len(episode))]
    frames = [t for t, target in enumerate(targets) if target is not None]
    if not frames:
        raise ValueError(f"{path}: {name} has {len(episode)} frames, too few for a target; expected at least 3")
    drawn: dict[str, list[np.ndarray]] = {c: [] for c in order}
    for t in frames:
        moment = poses.moment(targets[t] or 0)
        for c in order:
            back, opacity = images[c][t], 1.0
            if backgrounds:
                back, opacity = backgrounds[c].pick(rng), float(rng.uniform(run.opacity, 1.0))
            drawn[c].append(draw(poses.camera(c, t, spec.cameras[c]), style.spheres(c, moment), back, opacity=opacity))
    pictures = {c: np.stack(drawn[c]) for c in order}
    if run.kind == "tiles":
        pictures = {tile_name(order): tile({c: images[c][frames] for c in order}, order), TARGET: tile(pictures, order)}
    actions = np.asarray(episode.actions[frames], dtype=np.float64)
    return Recorded(
        images=pictures, proprio=episode.proprio[frames], actions=actions, executed=actions,
        rewards=np.zeros(len(frames), dtype=np.float32), states=np.zeros((len(frames), 0)),
        instruction=episode.instruction, task=episode.instruction, seed=seed, success=success,
    )  # fmt: skip


@dataclass(frozen=True)
class _Poses:
    """Where everything was, frame by frame."""

    joints: np.ndarray  # [T, J, 7]
    gripper: np.ndarray  # [T, 4, 4]
    opened: np.ndarray  # [T, 1]
    cameras: dict[str, np.ndarray]  # [T, 4, 4]
    intrinsics: dict[str, np.ndarray]  # [T, 3, 3]

    def moment(self, t: int) -> Moment:
        return Moment(self.joints[t], self.gripper[t], float(self.opened[t, 0]))

    def camera(self, name: str, t: int, size: tuple[int, int]) -> Camera:
        return Camera(self.intrinsics[name][t], self.cameras[name][t], size)


def _read_poses(path: Path, name: str, order: Sequence[str], length: int) -> _Poses:
    with h5py.File(path, "r") as file:
        group: Any = file["data"][name]["poses"]
        there = sorted(group.get("camera", {}))
        missing = [c for c in order if c not in there or c not in group.get("intrinsics", {})]
        if missing:
            raise ValueError(
                f"{path}: {name} does not say where cameras {missing} were, only {there}; collect it again"
            )
        found = _Poses(
            *(group[k][()] for k in POSES),
            *({c: group[kind][c][()] for c in order} for kind in ("camera", "intrinsics")),
        )
    if len(found.joints) != length:
        raise ValueError(f"{path}: {name} has poses of {len(found.joints)} frames, expected {length}; collect it again")
    return found


def _style(run: RenderRun, order: Sequence[str]) -> Style:
    scales = {c: float((run.scales or {}).get(c, run.scale)) for c in order}
    joints = dict(zip(run.joints, (BASE, ELBOW, WRIST), strict=False))
    return Style(scales=scales, joints=joints, gripper_only=tuple(run.gripper_only), horizon=run.horizon)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.genima.render", description="Draw targets.")
    parser.add_argument("demos")
    parser.add_argument("out")
    parser.add_argument("--kind", choices=KINDS, default="tiles")
    parser.add_argument("--cameras", default="", help="separated by commas, in the order of the tile; all if left out")
    parser.add_argument("--scales", default="", help="such as robot0_eye_in_hand=3,agentview=8; others have --scale")
    parser.add_argument("--textures", default="", help="folder of pictures")
    for name, kind in (("scale", float), ("opacity", float), ("horizon", int), ("workers", int), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(RenderRun, name))
    args = vars(parser.parse_args(argv))
    try:
        scales = {c: float(v) for c, v in (part.split("=") for part in args["scales"].split(",") if part)}
        cameras = tuple(c for c in args["cameras"].split(",") if c)
        path = render(RenderRun(**{**args, "scales": scales, "cameras": cameras}))
    except ValueError as e:
        parser.exit(2, f"error: {e}\n")
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
