"""Where the databases are looked for, and what is read from them."""

import shutil
import sys

import pytest

from envs.thor_mini import data
from envs.types import EnvError


def test_what_is_read():
    databases = data.databases()
    apple = databases.assets["Apple_1"]
    assert (apple.object_type, apple.pickupable, apple.receptacle) == ("Apple", True, False)
    assert 0.03 < min(apple.size) < max(apple.size) < 0.2
    assert databases.assets["Fridge_1"].receptacle
    assert databases.placements["Fridge"].rooms == {"Kitchen": 2, "LivingRoom": 0, "Bedroom": 0, "Bathroom": 0}
    assert databases.placements["Painting"].on_wall
    assert 0 < databases.contents["DiningTable"]["Apple"] < 1
    assert databases.holes["Window_Fixed_36x48"] == pytest.approx((36 * 0.0254, 48 * 0.0254), abs=0.02)
    splits = [{a.asset_id for a in databases.of_type("Apple", split)} for split in data.SPLITS]
    assert all(splits)
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]  # noqa: PT018
    assert databases.of_type("Unicorn", "train") == []
    assert data.databases() is databases  # read once


def test_the_named_folder_comes_first_and_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("PROCTHOR_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(EnvError, match="nowhere \\(no such folder\\).*pip install --no-deps procthor.*PROCTHOR_DATA"):
        data.find()
    folder = shutil.copytree(_true_folder(monkeypatch), tmp_path / "copy")
    monkeypatch.setenv("PROCTHOR_DATA", str(folder))
    assert data.find() == folder
    (folder / "wall-holes.json").unlink()
    with pytest.raises(EnvError, match="copy \\(without wall-holes.json\\)"):
        data.find()


def test_an_installed_package_is_found_and_not_imported(tmp_path, monkeypatch):
    true = _true_folder(monkeypatch)
    package = tmp_path / "site" / "procthor"
    shutil.copytree(true, package / "databases")
    (package / "__init__.py").write_text("raise ImportError('heavy')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert data.find() == package / "databases"
    assert "procthor" not in sys.modules


def test_a_spoilt_file_is_named(tmp_path, monkeypatch):
    folder = shutil.copytree(_true_folder(monkeypatch), tmp_path / "copy")
    (folder / "receptacles.json").chmod(0o644)
    (folder / "receptacles.json").write_text("{")
    with pytest.raises(EnvError, match="cannot read .*receptacles.json"):
        data.databases(str(folder))


def _true_folder(monkeypatch):
    monkeypatch.delenv("PROCTHOR_DATA", raising=False)
    return data.find()
