"""A rollout worker beside cameras that its policy does not look through."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.types import EnvConfig
from pretrained.checkpoint import save
from rl.evaluate import EvaluateRun, evaluate
from rl.rollout import RolloutPlan, RolloutWorker
from tests.toy_parts import make_policy, policy_node, toy, toy_spec


def seen_by(*cameras: str) -> EnvConfig:
    """With patience, as a simulator that is late would be lost."""
    return toy(cameras=list(cameras), step_deadline_s=600.0, open_deadline_s=600.0)


@pytest.fixture
def plan(tmp_path: Path) -> RolloutPlan:
    """Of a policy that was trained with the camera on top alone."""
    spec = toy_spec(cameras=["top"])
    save(tmp_path / "policy", make_policy("gaussian", spec), node=policy_node("gaussian"), env=spec)
    return RolloutPlan(checkpoint=str(tmp_path / "policy"), env=seen_by("top"), num_envs=2, decisions=6,
                       gamma=0.9, seed=3, needs=("frames",), lockstep=True)  # fmt: skip


def collected(plan: RolloutPlan) -> Any:
    worker = RolloutWorker(plan)
    try:
        return worker.collector.collect(0)
    finally:
        worker.vector.close()


def test_a_spare_camera_changes_nothing_but_what_rewards_see(plan):
    alone, beside = collected(plan), collected(replace(plan, env=seen_by("hand", "top")))
    assert (list(alone.frames), list(beside.frames)) == (["top"], ["hand", "top"])
    assert set(beside.features) == set(alone.features)
    assert "image/top" in alone.features
    for name, value in alone.features.items():
        assert torch.equal(value, beside.features[name]), name
    for name in ("trace", "log_prob", "value", "next_value", "env_reward", "duration", "terminated"):
        assert torch.equal(getattr(alone, name), getattr(beside, name)), name
    assert torch.equal(alone.frames["top"], beside.frames["top"])
    assert not torch.equal(beside.frames["hand"], beside.frames["top"])


def test_a_spare_camera_changes_no_evaluation(plan, tmp_path):
    def played(name: str, *cameras: str) -> str:
        run = EvaluateRun(checkpoint=plan.checkpoint, env=seen_by(*cameras), out=str(tmp_path / name), episodes=4,
                          workers=2, videos=0, greedy=False, quiet=True)  # fmt: skip
        evaluate(run)
        return (tmp_path / name / "episodes.csv").read_text()

    assert played("beside", "top", "hand") == played("alone", "top")


def test_the_policys_own_camera_must_be_there(plan):
    with pytest.raises(ValueError, match=r"was trained with cameras = \[\['top', .* has cameras = \[\['hand', "):
        RolloutWorker(replace(plan, env=seen_by("hand")))
