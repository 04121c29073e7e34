"""Plans chosen by value against plans taken as they come, by what a robot does with them:

    python -m benchmarks.flip_value POLICY --flow F --video V --value W [--episodes 150] run=flip_goal

The policy was imitated with plans (`pretrained.flip.lessons`) and acts on one of them at a time. All arms have the same
initial states and the same noise: no plan, the first plan that is drawn, and the one of several whose last imagined
picture is worth most. What counts is the simulator's: success, and how far the task has come when the episode ends.
With --demos and --shard it is first measured whether the policy heeds plans at all: how far its greedy actions are
from the demonstrated ones, on episodes that were held out, with the true plan, one redrawn by the flow model, that of
another moment, and none. Intervals are of 95 %.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.tables import hardware, table, write_section
from configs.load import load
from envs.types import EnvConfig, EnvSpec, Observation
from envs.vector import SimVector
from pretrained.checkpoint import find, load_policy, read_card
from pretrained.flip.lessons import PlannedDemos
from pretrained.flip.measure import interval
from pretrained.flip.recall import Recall
from pretrained.progress import Bar
from rl.evaluate import Episodes
from rl.proposals.flip_plan import FlipPlan
from rl.stats import mcnemar, paired_difference, wilson
from rl.tables import Tabled
from rl.types import EpisodeRecord

NAMES = {0: "no plan", 1: "the first plan drawn"}
PLANS = {"true": "the true plan", "redrawn": "redrawn by the flow model", "other": "of another moment", "none": "none"}


class Progress:
    """Keeps the simulator's measure of each episode: the last, and the highest."""

    def __init__(self) -> None:
        self.last: dict[int, float] = {}
        self.best: dict[int, float] = {}

    def begin(self, episode: int, spec: EnvSpec, first: Observation) -> None:
        """An episode, perhaps again."""
        self.best[episode] = 0.0
        self._see(episode, first)

    def follow(self, episode: int, actions: np.ndarray, obs: Observation) -> None:
        """What a decision led to."""
        self._see(episode, obs)

    def write(self, out: Path, records: Sequence[EpisodeRecord]) -> Tabled:
        """Nothing."""
        return Tabled()

    def _see(self, episode: int, obs: Observation) -> None:
        self.last[episode] = float(obs.privileged["progress"].reshape(-1)[0])
        self.best[episode] = max(self.best[episode], self.last[episode])


class Arm(NamedTuple):
    """One way to plan. Lists are in the order of the episodes."""

    candidates: int
    success: list[bool]
    tasks: list[str]
    last: list[float]
    best: list[float]
    seconds: float


def heeds(given: argparse.Namespace) -> dict[str, list[float]]:
    """Mean distance of greedy actions to the demonstrated ones, per episode held out, in the policy's units."""
    policy: Any = load_policy(find(Path(given.policy)))
    out: dict[str, list[float]] = {}
    for kind in PLANS:
        demos = PlannedDemos(paths=given.demos, shard=given.shard, flow=given.flow, kind=kind,
                             horizon=policy.spec.horizon)  # fmt: skip
        held = demos.split(given.fraction, given.seed)[1]
        if held is None:
            raise ValueError(f"a share of {given.fraction} holds no episode out; raise --fraction")
        owner = held.demos.places(np.arange(len(held)))[0]
        errors: dict[int, list[float]] = {}
        for first in range(0, len(held), 256):
            rows = np.arange(first, min(first + 256, len(held)), given.every_window)
            demo = held.batch(rows, draw=first)
            rng = [torch.Generator().manual_seed(int(r)) for r in rows]
            with torch.no_grad():
                decision, _ = policy.act(policy.encode(demo.obs), policy.initial_memory(len(rows)), rng, greedy=True)
            gap = (policy.actions.encode(decision.chunk.float()) - policy.actions.encode(demo.actions.float())).abs()
            for row, g, pad in zip(rows, gap[..., : given.moves].mean(-1), demo.is_pad, strict=True):
                errors.setdefault(int(owner[row]), []).append(float(g[~pad].mean()))
        out[kind] = [float(np.mean(v)) for _, v in sorted(errors.items())]
    return out


def planned(given: argparse.Namespace, candidates: int) -> FlipPlan:
    """The best of so many."""
    settings: dict[str, Any] = {"camera": given.camera, "every": given.every, "candidates": candidates}
    if given.recall:
        world: Any = Recall(shard=given.recall, value=given.value, ahead=given.ahead, near=given.near)
        return FlipPlan(world=world, **settings)
    return FlipPlan(flow=given.flow, video=given.video, value=given.value, points=given.points, steps=given.steps,
                    common=True, device="cpu", **settings)  # fmt: skip


def run(given: argparse.Namespace, env: EnvConfig, candidates: int) -> Arm:
    """The episodes with the best of so many plans; 0: without."""
    checkpoint, began = find(Path(given.policy)), time.perf_counter()
    vector = SimVector([env] * given.workers, max_chunk=read_card(checkpoint).policy.horizon)
    try:
        policy: Any = load_policy(checkpoint, env=vector.env_spec, spare_cameras=True)
        proposal = planned(given, candidates) if candidates else None
        plan = [(vector.tasks[k % len(vector.tasks)], k // len(vector.tasks)) for k in range(given.episodes)]
        watch = Progress()
        with Bar(f"best of {candidates}", total=len(plan), quiet=given.quiet) as bar:
            episodes = Episodes(vector, policy, plan, proposal=proposal, tables=watch,
                                report=lambda _: bar.advance(1))  # fmt: skip
            records = episodes.run()
    finally:
        vector.close()
    if bad := [r.cause for r in records if not r.valid]:
        raise RuntimeError(f"{len(bad)} episodes failed in the simulator, so arms cannot be paired: {bad[0]}")
    success, order = [r.success for r in records], range(len(records))
    return Arm(candidates, success, [r.task for r in records], [watch.last[k] for k in order],
               [watch.best[k] for k in order], time.perf_counter() - began)  # fmt: skip


def name(candidates: int) -> str:
    """Of an arm."""
    return NAMES.get(candidates, f"the best of {candidates}, by value")


def row(arm: Arm, first: Arm | None) -> list[str]:
    """Of the table; differences are to the arm `first`, of a plan that nobody chose."""
    wins, n = sum(arm.success), len(arm.success)
    low, high = wilson(wins, n)
    share = f"{100 * wins / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    cells = [name(arm.candidates), share, _shown(interval(arm.last)), _shown(interval(arm.best))]
    if first is None or arm is first:
        return [*cells, "", ""]
    change = paired_difference(first.success, arm.success)
    gain = interval((np.array(arm.last) - np.array(first.last)).tolist())
    return [*cells, f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}], p = "
            f"{mcnemar(first.success, arm.success):.2g}", _shown(gain, sign="+")]  # fmt: skip


def _shown(found: list[float], sign: str = "") -> str:
    return f"{found[0]:{sign}.3f} [{found[1]:{sign}.3f}, {found[2]:{sign}.3f}]"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flip_value", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("policy", help="run folder or checkpoint, imitated with plans")
    parser.add_argument("words", nargs="*", help="as of launch.py evaluate, such as run=flip_goal")
    for part in ("flow", "video", "value"):
        parser.add_argument(f"--{part}", default="", help=f"checkpoint of stage={part}")
    parser.add_argument("--candidates", type=int, nargs="+", default=[0, 1, 8], help="one arm each; 0: no plan")
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--camera", default="agentview")
    parser.add_argument("--every", type=int, default=2, help="decisions between two plans")
    parser.add_argument("--points", type=int, default=144)
    parser.add_argument("--steps", type=int, default=5, help="network calls per imagined video")
    parser.add_argument("--recall", default="", help="a shard to recall plans from, in place of flow and video models")
    parser.add_argument("--ahead", type=int, default=2, help="as of pretrained.flip.recall")
    parser.add_argument("--near", type=int, default=12, help="as of pretrained.flip.recall")
    parser.add_argument("--demos", default="", help="what the policy was imitated from, to see whether it heeds plans")
    parser.add_argument("--shard", default="", help="its tracks")
    parser.add_argument("--fraction", type=float, default=0.15, help="val_fraction of the imitation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the imitation")
    parser.add_argument("--moves", type=int, default=6, help="entries of an action that count: all but the gripper's")
    parser.add_argument("--every-window", type=int, default=2)
    parser.add_argument("--out", default="", help="JSON file of the episodes")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; 1 if value does not choose better plans."""
    given = parse()
    env = EnvConfig(**{k: v for k, v in load("evaluate", given.words)["env"].items() if k != "_target_"})
    parts, found = [], {}
    if given.demos:
        found = heeds(given)
        parts.append(
            table(["plan", "distance of actions"], [[PLANS[k], _shown(interval(v))] for k, v in found.items()])
        )
        print(parts[-1], flush=True)
    arms = [run(given, env, n) for n in given.candidates]
    first = next((a for a in arms if a.candidates == 1), None)
    parts.append(table(["plan", "success", "progress at the end", "highest progress", "success, against the first plan",
                        "progress, against it"], [row(a, first) for a in arms]))  # fmt: skip
    tasks = sorted(set(arms[0].tasks))
    per = [[name(a.candidates), *(f"{sum(s for s, t in zip(a.success, a.tasks, strict=True) if t == task)} of "
                                  f"{a.tasks.count(task)}" for task in tasks)] for a in arms]  # fmt: skip
    parts.append(table(["success", *tasks], per))
    print("\n\n".join(parts[-2:]))
    if given.out:
        Path(given.out).write_text(json.dumps({"heeds": found, "arms": [a._asdict() for a in arms]}))
    best = arms[-1]
    source = (f"recalled from the {given.near} nearest episodes" if given.recall else
              f"imagined with {given.steps} network calls per video, all from the same noise")  # fmt: skip
    settings = (f"{given.episodes} episodes per arm, a plan every {given.every} decisions, {source}; greedy actions; "
                f"{best.seconds / given.episodes:.1f} s per episode with {name(best.candidates)}.")  # fmt: skip
    models = "--flow F --value W --recall SHARD" if given.recall else "--flow F --video V --value W"
    heeded = " --demos DEMOS --shard SHARD" if given.demos else ""
    command = (f"python -m benchmarks.flip_value POLICY {' '.join(given.words)} {models} --episodes {given.episodes} "
               f"--candidates {' '.join(map(str, given.candidates))}{heeded}")  # fmt: skip
    write_section("flip_value", f"## FLIP's plans, acted on\n\n{hardware()}\n\n" + "\n\n".join(parts)
                  + f"\n\n{settings}\n\nCommand: `{command}`.")  # fmt: skip
    if first is None or best is first:
        return 0
    return 0 if paired_difference(first.success, best.success).low > 0 else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
