"""RLBench's dataset on disk, read as data: nothing of its pickles is run.

    <root>/<task>/variation<v>/variation_descriptions.pkl             the task in words, in several ways
    <root>/<task>/variation<v>/episodes/episode<n>/low_dim_obs.pkl    a pickled Demo: frames without pictures
    <root>/<task>/variation<v>/episodes/episode<n>/<camera>_rgb/<t>.png

`all_variations` in place of `variation<v>` holds episodes of several; each then has its own variation_descriptions.pkl.
Standard library and numpy only, Python 3.8 syntax.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs.pickles import Record, read_pickle_file
from envs.types import EnvError

ADMITTED = ("rlbench.demo.Demo", "rlbench.backend.observation.Observation")
EPISODES = "episodes"
_VARIATION, _EPISODE = re.compile(r"variation(\d+)$"), re.compile(r"episode(\d+)$")


@dataclass(frozen=True)
class StoredDemo:
    """One demonstration on disk."""

    folder: Path
    task: str
    variation: Optional[int]  # None: the file says it

    @property
    def name(self) -> str:
        return "/".join(p for p in self.folder.parts[-4:] if p != EPISODES)


@dataclass(frozen=True)
class Start:
    """What restores the start of a demonstration."""

    variation: int
    random_state: Tuple[Any, ...]  # of NumPy's global generator
    attempts: Optional[int]  # placements that were tried; None in old files


@dataclass(frozen=True)
class LoadedDemo:
    """A demonstration's frames, without pictures."""

    stored: StoredDemo
    frames: List[Dict[str, Any]]  # fields of RLBench's observations
    start: Start

    def array(self, field: str, size: int) -> np.ndarray:
        """float64 [T, size] of a field. Raises EnvError if a frame has none."""
        rows = [
            np.ravel(np.asarray(np.nan if f.get(field) is None else f[field], dtype=np.float64)) for f in self.frames
        ]
        bad = next((t for t, row in enumerate(rows) if row.shape != (size,) or not np.isfinite(row).all()), None)
        if bad is not None:
            raise EnvError(
                f"{self.stored.folder}: frame {bad} has {field} {rows[bad].tolist()}; expected {size} finite numbers: "
                "leave this demonstration out, or record it again"
            )
        return np.stack(rows)

    def misc(self, t: int, key: str) -> Any:
        """An entry of what frame t says besides, None if it does not."""
        return (self.frames[t].get("misc") or {}).get(key)


def is_dataset(path: Path) -> bool:
    """Whether a folder is a dataset of RLBench, or one task of it."""
    return any(path.glob(f"*/*/{EPISODES}")) or any(path.glob(f"*/{EPISODES}"))


def find_demos(root: Path, task: str, variations: Sequence[int] = ()) -> List[StoredDemo]:
    """The demonstrations of a task, by variation and number; () takes all variations. EnvError if there is none."""
    folder = root / task if (root / task).is_dir() else root
    if folder.name != task or not folder.is_dir():
        there = sorted(p.parent.parent.name for p in root.glob(f"*/*/{EPISODES}")) if root.is_dir() else []
        raise EnvError(f"{root} has no task '{task}'; it has {sorted(set(there)) or 'none in the layout of RLBench'}")
    found: List[Tuple[int, int, StoredDemo]] = []
    for place in folder.glob(f"*/{EPISODES}/episode*"):
        episode, match = _EPISODE.match(place.name), _VARIATION.match(place.parent.parent.name)
        if episode is None or not place.is_dir():
            continue
        variation = int(match[1]) if match else None
        if variation is None or not variations or variation in variations:
            found.append((-1 if variation is None else variation, int(episode[1]), StoredDemo(place, task, variation)))
    if not found:
        raise EnvError(
            f"{folder} has no demonstrations of variations {list(variations) or 'any'}; expected "
            f"variation<v>/{EPISODES}/episode<n>"
        )
    return [demo for _, _, demo in sorted(found, key=lambda f: f[:2])]


def load_demo(stored: StoredDemo) -> LoadedDemo:
    """Read one. Raises EnvError if its file is damaged, would run code, or is of another layout."""
    path = stored.folder / "low_dim_obs.pkl"
    try:
        demo = read_pickle_file(path, admitted=ADMITTED)
    except ValueError as e:
        raise EnvError(f"{e}; generate or download it again") from e
    if isinstance(demo, list):  # generators before Demo had a class
        demo = Record(ADMITTED[0], {"_observations": demo})
    if not isinstance(demo, Record) or demo.name != ADMITTED[0]:
        raise EnvError(f"{path} holds a {getattr(demo, 'name', type(demo).__name__)}, expected a Demo of RLBench")
    frames = demo.fields.get("_observations")
    if not isinstance(frames, list) or len(frames) < 2 or not all(isinstance(f, Record) for f in frames):
        raise EnvError(f"{path} has no two observations; it was cut short: generate it again")
    fields = [f.fields for f in frames]
    variation = (fields[0].get("misc") or {}).get("variation_index", stored.variation)
    state, attempts = demo.fields.get("random_seed"), demo.fields.get("num_reset_attempts")
    start = Start(int(variation or 0), tuple(state or ()), None if attempts is None else int(attempts))
    return LoadedDemo(stored, fields, start)


def descriptions(stored: StoredDemo) -> List[str]:
    """The task of a demonstration in words."""
    places = (stored.folder, stored.folder.parent.parent)
    path = next((p for p in (q / "variation_descriptions.pkl" for q in places) if p.is_file()), None)
    if path is None:
        raise EnvError(f"{stored.folder}: there is no variation_descriptions.pkl beside it or above; generate it again")
    try:
        texts = read_pickle_file(path, limit_mb=16)
    except ValueError as e:
        raise EnvError(f"{e}; generate or download it again") from e
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) for t in texts):
        raise EnvError(f"{path} holds {texts!r:.80}, expected a list of texts")
    return list(texts)
