"""Pickles read as data: everything that datasets hold comes out, and nothing of a file is run."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from envs.pickles import Record, read_pickle, read_pickle_file


class Thing:
    """Pickled under this module's name."""

    def __init__(self, value: object) -> None:
        self.value = value


class Hostile:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


NAME = f"{Thing.__module__}.Thing"


def read(content: object, protocol: int = 4, admitted: tuple[str, ...] = ()):
    return read_pickle(io.BytesIO(pickle.dumps(content, protocol)), admitted=admitted)


@pytest.mark.parametrize("protocol", range(6))
def test_data_comes_out_as_it_was(protocol: int) -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(["a", "bc"]),
              np.zeros(0, bool)]  # fmt: skip
    got = read({"a": arrays, "n": np.float32(2.5), "t": (1, None, "x", b"y"), "state": np.random.get_state()}, protocol)
    for want, found in zip(arrays, got["a"], strict=True):
        np.testing.assert_array_equal(found, want)
        assert found.dtype == want.dtype
    assert (got["n"], got["t"]) == (2.5, (1, None, "x", b"y"))
    np.random.set_state(got["state"])


@pytest.mark.parametrize("protocol", range(6))
def test_admitted_objects_become_records(protocol: int) -> None:
    got = read([Thing({"q": np.ones(2)}), Thing(None)], protocol, (NAME,))
    assert [type(r) for r in got] == [Record, Record]
    assert got[0].name == NAME
    np.testing.assert_array_equal(got[0].fields["value"]["q"], np.ones(2))
    with pytest.raises(pickle.UnpicklingError, match="asks for"):
        read(Thing(1), protocol)


def test_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "was_run"
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(ValueError, match="asks for 'io.open'|asks for '_io.open'") as found:
        read_pickle_file(path)
    assert "nothing of it was run" in str(found.value)
    assert not mark.exists()
    for text in (b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.", b"cbuiltins\neval\n(S'1'\ntR."):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="asks for"):
            read_pickle_file(path)
    assert not mark.exists()


def test_damaged_and_endless_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    whole = pickle.dumps([np.arange(100.0)])
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be read as data"):
            read_pickle_file(path)
    round_and_round: list = []
    round_and_round.append(round_and_round)
    path.write_bytes(pickle.dumps(round_and_round))
    with pytest.raises(ValueError, match="nested more than"):
        read_pickle_file(path)
    wide: list = ["x"]
    for _ in range(50):
        wide = [wide, wide]  # a thousand million million leaves, if each were turned by itself
    path.write_bytes(pickle.dumps(wide))
    assert len(read_pickle_file(path)) == 2
    with pytest.raises(ValueError, match="larger than 0 MiB"):
        read_pickle_file(path, limit_mb=0)
    with pytest.raises(ValueError, match="is missing"):
        read_pickle_file(tmp_path / "none.pkl")
