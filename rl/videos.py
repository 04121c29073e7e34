"""Videos of evaluated episodes: replays of what was done, written when all has been measured."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.film import Film, Take
from envs.record import side_by_side, write_picture, write_video
from envs.types import EnvError
from pretrained.progress import Bar

TOP_DOWN = "top_down"  # a camera whose last picture shows the way of the whole episode
_log = logging.getLogger(__name__)


def film_takes(film: Film, takes: Mapping[str, Take], out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Film the takes; returns what the pictures show and which takes are missing, and why."""
    missing: dict[str, str] = {}
    with Bar("videos", total=len(takes), quiet=quiet) as bar:
        for name, take in takes.items():
            try:
                frames = film.play(take)
                said = [*take.captions, "success" if take.success else "failure"] if take.captions else None
                write_video(out / name, side_by_side(frames), fps=film.vector.env_spec.control_hz, captions=said)
                if TOP_DOWN in frames:
                    write_picture((out / name).with_suffix(".png"), frames[TOP_DOWN][-1])
            except EnvError as e:  # an evaluation is worth more than its pictures
                _log.warning("no video %s: %s", name, e)
                missing[name] = str(e)
            bar.advance(1)
    return {"shown": {name: list(size) for name, size in film.cameras.items()}, "missing": missing}
