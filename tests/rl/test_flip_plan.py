"""Laws of FLIP's plans as proposals, with untrained models."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from pretrained.flip.imagine import Imagination
from pretrained.types import ObsBatch
from rl.collect import Collector
from rl.learner import Learner
from rl.ppo import Ppo
from rl.proposals.flip_plan import FlipPlan
from rl.rewards import build_terms
from tests.toy_parts import SUCCESS, make_policy, toy, toy_spec

pytestmark = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
PLAN = {"_target_": "pretrained.flip.condition.PlanEncoder", "horizon": 6, "hidden": 8}


@pytest.fixture(scope="module")
def world() -> Imagination:
    from pretrained.flip.text import Words
    from pretrained.flip.vae import Autoencoder
    from pretrained.flip.value import ValueModel
    from tests.flip_parts import flow_model, video_model

    return Imagination(flow=flow_model(size=(16, 16)), video=video_model(size=(2, 2)), vae=Autoencoder().eval(),
                       value=ValueModel(clip="tiny", tokenizer="bytes").eval(), text=Words(dim=12, length=8), points=4,
                       steps=2)  # fmt: skip


def seen(n: int = 2, camera: str = "front") -> ObsBatch:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (n, 1, 16, 16, 3), dtype=np.uint8)
    return ObsBatch({camera: pictures}, np.zeros((n, 1, 1), np.float32), ["reach the red target"] * n)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def test_same_seed_same_plan_and_a_row_is_its_own(world: Imagination) -> None:
    proposal = FlipPlan(world=world, camera="front")
    both = proposal(seen(), generators(1, 2))
    assert both["plan/tracks"].shape == (2, 4, 6, 2)
    assert both["plan/given"].tolist() == [[1.0], [1.0]]
    assert torch.equal(both["plan/tracks"], proposal(seen(), generators(1, 2))["plan/tracks"])
    assert not torch.equal(both["plan/tracks"], proposal(seen(), generators(3, 2))["plan/tracks"])
    pictures = seen().images["front"][1:]
    alone = proposal(ObsBatch({"front": pictures}, np.zeros((1, 1, 1)), ["reach the red target"]), generators(2))
    torch.testing.assert_close(alone["plan/tracks"][0], both["plan/tracks"][1])
    goals = FlipPlan(world=world, camera="front", goals=True, segments=2)(seen(), generators(1, 2))["plan/goals"]
    assert goals.shape == (2, 2 * 5, 32)
    # Points begin where the grid says, as shares of the picture.
    torch.testing.assert_close(both["plan/tracks"][0, :, 0], 2 * (world.points + 0.5) / 16 - 1)


def test_plans_of_a_fixed_seed_are_remembered(world: Imagination, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = FlipPlan(world=world, camera="front", seed=5)
    first = proposal(seen(), generators(1, 2))["plan/tracks"]
    monkeypatch.setattr(proposal, "planner", None)  # would fail if it were asked
    again = proposal(seen(), generators(7, 8))
    assert torch.equal(first, again["plan/tracks"])
    assert proposal.failures == 0


def test_a_planner_that_fails_stops_nothing(
    world: Imagination, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proposal = FlipPlan(world=world, camera="front")
    monkeypatch.setattr(world.vae, "decode", lambda latents: latents.new_full((1, 5, 3, 16, 16), float("nan")))
    out = proposal(seen(), generators(1, 2))
    assert out["plan/given"].tolist() == [[0.0], [0.0]]
    assert not out["plan/tracks"].any()
    assert proposal.failures == 2
    assert "acts without one" in caplog.text
    with pytest.raises(ValueError, match="no camera 'side'"):
        FlipPlan(world=world, camera="side")(seen(), generators(1, 2))


def test_an_untrained_plan_encoder_changes_nothing_and_a_trained_one_does(world: Imagination) -> None:
    plain, planned = make_policy("gaussian", toy_spec()), make_policy("gaussian", toy_spec(), plan=PLAN)
    planned.load_state_dict(plain.state_dict(), strict=False)
    camera = next(iter(plain.spec.cameras))
    obs = seen(camera=camera)
    obs.proprio = np.zeros((2, plain.spec.history, len(plain.spec.proprio)), np.float32)
    hints = FlipPlan(world=world, camera=camera)(obs, generators(1, 2))

    def decide(policy: Any, given: dict[str, Any]) -> torch.Tensor:
        obs.hints = given
        return policy.act(policy.encode(obs), policy.initial_memory(2), generators(3, 4))[0].chunk

    torch.nn.init.zeros_(planned.actor["plan"].out.weight)
    torch.nn.init.zeros_(planned.actor["plan"].out.bias)
    assert torch.equal(decide(plain, {}), decide(planned, hints))
    torch.nn.init.normal_(planned.actor["plan"].out.weight)
    assert torch.equal(decide(plain, {}), decide(planned, {}))
    assert not torch.equal(decide(plain, {}), decide(planned, hints))
    nothing = {**hints, "plan/given": torch.zeros(2, 1)}
    assert torch.equal(decide(plain, {}), decide(planned, nothing))
    with pytest.raises(ValueError, match="tracks of 4 positions, the policy was made for 6"):
        decide(planned, {**hints, "plan/tracks": hints["plan/tracks"][:, :, :4]})


def test_the_first_ratio_is_one_with_plans(world: Imagination) -> None:
    from envs.vector import SimVector

    vector = SimVector([toy()] * 2)
    try:
        policy = make_policy("flow", vector.env_spec, plan=PLAN)
        camera = next(iter(policy.spec.cameras))
        proposal = FlipPlan(world=world, camera=camera, every=2, candidates=2)
        segment = Collector(vector, policy, decisions=4, gamma=0.99, proposal=proposal, lockstep=True).collect(0)
    finally:
        vector.close()
    assert segment.features["hint/plan/given"].all()
    before = {k: v.clone() for k, v in policy.actor["plan"].state_dict().items()}
    learner = Learner(policy, Ppo(epochs=1, minibatches=1, lr=1e-2), build_terms(SUCCESS))
    segment.env_reward = torch.randn(segment.shape, generator=torch.Generator().manual_seed(0))
    metrics = learner.update(segment)
    assert metrics["loss/first_log_ratio"] < 1e-4
    assert metrics["loss/rollout_log_prob_gap"] < 1e-4
    assert any(not torch.equal(v, before[k]) for k, v in policy.actor["plan"].state_dict().items())
