"""The learner's benchmarks on tiny sizes: both sides learn the same, figures belong together. Speeds are not tested."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, learner, learner_gpu, policy_gpu
from benchmarks.synthetic import CASES, make_policy, make_segment

CPU = torch.device("cpu")
TINY = CASES["tiny"]
ROOT = Path(learner.__file__).resolve().parents[1]


def test_bare_is_the_same_algorithm() -> None:
    """With one epoch of one minibatch the order of rows is nothing, and both must take the same step."""
    once = learner.Ppo(**{**vars(learner.ALGO), "epochs": 1, "minibatches": 1, "lr_warmup": 0})
    policy = make_policy(TINY)
    segment = make_segment(policy, TINY)
    ours, bare = copy.deepcopy(policy), copy.deepcopy(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "ALGO", once)
        learner.make_learner(ours, threads=1).update(segment)
        learner.Bare(bare, rescore=True).update(segment)
    moved = [(a - p, b - p) for a, b, p in zip(*(m.parameters() for m in (ours, bare, policy)), strict=True)]
    first, second = (torch.cat([m[i].flatten() for m in moved]) for i in (0, 1))
    assert first.abs().max() > 1e-6
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.999


def test_ratios_come_from_the_same_rounds() -> None:
    said: list[str] = []
    found = learner.measure(TINY, 0.0, 1, said.append)
    assert found["rounds"] == len(said) == 2
    assert set(found["seconds"]) == {"ours", "bare", "short"}
    results = learner.as_results("tiny", found)
    assert results["learner/tiny/bare"]["goal"] == learner.GOAL
    assert results["learner/tiny/short"]["goal"] is None
    assert results["learner/tiny/bare"]["ours_s"] == round(found["seconds"]["ours"], 4)
    low: dict[str, Any] = {**found, "ratio": {"bare": 0.9, "short": 0.8}}
    assert "0.900 *" in learner.as_table({"tiny": low})


def test_work_is_counted() -> None:
    x = torch.zeros(4, 8, requires_grad=True)
    w = torch.zeros(8, 16, requires_grad=True)
    assert gpu.flops(lambda: x @ w) == 2 * 4 * 8 * 16
    assert gpu.flops(lambda: (x @ w).sum().backward()) == 3 * 2 * 4 * 8 * 16
    policy = make_policy(TINY)
    segment = make_segment(policy, TINY)
    forward_only = gpu.flops(lambda: policy.evaluate(*_one_row(segment)))
    work = learner_gpu.work_of(policy, segment)
    epochs = learner.ALGO.epochs
    # forward once more, and in each epoch forward and back: twice the forward, less the first layer's input
    assert (1 + 2.2 * epochs) * forward_only < work <= (1 + 3 * epochs) * forward_only


def _one_row(s: Any) -> tuple[Any, ...]:
    return {k: v[:1, :1] for k, v in s.features.items()}, s.trace[:1, :1], s.starts[:1, :1], {}


def test_learner_gpu_runs_anywhere() -> None:
    variants = {k: learner_gpu.VARIANTS[k] for k in ("float32", "bf16", "bf16 recomputed")}
    found = learner_gpu.measure(TINY, CPU, 2, 64, lambda line: None, variants)
    assert set(found["variants"]) == set(variants)
    for v in found["variants"].values():
        assert v["samples_per_s"] > 0
        assert v["of_ceiling"] > 0
    assert found["variants"]["float32"]["speedup"] == 1.0
    assert "learner_cpu/tiny/bf16" in learner_gpu.as_results("tiny", CPU, found)
    assert len(learner_gpu.as_table(found).splitlines()) == 2 + 3 + 2


def test_policy_gpu_runs_anywhere() -> None:
    variants = {k: policy_gpu.VARIANTS[k] for k in ("float32", "bf16")}
    found = policy_gpu.measure(TINY, CPU, (1, 3), 2, 64, lambda line: None, variants)
    assert set(found["points"]) == {(name, n) for name in variants for n in (1, 3)}
    point = found["points"]["float32", 3]
    assert point["per_s"] == pytest.approx(3 / (point["ms"] / 1e3))
    assert "policy_cpu/tiny/bf16/3" in policy_gpu.as_results("tiny", CPU, found)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda, but torch sees no CUDA device here; use --device cpu"):
        gpu.choose("cuda")
    assert gpu.choose("").type == "cpu"


def test_gpu_programs_need_no_ray() -> None:
    code = "import sys; sys.modules['ray'] = None; import benchmarks.learner_gpu, benchmarks.policy_gpu"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
