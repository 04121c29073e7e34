"""What FLIP's trained modules are worth on held-out episodes of a shard, each against baselines that learn nothing.

    python -m pretrained.flip.measure runs/tracks --flow runs/flip/flow --video runs/flip/video --value runs/flip/value

Intervals are of 95 % and over episodes (bootstrap): clips of one episode are much alike.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrained import checkpoint
from pretrained.demos.clips import SCENE, TRACKS, TrackReader
from pretrained.demos.optical import Optical
from pretrained.flip.flow import MOVES, steps
from pretrained.flip.stage import FlowStage, ValueStage, VideoStage, floats
from pretrained.flip.vae import IMAGENET
from pretrained.types import DemoBatch

BATCH, DRAWS = 16, 2000
CHANGED = 0.05  # of the grey scale, by which a pixel differs from the last known picture to count as moving


def interval(values: Sequence[float], *, of: Callable[[np.ndarray], float] = lambda v: float(v.mean())) -> list[float]:
    """[estimate, low, high] of a statistic of one number per episode."""
    x = np.asarray(values, dtype=float)
    rng = np.random.default_rng(0)
    drawn = [of(x[rng.integers(0, len(x), len(x))]) for _ in range(DRAWS)]
    return [round(float(v), 4) for v in (of(x), *np.percentile(drawn, [2.5, 97.5]))]


class Held:
    """Training and held-out windows, as `pretrain` divides them."""

    def __init__(self, shard: Path, *, history: int, fraction: float, seed: int, most: int) -> None:
        """`most`: clips per held-out episode, evenly spaced."""
        reader = TrackReader(paths=shard, history=history)
        self.train, held = reader.split(fraction, seed)
        if held is None:
            raise ValueError(f"a share of {fraction} of {reader.num_episodes} episodes holds none out; raise it")
        self.shard, episodes = reader.shard, reader.shard.episode_of[held.chosen]
        rows = [np.flatnonzero(episodes == e) for e in np.unique(episodes)]
        self.rows = [r[np.unique(np.linspace(0, len(r) - 1, most).round().astype(int))] for r in rows]
        self.held = held

    def batches(self) -> Any:
        """(number of the episode, batch of clips of it)."""
        for i, rows in enumerate(self.rows):
            for first in range(0, len(rows), BATCH):
                yield i, self.held.batch(rows[first : first + BATCH])


@torch.no_grad()
def flow(stage: FlowStage, held: Held, *, seed: int = 0) -> dict[str, Any]:
    """ADE (pixels) of moving points, and LTDR: a drawn track, the decoder's at the prior's mean, and two baselines."""
    model = stage.flow.eval()
    mean_motion = _mean_motion(held)
    errors: dict[str, dict[int, list[Tensor]]] = {k: {} for k in ("drawn", "mode", "still", "mean_motion")}
    rng = torch.Generator().manual_seed(seed)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in IMAGENET)
    for i, demo in held.batches():
        true = demo.obs.hints[TRACKS]
        history = (_before(demo, model.history) - mean) / std
        text, points = stage.encoder(demo.obs.texts), true[:, :, 0]
        made = {
            "drawn": model.sample(history, text, points, rng).flow,
            "mode": model.decode(torch.zeros(len(true), model.width), points, history, text).flow,
            "still": points[:, :, None].expand_as(true),
            "mean_motion": points[:, :, None] + mean_motion,
        }
        moves = steps(true)[0][..., 0] > MOVES
        for name, tracks in made.items():
            errors[name].setdefault(i, []).append((tracks - true)[..., 1:, :].norm(dim=-1)[moves])
    out: dict[str, Any] = {}
    for name, per in errors.items():
        joined = [torch.cat(v) for v in per.values() if sum(map(len, v))]
        within = [float(np.mean([float((e < d).float().mean()) for d in (2, 4, 8)])) for e in joined]
        out[name] = {"ade": interval([float(e.mean()) for e in joined]), "ltdr": interval(within)}
    return out


def _mean_motion(held: Held) -> Tensor:
    """[1, P, F, 2]: how the points of the grid move on average in training clips."""
    total, count = torch.zeros(()), 0
    for first in range(0, len(held.train), 64):
        tracks = torch.from_numpy(held.shard.flow(held.train.chosen[first : first + 64]).tracks)
        total = total + (tracks - tracks[:, :, :1]).sum(0, keepdim=True)
        count += len(tracks)
    return total / count


@torch.no_grad()
def video(stage: VideoStage, held: Held, *, flows: FlowStage | None, calls: int, seed: int = 0) -> dict[str, Any]:
    """PSNR (dB) on pixels that move, and under `whole` on all: after true tracks, after drawn ones, what the
    autoencoder allows, and a copy."""
    model, vae = stage.video.eval(), stage.vae.eval()
    psnr: dict[str, dict[int, list[float]]] = {}
    whole: dict[str, dict[int, list[float]]] = {}
    rng = torch.Generator().manual_seed(seed)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in IMAGENET)
    for i, demo in held.batches():
        true, tracks = _behind(demo), demo.obs.hints[TRACKS]
        seen, text = _before(demo, model.history), stage.encoder(demo.obs.texts)
        known = vae.encode(seen)
        made = {"true_tracks": vae.decode(model.sample(known, tracks, text, rng, steps=calls))}
        if flows is not None:
            normal = (_before(demo, flows.flow.history) - mean) / std
            drawn = flows.flow.sample(normal, text, tracks[:, :, 0], rng).flow
            made["drawn_tracks"] = vae.decode(model.sample(known, drawn, text, rng, steps=calls))
        made["autoencoder"] = vae.decode(vae.encode(true))
        made["copy"] = seen[:, -1:].expand_as(true)
        moving = (true - seen[:, -1:]).abs().amax(2) > CHANGED  # [B, F-1, Y, X]
        for name, pictures in made.items():
            error = ((pictures - true) ** 2).mean(2)
            found = [-10 * float(e[m].mean().clamp(min=1e-10).log10()) for e, m in zip(error, moving, strict=True)
                     if bool(m.any())]  # fmt: skip
            psnr.setdefault(name, {}).setdefault(i, []).extend(found)
            every = -10 * error.flatten(1).mean(1).clamp(min=1e-10).log10()
            whole.setdefault(name, {}).setdefault(i, []).extend(every.tolist())
    told = [{name: interval([float(np.mean(v)) for v in per.values() if v]) for name, per in kind.items()}
            for kind in (psnr, whole)]  # fmt: skip
    return {**told[0], "whole": told[1]}


@torch.no_grad()
def value(stage: ValueStage, shard: Any, episodes: Sequence[int]) -> dict[str, Any]:
    """Of whole episodes: how scores go with time in successes, and whether last pictures tell who succeeded."""
    model, rises, ends = stage.value.eval(), [], []
    for e in (shard.episodes[i] for i in episodes):
        frames = torch.from_numpy(shard.frames[e["frame"] : e["frame"] + e["frames"]].copy())
        scores = model.score(floats(frames[None])[0], [e["instruction"]] * len(frames)).numpy()
        ends.append((float(scores[-1]), float(scores[0]), bool(e.get("success", True))))
        if ends[-1][2]:
            order = np.argsort(np.argsort(scores))
            rises.append(float(np.corrcoef(order, np.arange(len(order)))[0, 1]))
    said, won = np.array([s for s, _, _ in ends]), np.array([y for _, _, y in ends])
    return {
        "rank_correlation_with_time": interval(rises) if rises else None,
        "rises_from_first_to_last": float(np.mean([last > first for last, first, y in ends if y])) if rises else None,
        "successes": int(won.sum()),
        "failures": int((~won).sum()),
        "auroc": _auroc(said, won),
    }


def optical(held: Held) -> dict[str, Any]:
    """Of the tracker that only sees pictures: how far its ends of clips lie from the exact ones, pixels, over moving
    points that it calls visible; their share; and what standing still would give. Only a clip's ends are shown to it,
    as rewards see no pictures in between."""
    tracker, errors, stills, shares = Optical(), {}, {}, {}
    for i, demo in held.batches():
        frames = torch.as_tensor(demo.obs.images[SCENE]).numpy()
        true = demo.obs.hints[TRACKS].numpy()
        first = frames.shape[1] - true.shape[2]
        for pictures, tracks in zip(frames, true, strict=True):
            moves = np.linalg.norm(tracks[:, -1] - tracks[:, 0], axis=1) > 2
            if not moves.any():
                continue
            found = tracker(pictures[[first, -1]], tracks[moves, 0])
            seen = found.visible[:, 1]
            shares.setdefault(i, []).append(float(seen.mean()))
            if seen.any():
                gap = np.linalg.norm(found.tracks[seen, 1] - tracks[moves][seen, -1], axis=1)
                errors.setdefault(i, []).append(float(gap.mean()))
                way = np.linalg.norm(tracks[moves][seen, -1] - tracks[moves][seen, 0], axis=1)
                stills.setdefault(i, []).append(float(way.mean()))
    return {name: interval([float(np.mean(v)) for v in per.values()])
            for name, per in (("error", errors), ("still", stills), ("visible", shares))}  # fmt: skip


def _auroc(scores: np.ndarray, labels: np.ndarray) -> list[float] | None:
    good, bad = scores[labels], scores[~labels]
    if not len(good) or not len(bad):
        return None

    def area(a: np.ndarray, b: np.ndarray) -> float:
        return float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())

    rng = np.random.default_rng(0)
    drawn = [area(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(DRAWS)]
    return [round(float(v), 4) for v in (area(good, bad), *np.percentile(drawn, [2.5, 97.5]))]


def _before(demo: DemoBatch, count: int) -> Tensor:
    frames = torch.as_tensor(demo.obs.images[SCENE])
    seen = frames.shape[1] - demo.obs.hints[TRACKS].shape[2] + 1
    return floats(frames[:, seen - count : seen])


def _behind(demo: DemoBatch) -> Tensor:
    frames = torch.as_tensor(demo.obs.images[SCENE])
    return floats(frames[:, frames.shape[1] - demo.obs.hints[TRACKS].shape[2] + 1 :])


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.flip.measure", description=__doc__)
    parser.add_argument("shard", type=Path)
    for name in ("flow", "video", "value"):
        parser.add_argument(f"--{name}", default="", help=f"checkpoint of stage={name}")
    parser.add_argument("--others", type=Path, default=None, help="a shard of episodes never trained on, for the value")
    parser.add_argument("--history", type=int, default=2)
    parser.add_argument("--fraction", type=float, default=0.2, help="val_fraction of the training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--clips", type=int, default=8, help="per held-out episode")
    parser.add_argument("--optical", action="store_true", help="also measure the tracker of pictures")
    parser.add_argument("--calls", type=int, default=20, help="network calls per video")
    given = parser.parse_args(words)
    held = Held(given.shard, history=given.history, fraction=given.fraction, seed=given.seed, most=given.clips)
    stages: dict[str, Any] = {
        name: checkpoint.load_policy(checkpoint.find(getattr(given, name)))
        for name in ("flow", "video", "value")
        if getattr(given, name)
    }
    out: dict[str, Any] = {"held_out_episodes": len(held.rows)}
    if given.optical:
        out["optical"] = optical(held)
    if "flow" in stages:
        out["flow"] = flow(stages["flow"], held)
    if "video" in stages:
        out["video"] = video(stages["video"], held, flows=stages.get("flow"), calls=given.calls)
    if "value" in stages:
        asked = np.unique(held.shard.episode_of[held.held.chosen]).tolist()
        out["value"] = value(stages["value"], held.shard, asked)
        if given.others is not None:
            from pretrained.demos.tracks import Shard

            others = Shard(given.others)
            out["value_of_others"] = value(stages["value"], others, range(len(others.episodes)))
    sys.stdout.write(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
