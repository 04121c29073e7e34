"""CALVIN's data: found in the usual places, checked by content, and named when they are missing or changed."""

import shutil

import pytest

from envs.calvin import data as module
from envs.calvin.data import check_data, checksums, find_data
from envs.types import EnvError
from tests.golden_files import golden_json


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A data folder of empty files, and none of the usual places."""
    for name in checksums():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    monkeypatch.setattr(module, "_places", lambda: [])
    monkeypatch.delenv("CALVIN_DATA", raising=False)
    return tmp_path


def test_the_checksums_are_the_recorded_ones():
    recorded = {row["path"]: row["sha256"] for row in golden_json("calvin/assets.json")["required"]}
    assert checksums() == recorded
    for scene in "ABCD":
        others = tuple(f"calvin_table_{other}" for other in "ABCD" if other != scene)
        assert checksums(scene) == {k: v for k, v in recorded.items() if not k.startswith(others)}


def test_the_data_here_are_the_official_ones():
    try:
        folder = find_data()
    except EnvError as e:
        pytest.skip(f"CALVIN'S DATA ARE NOT TESTED: {e}")
    for scene in "ABCD":
        check_data(folder, scene)


def test_data_are_found_in_a_checkout_and_missing_ones_are_named(elsewhere, monkeypatch):
    with pytest.raises(EnvError, match=r"CALVIN_DATA \(not set\).*git clone"):
        find_data()
    monkeypatch.setenv("CALVIN_DATA", str(elsewhere))
    assert find_data() == elsewhere / "data"
    monkeypatch.setenv("CALVIN_DATA", str(elsewhere / "data"))
    assert find_data() == elsewhere / "data"
    shutil.rmtree(elsewhere / "data" / "plane")
    with pytest.raises(EnvError, match=r"has no franka_panda / blocks / plane folders.*git clone"):
        find_data()


def test_missing_and_changed_files_are_refused(elsewhere):
    folder = elsewhere / "data"
    with pytest.raises(EnvError, match=r"differs from the file.*data_check=present"):
        check_data(folder, "A")
    check_data(folder, "A", how="present")
    (folder / "calvin_table_A" / "urdf" / "calvin_table_A.urdf").unlink()
    with pytest.raises(EnvError, match=r"incomplete: calvin_table_A/urdf/calvin_table_A.urdf is missing"):
        check_data(folder, "A", how="present")
    check_data(folder, "B", how="present")
    with pytest.raises(EnvError, match="data_check 'never' is unknown"):
        check_data(folder, "B", how="never")
