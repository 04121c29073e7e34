"""How far GENIMA's controller is from held-out demonstrations, by the pictures that it is shown; no simulator.

    python -m benchmarks.genima_actions HELD_OUT_TILES.hdf5 --controller runs/controller --act runs/act \\
        --painter runs/painter --still HELD_OUT_STILL.hdf5

Shown are the true targets, those of a painter, those of one step later ("still"), and the scene without any, which is
what plain ACT (`--act`, trained on raw pictures) is shown. "Hold" keeps the present joints, and the gripper as it is.
Joints: mean distance per joint from the chunk that was demonstrated, in mrad, padded steps left out. Gripper: share of
steps with the demonstrated command. Intervals are 95 %, by drawing episodes with replacement; every row judges the same
frames. Success needs the simulator: this says only what a controller makes of its pictures.
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

from pretrained.checkpoint import find, load_policy
from pretrained.demos import Demos, stored_spec
from pretrained.genima.render import TARGET
from pretrained.genima.tiles import tile_name, untile
from pretrained.types import DemoBatch, ObsBatch

DRAWS = 2000  # of the bootstrap
BATCH = 32  # frames

Errors = tuple[np.ndarray, np.ndarray]  # of each frame: joints (mrad) and share of right grippers; [N] each


def errors(chunk: Tensor, demo: DemoBatch) -> Errors:
    """Of chunks [B, H, A], the gripper last and its sign its command."""
    keep = (~torch.as_tensor(demo.is_pad)).float()
    count = keep.sum(1)
    off = (chunk - demo.actions)[..., :-1].abs().mean(-1) * 1000
    right = ((chunk[..., -1] > 0) == (demo.actions[..., -1] > 0)).float()
    return ((off * keep).sum(1) / count).numpy(), ((right * keep).sum(1) / count).numpy()


def interval(values: np.ndarray, episodes: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, ...]:
    """Mean of [N] values, and the ends of its 95 % interval, with whole episodes [N] drawn with replacement."""
    names, place = np.unique(episodes, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return float(values.mean()), *(float(v) for v in np.quantile(means, (0.025, 0.975)))


def decide(policy: Any, views: dict[str, np.ndarray], demo: DemoBatch) -> Tensor:
    """Greedy chunks [B, H, A] of a controller that is shown views [B, Y, X, 3]."""
    images = {c: torch.from_numpy(views[c].copy())[:, None] for c in policy.spec.cameras}
    x = policy.encode(ObsBatch(images, demo.obs.proprio, demo.obs.texts))
    rng = [torch.Generator().manual_seed(0) for _ in demo.obs.texts]
    return policy.act(x, policy.initial_memory(len(rng)), rng, greedy=True)[0].chunk.float()


def hold(demo: DemoBatch) -> Tensor:
    """Chunks [B, H, A] that keep [gripper_open, joints] as they are; a command of -1 opens."""
    now = torch.as_tensor(demo.obs.proprio)[:, -1]
    grip = torch.where(now[:, :1] > 0, -1.0, 1.0)
    return torch.cat([now[:, 1:], grip], -1)[:, None].expand(-1, demo.actions.shape[1], -1)


@torch.no_grad()
def measure(
    tiles: str,
    still: str,
    order: Sequence[str],
    horizon: int,
    rows: dict[str, tuple[Any, str]],
    paint: Callable[..., Any],
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Row -> {joints, gripper} -> mean, low, high; `rows` has the controller and the kind of pictures it is shown."""
    found: dict[str, list[Errors]] = {name: [] for name in (*rows, "hold")}
    demos, other = (Demos(path, env=_spec(path), horizon=horizon) for path in (tiles, still))
    if len(demos) != len(other):
        raise ValueError(f"{still} has {len(other)} frames, {tiles} {len(demos)}: they are of other demonstrations")
    for start in range(0, len(demos), BATCH):
        index = range(start, min(start + BATCH, len(demos)))
        demo = demos.batch(index)
        scene, target = (np.asarray(demo.obs.images[k])[:, -1] for k in (tile_name(order), TARGET))
        noise = [torch.Generator().manual_seed(i) for i in index]
        shown = {"scene": scene, "true": target, "still": np.asarray(other.batch(index).obs.images[TARGET])[:, -1]}
        shown["painted"] = paint(scene, demo.obs.texts, noise).cpu().numpy()
        for name, (policy, kind) in rows.items():
            found[name].append(errors(decide(policy, untile(shown[kind], order), demo), demo))
        found["hold"].append(errors(hold(demo), demo))
    episodes = np.repeat(np.arange(demos.num_episodes), [len(e) for e in demos.episodes])
    out: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, parts in found.items():
        joints, gripper = (np.concatenate(v) for v in zip(*parts, strict=True))
        out[name] = {"joints": interval(joints, episodes), "gripper": interval(gripper, episodes)}
    return out


def _spec(path: str) -> Any:
    spec = stored_spec(path)
    if spec is None:
        raise ValueError(f"{path} does not say what it is of; expected tiles of pretrained.genima.render")
    return spec


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.genima_actions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("tiles", help="a file of kind tiles, held out")
    for name in ("controller", "act", "painter"):
        parser.add_argument(f"--{name}", required=True, help="run folder or checkpoint")
    parser.add_argument("--still", required=True, help="the same demonstrations' tiles with --horizon 1")
    parser.add_argument("--out", default="", help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded: list[Any] = [load_policy(find(Path(p))) for p in (args.controller, args.act, args.painter)]
    controller, act, painter = (m.eval() for m in loaded)
    rows = {f"controller, {kind}": (controller, kind) for kind in ("true", "painted", "still", "scene")}
    rows["ACT, scene"] = (act, "scene")
    found = measure(args.tiles, args.still, painter.views, controller.spec.horizon, rows,
                    lambda *given: painter.paint(*given, steps=1))  # fmt: skip
    sys.stdout.write("| controller, shown | joints (mrad) | gripper right (%) |\n|---|---|---|\n")
    for name, row in found.items():
        (m, low, high), (g, g_low, g_high) = row["joints"], (100 * v for v in row["gripper"])
        sys.stdout.write(f"| {name} | {m:.1f} [{low:.1f}, {high:.1f}] | {g:.1f} [{g_low:.1f}, {g_high:.1f}] |\n")
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
