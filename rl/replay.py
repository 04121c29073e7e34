"""Every evaluated episode can be seen again: its record says task and seed, and the tape beside it what was done.

    actions.npz         actions of all valid episodes, the steps of each decision, the initial states, and a fingerprint
                        of all states on the way
    environment.json    how the simulator was started, and what it offered

A replay runs the same simulator without any policy. It must go through the same states, to the bit, or it is refused.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.film import Film, Take
from envs.record import side_by_side, write_video
from envs.types import EnvConfig, EnvSpec, Observation
from rl.ledger import read

TAPES = "actions.npz"
ENVIRONMENT = "environment.json"
NAMES = ("episode", "actions", "steps", "chunks", "decisions", "initial", "states")  # in the file of tapes


@dataclass(frozen=True)
class Tape:
    """What an episode did."""

    actions: np.ndarray  # [steps, A] env units
    chunks: np.ndarray  # int [decisions] steps of each
    initial: np.ndarray  # float64 [S] proprioception, then the privileged entries by name
    states: str = ""  # see envs.film.States


def initial_state(obs: Observation) -> np.ndarray:
    """The state at the reset as one vector."""
    parts = [obs.proprio, *(obs.privileged[name] for name in sorted(obs.privileged))]
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])


def write_tapes(out: Path, tapes: Mapping[int, Tape]) -> None:
    """Write `actions.npz` of the tapes, by number of the episode; float32 where that loses nothing."""
    ordered = dict(sorted(tapes.items()))

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros(0)

    actions = joined([t.actions for t in ordered.values()])
    short = actions.astype(np.float32)
    content = {
        "episode": np.array(list(ordered), dtype=np.int64),
        "actions": short if (short == actions).all() else actions,
        "steps": np.array([len(t.actions) for t in ordered.values()], dtype=np.int64),
        "chunks": joined([t.chunks for t in ordered.values()]).astype(np.int32),
        "decisions": np.array([len(t.chunks) for t in ordered.values()], dtype=np.int64),
        "states": np.array([t.states for t in ordered.values()], dtype="U32"),
        "initial": np.stack([t.initial for t in ordered.values()]) if ordered else np.zeros((0, 0)),
    }
    temporary = out / (TAPES + ".part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **content)
    temporary.replace(out / TAPES)


def read_tape(folder: Path, episode: int) -> Tape:
    """The tape of one episode. Raises ValueError if there is none, or if the file is broken."""
    path = folder / TAPES
    if not path.is_file():
        raise ValueError(f"{folder} holds no {TAPES}: expected a folder that launch.py evaluate or sweep has written")
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in NAMES}
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise ValueError(f"{path} cannot be read ({e}); run the evaluation again") from e
    places = np.flatnonzero(content["episode"] == episode)
    if not len(places):
        raise ValueError(f"{path} has no episode {episode}; it has {_ranges(content['episode'].tolist())}")
    k = int(places[0])
    step, decision = (np.concatenate([[0], np.cumsum(content[name])]) for name in ("steps", "decisions"))
    actions = content["actions"][step[k] : step[k + 1]].astype(np.float64)
    chunks = content["chunks"][decision[k] : decision[k + 1]]
    return Tape(actions, chunks, content["initial"][k], str(content["states"][k]))


def write_environment(out: Path, config: EnvConfig, spec: EnvSpec) -> None:
    """Write `environment.json`."""
    temporary = out / (ENVIRONMENT + ".part")
    temporary.write_text(json.dumps({"config": asdict(config), "spec": spec.to_json()}, indent=1))
    temporary.replace(out / ENVIRONMENT)


def read_environment(folder: Path) -> tuple[EnvConfig, EnvSpec]:
    """The inverse. Raises ValueError if the file is missing or not one of ours."""
    path = folder / ENVIRONMENT
    try:
        found = json.loads(path.read_text())
        spec = EnvSpec.from_json(found["spec"])
        video = {name: (int(y), int(x)) for name, (y, x) in found["config"]["video"].items()}
        config = EnvConfig(**{**found["config"], "tasks": tuple(found["config"]["tasks"]), "video": video})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{path} cannot be read ({type(e).__name__}: {e}): expected a folder that launch.py evaluate or sweep has "
            "written; evaluations of older versions cannot be replayed"
        ) from e
    return config, spec


@dataclass(frozen=True)
class ReplayRun:
    """Which episode to see again: `FOLDER:NUMBER`, the number as in the folder's records."""

    episode: str
    out: str = ""  # the video; "": in the folder's videos/
    python: str = ""  # another interpreter for the simulator


def replay(run: ReplayRun) -> dict[str, Any]:
    """Play one episode again and write its video; returns the record, with `video`.

    Raises ValueError if there is no such episode, and EnvError if the simulator does not repeat it to the bit."""
    folder, number = _place(run.episode)
    record = next((r for r in read(folder / "episodes.jsonl") if r.get("episode") == number), None)
    if record is None:
        raise ValueError(f"{folder}/episodes.jsonl has no episode {number}; see its column `episode`")
    if not record["valid"]:
        raise ValueError(f"episode {number} of {folder} was lost ({record['cause']}): there is nothing to see again")
    tape = read_tape(folder, number)
    config, spec = read_environment(folder)
    config = replace(config, python=run.python) if run.python else config
    take = Take(
        record["task"], record["seed"], tape.actions, record["success"], record["reward"],
        chunks=tape.chunks.tolist(), states=tape.states,
        entries=tuple(spec.privileged),
    )  # fmt: skip
    longest = max([1, *take.chunks])
    with Film(config, spec, max_chunk=longest) as film:
        frames = film.play(take)
        fps = film.vector.env_spec.control_hz
    word = "success" if record["success"] else "failure"
    out = Path(run.out) if run.out else folder / "videos" / f"{number:03d}_seed{record['seed']}_{word}.mp4"
    return {**record, "video": str(write_video(out, side_by_side(frames), fps=fps))}


def _place(text: str) -> tuple[Path, int]:
    """`runs/evaluate:12` or `runs/evaluate/episodes.jsonl:12`."""
    path, _, number = text.rpartition(":")
    if not path or not number.isdigit():
        raise ValueError(f"episode = '{text}': expected FOLDER:NUMBER, for example runs/evaluate:12")
    folder = Path(path)
    return (folder.parent if folder.suffix == ".jsonl" else folder), int(number)


def _ranges(numbers: list[int]) -> str:
    return f"{len(numbers)}, from {min(numbers)} to {max(numbers)}" if numbers else "none"
