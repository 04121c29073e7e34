"""GENIMA's controller with the true targets, as an upper bound of what a painter can give it:

    python -m benchmarks.genima_bound runs/controller run=genima_lift [--episodes 100]

For each evaluation seed the scripted expert first solves the same initial state. What it will do some steps later is
then drawn on what the controller sees, from the moment of the expert's episode that is most like the present one: by
joint positions, never going back, and no further on than a target is ahead, since the way up passes through the joint
positions of the way down. A camera on the robot is taken to be where it was at that moment. The same seeds as
`evaluate` with the same number of episodes; one task. `--out` is a folder with the records of `evaluate`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs.load import load
from envs.build import build
from envs.experts import make_expert
from envs.types import EnvConfig
from envs.vector import SimVector
from pretrained.checkpoint import find, load_policy, read_card
from pretrained.genima.spheres import Camera, Moment, Style, draw, target_frame
from pretrained.progress import Bar
from pretrained.types import ObsBatch, Rng
from rl.evaluate import Episodes
from rl.records import summarise, write_records, write_summary

STRIDE = 7919  # from an episode's seed to that of its noise, in rl.evaluate


class Shown(NamedTuple):
    """The expert's episode from one initial state."""

    moments: list[Moment]
    cameras: list[dict[str, Camera]]
    joints: np.ndarray  # [T, J]


class TrueTargets:
    """A proposal that knows the future."""

    every = 1

    def __init__(self, env: EnvConfig, *, cameras: dict[str, tuple[int, int]], style: Style, steps: int = 200) -> None:
        self._sim: Any = build({**env.sim, "poses": True})
        self._cameras, self._style, self._steps = cameras, style, steps
        self._known: dict[int, Shown] = {}
        self._place: dict[int, int] = {}  # seed -> moment it has come to

    def __call__(self, obs: ObsBatch, rng: Rng) -> dict[str, Tensor]:
        """Hints target/<camera>."""
        assert not isinstance(rng, torch.Generator), "one generator per row says which episode it is"
        drawn: dict[str, list[np.ndarray]] = {c: [] for c in self._cameras}
        for i, one in enumerate(rng):
            seed = one.initial_seed() // STRIDE
            shown = self._show(seed)
            now = np.asarray(torch.as_tensor(obs.proprio)[i, -1, 1:])
            first = self._place.get(seed, 0)
            near = shown.joints[first : first + 1 + self._style.horizon]
            t = first + int(np.abs(near - now).sum(1).argmin())
            self._place[seed] = t
            target = target_frame(t, len(shown.moments), self._style.horizon)
            moment = shown.moments[max(0, len(shown.moments) - 2) if target is None else target]
            for c in self._cameras:
                image = np.asarray(torch.as_tensor(obs.images[c])[i, -1])
                drawn[c].append(draw(shown.cameras[t][c], self._style.spheres(c, moment), image))
        return {f"target/{c}": torch.from_numpy(np.stack(v)) for c, v in drawn.items()}

    def _show(self, seed: int) -> Shown:
        if seed not in self._known:
            spec = self._sim.spec
            obs, seen = self._sim.reset(spec.tasks[0], seed), []
            expert = make_expert(spec.env_id, spec.tasks[0])
            expert.reset(obs)
            for _ in range(self._steps):
                seen.append(obs.privileged)
                step = self._sim.step(expert.act(obs), render=False)
                obs = step.obs
                if step.terminated or step.truncated:
                    break
            self._known[seed] = Shown(
                [Moment(p["joint_poses"], p["gripper_pose"], float(p["gripper_open"][0])) for p in seen],
                [{c: Camera(p[f"intrinsics/{c}"], p[f"camera/{c}"], size) for c, size in self._cameras.items()}
                 for p in seen],
                np.stack([p["joint_pos"] for p in seen]),
            )  # fmt: skip
        return self._known[seed]


def main() -> int:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.genima_bound", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("controller", help="run folder or checkpoint")
    parser.add_argument("words", nargs="*", help="as of launch.py evaluate, such as run=genima_lift")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--horizon", type=int, default=8, help="of the targets that the controller was trained with")
    parser.add_argument("--scales", default="robot0_eye_in_hand=3", help="as of pretrained.genima.render")
    parser.add_argument("--out", default="", help="folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = EnvConfig(**{k: v for k, v in load("evaluate", args.words)["env"].items() if k != "_target_"})
    checkpoint = find(Path(args.controller))
    vector = SimVector([env] * args.workers, max_chunk=read_card(checkpoint).policy.horizon)
    try:
        policy: Any = load_policy(checkpoint, env=vector.env_spec, overrides={"targets": True})
        own = {c: float(v) for c, v in (part.split("=") for part in args.scales.split(",") if part)}
        style = Style(scales={c: own.get(c, 6.5) for c in policy.spec.cameras}, horizon=args.horizon)
        proposal = TrueTargets(env, cameras=dict(policy.spec.cameras), style=style)
        plan = [(vector.tasks[0], seed) for seed in range(args.episodes)]
        with Bar("evaluate", total=len(plan)) as bar:
            episodes = Episodes(vector, policy, plan, proposal=proposal, report=lambda _: bar.advance(1))
            summary = summarise(episodes.run())
    finally:
        vector.close()
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        write_records(Path(args.out), episodes.records)
        write_summary(Path(args.out), summary)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
