"""Both sides train the same network on the same toy, and what is reported is what they answered."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import vs_rllib

pytest.importorskip("ray")

TINY: dict[str, Any] = {
    "sim": {**vs_rllib.TOY, "max_steps": 4, "cameras": {"top": [16, 16], "hand": [16, 16]}},
    "decisions": 4,
    "workers": 1,
    "envs": 2,
    "threads": 1,
    "policy": vs_rllib.POLICY | {"encoder": vs_rllib.HEAVY["encoder"]},  # whose strides suit small pictures
}


def test_the_module_gives_the_policys_own_distribution_and_value() -> None:
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from benchmarks.rllib_ppo import Module, ToyEnv
    from pretrained.types import ObsBatch

    env = ToyEnv(TINY["sim"])
    settings = {"sim": TINY["sim"], "policy": TINY["policy"]}
    module = RLModuleSpec(module_class=Module, observation_space=env.observation_space, action_space=env.action_space,
                          model_config=settings).build()  # fmt: skip
    assert isinstance(module, Module)
    seen = [env.reset(seed=i)[0] for i in range(3)]
    batch = {k: np.stack([s[k] for s in seen]) for k in seen[0]}
    out = module._forward({Columns.OBS: {k: torch.from_numpy(v) for k, v in batch.items()}})
    mean, log_std = out[Columns.ACTION_DIST_INPUTS].chunk(2, -1)
    policy = module.policy
    cameras = {c: batch[c][:, None] for c in policy.spec.cameras}
    x = policy.encode(ObsBatch(cameras, batch["proprio"][:, None], ["reach the red target"] * 3))
    decision, _ = policy.act(x, {}, torch.Generator().manual_seed(0))
    action = decision.trace[:, -1, 0]
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)
    torch.testing.assert_close(log_prob, decision.log_prob[:, 0], atol=1e-4, rtol=1e-4)
    value = module.compute_values({}, embeddings=out[Columns.EMBEDDINGS])
    torch.testing.assert_close(value, decision.value)
    again = module.compute_values({Columns.OBS: {k: torch.from_numpy(v) for k, v in batch.items()}})
    torch.testing.assert_close(again, value)


def test_the_toy_as_rllib_sees_it() -> None:
    from gymnasium.utils.env_checker import check_env

    from benchmarks.rllib_ppo import ToyEnv

    check_env(ToyEnv(TINY["sim"]), skip_render_check=True)


def test_goals_know_their_direction() -> None:
    found: dict[str, Any] = {
        "iteration": {"ratio": 1.5, "ours": 3000.0, "rllib": 2000.0, "unit": "samples/s"},
        "learner": {"ratio": 0.5, "ours": 100.0, "rllib": 200.0, "unit": "us/sample"},
        "memory": {"ratio": 0.5, "ours": 100.0, "rllib": 200.0, "unit": "MiB"},
        "rounds": 3,
    }
    results = vs_rllib.as_results("free", found)
    rows = vs_rllib.as_table(results).splitlines()[2:5]
    assert "1.50 *" in rows[0]
    assert ">= 2.00" in rows[0]
    assert "0.50 " in rows[1]
    assert "*" not in rows[1]
    assert "0.50 *" in rows[2]
    assert "<= 0.33" in rows[2]
    assert vs_rllib.as_results("slow", found)["vs_rllib/slow/memory"]["goal"] is None


@pytest.mark.ray
@pytest.mark.slow
def test_both_sides_iterate_in_turn() -> None:
    said: list[str] = []
    found = vs_rllib.measure(TINY, 2, said.append, bare=True)
    assert len(said) == found["rounds"] == 2
    assert found["bare/iteration"]["bare"] > 0
    for figure in ("iteration", "learner"):
        assert found[figure]["ours"] > 0
        assert found[figure]["rllib"] > 0
    assert found["memory"]["rllib"] > 0


def test_the_bare_loop_fills_every_decision_and_learns() -> None:
    from benchmarks.bare_ppo import Rows, make_memory
    from benchmarks.learner import Bare
    from envs.build import build

    policy = build(TINY["policy"], env=build(TINY["sim"]).spec)
    memory = make_memory(policy, 4, 6)
    first, last = (Rows(TINY["sim"], policy, memory, slice(i, i + 2)) for i in (0, 2))
    first.sample()
    assert (memory["trace"][:2, :, -1] != 0).all()
    assert (memory["trace"][2:, :, -1] == 0).all(), "a process writes to its own rows"
    last.sample()
    assert (memory["image/top"].flatten(2).amax(-1) > 0).all()
    torch.testing.assert_close(memory["next_value"][:, :-1], memory["value"][:, 1:])
    features = {k: v for k, v in memory.items() if k.startswith("image/") or k == "proprio"}
    x = {k: v.flatten(0, 1)[:, None] for k, v in features.items()}
    x["tokens"] = first.tokens.expand(24, 1, -1)
    scored = policy.evaluate(x, memory["trace"].flatten(0, 1)[:, None], torch.zeros(24, 1, dtype=torch.bool), {})
    torch.testing.assert_close(scored.log_prob.flatten(), memory["log_prob"].flatten(), atol=1e-4, rtol=1e-4)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    fixed = {"starts": torch.zeros(4, 6, dtype=torch.bool), "duration": torch.ones(4, 6)}
    tokens = {"tokens": first.tokens.expand(4, 6, -1)}
    segment: Any = SimpleNamespace(**memory, **fixed, features=features | tokens)
    assert np.isfinite(list(Bare(policy, rescore=False).update(segment).values())).all()
    assert any(not torch.equal(before[k], v) for k, v in policy.state_dict().items())


def test_a_side_that_dies_says_why() -> None:
    side = vs_rllib.Side("ours", {"broken": True})
    with pytest.raises(RuntimeError, match="the process of 'ours' ended with status 1; its last words: KeyError"):
        side.answer()
    side.stop()
