"""The learner's switches: nearly the same update as plain float32, the first ratio, and what a machine cannot do."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrained.networks import recomputable
from rl.compute import Compute, missing_for_compile
from rl.learner import Learner
from rl.ppo import Ppo
from rl.rewards import build_terms
from tests.toy_parts import SUCCESS, make_policy, make_segment, toy_spec

CPU = torch.device("cpu")
RATE = 1e-3
ALGO = Ppo(lr=RATE, links="sum", reduction="sum", clip=0.2, epochs=2, minibatches=3, lr_warmup=0)
COMPILER = missing_for_compile(CPU)


def learner(policy: Any, algo: Ppo = ALGO, **switches: bool) -> Learner:
    return Learner(policy, algo, build_terms(SUCCESS), compute=Compute(**{"fused": False, **switches}))


def update(family: str, memory: str = "none", algo: Ppo = ALGO, **switches: bool) -> tuple[dict[str, Tensor], Any]:
    """What one update adds to the weights, and its metrics."""
    policy = make_policy(family, memory=memory) if memory != "none" else make_policy(family)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    metrics = learner(policy, algo, **switches).update(make_segment(policy, n=5))
    return {k: v - before[k] for k, v in policy.state_dict().items() if v.is_floating_point()}, metrics


def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    flat = [torch.cat([v.flatten() for v in x.values()]) for x in (a, b)]
    return float(nn.functional.cosine_similarity(*flat, dim=0))


CASES = [("flow", "none"), ("gaussian", "gru"), ("categorical", "none"), ("vla", "none")]


@pytest.mark.parametrize(("family", "memory"), CASES)
def test_bf16_goes_nearly_the_same_way_and_keeps_the_first_ratio(family: str, memory: str) -> None:
    plain, _ = update(family, memory)
    rounded, metrics = update(family, memory, bf16=True)
    assert metrics["loss/first_log_ratio"] < 1e-4
    assert all(v.dtype == torch.float32 for v in rounded.values())
    assert any(not torch.equal(v, plain[k]) for k, v in rounded.items())  # it was on at all
    # Adam's first steps have the size of the rate whatever the gradient, so what rounding (3 digits) may turn around
    # are entries whose gradient is nearly 0; all in all the direction stays.
    assert cosine(plain, rounded) > 0.9


@pytest.mark.parametrize(("family", "memory"), CASES)
def test_fused_changes_rounding_only(family: str, memory: str) -> None:
    plain, _ = update(family, memory)
    fused, _ = update(family, memory, fused=True)
    gap = torch.cat([(fused[k] - v).abs().flatten() for k, v in plain.items()])
    # Within a thousandth of the way that Adam can go. A few entries have no gradient but rounding (biases in front of
    # a softmax), which Adam makes full-size steps of.
    assert (gap <= 1e-3 * ALGO.epochs * ALGO.minibatches * RATE).float().mean() > 0.995
    assert cosine(plain, fused) > 0.999


@pytest.mark.parametrize(("family", "memory"), CASES)
def test_recompute_changes_nothing(family: str, memory: str) -> None:
    plain, _ = update(family, memory)
    again, _ = update(family, memory, recompute=True)
    assert all(torch.equal(v, again[k]) for k, v in plain.items())  # the same operations on the same numbers


@pytest.mark.slow
@pytest.mark.skipif(bool(COMPILER), reason=f"torch.compile needs {COMPILER}")
@pytest.mark.parametrize("other", [{}, {"bf16": True}], ids=str)
def test_compile_goes_nearly_the_same_way(other: dict[str, bool]) -> None:
    plain, _ = update("flow", **other)
    compiled, metrics = update("flow", compile=True, **other)
    assert metrics["loss/first_log_ratio"] < 1e-4
    # float32 sums in another order, and Adam's steps as above; in bfloat16 fused operations round less often
    assert cosine(plain, compiled) > (0.9 if "bf16" in other else 0.999)


def test_recompute_keeps_less() -> None:
    def kept(**switches: bool) -> int:
        policy = make_policy("flow", toy_spec(size=[64, 64]))
        segment, sizes = make_segment(policy, n=8), {}
        scorer = Compute(**switches).prepare(policy, CPU)
        weights = {p.data_ptr() for p in policy.parameters()}

        def pack(x: Tensor) -> Tensor:
            if x.data_ptr() not in weights:
                sizes[x.data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            scorer.evaluate(segment.features, segment.trace, segment.starts, {}).log_prob.sum()
        return sum(sizes.values())

    assert kept(recompute=True) < 0.4 * kept()


def test_blocks_worth_recomputing_are_outermost_and_learn() -> None:
    policy = make_policy("flow", network="transformer")
    kinds = [type(b).__name__ for b in recomputable(policy)]
    assert kinds.count("SmallCnn") == len(policy.spec.cameras)
    assert kinds.count("TransformerBlock") == 3
    assert "AdaLnBlock" not in kinds  # they are inside the others
    policy.encoder.requires_grad_(False)
    assert "SmallCnn" not in [type(b).__name__ for b in recomputable(policy)]


def test_resume_across_a_switch() -> None:
    """The optimizer's state fits whatever the switches and stages were."""
    first = learner(make_policy("flow"))
    first.update(make_segment(first.policy))
    stages = ({"iterations": 1, "freeze": ["encoder.towers.0.convs"]}, {})
    other = Ppo(lr={"": RATE, "actor.network": 2 * RATE}, epochs=1, minibatches=1, stages=stages)
    second = learner(make_policy("flow"), other, fused=True)
    second.load(first.state())
    assert len(second.optimizer.param_groups) > len(first.optimizer.param_groups)
    moments = [{n: o.state[p]["exp_avg"] for n, p in x._names.items() if p in o.state}
               for x in (first, second) for o in [x.optimizer]]  # fmt: skip
    assert moments[0]
    assert all(torch.equal(v, moments[1][n]) for n, v in moments[0].items())
    second.update(make_segment(second.policy, seed=1))


def test_an_optimizer_of_another_policy_is_refused() -> None:
    state = learner(make_policy("gaussian")).state()
    with pytest.raises(ValueError, match="the saved optimizer has .* parameters, this policy trains"):
        learner(make_policy("flow")).load(state)


# --- what cannot be done ---


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile=true needs a C\+\+ compiler .* set compile=false"):
        learner(make_policy("flow"), compile=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton" in missing_for_compile(torch.device("cuda"))


def test_compile_without_headers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(ValueError, match="Python's headers"):
        Compute(compile=True).prepare(make_policy("flow"), CPU)


def test_a_failure_of_the_compiler_names_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise BackendCompilerFailed(lambda: None, RuntimeError("cc1plus: not found"), None)

    monkeypatch.setattr(torch, "compile", lambda f: broken)
    monkeypatch.setattr("rl.compute.missing_for_compile", lambda device: "")
    one = learner(make_policy("flow"), compile=True)
    with pytest.raises(RuntimeError, match="torch.compile failed on this policy: .*; set compile=false"):
        one.update(make_segment(one.policy))


def test_bf16_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(ValueError, match="bf16=true, but Old GPU has no bfloat16; set bf16=false"):
        Compute(bf16=True).prepare(make_policy("flow"), torch.device("cuda"))


@pytest.mark.parametrize("switch", ["bf16", "fused", "compile"])
def test_devices_that_are_not_supported(switch: str) -> None:
    with pytest.raises(ValueError, match=f"{switch}=true works on cpu and cuda, not on mps; set {switch}=false"):
        Compute(**{"fused": False, switch: True}).prepare(make_policy("flow"), torch.device("mps"))


def test_nothing_worth_recomputing_is_refused() -> None:
    class Plain(nn.Module):
        spec = make_policy("flow").spec

    policy: Any = Plain()
    with pytest.raises(ValueError, match="recompute=true, but this policy has no block that is worth it"):
        Compute(recompute=True).prepare(policy, CPU)
