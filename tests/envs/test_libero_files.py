"""LIBERO's files: assets are found, unpacked once and whole; stored states cannot run code."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from envs import libero_assets, libero_states
from envs.libero_assets import LANDMARKS, find_assets, language, read_init_states, unpack, without_srgb
from envs.types import EnvError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine without LIBERO: an empty home folder and cache, a repository with nothing beside it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setattr(libero_assets, "__file__", str(tmp_path / "work" / "repo" / "envs" / "libero_assets.py"))

    def nothing():
        raise EnvError("not installed")

    monkeypatch.setattr(libero_assets, "package_folder", nothing)
    return tmp_path


def write_assets(folder: Path) -> Path:
    for name in LANDMARKS:
        (folder / name).mkdir(parents=True)
        (folder / name / "thing.xml").write_text(f"<{name}/>")
    return folder


def pack(folder: Path, archive: Path, prefix: str = "") -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, prefix + str(path.relative_to(folder)), recursive=False)
    return archive


def test_nothing_found_names_the_places_and_the_way(home):
    with pytest.raises(EnvError) as caught:
        find_assets()
    message = str(caught.value)
    for part in ("$LIBERO_ASSETS", ".cache/libero/assets", "shared/assets/libero.tar.xz", "hf download"):
        assert part in message


@pytest.mark.parametrize(("value", "expected"), [("absent", "does not exist"), ("empty", "scenes")])
def test_a_wrong_libero_assets_is_refused(home, monkeypatch, value, expected):
    (home / "empty").mkdir()
    monkeypatch.setenv("LIBERO_ASSETS", str(home / value))
    with pytest.raises(EnvError, match=expected):
        find_assets()


def test_folders_and_caches_are_found_in_order(home, monkeypatch):
    beside = home / "work" / "shared" / "assets" / "libero.tar.xz"
    pack(write_assets(home / "raw"), beside)
    assert find_assets().parent == home / "cache"
    cached = write_assets(home / "home/.cache/huggingface/hub/datasets--lerobot--libero-assets/snapshots/abc")
    assert find_assets() == cached
    monkeypatch.setenv("LIBERO_ASSETS", str(home / "raw"))
    assert find_assets() == home / "raw"


@pytest.mark.parametrize("prefix", ["", "./", "./assets/"])
def test_an_archive_is_unpacked_once_and_again_only_if_damaged(home, monkeypatch, prefix):
    archive = pack(write_assets(home / "raw"), home / "libero_lite.tar.xz", prefix)
    monkeypatch.setenv("LIBERO_ASSETS", str(archive))
    folder = find_assets()
    file = folder / "scenes" / "thing.xml"
    assert file.read_text() == "<scenes/>"
    born = file.stat().st_ino
    assert find_assets() == folder
    assert file.stat().st_ino == born
    file.unlink()
    assert find_assets() == folder
    assert file.read_text() == "<scenes/>"


def test_a_truncated_archive_leaves_nothing_that_looks_complete(home):
    archive = pack(write_assets(home / "raw"), home / "a.tar.xz")
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(EnvError, match="damaged"):
        unpack(archive)
    assert [p.name for p in (home / "cache").iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize("kind", ["outside", "absolute", "link"])
def test_an_archive_that_reaches_outside_is_refused(home, kind):
    archive = home / "bad.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        entry = tarfile.TarInfo({"outside": "../evil", "absolute": "/tmp/evil", "link": "evil"}[kind])
        if kind == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry, io.BytesIO(b""))
    with pytest.raises(EnvError, match="refusing entry"):
        unpack(archive)


def test_an_archive_of_something_else_is_refused(home):
    (home / "raw").mkdir()
    (home / "raw" / "file").write_text("x")
    with pytest.raises(EnvError, match="no LIBERO assets archive"):
        unpack(pack(home / "raw", home / "other.tar.xz"))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(b"\0abc")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def test_the_srgb_chunk_is_stripped_in_a_mirror(home):
    assets = write_assets(home / "raw")
    assert without_srgb(assets) == assets
    (assets / "scenes" / "tagged.png").write_bytes(png((b"gAMA", b"\0\0\1\0"), (b"sRGB", b"\0")))
    (assets / "scenes" / "plain.png").write_bytes(png())
    (assets / libero_assets.MANIFEST).write_text("the source's own")
    mirror = without_srgb(assets)
    assert mirror != assets
    assert (mirror / "scenes" / "tagged.png").read_bytes() == png((b"gAMA", b"\0\0\1\0"))
    assert (mirror / "scenes" / "plain.png").read_bytes() == png()
    assert (mirror / "scenes" / "thing.xml").read_text() == "<scenes/>"
    assert (assets / libero_assets.MANIFEST).read_text() == "the source's own"
    assert b"sRGB" in (assets / "scenes" / "tagged.png").read_bytes()
    assert without_srgb(assets) == mirror
    assert json.loads((mirror / libero_assets.MANIFEST).read_text())["files"] == 5


def state_file(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


def test_stored_states_are_read_exactly(tmp_path):
    states = np.random.default_rng(0).standard_normal((5, 7))
    path = state_file(tmp_path / "a.pruned_init", pickle.dumps(states, protocol=2))
    assert np.array_equal(read_init_states(path), states)


def test_a_suites_states_are_kept_in_one_file(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(libero_states, "package_folder", lambda: tmp_path)
    monkeypatch.setattr(libero_states, "suite_tasks", lambda suite: ("lift", "push"))
    folder = tmp_path / "init_files" / "libero_goal"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    states = {task: rng.standard_normal((5, size)) for task, size in (("lift", 7), ("push", 9))}

    def write() -> None:
        for task, rows in states.items():
            state_file(folder / f"{task}.pruned_init", pickle.dumps(rows, protocol=2))

    def same() -> bool:
        found = libero_states.suite_states("libero_goal")
        return list(found) == list(states) and all(np.array_equal(found[task], states[task]) for task in states)

    write()
    assert same()
    (path,) = (tmp_path / "cache" / "libero-states").iterdir()
    with monkeypatch.context() as once:
        once.setattr(libero_states, "read_init_states", lambda file: pytest.fail(f"{file} was read again"))
        assert same()
    path.write_bytes(path.read_bytes()[:-50])
    with caplog.at_level("WARNING", "envs.libero_states"):
        assert same()
    assert "damaged" in caplog.text
    states["lift"] += 1  # another version of the package
    write()
    assert same()
    assert len(list(path.parent.iterdir())) == 2
    monkeypatch.setenv("TEMPER_CACHE", str(path))  # no folder: nothing can be kept
    assert same()


class Evil:
    def __init__(self, function, *args):
        self.what = (function, args)

    def __reduce__(self):
        return self.what


def test_a_state_file_that_tries_to_run_code_is_refused(tmp_path):
    mark = tmp_path / "ran"
    for evil in (Evil(os.system, f"touch {mark}"), Evil(os.mkdir, str(mark)), Evil(eval, f"open({str(mark)!r}, 'w')")):
        path = state_file(tmp_path / "evil.pruned_init", pickle.dumps(evil, protocol=2))
        with pytest.raises(EnvError, match="it asks for"):
            read_init_states(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(np.array([[Path("x")]], dtype=object), protocol=2),
        pickle.dumps(np.zeros((2, 3), dtype=np.float32), protocol=2),
        pickle.dumps(np.zeros(4), protocol=2),
        pickle.dumps(np.zeros((2, 3)), protocol=2)[:-20],
        b"",
    ],
)
def test_other_contents_of_a_state_file_are_refused(tmp_path, content):
    with pytest.raises(EnvError, match="no usable file of initial states"):
        read_init_states(state_file(tmp_path / "b.pruned_init", content))


def test_a_state_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "c").write_bytes(b"not a zip")
    with pytest.raises(EnvError, match="no usable file"):
        read_init_states(tmp_path / "c")


def test_language():
    assert language("pick_up_the_milk_and_place_it_in_the_basket") == "pick up the milk and place it in the basket"
    assert language("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet") == "close the top drawer of the cabinet"
    assert language("LIVING_ROOM_SCENE2_put_both") == "put both"
