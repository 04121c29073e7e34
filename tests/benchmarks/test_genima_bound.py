"""True targets: those of the expert's own episode, from where the robot is in it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.genima_bound as bound
from envs.types import EnvConfig
from pretrained.genima.judge import coloured, middle
from pretrained.genima.spheres import GRIPPER_OPEN, Style
from pretrained.types import ObsBatch

SIZE = (32, 32)
WAY = [0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0]  # a joint that goes down and up again, as a hand that lifts


class Sim:
    """Seed s shows its gripper s pixels further down; step t at column 2 + 4 t."""

    spec = SimpleNamespace(env_id="robosuite/Lift", tasks=("Lift",))

    def reset(self, _: str, seed: int) -> Any:
        self.seed, self.t = seed, 0
        return self._see()

    def step(self, _: Any, *, render: bool) -> Any:
        assert not render
        self.t += 1
        return SimpleNamespace(obs=self._see(), terminated=self.t == len(WAY), truncated=False)

    def _see(self) -> Any:
        gripper = np.eye(4)
        gripper[:3, 3] = (0.2 + 0.4 * self.t, 1 + 0.1 * self.seed, 1.0)
        intrinsics = np.array([[10.0, 0, 0], [0, 10.0, 0], [0, 0, 1]])  # at 1 m, 10 cm are a pixel
        joint = WAY[min(self.t, len(WAY) - 1)]
        seen = {"joint_poses": np.zeros((0, 7)), "gripper_pose": gripper, "gripper_open": np.ones(1)}
        seen |= {"joint_pos": np.array([joint]), "camera/front": np.eye(4), "intrinsics/front": intrinsics}
        return SimpleNamespace(privileged=seen)


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> bound.TrueTargets:
    expert = SimpleNamespace(reset=lambda _: None, act=lambda _: np.zeros(1))
    monkeypatch.setattr(bound, "build", lambda _: Sim())
    monkeypatch.setattr(bound, "make_expert", lambda *_: expert)
    style = Style(scales={"front": 20.0}, joints={}, horizon=2)
    return bound.TrueTargets(EnvConfig(sim={}), cameras={"front": SIZE}, style=style)


def column(targets: bound.TrueTargets, seeds: list[int], joint: float) -> list[tuple[float, float]]:
    """Where the gripper's sphere is drawn, in steps from the left and tens of pixels from above, for each seed."""
    scene = torch.full((len(seeds), 1, *SIZE, 3), 120, dtype=torch.uint8)
    proprio = torch.tensor([[[1.0, joint]]] * len(seeds))
    rng = [torch.Generator().manual_seed(s * bound.STRIDE) for s in seeds]
    drawn = targets(ObsBatch({"front": scene}, proprio, ["lift"] * len(seeds)), rng)["target/front"].numpy()
    spots = [middle(coloured(drawn[i], scene[i, 0].numpy(), [GRIPPER_OPEN])) for i in range(len(seeds))]
    return [((x + 0.5 - 2) / 4, (y + 0.5) / 10) for x, y in spots]


def test_targets_are_those_of_the_experts_next_steps(targets: bound.TrueTargets) -> None:
    assert np.array(column(targets, [0, 5], 0.0)) == pytest.approx(np.array([[2, 1], [2, 1.5]]), abs=0.2)
    assert np.array(column(targets, [5], 1.1)) == pytest.approx(np.array([[3, 1.5]]), abs=0.2)
    # On the way down: the same joint positions on the way up are further than a target is ahead.
    assert np.array(column(targets, [5], 2.0)) == pytest.approx(np.array([[4, 1.5]]), abs=0.2)
    assert np.array(column(targets, [5], 1.0))[0, 0] >= 4 - 0.2  # never going back
    assert np.array(column(targets, [0], 1.0)) == pytest.approx(np.array([[3, 1]]), abs=0.2)  # an episode of its own


def test_at_the_end_it_shows_the_last_moment_but_one(targets: bound.TrueTargets) -> None:
    for joint in (2.0, 3.0, 1.0, 0.0, 0.0):
        ((step, _),) = column(targets, [1], joint)
    assert step == pytest.approx(len(WAY) - 2, abs=0.2)
