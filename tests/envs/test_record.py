"""Videos decode to what went in, appear only when complete, and fall back to GIF."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from envs.record import Recorder, side_by_side, write_video
from envs.types import EnvError

needs_ffmpeg = pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg missing")


def colours(t=6, y=33, x=31):
    """Frame i is one shade; odd sides, which H.264 does not like."""
    return np.stack([np.full((y, x, 3), (40 * i, 250 - 40 * i, 60), dtype=np.uint8) for i in range(t)])


def decode(path):
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    x, y = meta["size"]
    return meta, np.stack([np.frombuffer(f, np.uint8).reshape(y, x, 3) for f in reader])


@needs_ffmpeg
def test_mp4_round_trip(tmp_path):
    frames = colours()
    path = write_video(tmp_path / "new" / "a.mp4", frames, fps=10)
    meta, back = decode(path)
    assert meta["codec"] == "h264"
    assert meta["fps"] == 10
    assert back.shape == (6, 198, 186, 3)  # enlarged six times
    np.testing.assert_allclose(back.mean(axis=(1, 2)), frames.mean(axis=(1, 2)), atol=6)
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_gif_round_trip(tmp_path):
    frames = colours()
    path = write_video(tmp_path / "a.gif", frames, fps=10)
    image = Image.open(path)
    assert image.n_frames == 6
    assert image.info["duration"] == 100
    for i in range(6):
        image.seek(i)
        np.testing.assert_allclose(
            np.asarray(image.convert("RGB")).mean(axis=(0, 1)), frames[i].mean(axis=(0, 1)), atol=6
        )


def test_without_ffmpeg_mp4_becomes_gif(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else find(name))
    path = write_video(tmp_path / "a.mp4", colours())
    assert path == tmp_path / "a.gif"
    assert path.exists()


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def half(path, frames, fps):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("envs.record._write_gif", half)
    (tmp_path / "a.gif").write_bytes(b"older")
    with pytest.raises(OSError, match="disk full"):
        write_video(tmp_path / "a.gif", colours())
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
    assert (tmp_path / "a.gif").read_bytes() == b"older"


def test_captions_add_a_strip(tmp_path):
    plain = Image.open(write_video(tmp_path / "a.gif", colours()))
    told = Image.open(
        write_video(tmp_path / "b.gif", colours(), captions=["reach"] * 5 + ["reach the red target " * 3])
    )
    assert told.size[0] == plain.size[0]
    strip = np.asarray(told.convert("RGB"))[plain.size[1] :]
    assert strip.shape[0] > 15  # room for the longest of them
    assert strip.max() > 150  # something is written
    with pytest.raises(EnvError, match="2 captions for 6 frames"):
        write_video(tmp_path / "c.gif", colours(), captions=["a", "b"])


def test_side_by_side():
    big, small = np.full((3, 32, 20, 3), 9, np.uint8), np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1).repeat(3, 3)
    small = small.repeat(15, 1).repeat(10, 2)
    joined = side_by_side({"big": big, "small": small})
    assert joined.shape == (3, 32, 20 + 4 + 20, 3)
    assert (joined[:, :, :20] == 9).all()
    assert (joined[:, :, 20:24] == 0).all()
    assert (joined[:, :30, 24:] == np.array([0, 1, 1]).reshape(3, 1, 1, 1)).all()  # enlarged; the last frame stays
    assert (joined[:, 30:, 24:] == 0).all()


def test_recorder(tmp_path):
    recorder = Recorder(fps=5)
    with pytest.raises(EnvError, match="nothing to write"):
        recorder.save(tmp_path / "a.gif")
    frame = np.zeros((32, 32, 3), np.uint8)
    recorder.add({"top": frame, "hand": frame})
    frame[:] = 200  # the caller may reuse its memory
    recorder.add({"top": np.zeros((4, 32, 32, 3), np.uint8), "hand": np.zeros((4, 32, 32, 3), np.uint8)}, caption="go")
    assert len(recorder) == 5
    with pytest.raises(EnvError, match="expected as many frames of each camera"):
        recorder.add({"top": frame})
    image = Image.open(recorder.save(tmp_path / "a.gif"))
    assert image.size[0] == (32 * 2 + 4) * 6
    assert np.asarray(image.convert("RGB"))[:192].max() < 8
    assert len(recorder) == 0


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("a.avi", colours(), "expected .mp4 or .gif"),
        ("a.gif", colours().astype(float), r"float64 \(6, 33, 31, 3\), expected uint8"),
        ("a.gif", colours()[:0], "expected uint8"),
        ("a.gif", colours()[..., :1], "expected uint8"),
    ],
)
def test_wrong_frames_are_refused(tmp_path, name, frames, message):
    with pytest.raises(EnvError, match=message):
        write_video(tmp_path / name, frames)
    assert not list(tmp_path.iterdir())
