"""The switch `renderer: egl`: what is said where there is no GPU, and where the plugin does not load."""

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from envs.calvin import egl
from envs.types import EnvError


class Bullet:
    """PyBullet's one call."""

    def __init__(self, answer: int) -> None:
        self.answer, self.asked = answer, []

    def loadPlugin(self, path: str, postfix: str, *, physicsClientId: int) -> int:
        self.asked.append((path, postfix, physicsClientId))
        return self.answer


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def make(*, gpu: bool, plugin: bool) -> None:
        (tmp_path / "nvidia0").touch() if gpu else (tmp_path / "nvidia0").unlink(missing_ok=True)
        monkeypatch.setattr(egl, "DEVICES", (str(tmp_path / "nvidia[0-9]*"),))
        spec = importlib.machinery.ModuleSpec("eglRenderer", None, origin="/wheel/eglRenderer.so") if plugin else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    return make


def test_a_machine_without_a_gpu_is_told_what_to_take(machine: Any) -> None:
    machine(gpu=False, plugin=True)
    bullet = Bullet(0)
    with pytest.raises(EnvError, match=r"needs a GPU, and this machine shows none.*renderer=fast or exact"):
        egl.load_egl(bullet, 0)
    assert bullet.asked == []  # it would end the process


@pytest.mark.parametrize(("plugin", "said"), [(False, "has no EGL plugin"), (True, "cannot be loaded")])
def test_a_plugin_that_is_missing_or_fails_is_named(machine: Any, plugin: bool, said: str) -> None:
    machine(gpu=True, plugin=plugin)
    with pytest.raises(EnvError, match=f"{said}.*renderer=fast or exact"):
        egl.load_egl(Bullet(-1), 0)


def test_with_a_gpu_the_plugin_is_loaded_for_this_client(machine: Any) -> None:
    machine(gpu=True, plugin=True)
    bullet = Bullet(0)
    egl.load_egl(bullet, 3)
    assert bullet.asked == [("/wheel/eglRenderer.so", "_eglRendererPlugin", 3)]
