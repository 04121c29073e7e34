"""The learner: the first ratio is 1, what changes and what does not, exact resume, and errors that name the culprit."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rl.types
from pretrained.checkpoint import load_learner, load_policy, save
from rl.learner import Learner
from rl.ppo import Ppo
from rl.rewards import build_terms
from rl.rollout import get_weights
from rl.types import Parts, join
from tests.toy_parts import FAMILIES, SUCCESS, make_policy, make_segment, policy_node, toy_spec

CASES = [(f, "none") for f in FAMILIES] + [("gaussian", "gru"), ("flow", "gru"), ("categorical", "gru")]


def algo(**kwargs: Any) -> Ppo:
    return Ppo(**{"epochs": 2, "minibatches": 2, "links": "each", "reduction": "sum", "clip": 0.2, **kwargs})


def learner(policy: Any, seed: int = 0, **kwargs: Any) -> Learner:
    return Learner(policy, algo(**kwargs), build_terms(SUCCESS), seed=seed)


def weights(policy: Any) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in policy.state_dict().items()}


def changed(before: dict[str, Tensor], policy: Any) -> set[str]:
    return {k for k, v in policy.state_dict().items() if not torch.equal(v, before[k])}


def log_probs(policy: Any, s: Any) -> Tensor:
    with torch.no_grad():
        return policy.evaluate(s.features, s.trace, s.starts, s.memory).log_prob


@pytest.fixture(params=CASES, ids=lambda c: "-".join(c))
def policy(request: pytest.FixtureRequest) -> Any:
    family, memory = request.param
    return make_policy(family, **({} if memory == "none" else {"memory": memory}))


# --- every family ---


def test_first_ratio_is_one_and_learning_moves_the_policy(policy: Any) -> None:
    segment, before = make_segment(policy), weights(policy)
    metrics = learner(policy, lr=1e-3).update(segment)
    assert metrics["loss/first_log_ratio"] < 1e-4
    assert metrics["loss/rollout_log_prob_gap"] < 1e-3
    assert all(math.isfinite(v) for v in metrics.values())
    moved = changed(before, policy)
    assert any(k.startswith("actor") for k in moved)
    assert any(k.startswith("critic") for k in moved)
    assert not moved & {k for k, p in policy.named_parameters() if not p.requires_grad}


def test_without_a_learning_rate_nothing_changes(policy: Any) -> None:
    segment, before = make_segment(policy), weights(policy)
    scores = log_probs(policy, segment)
    learner(policy, lr={"": 0.0}).update(segment)
    assert not changed(before, policy)
    assert (log_probs(policy, segment) - scores).abs().max() < 1e-5


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_pictures_of_several_segments_stay_where_they_are(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    options: dict[str, Any] = {} if memory == "none" else {"memory": memory}
    for large in (0, 2**60):
        monkeypatch.setattr(rl.types, "LARGE", large)
        policy = make_policy("gaussian", **options)
        segments = [make_segment(policy, n, 4, seed=n) for n in (3, 1, 5)]
        for part in segments:
            part.features["hint/plan"] = torch.zeros(*part.shape, 2)
        segment = join(segments)
        assert isinstance(segment.features.pop("hint/plan"), Tensor)  # rewards read it as a whole
        assert all(isinstance(v, Parts) == (large == 0) for v in segment.features.values())
        learner(policy, lr=1e-3).update(segment)
        learned.append(weights(policy))
    assert all(torch.equal(v, learned[1][k]) for k, v in learned[0].items())
    parts = Parts([torch.arange(6).reshape(3, 2), torch.arange(6, 10).reshape(2, 2)])
    assert parts.index_select(0, torch.tensor([1, 2, 4])).tolist() == [[2, 3], [4, 5], [8, 9]]
    with pytest.raises(ValueError, match="ascending"):
        parts.index_select(0, torch.tensor([2, 1]))


@pytest.mark.parametrize("case", [("flow", "none"), ("flow", "gru")], ids=lambda c: "-".join(c))
def test_learning_makes_rewarded_decisions_likelier(case: tuple[str, str]) -> None:
    policy = make_policy(case[0], **({} if case[1] == "none" else {"memory": case[1]}))
    segment = make_segment(policy, 8, 6, ends=1.0)  # episodes of one decision: the reward is the advantage
    good = segment.env_reward > 0
    before = log_probs(policy, segment).sum(-1)
    learner(policy, lr={"": 1e-3}, epochs=4).update(segment)
    gain = log_probs(policy, segment).sum(-1) - before
    assert gain[good].mean() > gain[~good].mean() + 0.01


# --- assertions and limits ---


def test_a_policy_that_scores_otherwise_than_it_scored_before_is_refused() -> None:
    policy = make_policy("flow")
    segment, calls = make_segment(policy), []
    honest = policy.evaluate

    def noisy(*args: Any, **kwargs: Any) -> Any:  # as dropout would
        calls.append(1)
        scored = honest(*args, **kwargs)
        return scored._replace(log_prob=scored.log_prob + 0.01 * len(calls))

    policy.evaluate = noisy
    before = weights(policy)
    with pytest.raises(RuntimeError, match="log-ratio is .* expected 0 within 0.0001"):
        learner(policy).update(segment)
    assert not changed(before, policy)


def test_training_mode_is_off_so_that_scores_repeat() -> None:
    policy = make_policy("gaussian")
    policy.train()
    learner(policy)
    assert not policy.training


def test_max_kl_stops_the_epochs() -> None:
    calm = learner(make_policy("gaussian"), lr=3e-3, epochs=20, max_kl=None)
    metrics = calm.update(make_segment(calm.policy))
    assert "loss/stopped_in_epoch" not in metrics
    assert metrics["loss/kl"] > 1e-3
    stopped = learner(make_policy("gaussian"), lr=3e-3, epochs=20, max_kl=1e-3)
    metrics = stopped.update(make_segment(stopped.policy))
    assert metrics["loss/stopped_in_epoch"] < 10
    steps = [int(v["step"]) for v in stopped.optimizer.state_dict()["state"].values()]
    assert max(steps) < 20  # of 40
    assert stopped.iteration == 1


def test_decisions_of_an_older_policy_are_weighted() -> None:
    policy = make_policy("flow")
    one = learner(policy, lr=1e-3)
    segment = make_segment(policy)
    assert "loss/lag_weight" not in one.update(segment)
    batch, _ = one.targets(segment)
    metrics = one._rescore(batch, one._minibatches(batch), 0)  # of version 0, while the learner is at 1
    expected = (log_probs(policy, segment) - segment.log_prob).sum(-1).exp().clamp(max=2.0)
    torch.testing.assert_close(batch.weight.flatten(), expected.flatten(), atol=1e-4, rtol=1e-3)
    assert float((expected - 1).abs().max()) > 0.01
    assert metrics["loss/lag_weight"] == pytest.approx(float(expected.mean()), rel=1e-3)
    fresh, _ = one.targets(segment)
    metrics = one._rescore(fresh, one._minibatches(fresh), 1)
    assert bool((fresh.weight == 1).all())
    assert "loss/lag_weight" not in metrics


@pytest.mark.parametrize(("target", "change"), [(1e-9, 1 / 1.25), (1e9, 1.25)])
def test_the_actors_rates_follow_the_target_kl(target: float, change: float) -> None:
    policy = make_policy("gaussian")
    one = learner(policy, lr=1e-3, target_kl=target, lr_warmup=0)
    assert one.update(make_segment(policy))["loss/lr_scale"] == 1.0
    assert one.kl_scale == pytest.approx(change)
    one.update(make_segment(policy, seed=1))
    rates = {group["critic"]: group["lr"] for group in one.optimizer.param_groups}
    assert rates == pytest.approx({True: 1e-3, False: 1e-3 * change})
    for _ in range(30):
        one._follow_kl(1.0, target)
    assert one.kl_scale == pytest.approx(1 / 30 if change < 1 else 30)


def test_a_reward_that_is_not_finite_is_named() -> None:
    policy = make_policy("gaussian")
    segment, before = make_segment(policy), weights(policy)
    segment.env_reward[1, 2] = math.nan
    with pytest.raises(ValueError, match="reward 'success' is nan at stream 1, decision 2"):
        learner(policy).update(segment)
    assert not changed(before, policy)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    policy = make_policy("gaussian")
    segment, before = make_segment(policy), weights(policy)
    segment.next_value[0, -1] = math.inf
    segment.terminated[0, -1] = segment.truncated[0, -1] = False
    with pytest.raises(RuntimeError, match="gradient norm|log-ratio"):
        learner(policy).update(segment)
    assert not changed(before, policy)


def test_lost_rows_teach_nothing() -> None:
    a, b = make_policy("flow"), make_policy("flow")
    segments = [make_segment(p, ends=0.0) for p in (a, b)]
    for s in segments:
        s.valid[1] = False
    segments[1].env_reward[1] = 1e6
    segments[1].value[1] = math.nan
    segments[1].next_value[1] = math.nan
    for p, s in zip((a, b), segments, strict=True):
        learner(p, return_scale=True).update(s)
    assert not changed(weights(a), b)


def test_metrics_say_what_was_rewarded() -> None:
    one = learner(make_policy("gaussian"), return_scale=True)
    segment = make_segment(one.policy)
    metrics = one.update(segment)
    assert metrics["reward/success"] == pytest.approx(float(segment.env_reward.mean()), abs=1e-6)
    assert {"reward/total", "reward/scale", "loss/value", "loss/policy", "loss/kl", "loss/clip_fraction"} <= set(
        metrics
    )
    assert one.env_steps == int(segment.duration.sum())


# --- stages ---


def test_critic_warm_up_moves_the_critic_only_then_all() -> None:
    policy = make_policy("flow")
    one = learner(policy, lr=1e-3, weight_decay=0.1, stages=({"iterations": 1, "losses": ["value"]}, {}))
    before = weights(policy)
    metrics = one.update(make_segment(policy))
    assert "loss/policy" not in metrics
    assert {k.split(".")[0] for k in changed(before, policy)} == {"critic"}
    before = weights(policy)
    one.update(make_segment(policy))
    assert {"actor", "critic", "encoder"} <= {k.split(".")[0] for k in changed(before, policy)}


def test_frozen_prefixes_stay_until_their_stage_ends() -> None:
    policy = make_policy("flow")
    stages = ({"iterations": 1, "freeze": ["encoder", "noise"]}, {"lr_scale": 0.0, "iterations": 1}, {})
    one = learner(policy, lr=1e-3, stages=stages)
    before = weights(policy)
    one.update(make_segment(policy))
    moved = {k.split(".")[0] for k in changed(before, policy)}
    assert "actor" in moved
    assert not moved & {"encoder", "noise"}
    before = weights(policy)
    one.update(make_segment(policy))
    assert not changed(before, policy)
    one.update(make_segment(policy))
    assert {"actor", "encoder", "noise"} <= {k.split(".")[0] for k in changed(before, policy)}


def test_weights_are_sent_whole_after_a_stage_that_froze_some() -> None:
    policy = make_policy("flow")
    names = set(get_weights(policy))
    learner(policy, stages=({"freeze": ["actor", "encoder"]},)).update(make_segment(policy))
    assert set(get_weights(policy)) == names


def test_learning_rates_go_by_the_longest_prefix() -> None:
    policy = make_policy("flow")
    before = weights(policy)
    learner(policy, lr={"": 0.0, "actor": 1e-3, "actor.fusion": 0.0}).update(make_segment(policy))
    moved = changed(before, policy)
    assert moved
    assert all(k.startswith("actor.") and not k.startswith("actor.fusion") for k in moved)
    with pytest.raises(ValueError, match="add a default under the key ''"):
        learner(policy, lr={"actor": 1e-3})


# --- resume ---


@pytest.mark.parametrize(
    "extra", [{}, {"link_samples": 2}, {"target_kl": 1e-6}], ids=["all links", "sampled links", "target KL"]
)
def test_resume_through_a_checkpoint_is_exact_to_the_bit(tmp_path: Path, extra: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "lr": 1e-3,
        "return_scale": True,
        "stages": ({"iterations": 2, "losses": ["value"]}, {}),
    }
    straight = learner(make_policy("flow"), **settings, **extra)
    for i in range(4):
        if i == 3:
            save(
                tmp_path / "step_000003",
                straight.policy,
                node=policy_node("flow"),
                env=toy_spec(),
                learner={"learner": straight.state()},
            )
        straight.update(make_segment(straight.policy, seed=i))
    torch.manual_seed(12345)  # a new process has another global state
    state = load_learner(tmp_path / "step_000003")
    assert state is not None
    resumed = learner(load_policy(tmp_path / "step_000003"), seed=99, **settings, **extra)
    resumed.load(state["learner"])
    assert (resumed.iteration, resumed.env_steps) == (3, straight.env_steps - _steps(straight, 3))
    resumed.update(make_segment(resumed.policy, seed=3))
    assert not changed(weights(straight.policy), resumed.policy)
    assert resumed.return_scale.std == straight.return_scale.std


def _steps(one: Learner, seed: int) -> int:
    return int(make_segment(one.policy, seed=seed).duration.sum())


# --- minibatches ---


def test_streams_stay_whole_for_a_policy_with_memory() -> None:
    for memory, streams, t in (("none", 24, 1), ("gru", 4, 6)):
        policy = make_policy("gaussian", memory=memory)
        one = learner(policy, minibatches=3)
        batch, _ = one.targets(make_segment(policy, 4, 6))
        assert batch.valid.shape == (streams, t)
        parts = one._minibatches(batch)
        assert len(parts) == 3
        assert sorted(torch.cat(parts).tolist()) == list(range(streams))
        rows = batch.rows(parts[0])
        assert rows.trace.shape[:2] == (len(parts[0]), t)
        assert all(len(v) == len(parts[0]) for v in rows.memory.values())
        if memory == "gru":
            assert torch.equal(rows.memory["h"], batch.memory["h"][parts[0]])


def test_memory_at_the_start_of_a_segment_is_used() -> None:
    policy = make_policy("gaussian", memory="gru")
    segment = make_segment(policy, ends=0.0)
    segment = replace(segment, starts=torch.zeros_like(segment.starts), memory={"h": torch.randn(4, 16)})
    metrics = learner(policy).update(segment)
    assert metrics["loss/first_log_ratio"] < 1e-4
    assert metrics["loss/rollout_log_prob_gap"] > 1e-3  # this memory is not the one it acted with
