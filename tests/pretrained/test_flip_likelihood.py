"""Glimpses of episodes, and a video model as a judge of them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.build import build
from pretrained import checkpoint
from pretrained.demos.clips import TRACKS
from pretrained.demos.glimpses import GlimpseReader
from pretrained.flip.likelihood import VideoJudge
from pretrained.flip.stage import VideoStage
from tests.pretrained.test_flip_stage import NODE, shard

needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
VIDEO: dict[str, Any] = {**NODE["video"], "horizon": 2}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoStage]:
    """A shard, and a model of it that has learned a little: which pictures follow which."""
    folder = tmp_path_factory.mktemp("glimpses")
    reader = GlimpseReader(paths=shard(folder / "shard"), history=2, horizon=2, stride=4)
    torch.manual_seed(0)
    node = {"_target_": "pretrained.flip.stage.VideoStage", "video": VIDEO, "vae": NODE["vae"], "text": "words:12",
            "length": 8, "fewest": 4}  # fmt: skip
    stage: Any = build(node, env=reader.env)
    rng, demo = torch.Generator().manual_seed(0), reader.batch(range(len(reader)))
    stage.vae.scale /= float(stage.clips(demo, None).std())  # an untrained autoencoder makes all pictures much alike
    latents, text = stage.clips(demo, None), stage.encoder(demo.obs.texts)
    optimizer = torch.optim.Adam(stage.video.parameters(), lr=3e-3)
    for _ in range(50):
        rows = torch.randint(len(latents), (16,), generator=rng)
        t = torch.randint(stage.video.schedule.steps, (16,), generator=rng)
        noise = torch.randn(latents[rows].shape, generator=rng)
        terms = stage.video.losses(latents[rows], t, noise, torch.zeros(16, 0, 2, 2), text[rows])
        optimizer.zero_grad()
        (terms["mse"] + terms["bound"]).mean().backward()
        optimizer.step()
    checkpoint.save(folder / "run" / "step_00000050", stage, node=node, env=reader.env)
    return folder, stage


def test_windows_are_strides_apart_and_begin_with_repeats(tmp_path: Path) -> None:
    reader = GlimpseReader(paths=shard(tmp_path / "shard"), history=3, horizon=3, stride=4)
    assert len(reader) == 4 * (18 - 8)
    demo = reader.batch([0, 9, 10])
    frames = torch.as_tensor(demo.obs.images["scene"])
    assert frames.shape == (3, 5, 32, 32, 3)
    columns = (frames[:, :, 8, :, 0] == 200).int().argmax(-1)  # where the square is: its frame's number
    assert columns.tolist() == [[0, 0, 0, 4, 8], [1, 5, 9, 13, 17], [0, 0, 0, 4, 8]]
    assert demo.obs.hints[TRACKS].shape == (3, 0, 3, 2)
    train, held = reader.split(0.25, 0)
    assert held is not None
    assert (train.num_episodes, held.num_episodes, len(train) + len(held)) == (3, 1, 40)
    with pytest.raises(ValueError, match="no episode of .* has more than 20 frames"):
        GlimpseReader(paths=tmp_path / "shard", stride=20)
    with pytest.raises(ValueError, match="stride >= 1"):
        GlimpseReader(paths=tmp_path / "shard", stride=0)


def clips(reader: GlimpseReader, rows: list[int]) -> tuple[np.ndarray, list[str]]:
    demo = reader.batch(rows)
    return torch.as_tensor(demo.obs.images["scene"]).numpy(), demo.obs.texts


@needs_diffusers
def test_what_happens_is_likelier_than_what_does_not(trained: tuple[Path, VideoStage]) -> None:
    folder, stage = trained
    reader = GlimpseReader(paths=folder / "shard", history=2, horizon=2, stride=4)
    judge = VideoJudge(stage=stage, shard=str(folder / "shard"), stride=4, device="cpu")
    assert judge.pictures == 3
    frames, texts = clips(reader, [2, 6, 9, 30])
    true = judge.scores(frames, texts)
    noise = frames.copy()
    noise[:, 2] = np.random.default_rng(0).integers(0, 256, noise[:, 2].shape, dtype=np.uint8)
    assert (true > judge.scores(noise, texts)).all()
    said = judge(frames, texts)
    assert ((said > 0.1) & (said < 0.9)).all()
    assert (judge(noise, texts) < said).all()
    np.testing.assert_allclose(judge.scores(frames[2:3], texts[2:3]), true[2:3], atol=1e-4)  # a row is its own
    np.testing.assert_array_equal(judge(frames, texts), said)
    bits = VideoJudge(stage=stage, weights="bound", calibration=[0, 1], device="cpu")
    assert np.isfinite(bits.scores(frames, texts)).all()
    assert not np.allclose(bits.scores(frames, texts), true)
    with pytest.raises(ValueError, match=r"expected \[M, 3, Y, X, 3\]; set the reward's pictures: 3"):
        judge(frames[:, :2], texts)


@needs_diffusers
def test_what_it_knows_leaves_less_open_than_what_it_does_not(trained: tuple[Path, VideoStage]) -> None:
    folder, stage = trained
    reader = GlimpseReader(paths=folder / "shard", history=2, horizon=2, stride=4)
    judge = VideoJudge(stage=stage, kind="entropy", shard=str(folder / "shard"), stride=4, device="cpu")
    assert judge.pictures == 2
    frames, texts = clips(reader, [2, 6, 9, 30])
    seen = frames[:, :2]
    said = judge(seen, texts)
    assert ((said > 0) & (said < 1)).all()
    np.testing.assert_array_equal(judge(seen, texts), said)
    assert float(np.abs(judge(255 - seen, texts) - said).max()) > 1e-3


@needs_diffusers
def test_bad_settings_are_named(trained: tuple[Path, VideoStage]) -> None:
    folder, stage = trained
    loaded = VideoJudge(checkpoint_path=str(folder / "run"), calibration=[0, 1], device="cpu")
    for name, value in loaded.video.state_dict().items():
        assert torch.equal(value, stage.video.state_dict()[name])
    with pytest.raises(ValueError, match="kind 'beauty' is not known"):
        VideoJudge(stage=stage, kind="beauty", calibration=[0, 1])
    with pytest.raises(ValueError, match="weights 'heavy' are not known"):
        VideoJudge(stage=stage, weights="heavy", calibration=[0, 1])
    with pytest.raises(ValueError, match="levels >= 2"):
        VideoJudge(stage=stage, levels=1, calibration=[0, 1])
    with pytest.raises(ValueError, match="needs its calibration"):
        VideoJudge(stage=stage)
