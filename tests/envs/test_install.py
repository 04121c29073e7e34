"""Simulator interpreters: built once, whole or not at all; missing rendering libraries are named."""

import ctypes
import json
import subprocess

import pytest

from envs import install as module
from envs.install import InstallError, check_gl, gl_packages, install, install_gl, is_installed, split_requirements


@pytest.fixture
def requirements(tmp_path, monkeypatch):
    """A simulator 'dummy' that needs no packages, so that its interpreter is built in seconds."""
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "dummy.txt").write_text("# nothing\n")
    monkeypatch.setattr(module, "REQUIREMENTS", folder)
    return folder / "dummy.txt"


@pytest.fixture
def fast_venv(monkeypatch):
    """Building a virtual environment without pip, noting the commands; pip itself is not run."""
    ran = []
    real = module._run

    def run(command, say):
        ran.append(command)
        if "venv" in command:
            real([*command, "--without-pip"], say)

    monkeypatch.setattr(module, "_run", run)
    return ran


def test_install_is_idempotent_and_follows_the_requirements(tmp_path, requirements, fast_venv):
    lines = []
    python = install("dummy", tmp_path, lines.append)
    assert python == tmp_path / ".venvs" / "dummy" / "bin" / "python"
    out = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(tmp_path / ".venvs" / "dummy")
    assert is_installed("dummy", tmp_path)
    count = len(fast_venv)
    install("dummy", tmp_path, lines.append)
    assert len(fast_venv) == count
    assert "up to date" in lines[-1]
    requirements.write_text("one==1\n# no-deps\ntwo==2\n")
    assert not is_installed("dummy", tmp_path)
    install("dummy", tmp_path, lines.append)
    assert fast_venv[-2][-1] == "one==1"
    assert fast_venv[-1][-2:] == ["--no-deps", "two==2"]
    assert [p.name for p in (tmp_path / ".venvs").iterdir() if ".partial" in p.name] == []


def test_an_interrupted_install_is_redone(tmp_path, requirements, fast_venv, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            install("dummy", tmp_path, lambda line: None)
    assert not (tmp_path / ".venvs" / "dummy").exists()
    left = tmp_path / ".venvs" / ".dummy.partial-killed"
    left.mkdir()  # what a killed process leaves
    install("dummy", tmp_path, lambda line: None)
    assert is_installed("dummy", tmp_path)
    assert not left.exists()


def test_a_stamp_without_its_interpreter_does_not_count(tmp_path, requirements, fast_venv):
    python = install("dummy", tmp_path, lambda line: None)
    python.unlink()
    assert not is_installed("dummy", tmp_path)
    (tmp_path / ".venvs" / "dummy" / module.STAMP).write_text(json.dumps([]))
    assert not is_installed("dummy", tmp_path)


def test_a_failing_package_shows_the_end_of_its_output(tmp_path, requirements):
    requirements.write_text("this is no requirement\n")
    with pytest.raises(InstallError, match="(?s)failed with status.*Invalid requirement.*run the same command again"):
        install("dummy", tmp_path, lambda line: None)
    assert not (tmp_path / ".venvs" / "dummy").exists()


def test_unknown_simulators_and_programs_are_refused(tmp_path, requirements):
    with pytest.raises(InstallError, match="no simulator 'nosuch'.*dummy"):
        install("nosuch", tmp_path, lambda line: None)
    with pytest.raises(InstallError, match="no_such_python.*executable"):
        install("dummy", tmp_path, lambda line: None, python="/no_such_python")


def test_shipped_requirements_are_pinned():
    for path in module.REQUIREMENTS.glob("*.txt"):
        with_deps, alone = split_requirements(path.read_text())
        assert all("==" in package for package in with_deps + alone), path
    with_deps, alone = split_requirements((module.REQUIREMENTS / "libero.txt").read_text())
    assert "mujoco==3.8.1" in with_deps
    assert alone == ["robosuite==1.4.0", "bddl==1.0.1", "hf-libero==0.1.4"]
    assert not any(package.startswith("torch") for package in with_deps)


def test_missing_rendering_libraries_are_named(monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert check_gl("osmesa") == ["OSMesa"]
    assert check_gl("egl") == ["EGL", "OpenGL"]
    monkeypatch.setattr(module, "_root_prefix", lambda: None)
    command = install_gl(lambda line: None)
    assert "apt-get install" in command
    assert all(package in command for package in gl_packages())


def test_rendering_libraries_are_installed_by_root(monkeypatch):
    ran = []
    missing = ["OSMesa"]
    monkeypatch.setattr(module, "check_gl", lambda: list(missing))
    monkeypatch.setattr(module, "_root_prefix", lambda: [])
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")

    def run(command, say):
        ran.append(command)
        if "update" in command:
            raise InstallError("offline")
        missing.clear()

    monkeypatch.setattr(module, "_run", run)
    assert install_gl(lambda line: None) == ""
    assert "install" in ran[-1]
    assert "libosmesa6" in ran[-1]
    assert install_gl(lambda line: None) == ""  # nothing missing any more
    assert len(ran) == 2
