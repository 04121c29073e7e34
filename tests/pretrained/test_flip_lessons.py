"""Demonstrations with plans: whose plan a window has, and that a policy learns from it what nothing else tells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.types import EnvSpec
from pretrained import checkpoint
from pretrained.demos import DemoWriter, Recorded
from pretrained.demos.tracks import TrackedEpisode, write
from pretrained.flip.lessons import PlannedDemos
from pretrained.flip.stage import FlowStage
from pretrained.imitate import ImitateRun, imitate

STEPS, EPISODES, SIDE = 12, 6, 16
SPEC = EnvSpec(env_id="toy/plans", cameras={"eye": (SIDE, SIDE)}, proprio={"x": "m"}, actions=("dx",), low=(-1.0,),
               high=(1.0,), control_hz=20.0, max_steps=50, tasks=("go",), action_convention="none")  # fmt: skip
FLOW = {"_target_": "pretrained.flip.flow.FlowModel", "width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2,
        "horizon": 4, "history": 1, "size": [SIDE, SIDE], "dropout": 0.0, "text_dim": 12}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Demonstrations that go left or right, and their tracks; pictures do not tell which."""
    folder = tmp_path_factory.mktemp("plans")
    writer, tracked = DemoWriter(folder / "demos.hdf5", env=SPEC, identity={}), []
    points = np.array([[4.0, 4.0], [12.0, 4.0], [4.0, 12.0], [12.0, 12.0]])
    for k in range(EPISODES):
        way = 1.0 if k % 2 else -1.0
        frames = np.full((STEPS + 1, SIDE, SIDE, 3), 100, np.uint8)
        actions = np.full((STEPS, 1), 0.5 * way)
        writer.add(k, Recorded({"eye": frames[:-1]}, np.zeros((STEPS, 1), np.float32), actions, actions,
                               np.zeros(STEPS), np.zeros((STEPS, 2)), "go", "go", k, True))  # fmt: skip
        writer.note(k, "success")
        tracks = points[:, None] + way * np.arange(4)[None, :, None] * np.array([1.0, 0.0])
        held = np.broadcast_to(tracks, (STEPS + 1, *tracks.shape))
        tracked.append(TrackedEpisode(frames, held, np.ones(held.shape[:3], bool), "go"))
    writer.finish(range(EPISODES), {"success_rate": 1.0})
    write(folder / "tracks", tracked)
    return str(folder / "demos.hdf5"), str(folder / "tracks")


def reader(files: tuple[str, str], **options: Any) -> PlannedDemos:
    return PlannedDemos(paths=files[0], shard=files[1], **options)


def way(batch: Any) -> np.ndarray:
    """Where plans go, in pixels per position."""
    tracks = batch.obs.hints["plan/tracks"].numpy()
    return (tracks[:, :, -1, 0] - tracks[:, :, 0, 0]).mean(1) * SIDE / 2 / 3


def test_a_window_has_its_own_plan_or_that_of_another(files: tuple[str, str]) -> None:
    own = reader(files, kind="true").batch(range(0, 6 * STEPS, 5))
    assert own.obs.hints["plan/given"].all()
    np.testing.assert_allclose(way(own), 2 * own.actions[:, 0, 0], atol=0.02)
    np.testing.assert_allclose(own.obs.hints["plan/tracks"][0, 0, 0], 2 * (4 + 0.5) / SIDE - 1, atol=1e-3)
    other = reader(files, kind="other").batch(range(0, 6 * STEPS, 5))
    assert 0.2 < (way(other) * other.actions[:, 0, 0].numpy() < 0).mean() < 0.8
    none = reader(files, kind="none").batch(range(4)).obs.hints
    assert not none["plan/given"].any()
    assert not none["plan/tracks"].any()


def test_some_windows_have_none_and_draws_repeat(files: tuple[str, str]) -> None:
    mixed = reader(files, dropout=0.4)
    train, val = mixed.split(0.34, 0)
    assert val is not None
    assert (train.num_episodes, val.num_episodes) == (4, 2)
    given = train.batch(np.zeros(400, int), draw=1).obs.hints["plan/given"]
    assert 0.5 < float(given.mean()) < 0.7
    assert torch.equal(given, train.batch(np.zeros(400, int), draw=1).obs.hints["plan/given"])
    assert not torch.equal(given, train.batch(np.zeros(400, int), draw=2).obs.hints["plan/given"])


def test_a_share_is_redrawn_by_the_flow_model(files: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage: Any = FlowStage(env=SPEC, flow=FLOW, text="words:12", length=4)
    node = {"_target_": "pretrained.flip.stage.FlowStage", "flow": FLOW, "text": "words:12", "length": 4}
    checkpoint.save(tmp_path / "flow", stage, node=node, env=SPEC)
    true = reader(files, kind="true").batch(range(40))
    mixed = reader(files, flow=str(tmp_path / "flow"), dropout=0.0, share=0.5).batch(range(40), draw=1)
    same = (mixed.obs.hints["plan/tracks"] - true.obs.hints["plan/tracks"]).abs().amax((1, 2, 3)) < 1e-6
    assert 5 < int(same.sum()) < 35
    # Points still begin on the grid.
    torch.testing.assert_close(mixed.obs.hints["plan/tracks"][:, :, 0], true.obs.hints["plan/tracks"][:, :, 0])


def test_a_policy_learns_to_go_where_the_plan_goes(files: tuple[str, str], tmp_path: Path) -> None:
    node = {"_target_": "pretrained.chunk_policy.ChunkPolicy", "kernel": {"_target_": "pretrained.chain.Gaussian"},
            "horizon": 2, "width": 32, "normalize": "identity", "augment": 0,
            "encoder": {"_target_": "pretrained.encoders.PixelEncoder", "width": 8, "channels": [4, 4, 4], "words": 0},
            "plan": {"_target_": "pretrained.flip.condition.PlanEncoder", "horizon": 4, "hidden": 16}}  # fmt: skip
    source = {"_target_": "pretrained.flip.lessons.PlannedDemos", "shard": files[1], "horizon": 2, "dropout": 0.1}
    last = imitate(ImitateRun(policy=node, demos=files[0], out=str(tmp_path / "run"), reader=source, steps=150,
                              batch_size=32, lr=3e-3, warmup=1, val_fraction=0.0, save_every=150, ema=0.9, quiet=True,
                              device="cpu"))  # fmt: skip
    policy: Any = checkpoint.load_policy(last)
    for kind, sign in (("true", 1.0), ("other", 1.0), ("none", 0.0)):
        demo = reader(files, kind=kind, horizon=2).batch(range(0, 60, 7))
        chunk = policy.act(policy.encode(demo.obs), {}, torch.Generator().manual_seed(0), greedy=True)[0].chunk
        np.testing.assert_allclose(chunk[:, 0, 0], sign * np.sign(way(demo)) * 0.5, atol=0.15)


def test_a_shard_of_other_demonstrations_is_refused(files: tuple[str, str], tmp_path: Path) -> None:
    short = TrackedEpisode(np.zeros((5, SIDE, SIDE, 3), np.uint8), np.ones((2, 4, 4, 2)), np.ones((2, 4, 4), bool), "x")
    write(tmp_path / "other", [short])
    with pytest.raises(ValueError, match="expected a shard of these very demonstrations"):
        reader((files[0], str(tmp_path / "other")))
    with pytest.raises(ValueError, match="expected one of"):
        reader(files, kind="some")
