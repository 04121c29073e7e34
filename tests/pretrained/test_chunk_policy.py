"""What the chunk policy does besides the laws: padding, executed rows, history, cameras, hints, and bad input."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from envs.build import build
from envs.types import EnvSpec
from pretrained.types import DemoBatch, ObsBatch, PolicySpec

FLOW: dict[str, Any] = {
    "_target_": "pretrained.chunk_policy.ChunkPolicy",
    "kernel": {"_target_": "pretrained.chain.FlowNoise", "steps": 2},
    "encoder": {"_target_": "pretrained.encoders.PixelEncoder", "width": 8, "channels": [4, 4, 4]},
    "horizon": 4,
    "width": 16,
    "augment": 0,
}


def make(env: EnvSpec, **overrides: Any) -> Any:
    torch.manual_seed(0)
    policy = build({**FLOW, **overrides}, env=env)
    for p in policy.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return policy.eval()


def observe(env: EnvSpec, n: int, history: int = 1) -> ObsBatch:
    rng = np.random.default_rng(0)
    return ObsBatch(
        {c: rng.integers(0, 256, (n, history, *s, 3), dtype=np.uint8) for c, s in env.cameras.items()},
        rng.normal(size=(n, history, env.proprio_dim)).astype(np.float32),
        ["reach the red disc"] * n,
    )


def demonstrations(env: EnvSpec, n: int, horizon: int = 4) -> DemoBatch:
    actions = torch.rand(n, horizon, env.action_dim, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return DemoBatch(observe(env, n), actions, torch.zeros(n, horizon, dtype=torch.bool))


def test_padding_does_not_teach(tiny_spec: EnvSpec) -> None:
    policy, demo = make(tiny_spec), demonstrations(tiny_spec, 4)
    demo.is_pad[:, 2:] = True
    lesson = policy.kernel.lesson(policy.actions.encode(demo.actions), torch.Generator().manual_seed(0))
    cond, _ = policy.condition(policy.encode(demo.obs))
    out, _ = policy.run_network(lesson.input[:, None], lesson.time[:, None], cond)
    own = policy.kernel.loss(out[:, 0], lesson.target)[:, :2].mean()
    loss, _ = policy.imitation_loss(demo, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    demo.is_pad[:] = True
    assert policy.imitation_loss(demo, torch.Generator().manual_seed(0))[0].item() == 0.0


def test_augmentation_is_for_imitation_only(tiny_spec: EnvSpec) -> None:
    policy, demo = make(tiny_spec, augment=3).train(), demonstrations(tiny_spec, 4)
    plain = make(tiny_spec).train()
    losses = [p.imitation_loss(demo, torch.Generator().manual_seed(0))[0].item() for p in (policy, plain)]
    assert losses[0] != losses[1]
    x = policy.encode(demo.obs)
    a, b = (policy.act(x, {}, torch.Generator().manual_seed(0))[0] for _ in range(2))
    assert torch.equal(a.trace, b.trace)
    assert torch.equal(x["image/front"], torch.from_numpy(demo.obs.images["front"]))


def test_only_executed_rows_are_scored(tiny_spec: EnvSpec) -> None:
    part, whole = make(tiny_spec, execute=2), make(tiny_spec)
    x = part.encode(observe(tiny_spec, 2))
    decision = part.act(x, {}, torch.Generator().manual_seed(0))[0]
    starts = torch.ones(2, 1, dtype=torch.bool)
    trace = decision.trace[:, None].clone()
    trace[:, :, -1, 2:] += 0.3  # the last link's rows that are not executed influence nothing
    x = {k: v[:, None] for k, v in x.items()}
    assert torch.allclose(part.evaluate(x, trace, starts, {}).log_prob[:, 0], decision.log_prob, atol=1e-5)
    assert not torch.allclose(whole.evaluate(x, trace, starts, {}).log_prob[:, 0], decision.log_prob, atol=1e-2)


def test_history_cameras_and_hints(tiny_spec: EnvSpec) -> None:
    policy = make(tiny_spec, history=3, cameras=["hand"])
    obs = observe(tiny_spec, 2, history=3)
    obs.hints["plan"] = torch.ones(2, 5)
    x = policy.encode(obs)
    assert set(x) == {"image/hand", "proprio", "tokens", "hint/plan"}
    first = policy.value(x, {})
    x["image/hand"][:, 0] = 0  # the oldest picture matters
    assert not torch.equal(policy.value(x, {}), first)
    with pytest.raises(ValueError, match=r"cameras \['roof'\] are not in toy/tiny"):
        make(tiny_spec, cameras=["roof"])


def test_features_do_not_share_the_caller_s_memory(tiny_spec: EnvSpec) -> None:
    policy, obs = make(tiny_spec), observe(tiny_spec, 1)
    x = policy.encode(obs)
    before = x["image/front"].clone()
    obs.images["front"][:] = 0
    assert torch.equal(x["image/front"], before)


def test_without_cameras_or_with_autocast(tiny_spec: EnvSpec) -> None:
    blind = make(replace(tiny_spec, cameras={}))
    obs = ObsBatch({}, np.zeros((2, 1, 3), np.float32), ["a", "b"])
    assert blind.act(blind.encode(obs), {}, torch.Generator())[0].chunk.shape == (2, 4, 2)
    policy = make(tiny_spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = policy.imitation_loss(demonstrations(tiny_spec, 2), torch.Generator())
        decision = policy.act(policy.encode(observe(tiny_spec, 2)), {}, torch.Generator())[0]
    assert loss.dtype == decision.log_prob.dtype == decision.value.dtype == torch.float32


def test_spec_says_what_the_policy_is(tiny_spec: EnvSpec) -> None:
    spec = make(tiny_spec, execute=3, memory="gru").spec
    assert (spec.horizon, spec.execute, spec.links, spec.memoryless) == (4, 3, 2, False)
    assert PolicySpec.from_json(spec.to_json()) == spec


# --- bad input ---


def test_bad_observations_are_named(tiny_spec: EnvSpec) -> None:
    policy = make(tiny_spec)
    good = observe(tiny_spec, 2)

    def refused(match: str, obs: ObsBatch) -> None:
        with pytest.raises(ValueError, match=match):
            policy.encode(obs)

    hand = {**good.images, "hand": np.zeros((2, 1, 16, 16, 3), np.float32)}
    refused("'hand': expected uint8.*got torch.float32", replace(good, images=hand))
    front = {**good.images, "front": np.zeros((2, 1, 30, 24, 3), np.uint8)}
    refused(r"'front'.*16, 16.*\(2, 1, 30, 24, 3\)", replace(good, images=front))
    refused("'hand' is missing", replace(good, images={"front": good.images["front"]}))
    broken = np.zeros((2, 1, 3), np.float32)
    broken[1, 0, 2] = np.inf
    refused("'grip' of row 1 is not finite", replace(good, proprio=broken))
    refused(r"\(2, 1, 5\), expected \(2, 1, 3\)", replace(good, proprio=np.zeros((2, 1, 5), np.float32)))


def test_settings_must_fit_one_another(tiny_spec: EnvSpec) -> None:
    moves = replace(tiny_spec, actions=("move",), low=(0.0,), high=(4.0,), num_actions=5)
    categorical = {"_target_": "pretrained.chain.Categorical"}
    with pytest.raises(ValueError, match="5 discrete actions.*FlowNoise; use pretrained.chain.Categorical"):
        make(moves)
    with pytest.raises(ValueError, match="expected horizon 1, got 4"):
        make(moves, kernel=categorical)
    with pytest.raises(ValueError, match="continuous actions"):
        make(tiny_spec, kernel=categorical, horizon=1)
    with pytest.raises(ValueError, match="execute=9"):
        make(tiny_spec, execute=9)
    with pytest.raises(ValueError, match="memory 'lstm'"):
        make(tiny_spec, memory="lstm")
    with pytest.raises(ValueError, match="one link"):
        make(tiny_spec, kernel={"_target_": "pretrained.chain.Gaussian", "steps": 3})


def test_nan_demonstrations_are_refused(tiny_spec: EnvSpec) -> None:
    policy, demo = make(tiny_spec), demonstrations(tiny_spec, 2)
    demo.actions[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        policy.imitation_loss(demo, torch.Generator())
    with pytest.raises(ValueError, match="not finite"):
        policy.fit_normalizers(demo.actions[0], torch.zeros(4, 3))
    with pytest.raises(ValueError, match="not finite"):
        policy.fit_normalizers(torch.zeros(4, 2), torch.full((4, 3), math.inf))
