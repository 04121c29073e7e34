"""The imitation loop: it learns, resumes bit for bit, averages, stops on NaN, and runs in several processes.

Run as a script (`rank world port demos out`), this file is one process of the distributed test.
"""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from envs.types import EnvSpec
from pretrained import checkpoint
from pretrained.demos import DemoWriter, Recorded
from pretrained.imitate import ImitateRun, _Imitation, imitate, learning_rate
from pretrained.processes import processes
from pretrained.types import PolicySpec

SPEC = EnvSpec(
    env_id="toy/synthetic",
    cameras={"top": (16, 16)},
    proprio={"x": "m", "y": "m"},
    actions=("dx", "dy"),
    low=(-1.0, -1.0),
    high=(1.0, 1.0),
    control_hz=10.0,
    max_steps=20,
    tasks=("red",),
    action_convention="toy_velocity",
)


class Linear(nn.Module):
    """Actions linear in proprioception; `noisy` adds noise of both kinds of generators to the loss."""

    def __init__(self, *, env: EnvSpec, noisy: bool = False, nan_after: float = math.inf, width: int = 16) -> None:
        super().__init__()
        self.spec = PolicySpec(env.cameras, tuple(env.proprio), env.actions, env.low, env.high,
                               env.action_convention, env.control_hz, horizon=2, execute=2)  # fmt: skip
        self.actor = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.2 if noisy else 0.0), nn.Linear(width, 4))
        self.critic = nn.Linear(2, 1)  # gets no gradient from imitation
        self.register_buffer("mean", torch.zeros(2))
        self.noisy, self.nan_after, self.calls = noisy, nan_after, 0

    def fit_normalizers(self, actions: torch.Tensor, proprio: torch.Tensor) -> None:
        self.mean.copy_(proprio.mean(0))

    def imitation_loss(self, demo, rng):
        self.calls += self.training
        out = self.actor(demo.obs.proprio[:, -1] - self.mean).view(-1, 2, 2)
        target = demo.actions + (0.1 * torch.randn(demo.actions.shape, generator=rng) if self.noisy else 0.0)
        loss = ((out - target) ** 2).mean() * (math.nan if self.calls > self.nan_after else 1.0)
        return loss, {"mse": float(loss.detach())}


NODE = {"_target_": "pretrained.dummy_imitate.Linear"}
CHUNK = {
    "_target_": "pretrained.chunk_policy.ChunkPolicy",
    "kernel": {"_target_": "pretrained.chain.FlowNoise", "steps": 2},
    "horizon": 4,
    "width": 32,
    "critic_width": 16,
    "encoder": {"_target_": "pretrained.encoders.PixelEncoder", "width": 16, "channels": [8], "kernels": [4],
                "strides": [4], "text_dim": 8},
}  # fmt: skip
CLIP = {**CHUNK, "encoder": {"_target_": "pretrained.encoders.ClipEncoder", "model": "tiny"}}


def dummy_module():
    """Policies are found by their path, and only in our own packages."""
    module = types.ModuleType("pretrained.dummy_imitate")
    Linear.__module__ = module.__name__
    module.Linear = Linear
    return module


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "pretrained.dummy_imitate", dummy_module())


def record(path, env, seed):
    """Twelve episodes whose action is minus half of the position."""
    rng = np.random.default_rng(seed)
    writer = DemoWriter(path, env=env, identity={})
    for k in range(12):
        proprio = rng.uniform(-1, 1, size=(9, 2)).astype(np.float32)
        images = {"top": rng.integers(0, 255, size=(9, 16, 16, 3), dtype=np.uint8)}
        actions = -0.5 * proprio.astype(np.float64)
        writer.add(k, Recorded(images, proprio, actions, actions, np.zeros(9), np.zeros((9, 1)), "go", "red", k, True))
    return str(writer.finish(range(12), {}))


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return record(tmp_path_factory.mktemp("demos") / "a.hdf5", SPEC, seed=0)


def settings(demos, out, node=NODE, **kwargs):
    base = {"steps": 20, "batch_size": 8, "warmup": 3, "save_every": 10, "log_every": 5, "quiet": True, "threads": 1,
            "device": "cpu"}  # fmt: skip
    return ImitateRun(policy=node, demos=demos, out=str(out), **{**base, **kwargs})


def same(a, b):
    """Assert that two checkpoints hold the same tensors, bit for bit."""
    for file in ("policy.safetensors", "learner.safetensors"):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
    assert (a / "learner.json").read_text() == (b / "learner.json").read_text()


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_learns_and_writes_everything(demos, tmp_path):
    last = imitate(settings(demos, tmp_path, steps=300, lr=2e-2, save_every=100, ema=0.9))
    assert last == tmp_path / "step_00000300"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best",
        "metrics.jsonl",
        "step_00000200",
        "step_00000300",
        "tensorboard",
    ]
    losses = [line["train/loss"] for line in lines(tmp_path) if "train/loss" in line]
    # The second action of a chunk cannot be known from the first position: half of the variance of U(-.5, .5) stays.
    assert losses[-1] < 0.7 * losses[0]
    policy = checkpoint.load_policy(last, env=SPEC)
    position = torch.tensor([[0.4, -0.8]])
    first = policy.actor(position - policy.mean).view(1, 2, 2)[:, 0]
    torch.testing.assert_close(first, -0.5 * position, atol=0.05, rtol=0)
    assert checkpoint.read_card(last).env == SPEC
    assert any(p.name.startswith("events") for p in (tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("node", [{**NODE, "noisy": True}, CHUNK], ids=["linear", "chunk_policy"])
def test_killed_and_resumed_equals_uninterrupted(demos, tmp_path, monkeypatch, node):
    whole = imitate(settings(demos, tmp_path / "whole", node))
    real = _Imitation._update

    def killed(self, lesson):
        if self.step == 16:
            raise KeyboardInterrupt
        return real(self, lesson)

    monkeypatch.setattr(_Imitation, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        imitate(settings(demos, tmp_path / "cut", node))
    assert checkpoint.newest(tmp_path / "cut").name == "step_00000010"
    monkeypatch.setattr(_Imitation, "_update", real)
    torch.manual_seed(99)  # whatever else happened in the process
    cut = imitate(settings(demos, tmp_path / "cut", node))
    a, b = (checkpoint.load_learner(p) for p in (whole, cut))
    assert a["step"] == b["step"] == 20
    same(whole, cut)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_finished_run_returns_at_once_and_others_are_refused(demos, tmp_path):
    last = imitate(settings(demos, tmp_path))
    before = (last / "manifest.json").stat().st_mtime_ns
    assert imitate(settings(demos, tmp_path)) == last
    assert (last / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="trained with lr = 0.0003, now lr = 0.1; choose another 'out'"):
        imitate(settings(demos, tmp_path, lr=0.1))
    with pytest.raises(ValueError, match="already holds step_00000020"):
        imitate(settings(demos, tmp_path, resume=False))


def test_checkpoint_holds_the_average_and_learner_the_raw_weights(demos, tmp_path):
    last = imitate(settings(demos, tmp_path, steps=3, lr=1.0, warmup=0, ema=0.5, save_every=1, keep=3))
    average = None
    for step in (1, 2, 3):
        folder = tmp_path / f"step_{step:08d}"
        raw = checkpoint.load_learner(folder)["raw"]["actor.0.weight"]
        saved = checkpoint.load_policy(folder).actor[0].weight.detach()
        if average is None:
            average = saved  # its start is the initialisation, which was not saved
        else:
            decay = min(0.5, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * raw
        torch.testing.assert_close(saved, average)
        assert not torch.allclose(saved, raw)
    assert last.name == "step_00000003"


def test_best_is_the_lowest_validation_loss(demos, tmp_path):
    imitate(settings(demos, tmp_path, steps=60, lr=0.5, warmup=0, ema=0.0, keep=99))
    losses = {line["step"]: line["val/loss"] for line in lines(tmp_path) if "val/loss" in line}
    assert len(losses) == 6
    assert checkpoint.read_card(tmp_path / "best").metrics["step"] == min(losses, key=losses.get)
    assert checkpoint.load_learner(tmp_path / "best") is None


def test_without_validation_episodes(demos, tmp_path):
    imitate(settings(demos, tmp_path, val_fraction=0.0))
    assert any("train/ema_loss" in line for line in lines(tmp_path))


def test_nan_stops_and_keeps_the_last_checkpoint(demos, tmp_path):
    run = settings(demos, tmp_path, {**NODE, "nan_after": 13})
    with pytest.raises(FloatingPointError, match="loss is nan .* at step 13; the last checkpoint is .*step_00000010"):
        imitate(run)
    assert checkpoint.newest(tmp_path).name == "step_00000010"


def test_starts_from_a_checkpoint(demos, tmp_path):
    first = imitate(settings(demos, tmp_path / "a"))
    second = imitate(settings(demos, tmp_path / "b", init=str(tmp_path / "a"), steps=1, lr=0.0))
    assert checkpoint.read_card(second).parent == str(tmp_path / "a")
    for name, value in checkpoint.load_policy(first).state_dict().items():
        torch.testing.assert_close(checkpoint.load_policy(second).state_dict()[name], value)


def test_takes_on_the_weights_of_another_task(demos, tmp_path):
    first = imitate(settings(demos, tmp_path / "a"))
    other = record(tmp_path / "b.hdf5", dataclasses.replace(SPEC, control_hz=20.0), seed=1)
    with pytest.raises(ValueError, match="was trained with control_hz"):
        imitate(settings(other, tmp_path / "b", init=str(first), steps=1, lr=0.0))
    second = imitate(settings(other, tmp_path / "c", init=str(first), refit=True, steps=1, lr=0.0))
    before, after = (checkpoint.load_policy(p).state_dict() for p in (first, second))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"mean"}  # the normaliser
    with pytest.raises(ValueError, match=r"the weights of .* do not fit this policy and environment[^?]*actor"):
        imitate(settings(other, tmp_path / "d", {**NODE, "width": 12}, init=str(first), refit=True, steps=1))


def test_frozen_features_are_computed_once_and_change_nothing(demos, tmp_path, monkeypatch):
    run = settings(demos, tmp_path / "a", CLIP, steps=4, save_every=4)
    with_cache = imitate(run)
    monkeypatch.setattr(_Imitation, "_encoded", lambda self, demos: None)
    without = imitate(dataclasses.replace(run, out=str(tmp_path / "b")))
    a, b = (checkpoint.load_policy(p).state_dict() for p in (with_cache, without))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_epochs_visit_every_window_once(demos, tmp_path):
    run = settings(demos, tmp_path, batch_size=4)
    with processes(run.device) as (_, _, device):
        halves = [_Imitation(run, rank=r, world=1, device=device) for r in (0, 1)]
    for half in halves:
        half.world = 2
    count = len(halves[0].train_set)
    places = [int(w) for step in range(math.ceil(2 * count / 4)) for half in halves for w in half._windows(step)]
    visits = np.bincount(places, minlength=count)  # two epochs, and the start of a third
    assert visits.min() == 2
    assert (visits > 2).sum() == len(places) - 2 * count < 4


def test_bf16_runs(demos, tmp_path):
    last = imitate(settings(demos, tmp_path, CHUNK, bf16=True, steps=3))
    assert all(p.dtype == torch.float32 for p in checkpoint.load_policy(last).parameters())


def test_learning_rate_by_hand():
    run = ImitateRun(policy={}, demos="", out="", steps=12, warmup=2, lr=1.0)
    assert [learning_rate(run, s) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate(run, 7) == pytest.approx(0.5)
    assert learning_rate(run, 12) == pytest.approx(0.0)


@pytest.mark.slow
def test_two_processes_agree_and_equal_one(demos, tmp_path):
    """Half the batch each, gradients averaged: the same weights everywhere, and as with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(r), "2", port, demos, str(tmp_path)], env=environment)
        for r in (0, 1)
    ]
    assert [p.wait(timeout=120) for p in ranks] == [0, 0]
    a, b = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    one = imitate(settings(demos, tmp_path / "one"))
    alone = checkpoint.load_learner(one)["raw"]
    for name in alone:
        assert torch.equal(a[name], b[name]), name
        torch.testing.assert_close(a[name], alone[name], atol=1e-6, rtol=1e-5)
    assert checkpoint.newest(tmp_path / "two").name == "step_00000020"


def main(rank, world, port, demos, out):
    """One process of the distributed test."""
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.modules["pretrained.dummy_imitate"] = dummy_module()
    run = settings(demos, Path(out) / "two")
    with processes(run.device) as (r, w, device):
        loop = _Imitation(run, rank=r, world=w, device=device)
        loop.train()
        torch.save({k: p.detach() for k, p in loop.named.items()}, Path(out) / f"rank{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
