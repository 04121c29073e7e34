"""Find, unpack and check LIBERO's meshes and textures, and read its task lists and initial states.

Nothing here imports LIBERO: its packages ask questions on standard input, need torch and download files on their own.
Standard library and numpy only, Python 3.8 syntax.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from envs.cache import cache_root, locked, sha256_of
from envs.pickles import read_pickle
from envs.types import EnvError

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
MANIFEST = "temper_manifest.json"
LANDMARKS = ("scenes", "articulated_objects", "stable_hope_objects")  # folders every copy of the assets has
HOW_TO = (
    "get them with `hf download lerobot/libero-assets --repo-type dataset --local-dir <folder>` or from "
    "github.com/Lifelong-Robot-Learning/LIBERO (libero/libero/assets), then set LIBERO_ASSETS to that folder or to "
    "a .tar.xz of it"
)


def find_assets() -> Path:
    """Return the folder with LIBERO's assets, unpacking an archive if that is what there is.

    Looks at $LIBERO_ASSETS, the installed package, the Hugging Face caches and `../shared/assets/libero.tar.xz`
    beside the repository, in this order. Raises EnvError listing these places if there is nothing in any of them.
    """
    looked: List[str] = []
    named = os.environ.get("LIBERO_ASSETS", "")
    if named:
        path = Path(named).expanduser()
        if path.is_dir():
            folder = _asset_folder(path)
            if folder is None:
                raise EnvError(f"LIBERO_ASSETS={path} has no {' / '.join(LANDMARKS)} folders; {HOW_TO}")
            return folder
        if path.is_file():
            return unpack(path)
        raise EnvError(f"LIBERO_ASSETS={path} does not exist; {HOW_TO}")
    looked.append("$LIBERO_ASSETS (not set)")
    for place in _folders():
        looked.append(str(place))
        folder = _asset_folder(place)
        if folder is not None:
            return folder
    archive = Path(__file__).resolve().parents[2] / "shared" / "assets" / "libero.tar.xz"
    looked.append(str(archive))
    if archive.is_file():
        return unpack(archive)
    raise EnvError("LIBERO's assets (meshes, textures) were not found. Looked at: " + "; ".join(looked) + f". {HOW_TO}")


def _folders() -> Iterator[Path]:
    """Folders where an installation of LIBERO or a Hugging Face download leaves the assets."""
    with contextlib.suppress(EnvError):
        yield package_folder() / "assets"
    yield Path.home() / ".cache" / "libero" / "assets"
    home = os.environ.get("HF_HOME", "")
    hub = (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"
    yield from sorted(hub.glob("datasets--*libero*assets*/snapshots/*"))


def _asset_folder(path: Path) -> Optional[Path]:
    """`path` or `path/assets`, whichever holds the assets, else None."""
    for folder in (path, path / "assets"):
        if all((folder / name).is_dir() for name in LANDMARKS):
            return folder
    return None


# --- archives ---------------------------------------------------------------------------------------------------------


def unpack(archive: Path) -> Path:
    """Unpack a .tar.xz of the assets into the user's cache, once, and return the folder that holds the assets."""
    digest = sha256_of(archive)
    target = cache_root() / f"libero-{digest[:12]}"
    with locked(target):
        if not _intact(target, digest):
            shutil.rmtree(target, ignore_errors=True)  # left by an interrupted or damaged unpacking
            _fill(target, lambda folder: _extract(archive, folder), {"archive": archive.name, "sha256": digest})
    folder = _asset_folder(target)
    if folder is None:
        raise EnvError(
            f"{archive} holds no {' / '.join(LANDMARKS)} folders, so it is no LIBERO assets archive; {HOW_TO}"
        )
    return folder


def without_srgb(assets: Path) -> Path:
    """Return a mirror of `assets` whose PNG files carry no sRGB chunk; the folder itself if none has one.

    Since version 3.3.7 MuJoCo darkens textures that have the chunk, so the pictures would depend on its version.
    The mirror lives in the user's cache: links to the files, and rewritten copies of the few PNG files concerned.
    """
    files = sorted(p for p in assets.rglob("*") if p.is_file() and p.name != MANIFEST)
    plain = {p: data for p in files if p.suffix.lower() == ".png" for data in [_strip_srgb(p)] if data is not None}
    if not plain:
        return assets
    names = "\n".join(f"{p.relative_to(assets)} {p.stat().st_size}" for p in files)
    digest = hashlib.sha256(f"{assets.resolve()}\n{names}".encode() + b"".join(plain.values())).hexdigest()
    target = cache_root() / f"libero-plain-{digest[:12]}"

    def mirror(folder: Path) -> None:
        for path in files:
            copy = folder / path.relative_to(assets)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path in plain:
                copy.write_bytes(plain[path])
            else:
                copy.symlink_to(path.resolve())

    with locked(target):
        if not _intact(target, digest):
            shutil.rmtree(target, ignore_errors=True)
            _fill(target, mirror, {"archive": str(assets), "sha256": digest})
    return target


def _fill(target: Path, work: Any, record: Dict[str, Any]) -> None:
    """Let `work` fill a temporary folder, note what is in it, and rename it to `target`: complete or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=str(target.parent)))
    try:
        work(partial)
        files, size = _census(partial)
        (partial / MANIFEST).write_text(json.dumps({**record, "files": files, "bytes": size}), encoding="utf-8")
        partial.chmod(0o755)
        os.rename(str(partial), str(target))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _intact(target: Path, digest: str) -> bool:
    """Whether `target` was completely filled from the thing with this checksum and still has all its files."""
    try:
        record = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        return record["sha256"] == digest and (record["files"], record["bytes"]) == _census(target)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _census(folder: Path) -> Tuple[int, int]:
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST]
    return len(sizes), sum(sizes)


def _extract(archive: Path, folder: Path) -> None:
    """Write the archive's plain files below `folder`; links, devices and paths that lead outside are refused."""
    try:
        with tarfile.open(str(archive), "r:*") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if member.isdir():
                    continue
                if not member.isreg() or ".." in parts or PurePosixPath(member.name).is_absolute():
                    raise EnvError(f"{archive}: refusing entry '{member.name}': expected plain files inside one folder")
                source = tar.extractfile(member)
                if source is None:
                    raise EnvError(f"{archive}: entry '{member.name}' cannot be read")
                path = folder.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass  # a cut-off archive is noticed, and its checksum compared, at the very end
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, zipfile.BadZipFile) as e:
        raise EnvError(f"{archive} cannot be unpacked ({type(e).__name__}: {e}); it is damaged, fetch it again") from e


def _strip_srgb(path: Path) -> Optional[bytes]:
    """The bytes of a PNG file without its sRGB chunk, or None if it has none (or is no PNG)."""
    with path.open("rb") as stream:
        head = stream.read(4096)  # the chunk must come before the picture's data
        if not head.startswith(b"\x89PNG\r\n\x1a\n") or b"sRGB" not in head:
            return None
        data = head + stream.read()
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        end = at + 12 + length
        if data[at + 4 : at + 8] != b"sRGB":
            kept.append(data[at:end])
        at = end
    plain = b"".join(kept)
    return plain if len(plain) != len(data) else None


# --- the installed package, read by path ------------------------------------------------------------------------------


def package_folder() -> Path:
    """The folder `libero/libero` of the installed package, found without importing it."""
    spec = importlib.util.find_spec("libero")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "libero" / "bddl_files").is_dir():
            return Path(place) / "libero"
    raise EnvError("LIBERO is not installed in this Python; run `python launch.py install libero`")


def suite_tasks(suite: str) -> Tuple[str, ...]:
    """The task names of a suite in the benchmark's own order."""
    if suite not in SUITES:
        raise EnvError(f"LIBERO has no suite '{suite}'; expected one of {', '.join(SUITES)}")
    source = package_folder() / "benchmark" / "libero_suite_task_map.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "libero_task_map":
            return tuple(ast.literal_eval(node.value)[suite])
    raise EnvError(f"{source} has no libero_task_map; expected hf-libero 0.1.4")


def language(task: str) -> str:
    """The instruction of a task as the benchmark gives it: the task name in words, without its scene prefix."""
    words = task.split("_")
    if task[:1].isupper():  # KITCHEN_SCENE3_turn_on_the_stove
        scene = next(i for i, word in enumerate(words) if word.startswith("SCENE"))
        words = words[scene + 1 :]
    return " ".join(words)


def read_init_states(path: Path) -> np.ndarray:
    """Read a `.pruned_init` file: the benchmark's initial states of one task, float64 [states, time + qpos + qvel]."""
    try:
        with zipfile.ZipFile(str(path)) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            if archive.getinfo(name).file_size > 1 << 26:
                raise ValueError("it is larger than 64 MiB")
            with archive.open(name) as stream:
                stored = read_pickle(stream)  # type: ignore[arg-type]
        if not isinstance(stored, np.ndarray) or stored.dtype != np.dtype("<f8") or stored.ndim != 2:
            got = f"{stored.dtype} {stored.shape}" if isinstance(stored, np.ndarray) else type(stored).__name__
            raise ValueError(f"expected little-endian float64 in two dimensions, got {got}")
        return stored
    except Exception as e:  # whatever a damaged or hostile file makes the readers raise
        raise EnvError(
            f"{path} is no usable file of initial states ({type(e).__name__}: {e}); reinstall with "
            "`python launch.py install libero`"
        ) from e
