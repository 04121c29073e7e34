"""How far painted spheres are from where they should be, in pixels, on tiles that the painter has not seen.

    python -m pretrained.genima.judge runs/painter runs/demos/held_out_tiles.hdf5 --steps 1

A sphere is the middle of the pixels of its hue that differ from the scene; it counts where the true target shows at
least `least` such pixels. Hues are compared, not colours, because a blurred picture mixes stripes with black, and edges
with what is around, and neither changes the hue of a colour over black, grey or white. `--against` names tiles of the
same demonstrations, rendered with another --horizon: with 1, it says how far off one would be if nothing moved.
`--picture FILE.png` shows some of the frames: what was seen, what was painted, the true target.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.record import write_picture
from pretrained import checkpoint
from pretrained.demos import Demos, stored_spec
from pretrained.genima.render import TARGET
from pretrained.genima.spheres import BASE, ELBOW, GRIPPER_CLOSED, GRIPPER_OPEN, WRIST
from pretrained.genima.tiles import tile_name, untile
from pretrained.progress import Bar

SPHERES = {"base": (BASE,), "elbow": (ELBOW,), "wrist": (WRIST,), "gripper": (GRIPPER_OPEN, GRIPPER_CLOSED)}
LIKE = 0.8  # cosine of the angle within which two hues are alike
FULL = 0.25  # least saturation, of the colour's own
NEW = 30.0  # distance in RGB (Euclidean) beyond which a pixel differs from the scene
LEAST = 6  # pixels
SHOWN = 6  # frames of `--picture`
LARGER = 2  # times, in it


def coloured(picture: np.ndarray, scene: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """bool [..., Y, X]: has the hue of one of the colours, and differs from the scene."""
    there = picture.astype(np.float32)
    new = np.linalg.norm(there - scene.astype(np.float32), axis=-1) > NEW
    hue = there - there.mean(-1, keepdims=True)
    size, like = np.linalg.norm(hue, axis=-1), np.zeros_like(new)
    for colour in colours:
        wanted = np.asarray(colour, dtype=np.float32)
        wanted = wanted - wanted.mean()
        norm = float(np.linalg.norm(wanted))
        like |= (hue @ wanted > LIKE * norm * size) & (size > FULL * norm)
    return new & like


def middle(mask: np.ndarray) -> np.ndarray:
    """x, y of the mean pixel [2]; not a number if there is none."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()]) if len(rows) else np.full(2, np.nan)


def compare(painted: np.ndarray, target: np.ndarray, scene: np.ndarray, *, least: int = LEAST) -> dict[str, np.ndarray]:
    """Sphere -> errors [M] of one view's pictures [N, Y, X, 3], of those that the target shows; not a number where the
    painted picture has no such colour."""
    out: dict[str, np.ndarray] = {}
    for name, colours in SPHERES.items():
        true, ours = (coloured(p, scene, colours) for p in (target, painted))
        rows = np.flatnonzero(true.sum((1, 2)) >= least)
        errors = [np.linalg.norm(middle(ours[i]) - middle(true[i])) for i in rows]
        if errors:
            out[name] = np.array(errors)
    return out


def grip_agrees(painted: np.ndarray, target: np.ndarray, scene: np.ndarray, *, least: int = LEAST) -> np.ndarray:
    """bool [M]: of pictures whose target shows an open or a closed gripper, whether the painted one shows the same."""
    counts = [[coloured(p, scene, (c,)).sum((1, 2)) for c in (GRIPPER_OPEN, GRIPPER_CLOSED)] for p in (target, painted)]
    (true_open, true_closed), (ours_open, ours_closed) = counts
    rows = np.maximum(true_open, true_closed) >= least
    return ((true_open > true_closed) == (ours_open > ours_closed))[rows]


def beside(*kinds: np.ndarray, count: int = SHOWN) -> np.ndarray:
    """Some of N tiles [N, Y, X, 3], from the first to the last, one below the other; kinds side by side, enlarged."""
    rows = np.linspace(0, len(kinds[0]) - 1, min(count, len(kinds[0]))).round().astype(int)
    lines = [np.concatenate([kind[i] for kind in kinds], 1) for i in rows]
    return np.concatenate(lines).repeat(LARGER, 0).repeat(LARGER, 1)


def judge(painter: Any, tiles: str, *, steps: int = 0, batch: int = 32, against: str = "", seed: int = 0,
          every: int = 1, picture: str = "", quiet: bool = False) -> dict[str, Any]:  # fmt: skip
    """camera -> sphere -> {shown, found, median, mean, p90} in pixels, and the share of right grippers; `still` has the
    same of the tiles `against`. Of `every` so many frames one is judged. A `picture` of some is written where one is
    named."""
    if every < 1:
        raise ValueError(f"every = {every}: expected at least 1")
    spec = stored_spec(tiles)
    if spec is None or tile_name(painter.views) not in spec.cameras:
        raise ValueError(f"{tiles} has no picture '{tile_name(painter.views)}': render it with the painter's cameras")
    demos, other = (Demos(path, env=spec, horizon=1) if path else None for path in (tiles, against))
    assert demos is not None
    if other is not None and len(other) != len(demos):
        raise ValueError(f"{against} has {len(other)} frames, {tiles} {len(demos)}: they are of other demonstrations")
    found: dict[str, list[np.ndarray]] = {"scene": [], "target": [], "painted": [], "still": []}
    chosen = list(range(0, len(demos), every))
    with Bar("paint", total=len(chosen), quiet=quiet) as bar:
        for start in range(0, len(chosen), batch):
            rows = chosen[start : start + batch]
            demo = demos.batch(rows)
            scene, target = (np.asarray(demo.obs.images[k])[:, -1] for k in (tile_name(painter.views), TARGET))
            noise = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in rows]
            found["scene"].append(scene)
            found["target"].append(target)
            found["painted"].append(painter.paint(scene, demo.obs.texts, noise, steps=steps).cpu().numpy())
            if other is not None:
                found["still"].append(np.asarray(other.batch(rows).obs.images[TARGET])[:, -1])
            bar.advance(len(rows))
    whole = {k: np.concatenate(v) for k, v in found.items() if v}
    if picture:
        write_picture(picture, beside(whole["scene"], whole["painted"], whole["target"]))
    views = {k: untile(v, painter.views) for k, v in whole.items()}
    out: dict[str, Any] = {"frames": len(chosen), "steps": steps or painter.steps, "views": {}}
    for name in ("painted", "still") if other is not None else ("painted",):
        out["views"][name] = {c: _table(views[name][c], views["target"][c], views["scene"][c]) for c in painter.views}
    return out


def _table(painted: np.ndarray, target: np.ndarray, scene: np.ndarray) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, errors in compare(painted, target, scene).items():
        good = errors[np.isfinite(errors)]
        told = {"median": np.median(good), "mean": good.mean(), "p90": np.quantile(good, 0.9)} if len(good) else {}
        rows[name] = {"shown": len(errors), "found": len(good), **{k: round(float(v), 2) for k, v in told.items()}}
    agrees = grip_agrees(painted, target, scene)
    return rows | ({"right_gripper": round(float(agrees.mean()), 3)} if len(agrees) else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.genima.judge", description="Measure a painter.")
    parser.add_argument("painter", help="run folder or checkpoint")
    parser.add_argument("tiles", help="a file of kind tiles, held out")
    parser.add_argument("--against", default="", help="the same demonstrations' tiles with another --horizon")
    parser.add_argument("--steps", type=int, default=0, help="of painting; 0: the painter's own")
    parser.add_argument("--every", type=int, default=1, help="judge one of so many frames")
    parser.add_argument("--out", default="", help="JSON file; the console if left out")
    parser.add_argument("--picture", default="", help="PNG or JPEG: scene, painted and true target of some frames")
    args = parser.parse_args(argv)
    try:
        painter: Any = checkpoint.load_policy(checkpoint.find(args.painter))
        if not hasattr(painter, "paint"):
            raise ValueError(f"{args.painter} holds a {type(painter).__name__}, expected a TargetPainter")
        options = {"steps": args.steps, "against": args.against, "every": args.every, "picture": args.picture}
        found = judge(painter.eval(), args.tiles, **options)
        text = json.dumps(found, indent=1)
    except ValueError as e:
        parser.exit(2, f"error: {e}\n")
    Path(args.out).write_text(text + "\n") if args.out else sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
