"""Lite assets: coarse copies of the visual meshes and textures that the user has, made once, kept in the user's cache.

`python launch.py assets libero --lite` makes them; `render_quality: lite` uses them. Copies are found by the content of
the file they were made from, so moved assets are recognised and changed ones are not mistaken for the old. The folder:

    lite-<version>/manifest.json      {checksum of the original: {file, sha256, source, before, after}}
    lite-<version>/<checksum>.msh     ... and .png; an empty `file` says that the original is small enough
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

from envs.cache import cache_root, locked, sha256_of, write_whole
from envs.decimate import MESHES, TEXTURES, VERSION, lite_mesh, lite_texture
from envs.types import EnvError

SIMULATORS = ("libero", "robosuite")
LEFT_OUT = ("bullet_data",)  # folders that no scene uses
SAVE_EVERY = 16  # files; what an interruption costs at most


def command(sim: str) -> str:
    """What to type to build the lite assets of a simulator."""
    return f"python launch.py assets {sim} --lite"


@dataclass(frozen=True)
class Entry:
    """What was made of one original."""

    file: str  # in the folder; "" if the original is used as it is
    sha256: str  # of that file
    source: str  # where the original was when this was made
    before: int  # faces, or pixels of the longer side
    after: int


@dataclass(frozen=True)
class Job:
    """One original to be made coarse."""

    source: Path
    digest: str
    textured: bool


# --- use --------------------------------------------------------------------------------------------------------------


class LiteAssets:
    """The lite assets that have been built, for the processes that use them."""

    def __init__(self, sim: str) -> None:
        """Raises EnvError, naming the command, if there are none or if their list is damaged."""
        self._sim, self._folder = sim, lite_folder()
        self._entries = _read(self._folder)
        if not self._entries:
            raise EnvError(f"render quality 'lite' needs assets that are not built yet; type: {command(sim)}")

    def replacement(self, source: Path) -> Optional[Path]:
        """The coarse copy of a mesh or texture, None if the original is to be used; EnvError if there is no copy."""
        entry = self._entries.get(sha256_of(source))
        if entry is None:
            known = any(e.source == str(source) for e in self._entries.values())
            why = "has changed since its lite copy was built" if known else "has no lite copy"
            raise EnvError(f"{source} {why}; type: {command(self._sim)}")
        if not entry.file:
            return None
        copy = self._folder / entry.file
        if not _whole(copy, entry):
            raise EnvError(f"{copy} is missing or damaged; type: {command(self._sim)}")
        return copy


def lite_folder() -> Path:
    """Where the lite assets lie."""
    return cache_root() / f"lite-{VERSION}"


def _read(folder: Path) -> Dict[str, Entry]:
    """The manifest; {} if nothing has been built or the list is damaged."""
    try:
        stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return {str(digest): Entry(**entry) for digest, entry in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _whole(copy: Path, entry: Entry) -> bool:
    try:
        return sha256_of(copy) == entry.sha256
    except OSError:
        return False


# --- making -----------------------------------------------------------------------------------------------------------


def find_jobs(sim: str, root: Path) -> List[Job]:
    """The meshes that scenes name and all textures of a simulator, each content once. `root` has the `.venvs`."""
    if sim not in SIMULATORS:
        raise EnvError(f"'{sim}' has no assets to make lite; expected one of {', '.join(SIMULATORS)}")
    folders = _robosuite_folders(root)
    if not folders:
        raise EnvError("robosuite is not installed in any interpreter here; type: python launch.py install libero")
    if sim == "libero":
        from envs.libero_assets import find_assets, without_srgb

        assets = find_assets()
        folders = [assets] + [plain for plain in [without_srgb(assets)] if plain != assets] + folders
    jobs: Dict[str, Job] = {}
    for folder in folders:
        meshes = _meshes(folder)
        for source in _files(folder):
            textured = meshes.get(os.path.normpath(source))
            if textured is None and source.suffix.lower() in MESHES:
                continue  # no scene uses it
            digest = sha256_of(source)
            if digest not in jobs or (textured and not jobs[digest].textured):
                jobs[digest] = Job(source, digest, bool(textured))
    return list(jobs.values())


def missing(jobs: Sequence[Job]) -> List[Job]:
    """The jobs that are still to be done, damaged copies among them."""
    folder = lite_folder()
    entries = _read(folder)
    done = {digest for digest, entry in entries.items() if not entry.file or _whole(folder / entry.file, entry)}
    return [job for job in jobs if job.digest not in done]


def build(jobs: Sequence[Job]) -> Iterator[Entry]:
    """Do the jobs one by one. What an interrupted run has done is kept, and the same call goes on from there."""
    folder = lite_folder()
    with locked(folder):
        entries = _read(folder)
        try:
            for i, job in enumerate(jobs):
                entries[job.digest] = _make(job, folder)
                if i % SAVE_EVERY == SAVE_EVERY - 1:
                    _save(folder, entries)
                yield entries[job.digest]
        finally:
            if entries:
                _save(folder, entries)


def _make(job: Job, folder: Path) -> Entry:
    mesh = job.source.suffix.lower() in MESHES
    try:
        if mesh:
            content, (before, after) = lite_mesh(job.source, textured=job.textured)
        else:
            content, (before, after) = lite_texture(job.source)
    except ImportError as e:
        raise EnvError(f"making lite assets needs the package {e.name}; type: pip install -r requirements.txt") from e
    except EnvError:  # MuJoCo cannot read it either, so no scene uses it (robosuite 1.4 ships two such meshes)
        content, before, after = None, 0, 0
    if content is None:
        return Entry("", "", str(job.source), before, after)
    copy = folder / (job.digest[:32] + (".msh" if mesh else ".png"))
    write_whole(copy, content)
    return Entry(copy.name, sha256_of(copy), str(job.source), before, after)


def _save(folder: Path, entries: Dict[str, Entry]) -> None:
    text = json.dumps({digest: asdict(entry) for digest, entry in sorted(entries.items())}, indent=0)
    write_whole(folder / "manifest.json", text.encode("utf-8"))


def _robosuite_folders(root: Path) -> List[Path]:
    """robosuite's assets in this interpreter and in those that `launch.py install` has made."""
    packages = []
    spec = importlib.util.find_spec("robosuite")
    if spec is not None and spec.origin:
        packages.append(Path(spec.origin).parent)
    found = sorted(glob.glob(str(root / ".venvs" / "*" / "lib" / "python3*" / "site-packages" / "robosuite")))
    folders = [package / "models" / "assets" for package in packages + [Path(path) for path in found]]
    return [folder for folder in folders if folder.is_dir()]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        wanted = path.suffix.lower() in MESHES + TEXTURES and path.is_file()
        if wanted and not set(LEFT_OUT) & set(path.relative_to(folder).parts):
            yield path


def _meshes(folder: Path) -> Dict[str, bool]:
    """The files that scene files name, and whether any of these scene files has a texture: else seams mean nothing."""
    named: Dict[str, bool] = {}
    for scene in sorted(folder.rglob("*.xml")):
        text = scene.read_text(encoding="utf-8", errors="replace")
        for name in re.findall(r'\bfile\s*=\s*"([^"]+)"', text):
            path = os.path.normpath(scene.parent / name)
            named[path] = named.get(path, False) or "<texture" in text
    return named
