"""`launch.py plan`: FLIP plans from a picture, and writes what it thought.

plan.mp4      the imagined pictures with the tracks of their points (a .gif without imageio-ffmpeg)
plan.json     the scores of all candidates of all beams and segments, what was chosen, and what it cost
steps.json    with `compare`: plan values and network calls of samplers of several lengths, same pictures and seeds
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.record import write_video
from pretrained import checkpoint
from pretrained.demos.tracks import Shard
from pretrained.flip.imagine import Imagination
from pretrained.flip.planner import Future, Plan, Planner, World
from pretrained.flip.text import check_same

ENLARGE, MOVED = 4, 1.0  # of the overlay; pixels by which a point must move to be drawn
FPS = 10.0


@dataclass(frozen=True)
class PlanRun:
    """Settings of a plan."""

    flow: str  # checkpoints of stage=flow, stage=video (which holds the autoencoder) and stage=value
    video: str
    value: str
    out: str
    demos: str = ""  # a shard of tracks, whose episode gives the first picture and the sentence; or these two:
    picture: str = ""  # an image file
    instruction: str = ""
    episode: int = 0
    points: int = 144
    steps: int = 20  # network calls per imagined video
    eta: float | None = 0.0  # DDIM; null: ancestral
    beams: int = 2
    candidates: int = 2
    segments: int = 4
    replace_every: int = 4
    gamma: float = 0.98
    stop_at: float | None = None
    restarts: int = 1
    seed: int = 0
    compare: Sequence[int] = ()  # numbers of steps for steps.json; the first, ancestral, is what the others compare to
    compare_episodes: int = 4  # of the shard, from `episode` on
    device: str = ""
    threads: int = 0

    def planner(self) -> Planner:
        """The search."""
        return Planner(beams=self.beams, candidates=self.candidates, segments=self.segments, gamma=self.gamma,
                       replace_every=self.replace_every, stop_at=self.stop_at, restarts=self.restarts)  # fmt: skip


def make_plan(run: PlanRun) -> Path:
    """Plan, write, and return the path of the video. Raises ValueError if modules are missing or do not fit."""
    if run.threads:
        torch.set_num_threads(run.threads)
    out = Path(run.out)
    starts = _starts(run)
    world = load_modules(run.flow, run.video, run.value, points=run.points, steps=run.steps, eta=run.eta,
                         device=run.device)  # fmt: skip
    picture, sentence = starts[0]
    plan, seconds = search(world, run.planner(), picture, sentence, seed=run.seed)
    out.mkdir(parents=True, exist_ok=True)
    found = write_video(out / "plan.mp4", overlay(plan, world.points), fps=FPS)
    (out / "plan.json").write_text(json.dumps(account(plan, run, sentence, seconds), indent=1))
    if run.compare:
        rows = compare(world, run, starts)
        (out / "steps.json").write_text(json.dumps(rows, indent=1))
    return found


def load_modules(
    flow: str, video: str, value: str, *, points: int, steps: int = 20, eta: float | None = 0.0, common: bool = False,
    device: str = "",
) -> Imagination:  # fmt: skip
    """The modules of three checkpoints; the rest is as of `Imagination`.

    Raises ValueError naming one that is of another stage, or mixed texts."""
    loaded: dict[str, Any] = {}
    for name, path in (("flow", flow), ("video", video), ("value", value)):
        if not path:
            raise ValueError(f"a plan needs the models flow, video and value; missing: {name}: train it with "
                             f"'pretrain policy=flip stage={name}' and name its run, {name}=...")  # fmt: skip
        loaded[name] = checkpoint.load_policy(checkpoint.find(path))
        if not hasattr(loaded[name], name):
            raise ValueError(f"{name}={path} holds a {type(loaded[name]).__name__}, expected one of stage={name}")
    encoders = {name: loaded[name].encoder for name in ("flow", "video")}
    check_same({name: encoder.name for name, encoder in encoders.items()})
    world = Imagination(flow=loaded["flow"].flow, video=loaded["video"].video, vae=loaded["video"].vae,
                        value=loaded["value"].value, text=encoders["flow"], points=points, steps=steps,
                        eta=eta, common=common)  # fmt: skip
    return world.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))).eval()


def search(world: World, planner: Planner, picture: Tensor, sentence: str, *, seed: int) -> tuple[Plan, float]:
    """A plan from one picture [3, Y, X] in [0, 1], and the seconds it took."""
    began = time.perf_counter()
    plan = search_many(world, planner, [picture], [sentence], seeds=[seed])[0]
    return plan, time.perf_counter() - began


def search_many(
    world: World, planner: Planner, pictures: Sequence[Tensor], sentences: Sequence[str], *, seeds: Sequence[int]
) -> list[Plan]:
    """Plans from several pictures, in one batch. Raises ValueError if they are of another size than the models see."""
    for picture in pictures:
        if tuple(picture.shape[1:]) != world.size:
            raise ValueError(
                f"the picture is of {picture.shape[1]}x{picture.shape[2]}, the models see {world.size[0]}x"
                f"{world.size[1]}; resize it, or use models of its resolution"
            )

    def imagine(seen: Tensor, rngs: Sequence[torch.Generator], owners: Sequence[int]) -> Future:
        return world.imagine(seen, [sentences[i] for i in owners], rngs)

    return planner.plan_many([p.to(world.device) for p in pictures], imagine, history=world.history, seeds=seeds)


def overlay(plan: Plan, points: Tensor) -> np.ndarray:
    """uint8 [H (F-1), Y, X, 3], enlarged: each segment's tracks so far, over its pictures, for points that move."""
    from PIL import Image, ImageDraw

    frames = []
    start = points.cpu()
    for flow, video in zip(plan.flow.cpu(), plan.video.cpu(), strict=True):
        tracks = torch.cat([start[:, None], flow], 1)  # [P, F, 2]
        moving = ((tracks - start[:, None]).norm(dim=-1).amax(1) > MOVED).nonzero().flatten().tolist()
        for k, picture in enumerate(video):
            grey = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
            image = Image.fromarray(grey.repeat(ENLARGE, 0).repeat(ENLARGE, 1))
            pen = ImageDraw.Draw(image)
            for p in moving:
                way = [tuple((v + 0.5) * ENLARGE for v in place) for place in tracks[p, : k + 2].tolist()]
                hue = int(255 * p / len(start))
                pen.line(way, fill=(255 - hue, 80 + hue // 2, hue), width=1)
            frames.append(np.asarray(image))
    return np.stack(frames)


def account(plan: Plan, run: PlanRun, sentence: str, seconds: float) -> dict[str, Any]:
    """What plan.json holds. In `candidates`, the last beam is the first candidate of all, followed without search."""
    record = plan.record
    return {
        "instruction": sentence,
        "seed": run.seed,
        "value": plan.value,
        "scores": plan.scores.tolist(),
        "best_beam": record.best,
        "beams": [round(v, 6) for v in record.values],
        "candidates": [scores.tolist() for scores in record.scores],  # [segments][beams][candidates]
        "chosen": record.chosen,
        "replaced": [{"segment": s, "beam": a, "by": b} for s, a, b in record.replaced],
        "network_calls": run.steps * len(record.chosen),  # of the video model, each for all candidates at once
        "seconds": round(seconds, 2),
    }


def compare(world: Imagination, run: PlanRun, starts: Sequence[tuple[Tensor, str]]) -> list[dict[str, Any]]:
    """Mean plan value, with its standard error, of each number of steps; the first is ancestral, the others DDIM."""
    rows, values = [], []
    planner = replace(run.planner(), stop_at=None)
    for k, steps in enumerate(run.compare):
        world.steps, world.eta = int(steps), None if k == 0 else 0.0
        plans = [search(world, planner, p, s, seed=run.seed + i) for i, (p, s) in enumerate(starts)]
        values.append(np.array([plan.value for plan, _ in plans]))
        gain = values[-1] - values[0]
        rows.append({
            "steps": int(steps),
            "sampler": "ancestral" if k == 0 else "DDIM",
            "network_calls": int(steps) * run.segments,
            "value": float(values[-1].mean()),
            "difference": float(gain.mean()),
            "difference_error": float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 and k else 0.0,
            "plans": len(plans),
            "seconds": round(sum(s for _, s in plans) / len(plans), 2),
        })  # fmt: skip
    world.steps, world.eta = run.steps, run.eta
    return rows


def _starts(run: PlanRun) -> list[tuple[Tensor, str]]:
    """First pictures and sentences: one, or those to compare on."""
    if bool(run.demos) == bool(run.picture and run.instruction):
        raise ValueError("name what to plan from: demos=SHARD, or picture=FILE and instruction=SENTENCE")
    if run.picture:
        return [(_opened(run.picture), run.instruction)]
    shard = Shard(run.demos)
    count = run.compare_episodes if run.compare else 1
    if not 0 <= run.episode <= len(shard.episodes) - count:
        raise ValueError(f"episodes {run.episode} to {run.episode + count - 1} are not in {run.demos}, which has "
                         f"{len(shard.episodes)}; choose others")  # fmt: skip
    rows: Sequence[Mapping[str, Any]] = shard.episodes[run.episode : run.episode + count]
    return [(torch.from_numpy(shard.frames[e["frame"]].copy()).permute(2, 0, 1).float() / 255, e["instruction"])
            for e in rows]  # fmt: skip


def _opened(path: str) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as e:
        raise ValueError(f"picture={path} cannot be read ({e}); expected an image file") from e
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
