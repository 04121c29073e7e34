"""What FLIP's plans cost and what they are worth: `python -m benchmarks.flip_plans SHARD --flow F --video V --value W`.

The planner starts from the first pictures of a shard's episodes, with the same seeds for every sampler of the video
model. The original's sampler, ancestral steps of the whole schedule, is the measure; the others take fewer. Values are
the value model's own, of pictures that were imagined: they say what a sampler costs the plan, not what a plan is worth
to a robot. Intervals are of 95 %, by bootstrap over the plans, and paired.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.tables import hardware, table, write_results, write_section
from pretrained.demos.tracks import Shard
from pretrained.flip.imagine import Imagination
from pretrained.flip.measure import interval
from pretrained.flip.plan import load_modules, search_many
from pretrained.flip.planner import Planner

FULL = 500  # network calls per segment, as the original plans
FEWER = (50, 25, 20, 10, 5)  # calls of DDIM
EQUAL, SHARE = 0.02, 1 / 20  # of the value that may be lost, and of the calls that may be made: set before measuring
GROUP = 8  # plans that are searched for in one batch


class Arm(NamedTuple):
    """One sampler's plans."""

    values: np.ndarray  # [plans]
    first: np.ndarray  # [plans] of the first candidates, without search
    seconds: float  # per plan


def starts(shard: Shard, plans: int) -> tuple[list[torch.Tensor], list[str]]:
    """First pictures [3, Y, X] in [0, 1] and sentences. Raises ValueError if there are too few episodes."""
    if len(shard.episodes) < plans:
        raise ValueError(f"the shard has {len(shard.episodes)} episodes, expected at least {plans}; lower --plans")
    rows = shard.episodes[:plans]
    pictures = [torch.from_numpy(shard.frames[e["frame"]].copy()).permute(2, 0, 1).float() / 255 for e in rows]
    return pictures, [e["instruction"] for e in rows]


def measure(
    world: Imagination, planner: Planner, shard: Shard, plans: int, steps: int, eta: float | None, *, seed: int
) -> Arm:
    """Plan from every start with a sampler."""
    pictures, sentences = starts(shard, plans)
    world.steps, world.eta = steps, eta
    began, found = time.perf_counter(), []
    for i in range(0, plans, GROUP):
        seeds = [seed + k for k in range(i, min(i + GROUP, plans))]
        found += search_many(world, planner, pictures[i : i + GROUP], sentences[i : i + GROUP], seeds=seeds)
        print(f"{steps} calls, {'ancestral' if eta is None else 'DDIM'}: {len(found)} plans", file=sys.stderr)
    seconds = (time.perf_counter() - began) / plans
    first = [p.record.values[-1] if planner.keep_first else float(p.record.scores[0][0, 0]) for p in found]
    return Arm(np.array([p.value for p in found]), np.array(first), seconds)


def row(name: str, calls: int, arm: Arm, full: Arm, full_calls: int) -> tuple[list[str], list[float], list[float]]:
    """The row of a sampler, its paired difference to the full one, and that in shares of the full one's value."""
    gain = interval((arm.values - full.values).tolist())
    share = [v / float(full.values.mean()) for v in gain]
    less = ["", ""] if arm is full else [_shown(gain), f"{share[0]:+.1%} [{share[1]:+.1%}, {share[2]:+.1%}]"]
    cells = [name, str(calls), f"1/{full_calls / calls:.0f}", _shown(interval(arm.values.tolist())), *less,
             _shown(interval((arm.values - arm.first).tolist())), f"{arm.seconds:.1f}"]  # fmt: skip
    return cells, gain, share


def _shown(found: list[float]) -> str:
    return f"{found[0]:.4f} [{found[1]:.4f}, {found[2]:.4f}]"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flip_plans", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("shard", type=Path, help="of tracks; episodes that no model was trained on")
    for name in ("flow", "video", "value"):
        parser.add_argument(f"--{name}", required=True, help=f"checkpoint of stage={name}")
    parser.add_argument("--plans", type=int, default=32)
    parser.add_argument("--segments", type=int, default=2)
    parser.add_argument("--beams", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--points", type=int, default=144)
    parser.add_argument("--full", type=int, default=FULL, help="network calls per segment of the full sampler")
    parser.add_argument("--fewer", type=int, nargs="+", default=FEWER, help="network calls of DDIM")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Plan, print and write; 1 if no sampler is as good at a twentieth of the calls."""
    given = parse()
    shard = Shard(given.shard)
    world = load_modules(given.flow, given.video, given.value, points=given.points, device="cpu")
    planner = Planner(beams=given.beams, candidates=given.candidates, segments=given.segments,
                      keep_first=given.segments > 1)  # fmt: skip

    def arm(steps: int, eta: float | None, seed: int = given.seed) -> Arm:
        return measure(world, planner, shard, given.plans, steps, eta, seed=seed)

    full, calls = arm(given.full, None), given.full * given.segments
    rows = [row("ancestral, full", calls, full, full, calls)[0]]
    results: dict[str, dict[str, float]] = {}
    good = False
    for steps in given.fewer:
        name = f"DDIM, {steps}"
        cells, _, share = row(name, steps * given.segments, arm(steps, 0.0), full, calls)
        rows.append(cells)
        results[f"flip_plans/value at 1/{given.full / steps:.0f} of the calls, {name}"] = {
            "ratio": 1 + share[0], "low": 1 + share[1], "high": 1 + share[2], "plans": given.plans,
            **({"goal": 1 - EQUAL} if steps <= given.full * SHARE else {}),
        }  # fmt: skip
        good |= steps <= given.full * SHARE and share[1] >= -EQUAL
    few = min(given.fewer)
    other = arm(few, None, seed=given.seed)
    rows.append(row(f"ancestral, {few}", few * given.segments, other, full, calls)[0])
    other = arm(few, 0.0, seed=given.seed + 10**6)
    rows.append(row(f"DDIM, {few}, other noise", few * given.segments, other, full, calls)[0])
    text = table(["sampler", "network calls per plan", "of the full", "plan value", "paired difference",
                  "in shares of the value", "gained over the first candidate", "s per plan"], rows)  # fmt: skip
    print(text)
    settings = (
        f"{given.plans} plans from the first pictures of as many episodes; {given.segments} segments, {given.beams} "
        f"beams, {given.candidates} candidates, seed {given.seed}. Goal: at most {SHARE:.0%} of the calls, and at "
        f"most {EQUAL:.0%} of the value lost at the lower end of the interval. Each network call is for all candidates "
        f"of {GROUP} plans at once, one thread."
    )
    command = (f"python -m benchmarks.flip_plans SHARD --flow F --video V --value W --plans {given.plans} --segments "
               f"{given.segments} --beams {given.beams} --candidates {given.candidates} --full {given.full} --fewer "
               f"{' '.join(map(str, given.fewer))}")  # fmt: skip
    write_section("flip_plans", f"## FLIP's plans: cost and value\n\n{hardware()}\n\n{text}\n\n{settings}\n\nCommand: "
                  f"`{command}`.")  # fmt: skip
    write_results(results)
    return 0 if good else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
