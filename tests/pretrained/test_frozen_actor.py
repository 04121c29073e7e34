"""Fine-tuning the last links only: a frozen copy draws the first, is never scored, and lasts through checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrained.checkpoint import load_policy, read_card, save
from pretrained.rectified_flow import flow_sample
from rl.learner import Learner
from rl.ppo import Ppo
from tests.toy_parts import checkpoint, make_policy, make_segment, observe, policy_node, toy_spec

FAMILIES = ("ddpm", "ddim", "edm", "flow")
STEPS, TUNED = 4, 3
BASE = "base."


def deciding(policy: Any, *, seed: int = 3, n: int = 4, greedy: bool = False) -> tuple[Any, Any]:
    x = policy.encode(observe(policy, n, np.random.default_rng(0)))
    rng = [torch.Generator().manual_seed(seed + i) for i in range(n)]
    return x, policy.act(x, {}, rng, greedy=greedy)[0]


def disturb(policy: Any) -> None:
    """As an update would, to everything that may be trained."""
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))


def tuned(tmp_path: Path, family: str, links: int = TUNED, **overrides: Any) -> Any:
    """A policy as fine-tuning finds it: an imitation checkpoint with an override."""
    if not (tmp_path / family).exists():
        checkpoint(tmp_path / family, family, **overrides)
    return load_policy(tmp_path / family, overrides={"tuned_links": links})


@pytest.mark.parametrize("family", FAMILIES)
def test_it_begins_as_the_policy_it_was(tmp_path: Path, family: str) -> None:
    policy = tuned(tmp_path, family)
    whole: Any = load_policy(tmp_path / family)
    assert (policy.spec.links, policy.spec.frozen_links) == (STEPS, STEPS - TUNED)
    for greedy in (False, True):
        (_, a), (_, b) = deciding(policy, greedy=greedy), deciding(whole, greedy=greedy)
        torch.testing.assert_close(a.trace, b.trace)
        torch.testing.assert_close(a.log_prob[:, 1:], b.log_prob[:, 1:])
        assert not a.log_prob[:, 0].any()
        assert a.active.tolist() == [[False] + [not greedy] * TUNED] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_moves_the_last_links_only(tmp_path: Path, family: str) -> None:
    policy = tuned(tmp_path, family)
    x, before = deciding(policy)
    disturb(policy)
    _, after = deciding(policy)
    torch.testing.assert_close(after.trace[:, :2], before.trace[:, :2])
    assert (after.trace[:, 2] - before.trace[:, 2]).abs().mean() > 1e-3
    lone = {k: v[:, None] for k, v in x.items()}
    starts = torch.ones(4, 1, dtype=torch.bool)
    scored = policy.evaluate(lone, after.trace[:, None], starts, {})
    torch.testing.assert_close(scored.log_prob[:, 0], after.log_prob, atol=1e-4, rtol=1e-4)
    some = torch.tensor([[[3, 0]], [[1, 2]], [[0, 0]], [[2, 3]]])
    picked = policy.evaluate(lone, after.trace[:, None], starts, {}, links=some)
    torch.testing.assert_close(picked.log_prob, scored.log_prob.gather(2, some), atol=1e-4, rtol=1e-4)
    scored.log_prob.sum().backward()
    grads = {name: p.grad is not None and bool(p.grad.any()) for name, p in policy.named_parameters()}
    assert any(v for k, v in grads.items() if k.startswith("actor"))
    assert not any(v for k, v in grads.items() if k.startswith(BASE))


@pytest.mark.parametrize("family", ["ddpm", "flow"])
@pytest.mark.parametrize("links", ["each", "sum"])
def test_ppo_learns_and_leaves_the_copy_alone(tmp_path: Path, family: str, links: Any) -> None:
    policy = tuned(tmp_path, family)
    copy = {k: v.clone() for k, v in policy.state_dict().items() if k.startswith(BASE)}
    rewards: Any = {"reward": {"weight": 1.0, "term": _Env()}}
    algo = Ppo(links=links, reduction="mean", clip_base=0.001, epochs=2, minibatches=2, lr={"": 1e-3})
    learner = Learner(policy, algo, rewards)
    metrics = learner.update(make_segment(policy))
    assert metrics["loss/first_log_ratio"] < 1e-5
    assert metrics["loss/rollout_log_prob_gap"] < 1e-3
    now = policy.state_dict()
    assert copy
    assert all(torch.equal(v, now[k]) for k, v in copy.items())
    assert any(not torch.equal(v, now[k.removeprefix(BASE)]) for k, v in copy.items() if ".actor." in k)


class _Env:
    needs: frozenset[str] = frozenset()

    def __call__(self, segment: Any, gamma: float) -> torch.Tensor:
        return segment.env_reward


def test_clip_ranges_and_weights_are_those_of_a_chain_without_the_frozen_links() -> None:
    algo = Ppo(links="each", clip=0.1, clip_base=0.01, gamma_denoise=0.9)
    short = algo._per_link(torch.arange(3), 3, 0)
    long = algo._per_link(torch.arange(5), 5, 2)
    for a, b in zip(short, long, strict=True):
        torch.testing.assert_close(a, b[2:])


def test_a_checkpoint_keeps_the_copy(tmp_path: Path) -> None:
    policy = tuned(tmp_path, "ddpm")
    disturb(policy)
    node = policy_node("ddpm", tuned_links=TUNED)
    save(tmp_path / "tuned", policy, node=node, env=toy_spec())
    again: Any = load_policy(tmp_path / "tuned")
    theirs = policy.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in again.state_dict().items())
    pairs = [(v, theirs[k.removeprefix(BASE)]) for k, v in theirs.items() if k.startswith(f"{BASE}actor.")]
    assert not all(torch.equal(a, b) for a, b in pairs)
    assert read_card(tmp_path / "tuned").policy.frozen_links == STEPS - TUNED
    torch.testing.assert_close(deciding(again)[1].trace, deciding(policy)[1].trace)


def test_a_frozen_encoder_is_not_copied(tmp_path: Path) -> None:
    policy = tuned(tmp_path, "flow", frozen_encoder=True)
    assert not any(k.startswith("base.encoder") for k in policy.state_dict())
    assert tuned(tmp_path, "ddpm").base.encoder is not None
    before = deciding(policy)[1].trace
    disturb(policy)
    torch.testing.assert_close(deciding(policy)[1].trace[:, :2], before[:, :2])


def test_what_cannot_be(tmp_path: Path) -> None:
    for links in (0, STEPS + 1):
        with pytest.raises(ValueError, match=f"tuned_links = {links} of a chain of {STEPS}; expected 1 to {STEPS}"):
            make_policy("ddpm", tuned_links=links)
    assert make_policy("ddpm", tuned_links=STEPS).base is None
    with pytest.raises(ValueError, match="memory: none"):
        make_policy("ddpm", tuned_links=2, memory="gru")
    one = policy_node("flow_sde")["kernel"] | {"links": "one"}
    with pytest.raises(ValueError, match="draws all links"):
        make_policy("flow_sde", tuned_links=2, kernel=one)
    policy = tuned(tmp_path, "flow")
    with pytest.raises(ValueError, match="frozen copy"):
        flow_sample(policy, deciding(policy)[0], torch.Generator(), steps=4)
    x = deciding(policy)[0]
    with pytest.raises(ValueError, match="tuned_links is for fine-tuning"):
        policy.imitation_loss_of(x, torch.zeros(4, 4, 2), torch.zeros(4, 4, dtype=torch.bool), torch.Generator())
