"""Videos of what the cameras saw: H.264 in MP4 where imageio-ffmpeg is installed, else an animated GIF."""

import importlib.util
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from envs.types import EnvError

MIN_HEIGHT = 192  # small pictures are enlarged by a whole factor, so that they can be seen
GAP = 4  # black columns between two cameras
CAPTION = (235, 235, 235)


class Recorder:
    """Collects the frames of one episode, camera by camera, and writes them side by side."""

    def __init__(self, *, fps: float = 20.0) -> None:
        self.fps = fps
        self._frames: dict[str, list[np.ndarray]] = {}
        self._captions: list[str] = []

    def __len__(self) -> int:
        return len(self._captions)

    def add(self, images: Mapping[str, np.ndarray], caption: str = "") -> None:
        """Add one moment, uint8 [Y, X, 3] per camera, or several, [T, Y, X, 3]. Frames are copied."""
        moments = {name: np.array(image if image.ndim == 4 else image[None]) for name, image in images.items()}
        counts = {len(frames) for frames in moments.values()}
        if len(counts) != 1 or (self._frames and list(self._frames) != list(moments)):
            got = {name: frames.shape for name, frames in moments.items()}
            raise EnvError(
                f"recorder: got {got}, expected as many frames of each camera of {list(self._frames or got)}"
            )
        for name, frames in moments.items():
            self._frames.setdefault(name, []).extend(frames)
        self._captions += [caption] * counts.pop()

    def save(self, path: Path | str) -> Path:
        """Write what was added and start afresh; returns the path written (.gif if MP4 cannot be made here)."""
        if not self._frames:
            raise EnvError(f"recorder: there is nothing to write to {path}; call add first")
        frames = side_by_side({name: np.stack(frames) for name, frames in self._frames.items()})
        captions = self._captions if any(self._captions) else None
        self._frames, self._captions = {}, []
        return write_video(path, frames, fps=self.fps, captions=captions)


def write_video(
    path: Path | str,
    frames: np.ndarray,
    *,
    fps: float = 20.0,
    captions: Sequence[str] | str | None = None,
    enlarge: bool = True,
) -> Path:
    """Write `frames` uint8 [T, Y, X, 3] to a .mp4 or .gif and return the path written.

    The file appears when it is complete. Without imageio-ffmpeg a .mp4 becomes a .gif. `captions`: one, or T.
    Small pictures are enlarged unless the video is data, not for the eye."""
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise EnvError(f"video {path}: the suffix is '{path.suffix}', expected .mp4 or .gif")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise EnvError(f"video {path}: frames are {frames.dtype} {frames.shape}, expected uint8 [T, Y, X, 3]")
    if fps <= 0:
        raise EnvError(f"video {path}: fps is {fps}, expected a positive number")
    factor = -(-MIN_HEIGHT // frames.shape[1]) if enlarge else 1
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    if captions is not None:
        frames = _captioned(frames, [captions] * len(frames) if isinstance(captions, str) else captions)
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        path = path.with_suffix(".gif")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        (_write_mp4 if path.suffix == ".mp4" else _write_gif)(partial, frames, fps)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_picture(path: Path | str, image: np.ndarray) -> Path:
    """Write one picture uint8 [Y, X, 3] as PNG and return the path."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def side_by_side(videos: Mapping[str, np.ndarray]) -> np.ndarray:
    """Place videos [T, Y, X, 3] next to one another, in order.

    Lower ones are enlarged by whole factors and padded with black; shorter ones stay on their last frame."""
    length = max(len(v) for v in videos.values())
    height = max(v.shape[1] for v in videos.values())
    columns: list[np.ndarray] = []
    for frames in videos.values():
        factor = height // frames.shape[1]
        frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
        frames = np.concatenate([frames, frames[-1:].repeat(length - len(frames), axis=0)])
        if columns:
            columns.append(np.zeros((length, height, GAP, 3), dtype=np.uint8))
        columns.append(np.pad(frames, ((0, 0), (0, height - frames.shape[1]), (0, 0), (0, 0))))
    return np.concatenate(columns, axis=2)


def _captioned(frames: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Add a strip with one caption below each frame."""
    from PIL import Image, ImageDraw, ImageFont

    if len(captions) != len(frames):
        raise EnvError(f"video: got {len(captions)} captions for {len(frames)} frames; expected as many")
    width, font = frames.shape[2], ImageFont.load_default()
    columns = max(8, int((width - 8) / font.getlength("n")))
    wrapped = ["\n".join(textwrap.wrap(caption, columns)) for caption in captions]
    lines = max(1, *(text.count("\n") + 1 for text in wrapped))
    strips: dict[str, np.ndarray] = {}
    for text in set(wrapped):
        strip = Image.new("RGB", (width, 15 * lines + 6))
        ImageDraw.Draw(strip).multiline_text((4, 2), text, fill=CAPTION, font=font, spacing=3)
        strips[text] = np.asarray(strip)
    return np.concatenate([frames, np.stack([strips[text] for text in wrapped])], axis=1)


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))  # H.264 wants even sides
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (frames.shape[2], frames.shape[1]),
        fps=fps,  # pyright: ignore[reportArgumentType] (fractions are welcome, and needed)
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=["-crf", "20", "-preset", "veryfast", "-threads", "1", "-movflags", "+faststart"],
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    from PIL import Image

    # One palette for all: with a palette each, colours flicker.
    sample = frames[:: max(1, len(frames) // 16)]
    palette = Image.fromarray(sample.reshape(-1, *sample.shape[2:])).quantize(256)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    duration = max(20, round(1000 / fps))
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False)
