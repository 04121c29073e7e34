"""PPO works: from a weak imitation start to nine successes in ten on episodes it was not trained on."""

from pathlib import Path

from benchmarks.families import GOAL, run


def test_ppo_lifts_a_policy_from_its_imitation_start(tmp_path: Path) -> None:
    lockstep = {"finetune": {"lockstep": True}}  # the same on every run of one machine
    found = run("gaussian", tmp_path, episodes=200, seed=0, changes=lockstep)
    before, after = found["before"], found["after"]
    assert before["success"] < 0.75  # otherwise there was nothing to learn
    assert after["success"] >= GOAL
    assert after["low"] > before["high"]
