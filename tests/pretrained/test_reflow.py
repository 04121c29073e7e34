"""Reflow: paths become straight, their ends stay, and imitation runs it as a stage of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrained.checkpoint import load_policy, read_card
from pretrained.imitate import ImitateRun, imitate
from pretrained.rectified_flow import Reflow, integrate
from tests.pretrained.test_demos import SPEC, written
from tests.toy_parts import make_policy, observe, policy_node

ROWS, LONG = 128, 16


def flow(seed: int = 0) -> Any:
    return make_policy("flow", seed=seed, horizon=1, width=32, normalize="identity", augment=0).train()


def learn(policy: Any, loss: Any, steps: int) -> None:
    optimizer = torch.optim.Adam(policy.actor.parameters(), lr=3e-3)
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(rng)[0].backward()
        optimizer.step()


def ends(policy: Any, x: Any, noise: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        return integrate(policy, policy.start_condition(x), noise, steps=steps)


def test_one_step_goes_where_many_went() -> None:
    """Actions at two corners, whatever is seen: the first flow's paths bend, and one step ends between the corners."""
    teacher, none = flow(), torch.zeros(ROWS, 1, dtype=torch.bool)
    x = {
        k: v.expand(ROWS, *v.shape[1:])
        for k, v in teacher.encode(observe(teacher, 1, np.random.default_rng(0))).items()
    }
    corner = torch.tensor([[[0.8, 0.8]], [[-0.8, -0.8]]]).repeat(ROWS // 2, 1, 1)
    learn(teacher, lambda rng: teacher.imitation_loss_of(x, corner, none, rng), 250)
    noise = torch.randn(ROWS, 1, 2, generator=torch.Generator().manual_seed(2))
    long = ends(teacher, x, noise, LONG)
    assert (long.abs() - 0.8).abs().mean() < 0.15  # it has learned both corners
    bent = (ends(teacher, x, noise, 1) - long).abs().mean()

    student = flow()
    student.load_state_dict(teacher.state_dict())
    reflow = Reflow(teacher, steps=LONG)
    learn(student, lambda rng: reflow.loss(student, x, none, rng), 250)
    straight = (ends(student, x, noise, 1) - ends(student, x, noise, LONG)).abs().mean()
    assert bent > 0.4
    assert straight < 0.3 * bent
    kept = (ends(student, x, noise, LONG) - long).abs().mean(-1)
    assert float(kept.median()) < 0.15  # the same noise still leads to the same chunk


def settings(tmp_path: Path, **kwargs: Any) -> ImitateRun:
    policy = policy_node(
        kwargs.pop("family", "flow"), encoder={"width": 8, "channels": [4], "kernels": [2], "strides": [2]}
    )
    policy["encoder"]["_target_"] = "pretrained.encoders.PixelEncoder"
    demos = tmp_path / "demos.hdf5"
    fields: dict[str, Any] = {"policy": policy, "demos": str(demos), "env": None, "steps": 4, "batch_size": 4,
                              "val_fraction": 0.5, "save_every": 2, "quiet": True}  # fmt: skip
    return ImitateRun(**(fields | kwargs))


def test_as_a_stage_of_imitation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "demos.hdf5")
    first = imitate(settings(tmp_path, out=str(tmp_path / "flow")))
    pairs, honest = [], integrate

    def spy(policy: Any, cond: Tensor, noise: Tensor, *, steps: int, method: str = "euler") -> Tensor:
        pairs.append((policy, steps))
        return honest(policy, cond, noise, steps=steps, method=method)

    monkeypatch.setattr("pretrained.rectified_flow.integrate", spy)
    again = settings(tmp_path, out=str(tmp_path / "reflow"), init=str(first), reflow=8, steps=2)
    imitate(again)
    second = imitate(settings(tmp_path, out=str(tmp_path / "reflow"), init=str(first), reflow=8))  # and on
    assert {steps for _, steps in pairs} == {8}
    teacher, start = pairs[-1][0].state_dict(), load_policy(first, env=SPEC)
    assert all(torch.equal(v, teacher[k]) for k, v in start.state_dict().items())  # type: ignore[attr-defined]
    changed: Any = load_policy(second, env=SPEC)
    assert any(not torch.equal(v, teacher[k]) for k, v in changed.state_dict().items() if k.startswith("actor"))
    assert torch.equal(changed.actions.low, pairs[-1][0].actions.low)  # the normalisers are the flow's
    assert read_card(second).parent == str(first)


def test_what_reflow_cannot_do(tmp_path: Path) -> None:
    written(tmp_path / "demos.hdf5")
    with pytest.raises(ValueError, match="reflow needs the flow.*init="):
        imitate(settings(tmp_path, out=str(tmp_path / "a"), reflow=8))
    gaussian = imitate(settings(tmp_path, out=str(tmp_path / "g"), family="gaussian", steps=2))
    with pytest.raises(ValueError, match="init has the kernel Gaussian"):
        imitate(settings(tmp_path, out=str(tmp_path / "b"), family="gaussian", init=str(gaussian), reflow=8))
    with pytest.raises(ValueError, match="reflow = 1; expected at least 2 steps"):
        Reflow(flow(), steps=1)
