"""Stages, hyper-parameters as YAML gives them, and the loss of a minibatch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from envs.build import build
from pretrained.types import Evaluation, PolicySpec
from rl.ppo import Ppo, Stage
from rl.types import Batch
from tests.golden_files import golden_json

ALGOS = sorted((Path(__file__).parents[2] / "configs" / "algo").glob("*.yaml"))


class Known:
    """A policy whose scores are given: log_prob [N, T, K], entropy and value [N, T]."""

    def __init__(self, log_prob: Tensor, value: Tensor, *, execute: int = 2, actions: int = 3) -> None:
        self.log_prob, self.now = log_prob, value
        names = tuple(f"a{i}" for i in range(actions))
        bounds = {"low": (-1.0,) * actions, "high": (1.0,) * actions}
        self.spec = PolicySpec(
            {},
            ("x",),
            names,
            **bounds,
            action_convention="",
            control_hz=1.0,
            horizon=4,
            execute=execute,
            links=log_prob.shape[-1],
        )

    def evaluate(self, x: Any, trace: Any, starts: Any, memory: Any, links: Tensor | None = None) -> Evaluation:
        log_prob = self.log_prob if links is None else self.log_prob.gather(2, links)
        return Evaluation(log_prob, torch.full_like(self.now, 0.5), self.now)


def batch(old: Tensor, advantage: Tensor, **fields: Any) -> Batch:
    n, t, k = old.shape
    given = {
        "features": {},
        "trace": torch.zeros(n, t, k + 1, 4, 3),
        "starts": torch.zeros(n, t, dtype=torch.bool),
        "memory": {},
        "active": torch.ones(n, t, k, dtype=torch.bool),
        "old_log_prob": old,
        "weight": torch.ones(n, t),
        "old_value": torch.zeros(n, t),
        "advantage": advantage,
        "returns": torch.ones(n, t),
        "valid": torch.ones(n, t, dtype=torch.bool),
    }
    return Batch(**(given | fields))


def loss_of(algo: Ppo, delta: Tensor, advantage: Tensor, stage: Stage | None = None, **fields: Any) -> tuple[Any, Any]:
    policy: Any = Known(delta.clone().requires_grad_(), torch.zeros(delta.shape[:2]))
    total, metrics = algo.loss(policy, batch(torch.zeros_like(delta), advantage, **fields), stage or algo.stage(0))
    return total, metrics


def test_stages_follow_one_another() -> None:
    algo = Ppo(
        stages=({"iterations": 2, "losses": ["value"], "freeze": ["actor"]}, {"iterations": 3}, {"lr_scale": 0.1})
    )
    assert [algo.stage(i).losses for i in range(3)] == [("value",), ("value",), ("policy", "value")]
    assert algo.stage(0).freeze == ("actor",)
    assert [algo.stage(i).lr_scale for i in (4, 5, 1000)] == [1.0, 0.1, 0.1]
    assert Ppo().stage(10**6) == Stage()
    assert Ppo(stages=({"iterations": 1},)).stage(5) == Stage(iterations=1)  # the last one lasts


def test_stages_counted_in_decisions_change_where_the_original_did() -> None:
    """A stage ends with the first update at or beyond its own budget; the next one's count starts at 0."""
    recorded = golden_json("flare_eval/stages.json")
    budgets = recorded["max_stage_steps"]
    algo = Ppo(stages=tuple({"decisions": n, "lr_scale": i + 1.0} for i, n in enumerate(budgets)))
    for case in recorded["cases"]:
        per = case["steps_per_update"]
        for change in case["stage_changes"]:
            at = change["update"]
            assert algo.stage(at, per).lr_scale == change["stage"] + 1, case
            assert at == 0 or algo.stage(at - 1, per).lr_scale == change["stage"], case
    with pytest.raises(ValueError, match="both iterations and decisions"):
        Stage(iterations=1, decisions=1)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="stage losses"):
        Stage(losses=("policy", "kl"))
    with pytest.raises(ValueError, match="stage losses"):
        Stage(losses=())
    with pytest.raises(ValueError, match="link_samples needs links=each"):
        Ppo(links="sum", link_samples=2)
    with pytest.raises(ValueError, match="algo.target_kl = 0.0; expected a positive number, or null"):
        Ppo(target_kl=0.0)
    with pytest.raises(TypeError):
        Ppo(stages=({"iteration": 1},))


@pytest.mark.parametrize("path", ALGOS, ids=lambda p: p.stem)
def test_presets_build(path: Path) -> None:
    algo = build(yaml.safe_load(path.read_text()))
    assert isinstance(algo, Ppo)
    assert all(isinstance(s, Stage) for s in algo.stages)
    assert "policy" in algo.stage(10**6).losses


@pytest.mark.parametrize(("reduction", "share"), [("sum", 1.0), ("mean", 1 / 6)])
def test_each_link_has_its_ratio_clip_and_weight(reduction: Any, share: float) -> None:
    algo = Ppo(clip=0.2, clip_base=0.1, links="each", reduction=reduction, gamma_denoise=0.5, value_coef=0.0)
    delta = torch.tensor([[[0.3, 0.12]]])  # summed over 2 executed x 3 action elements
    total, metrics = loss_of(algo, delta, torch.ones(1, 1))
    ratios = [math.exp(d * share) for d in (0.3, 0.12)]
    expected = -(min(ratios[0], 1.1) * 0.5 + min(ratios[1], 1.2)) / 2
    assert float(total) == pytest.approx(expected, abs=1e-6)
    assert metrics["loss/max_log_ratio"] == pytest.approx(0.3 * share)


@pytest.mark.parametrize(("reduction", "share"), [("sum", 1.0), ("mean", 1 / 12)])
def test_summed_links_make_one_ratio(reduction: Any, share: float) -> None:
    algo = Ppo(clip=0.2, clip_base=0.1, links="sum", reduction=reduction, value_coef=0.0)
    delta, active = torch.tensor([[[0.1, 0.05], [9.0, 0.1], [9.0, 9.0]]]), torch.ones(1, 3, 2, dtype=torch.bool)
    active[0, 1, 0] = False
    active[0, 2] = False  # nothing was drawn here: no ratio at all
    total, metrics = loss_of(algo, delta, torch.ones(1, 3), active=active)
    assert float(total) == pytest.approx(-(math.exp(0.15 * share) + math.exp(0.1 * share)) / 2, abs=1e-6)
    assert metrics["loss/max_log_ratio"] == pytest.approx(0.15 * share)


def test_lost_rows_do_not_count() -> None:
    algo = Ppo(clip=0.2, reduction="sum", entropy_coef=0.1)
    delta, valid = torch.tensor([[[0.1], [7.0]]]), torch.tensor([[True, False]])
    advantage = torch.tensor([[1.0, 50.0]])
    whole = loss_of(algo, delta[:, :1], advantage[:, :1])[0]
    part, metrics = loss_of(algo, delta, advantage, valid=valid)
    assert float(part) == pytest.approx(float(whole))
    assert metrics["loss/max_log_ratio"] == pytest.approx(0.1)


def test_value_stage_leaves_the_policy_alone() -> None:
    algo = Ppo(value_coef=0.5)
    policy: Any = Known(torch.zeros(1, 2, 1, requires_grad=True), torch.zeros(1, 2, requires_grad=True))
    total, metrics = algo.loss(policy, batch(torch.zeros(1, 2, 1), torch.ones(1, 2)), Stage(losses=("value",)))
    total.backward()
    assert policy.log_prob.grad is None
    assert policy.now.grad is not None
    assert float(total) == pytest.approx(0.5 * 0.5)
    assert set(metrics) == {"loss/value"}


def test_sampled_links_are_active_ones_and_give_the_same_loss_on_average() -> None:
    torch.manual_seed(0)
    delta = 0.05 * torch.randn(20, 10, 5)
    active = torch.rand(20, 10, 5) < 0.6
    active[..., 0] = True
    advantage = torch.randn(20, 10)
    algo = Ppo(clip=0.2, links="each", reduction="sum", link_samples=1, value_coef=0.0)
    picks = algo._pick_links(active)
    assert picks is not None
    assert active.gather(2, picks).all()
    some = torch.stack([loss_of(algo, delta, advantage, active=active)[0].detach() for _ in range(300)])
    share = active.float() / active.sum(-1, keepdim=True)  # each decision counts once, whatever its active links
    everything = -(delta.exp() * advantage[..., None] * share).sum(-1).mean()
    assert float(some.mean()) == pytest.approx(float(everything), abs=4 * float(some.std()) / 300**0.5)
    assert Ppo(link_samples=5)._pick_links(active) is None
