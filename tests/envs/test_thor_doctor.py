"""What doctor says of a machine that is to run a Unity build."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from envs import thor_doctor
from envs.thor_doctor import builds, examine, vulkan, x_display
from tests.thor_house import PARTS, ROOT, house_file, thor_is_here

__all__ = ["house_file", "thor_is_here"]

COMMIT = "a" * 40


def program(folder: Path, name: str, text: str, code: int = 0) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'E'\n{text}\nE\nexit {code}\n")
    path.chmod(0o755)


def test_builds_are_those_with_a_program(tmp_path: Path) -> None:
    assert builds(tmp_path) == []
    for platform in ("Linux64", "CloudRendering", "OSXIntel64"):
        (tmp_path / ".ai2thor" / "releases" / f"thor-{platform}-{COMMIT}").mkdir(parents=True)
    whole = tmp_path / ".ai2thor" / "releases" / f"thor-Linux64-{COMMIT}"
    (whole / whole.name).touch()
    assert builds(tmp_path) == [whole.name]


def test_the_display_is_really_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thor_doctor, "X_SOCKETS", tmp_path)
    assert x_display({})[0].startswith("DISPLAY is not set; running here: no X server")
    text, good = x_display({"DISPLAY": ":7"})
    assert "DISPLAY=:7 does not answer" in text
    assert not good
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "X7"))
        server.listen()
        assert x_display({"DISPLAY": ":7.0"}) == ("DISPLAY=:7.0 answers", True)
        assert "running: :7" in x_display({"DISPLAY": ":8"})[0]
    assert "another machine" in x_display({"DISPLAY": "far:0"})[0]


def test_vulkan_needs_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path) + ":/bin:/usr/bin")
    monkeypatch.setattr(thor_doctor.ctypes.util, "find_library", lambda name: None)
    assert "libvulkan is not installed" in vulkan()[0]
    monkeypatch.setattr(thor_doctor.ctypes.util, "find_library", lambda name: "libvulkan.so.1")
    program(tmp_path, "vulkaninfo", "", code=1)
    assert "vulkaninfo does not run" in vulkan()[0]
    program(tmp_path, "vulkaninfo", "Devices:")
    assert "lists no device" in vulkan()[0]
    program(tmp_path, "vulkaninfo", "GPU0:\n  deviceName         = Fine GPU")
    assert vulkan() == ("Fine GPU", True)


def test_only_what_is_needed_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thor_doctor, "x_display", lambda: ("DISPLAY is not set", False))
    monkeypatch.setattr(thor_doctor, "vulkan", lambda: ("no Vulkan", False))
    monkeypatch.setattr(thor_doctor, "nvidia", lambda: ("none", False))

    def bad(**sim: object) -> set[str]:
        return {name for name, _, verdict in examine(sim, home=tmp_path) if verdict == "BAD"}

    assert bad() == set()
    assert bad(backend="unity") == {"ai2thor: Unity platforms"}
    assert bad(backend="unity", platform="CloudRendering") == {"ai2thor: Vulkan", "ai2thor: Unity platforms"}
    assert "ai2thor: X display" in bad(backend="unity", platform="Linux64")
    assert "ai2thor: GPU" in bad(backend="unity", gpu=0)
    assert "ai2thor: Unity build" in bad(backend="unity", executable="no/such/thor")
    monkeypatch.setattr(thor_doctor, "vulkan", lambda: ("Fine GPU", True))
    assert bad(backend="unity", platform="CloudRendering") == set()


@pytest.mark.sim
@pytest.mark.usefixtures("thor_is_here")
def test_the_command_tells_all_of_it_and_tries_the_simulator(house_file: Path) -> None:
    sim = {"houses": house_file, "mini_arguments": f'"{PARTS}"', "targets": "[Mug,Bed]", "max_steps": 30}
    cameras = "{raw_navigation_camera:[64,112],raw_manipulation_camera:null}"
    words = [f"env.sim.{k}={v}" for k, v in sim.items()] + [f"env.sim.cameras={cameras}"]
    command = [sys.executable, "launch.py", "doctor", "env=ai2thor", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    verdicts = {line[2:].split("  ")[0]: line.split() for line in done.stdout.splitlines() if line.startswith("  ")}
    asked = {"X display", "Vulkan", "GPU", "Unity build", "Unity platforms"}
    assert asked <= {name.removeprefix("ai2thor: ") for name in verdicts}, done.stdout + done.stderr[-2000:]
    assert "ai2thor/stretch: started in" in done.stdout
    assert "law: kill -9 loses one episode" in verdicts
    assert not any("BAD" in row for name, row in verdicts.items() if name.startswith(("ai2thor", "law")))
    assert done.returncode == ("BAD" in done.stdout), done.stdout
