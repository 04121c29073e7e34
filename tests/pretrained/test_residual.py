"""Laws of residual policies: exact scores, bounded corrections, and a base that stays what it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.build import build
from pretrained.checkpoint import load_policy
from pretrained.residual import main, on_top_of
from tests.toy_parts import checkpoint, make_policy, make_segment, observe, policy_node, toy_spec


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def residual(tmp_path: Path, family: str = "flow", *, disturb: bool = True, **options: Any) -> Any:
    folder = checkpoint(tmp_path / "base" / "step_000001", family)
    policy: Any = load_policy(on_top_of(folder, tmp_path / "residual", width=16, critic_width=8, **options))
    if disturb:
        torch.manual_seed(1)
        for p in policy.parameters():
            if p.requires_grad and not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return policy.eval()


def test_before_learning_the_greedy_policy_is_the_greedy_base(tmp_path: Path) -> None:
    policy, base = residual(tmp_path, disturb=False), make_policy("flow")
    obs = observe(policy, 4, np.random.default_rng(0))
    own = policy.act(policy.encode(obs), {}, generators(1, 2, 3, 4), greedy=True)[0].chunk
    theirs = base.act(base.encode(obs), {}, generators(0, 0, 0, 0), greedy=True)[0].chunk
    torch.testing.assert_close(own, theirs)
    assert (policy.spec.links, base.spec.links) == (1, 4)
    assert policy.spec.horizon == base.spec.horizon


@pytest.mark.parametrize("family", ["gaussian", "flow"])
def test_scores_are_exact_and_corrections_bounded(family: str, tmp_path: Path) -> None:
    policy = residual(tmp_path, family, rho=0.05, std=0.9)
    segment = make_segment(policy, n=4, t=6)
    scored = policy.evaluate(segment.features, segment.trace, segment.starts, segment.memory)
    torch.testing.assert_close(scored.log_prob, segment.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scored.value, segment.value, atol=1e-5, rtol=1e-5)
    obs = observe(policy, 4, np.random.default_rng(0))
    x = policy.encode(obs)
    decision = policy.act(x, {}, generators(1, 2, 3, 4))[0]
    moved = decision.chunk - x["residual/base"]
    half = (torch.tensor(policy.spec.high) - torch.tensor(policy.spec.low)) / 2
    assert (decision.trace[:, -1].abs() > 1).any()  # u is scored as drawn, and bounded after that
    assert float((moved.abs() / half).max()) <= 0.05 + 1e-6
    assert float((moved.abs() / half).max()) > 0.04
    assert bool(
        ((decision.chunk >= torch.tensor(policy.spec.low)) & (decision.chunk <= torch.tensor(policy.spec.high))).all()
    )
    alone = policy.act({k: v[2:3] for k, v in x.items()}, {}, generators(3))[0]
    torch.testing.assert_close(alone.chunk[0], decision.chunk[2])


def test_gradients_reach_the_residual_alone_and_weights_survive(tmp_path: Path) -> None:
    policy = residual(tmp_path)
    segment = make_segment(policy, n=2, t=3)
    scored = policy.evaluate(segment.features, segment.trace, segment.starts, segment.memory)
    (scored.log_prob.sum() + scored.value.sum()).backward()
    assert all(p.grad is None for p in policy.base.parameters())
    assert all(p.grad is not None for n, p in policy.named_parameters() if not n.startswith("base."))
    again: Any = load_policy(next((tmp_path / "residual").iterdir()))
    again.load_state_dict(policy.state_dict())
    x = policy.encode(observe(policy, 2, np.random.default_rng(0)))
    first = policy.act(x, {}, generators(1, 2))[0].chunk
    assert torch.equal(
        again.act(again.encode(observe(policy, 2, np.random.default_rng(0))), {}, generators(1, 2))[0].chunk, first
    )


def test_mistakes_are_named_and_the_command_writes_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"_target_": "pretrained.residual.ResidualPolicy", "base": policy_node("gaussian")}
    with pytest.raises(ValueError, match="rho = 2"):
        build({**node, "rho": 2.0}, env=toy_spec())
    with pytest.raises(ValueError, match="expected a ChunkPolicy of continuous actions"):
        build({**node, "base": policy_node("gaussian", memory="gru")}, env=toy_spec())
    policy = build(node, env=toy_spec())
    with pytest.raises(ValueError, match="fine-tuned, not imitated"):
        policy.imitation_loss(None, None)
    folder = checkpoint(tmp_path / "base" / "step_000001")
    main([str(folder), str(tmp_path / "out"), "--rho", "0.2"])
    written = Path(capsys.readouterr().out.strip())
    loaded: Any = load_policy(written)
    assert loaded.rho == 0.2
