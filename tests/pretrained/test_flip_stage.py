"""FLIP's modules in the imitation loop, from shards of tracks."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrained import checkpoint
from pretrained.demos.clips import TRACKS, TrackReader
from pretrained.demos.tracks import TrackedEpisode, write
from pretrained.flip.stage import Flip, FlowStage, ValueStage, VideoStage
from pretrained.flip.vae import Autoencoder
from pretrained.imitate import ImitateRun, imitate

HAVE_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
NODE = {
    "_target_": "pretrained.flip.stage.Flip",
    "text": "words:12",
    "length": 8,
    "fewest": 4,
    "text_weight": 1.0,
    "flow": {"_target_": "pretrained.flip.flow.FlowModel", "width": 16, "encoder_layers": 1, "decoder_layers": 1,
             "heads": 2, "horizon": 6, "history": 3, "size": [32, 32], "dropout": 0.0},
    "video": {"_target_": "pretrained.flip.video.VideoModel", "size": [4, 4], "width": 32, "depth": 2, "heads": 4,
              "horizon": 6, "history": 2},
    "vae": {"_target_": "pretrained.flip.vae.Autoencoder", "model": "tiny"},
    "value": {"_target_": "pretrained.flip.value.ValueModel", "clip": "tiny", "tokenizer": "bytes"},
}  # fmt: skip


def shard(folder: Path, episodes: int = 4, frames: int = 18) -> Path:
    """A bright square that slides to the right, and points of which those on it move along."""
    written = []
    for i in range(episodes):
        pictures = np.full((frames, 32, 32, 3), 40 + 5 * i, np.uint8)
        for t in range(frames):
            pictures[t, 8:16, t : t + 8] = 200
        rows, columns = np.mgrid[2:30:7, 2:30:7]
        points = np.stack([columns.ravel(), rows.ravel()], 1).astype(float)
        clips = []
        for s in range(frames - 5):
            on = (points[:, 1] >= 8) & (points[:, 1] < 16) & (points[:, 0] >= s) & (points[:, 0] < s + 8)
            moved = np.arange(6)[None, :, None] * np.array([2.0, 0.0]) * on[:, None, None]
            clips.append(points[:, None] + moved)
        tracks = np.stack(clips)
        written.append(TrackedEpisode(pictures, tracks, np.ones(tracks.shape[:3], bool), "slide the square"))
    write(folder, written)
    return folder


def run(tmp_path: Path, stage: str, **options: Any) -> ImitateRun:
    reader = {"_target_": "pretrained.demos.clips.TrackReader", "history": 3}
    node = {"policy": NODE, "demos": str(shard(tmp_path / "shard")), "out": str(tmp_path / "run"), "reader": reader,
            "stage": stage, "steps": 6, "batch_size": 4, "save_every": 3, "log_every": 3, "val_fraction": 0.25,
            "quiet": True, "lr": 1e-3, "warmup": 1, "schedule": "constant", "device": "cpu"}  # fmt: skip
    return ImitateRun(**{**node, **options})


@pytest.mark.parametrize(
    ("stage", "metrics"),
    [
        ("flow", {"direction", "scale", "kl", "ade", "ltdr"}),
        ("video", {"mse", "bound"}),
        ("vae", {"psnr", "ssim"}),
        ("value", {"nce", "vip", "vip_text"}),
    ],
)
def test_each_stage_trains(stage: str, metrics: set[str], tmp_path: Path) -> None:
    if stage in ("video", "vae") and not HAVE_DIFFUSERS:
        pytest.skip("diffusers is not installed")
    last = imitate(run(tmp_path, stage, steps=2, save_every=2, log_every=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {f"train/{k}" for k in metrics} <= set(lines[-2]) | set(lines[-1])
    module: Any = checkpoint.load_policy(last)
    assert sum(p.numel() for p in getattr(module, stage).parameters()) > 0
    if stage == "vae":  # which the video model takes
        again = Autoencoder(model=str(tmp_path / "run"))
        torch.testing.assert_close(again.model.state_dict(), module.vae.model.state_dict())


def test_a_stage_resumes_exactly(tmp_path: Path) -> None:
    imitate(run(tmp_path, "flow", steps=2, save_every=2))
    last = imitate(run(tmp_path, "flow", steps=4, save_every=2))
    whole = imitate(run(tmp_path, "flow", steps=4, save_every=4, out=str(tmp_path / "whole")))
    module, other = (checkpoint.load_policy(folder) for folder in (last, whole))
    found, expected = (m.state_dict() for m in (module, other))  # type: ignore[attr-defined]
    for k, v in found.items():
        torch.testing.assert_close(v, expected[k], rtol=1e-5, atol=1e-6, msg=k)


def test_windows_hold_history_future_and_tracks(tmp_path: Path) -> None:
    reader = TrackReader(paths=shard(tmp_path / "shard"), history=3)
    demo = reader.batch([0, 4])
    frames = torch.as_tensor(demo.obs.images["scene"])
    assert frames.shape == (2, 3 + 5, 32, 32, 3)
    assert torch.equal(frames[0, 0], frames[0, 2])
    flow = demo.obs.hints[TRACKS]
    assert flow.shape == (2, 16, 6, 2)
    for row in range(2):
        moving = flow[row, (flow[row, :, -1] - flow[row, :, 0]).norm(dim=-1) > 0, 0].long()
        assert len(moving)
        assert bool((frames[row, 2, moving[:, 1], moving[:, 0]] == 200).all())


def test_without_labels_a_clip_has_any_sentence(tmp_path: Path) -> None:
    folder = shard(tmp_path / "shard")
    index = json.loads((folder / "index.json").read_text())
    for i, row in enumerate(index["episodes"]):
        row["instruction"] = f"goal {i}"
    (folder / "index.json").write_text(json.dumps(index))
    own = TrackReader(paths=folder, history=1).batch(range(13)).obs.texts
    reader = TrackReader(paths=folder, history=1, labelled=False)
    any_of = reader.batch(range(13), draw=3).obs.texts
    assert set(own) == {"goal 0"}
    assert len(set(any_of)) > 1
    assert reader.batch(range(13), draw=3).obs.texts == any_of


@pytest.mark.skipif(not HAVE_DIFFUSERS, reason="diffusers is not installed")
def test_remembered_latents_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = TrackReader(paths=shard(tmp_path / "shard"), history=2)
    torch.manual_seed(0)
    options: dict[str, Any] = {"video": NODE["video"], "vae": NODE["vae"], "text": "words:12", "length": 8}
    stage = VideoStage(env=reader.env, remember=24, **options)
    plain = VideoStage(env=reader.env, **options)
    plain.load_state_dict(stage.state_dict())
    demo = reader.batch([0, 1, 20])
    expected = plain.clips(demo, torch.Generator().manual_seed(1))
    for _ in range(2):
        torch.testing.assert_close(stage.clips(demo, torch.Generator().manual_seed(1)), expected, atol=1e-5, rtol=1e-5)
    assert len(stage._known) == len(
        {p.tobytes() for p in torch.as_tensor(demo.obs.images["scene"]).flatten(0, 1).numpy()}
    )
    monkeypatch.setattr(stage.vae, "moments", None)  # would fail if it were asked
    stage.clips(demo, torch.Generator())
    small = VideoStage(env=reader.env, remember=2, **options)
    small.clips(demo, torch.Generator())
    assert len(small._known) == 2
    with pytest.raises(ValueError, match="remember = -1"):
        VideoStage(env=reader.env, remember=-1, **options)


def test_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name a module"):
        Flip()
    folder = shard(tmp_path / "shard", frames=15)
    with pytest.raises(ValueError, match="smaller shard"):
        TrackReader(paths=folder, max_demos=1)
    reader = TrackReader(paths=folder, history=2)
    stage = FlowStage(env=reader.env, flow=NODE["flow"], text="words:12", length=8)  # type: ignore[arg-type]
    demo = reader.batch([0])
    with pytest.raises(ValueError, match=r"begin with 2 pictures, the model sees 3; set reader.history=3"):
        stage.imitation_loss(demo, torch.Generator())
    values = ValueStage(env=reader.env, value=NODE["value"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fewer than 16 frames"):
        values.imitation_loss(demo, torch.Generator())
    demo = TrackReader(paths=folder, history=3).batch([0])
    demo.obs.texts = ["far too long a sentence for so few words in it"]
    with pytest.raises(ValueError, match="expected 1 to 8"):
        stage.imitation_loss(demo, torch.Generator())
