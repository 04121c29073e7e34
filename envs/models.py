"""Compiled scenes on disk: each is compiled once, by a helper process, and loaded from then on.

Loading gives the compiler's model to the bit, in a fraction of the time and of the memory. A file is found by the
content of everything it was made from: the scene's text, all files that the text names, MuJoCo's version and the visual
profile. It is loaded only if its checksum is right; otherwise it is made again.

    models/<key>.mjb     the model
    models/<key>.json    its checksum and size; its time is that of the last use
    models/.<key>...     a lock, or a file that is being written
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Tuple

from envs.cache import cache_root, locked, sha256_of, write_whole
from envs.decimate import VERSION as LITE_VERSION
from envs.types import EnvError

FORMAT = 1  # of what is written here and in envs.compile; a change makes all models anew
# Render quality -> visuals of the compiled model.
QUALITIES = {"exact": "exact", "fast": "exact", "lite": "lite", "soft": "lite"}
LIMIT_GB = "4"  # of all models together; $TEMPER_MODELS_GB overrides it
LEFT_S = 3600.0  # age at which half-made files count as left behind: making one takes seconds
_FILES = re.compile(r'\b((?:content)?file(?:right|left|up|down|front|back)?)\s*=\s*"([^"]*)"')
_NESTED = re.compile(r"<\s*(?:include|model|plugin)\b")  # these would name files that are not seen here
_ROOT = Path(__file__).resolve().parents[1]
_log = logging.getLogger(__name__)


def visuals_for(quality: str, cameras: Mapping[str, Tuple[int, int]]) -> str:
    """Which visual shapes a scene needs: none at all if there is no camera."""
    if quality not in QUALITIES:
        raise EnvError(f"render quality '{quality}' is unknown; expected one of {', '.join(QUALITIES)}")
    return QUALITIES[quality] if cameras else "none"


@contextlib.contextmanager
def compiled_scenes(sim: str, visuals: str) -> Iterator[None]:
    """While open, robosuite's scenes come from the cache. Nothing in the installed package is changed.

    What the scene's text says about the bodies' poses is kept as `compiled_poses`: resets move fixtures.
    """
    simulation = importlib.import_module("robosuite.utils.binding_utils").MjSim
    stock = simulation.__dict__["from_xml_string"]

    def from_xml_string(cls: Any, xml: str) -> Any:
        model = load_scene(xml, sim=sim, visuals=visuals)
        made = cls(model)
        made.compiled_poses = model.body_pos.copy(), model.body_quat.copy()
        return made

    simulation.from_xml_string = classmethod(from_xml_string)
    try:
        yield
    finally:
        simulation.from_xml_string = stock


def load_scene(xml: str, *, sim: str, visuals: str) -> Any:
    """The compiled model of a scene, from the cache if it is there. Raises EnvError if it cannot be compiled."""
    key = scene_key(xml, visuals)
    path = cache_root() / "models" / f"{key}.mjb"
    try:
        model = _load(path)
        if model is None:
            with locked(path):
                model = _load(path)  # another process may have made it meanwhile
                if model is None:
                    _make(path, xml, sim=sim, visuals=visuals)
                    model = _load(path)
    except OSError as e:
        _log.warning("compiled scenes cannot be kept in %s (%s); this one is compiled for this process", path.parent, e)
        from envs.compile import compile_scene

        return compile_scene(xml, sim=sim, visuals=visuals)
    if model is None:
        raise EnvError(f"{path} was written but cannot be read back; is the disk of {path.parent} full or failing?")
    return model


def scene_key(xml: str, visuals: str) -> str:
    """Changes with everything that the compiled model depends on, and not with where the files lie."""
    import mujoco

    if nested := _NESTED.search(xml):
        raise EnvError(f"a scene with a {nested.group()}> element is not supported; expected one that is complete")
    lite = LITE_VERSION if visuals == "lite" else 0
    digest = hashlib.sha256(f"{FORMAT} {mujoco.mj_versionString()} {visuals} {lite}\n".encode())
    digest.update(_FILES.sub(_with_content, xml).encode("utf-8"))
    return digest.hexdigest()[:40]


def _with_content(match: Any) -> str:
    name, path = match.group(1), Path(html.unescape(match.group(2)))
    if not match.group(2):
        return match.group()
    try:
        if not path.is_absolute():
            raise EnvError(f"the scene names the file '{path}'; expected a path from the root, which has one meaning")
        return f'{name}="{sha256_of(path)}{path.suffix}"'
    except OSError as e:
        raise EnvError(f"the scene needs the file {path}, which cannot be read ({e}); reinstall the simulator") from e


# --- files ------------------------------------------------------------------------------------------------------------


def _load(path: Path) -> Optional[Any]:
    """Read a model, None if it is not there or not as it was written (which is logged)."""
    import mujoco

    record = path.with_suffix(".json")
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        fault = "" if known["bytes"] == path.stat().st_size and known["sha256"] == sha256_of(path) else "damaged"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        fault = f"unreadable ({type(e).__name__}: {e})"
    if not fault:
        try:
            model = mujoco.MjModel.from_binary_path(str(path))
        except (ValueError, mujoco.FatalError) as e:
            fault = f"refused by MuJoCo ({e})"
        else:
            with contextlib.suppress(OSError):
                os.utime(record)
            return model
    _log.warning("the compiled scene %s is %s; it is made again", path, fault)
    return None


def _make(path: Path, xml: str, *, sim: str, visuals: str) -> None:
    """Compile in a helper process and put the result in place, model first."""
    _limit_bytes()  # a limit that means nothing is refused before the work
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=str(path.parent))
    os.close(handle)
    try:
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-m", "envs.compile", sim, visuals, partial],
            input=xml.encode("utf-8"), capture_output=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "MUJOCO_GL": "disable"},
        )  # fmt: skip
        if done.returncode == 3:
            raise EnvError(done.stdout.decode("utf-8", "replace"))
        if done.returncode:
            tail = done.stderr.decode("utf-8", "replace").strip()[-2000:]
            raise EnvError(f"compiling a scene of {sim} failed with status {done.returncode}: {tail}")
        known = {"sha256": sha256_of(Path(partial)), "bytes": os.path.getsize(partial), "sim": sim, "visuals": visuals}
        os.replace(partial, str(path))
        write_whole(path.with_suffix(".json"), json.dumps(known).encode())
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    _make_room(path)


def _limit_bytes() -> float:
    """How large all models together may be."""
    text = os.environ.get("TEMPER_MODELS_GB", "") or LIMIT_GB
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise EnvError(f"TEMPER_MODELS_GB is '{text}'; expected a number of gigabytes above 0")
    return limit * 1e9


def _make_room(newest: Path) -> None:
    """Delete what interrupted processes left, and the models unused for longest while all files are over the limit."""
    limit, total, records = _limit_bytes(), 0, []
    for file in newest.parent.iterdir():
        if file.suffix == ".lock":
            continue
        with contextlib.suppress(OSError):  # another process may delete it first
            status = file.stat()
            whole = (
                not file.name.startswith(".")
                and file.with_suffix(".json").exists()
                and file.with_suffix(".mjb").exists()
            )
            if not whole and time.time() - status.st_mtime > LEFT_S:
                file.unlink()
                continue
            total += status.st_size
            if whole and file.suffix == ".json":
                records.append((status.st_mtime, file))
    for _, record in sorted(records):
        if total <= limit:
            break
        if record.stem != newest.stem:
            for file in (record, record.with_suffix(".mjb")):
                with contextlib.suppress(OSError):
                    size = file.stat().st_size
                    file.unlink()
                    total -= size
            with contextlib.suppress(OSError):
                (record.parent / f".{record.stem}.mjb.lock").unlink()
