"""Compiling a C file once."""

import ctypes
import shutil

import pytest

from envs import native
from envs.types import EnvError

pytestmark = pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is NO C compiler")


def test_what_is_compiled_depends_on_source_flags_and_facts(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    source = tmp_path / "twice.c"
    source.write_text("int twice(int x) { return 2 * x; }")
    first = native.compiled(source, name="twice", who="the test")
    assert ctypes.CDLL(str(first)).twice(21) == 42
    changed = first.stat().st_mtime_ns
    assert native.compiled(source, name="twice", who="the test") == first
    assert first.stat().st_mtime_ns == changed
    others = {native.compiled(source, name="twice", who="the test", flags=("-O1",))}
    others.add(native.compiled(source, name="twice", who="the test", facts=("2.0",)))
    source.write_text("int twice(int x) { return 2 + x; }")
    others.add(native.compiled(source, name="twice", who="the test"))
    assert len(others | {first}) == 4


def test_mistakes_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    source = tmp_path / "broken.c"
    source.write_text("int broken(")
    with pytest.raises(EnvError, match="the test could not be compiled by .*error"):
        native.compiled(source, name="broken", who="the test")
    assert not list((tmp_path / "core").iterdir())
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(EnvError, match="the test needs a C compiler once.*CC=no-such-compiler.*Or do without"):
        native.compiled(source, name="broken", who="the test", otherwise=" Or do without")
