"""Whether a Unity build of AI2-THOR could run on this machine, and why not: builds, X, Vulkan, GPUs.

Nothing is started or downloaded. Standard library only.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, List, Mapping, Optional, Tuple

Row = Tuple[str, str, str]  # name, value, verdict: ok | BAD | no (not needed)
BUILD = re.compile(r"thor-(Linux64|CloudRendering)-([0-9a-f]{40})$")
X_SOCKETS = Path(os.sep) / "tmp" / ".X11-unix"
WAIT_S = 10.0  # for a program that only says what it finds
VULKAN_HINT = "apt-get install libvulkan1 vulkan-tools, and a driver that supports Vulkan"


def examine(sim: Mapping[str, Any], *, home: Optional[Path] = None) -> List[Row]:
    """Rows for `launch.py doctor`; `sim` is the adapter's node. What the chosen backend needs and lacks is BAD."""
    unity = sim.get("backend", "mini") == "unity"
    platform = str(sim.get("platform", "") or "")
    display, graphics, gpus = x_display(), vulkan(), nvidia()
    found = builds(home or Path.home())
    executable, commit = str(sim.get("executable", "") or ""), str(sim.get("commit_id", "") or "")
    wanted = [name for name in found if commit in name]
    if executable:
        build = (f"{executable}", Path(executable.split()[0]).exists())
    elif wanted:
        build = (", ".join(wanted), True)
    else:
        build = (f"none of commit {commit or 'any'} in ~/.ai2thor/releases; the Controller would download it", False)
    rows = [
        _row(
            "ai2thor: simulator", "a Unity build" if unity else "the embedded one; it needs none of the next rows", True
        ),
        _row("ai2thor: Unity build", *build, needed=unity and bool(executable)),
        _row("ai2thor: X display", *display, needed=unity and platform == "Linux64"),
        _row("ai2thor: Vulkan", *graphics, needed=unity and platform == "CloudRendering"),
        _row("ai2thor: GPU", *gpus, needed=unity and sim.get("gpu") is not None),
    ]
    ways = [name for name, way in (("Linux64 over X", display), ("CloudRendering over Vulkan", graphics)) if way[1]]
    text = f"would work: {', '.join(ways)}" if ways else "none would work: it needs an X server with GLX, or Vulkan"
    return [*rows, _row("ai2thor: Unity platforms", text, bool(ways), needed=unity)]


def builds(home: Path) -> List[str]:
    """Names of the builds that the Controller has downloaded and that are whole."""
    releases = home / ".ai2thor" / "releases"
    folders = sorted(releases.iterdir()) if releases.is_dir() else []
    return [f.name for f in folders if BUILD.match(f.name) and (f / f.name).is_file()]


def x_display(environment: Optional[Mapping[str, str]] = None) -> Tuple[str, bool]:
    """What $DISPLAY leads to, and whether it answers."""
    name = (os.environ if environment is None else environment).get("DISPLAY", "")
    there = sorted(p.name.replace("X", ":", 1) for p in X_SOCKETS.glob("X*")) if X_SOCKETS.is_dir() else []
    if not name:
        return f"DISPLAY is not set; running here: {', '.join(there) or 'no X server'}", False
    number = re.fullmatch(r"(?:unix)?:(\d+)(?:\.\d+)?", name)
    if number is None:
        return f"DISPLAY={name} is on another machine; not tried", False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(2.0)
        try:
            line.connect(str(X_SOCKETS / f"X{number[1]}"))
        except OSError as e:
            return f"DISPLAY={name} does not answer ({e.strerror or e}); running: {', '.join(there) or 'none'}", False
    return f"DISPLAY={name} answers", True


def vulkan() -> Tuple[str, bool]:
    """Whether Vulkan's loader and at least one device are there."""
    if ctypes.util.find_library("vulkan") is None:
        return f"libvulkan is not installed; {VULKAN_HINT}", False
    said = _ask("vulkaninfo", "--summary")
    if said is None:
        return f"libvulkan is there, but vulkaninfo does not run; {VULKAN_HINT}", False
    devices = re.findall(r"deviceName\s*=\s*(.+)", said)
    return (", ".join(devices), True) if devices else (f"vulkaninfo lists no device; {VULKAN_HINT}", False)


def nvidia() -> Tuple[str, bool]:
    """The NVIDIA GPUs that nvidia-smi lists."""
    said = _ask("nvidia-smi", "-L")
    lines = [line.strip() for line in (said or "").splitlines() if line.startswith("GPU ")]
    return ("; ".join(line.split(" (UUID")[0] for line in lines), True) if lines else ("nvidia-smi lists none", False)


def _ask(*command: str) -> Optional[str]:
    """What a program prints, None if it is not there, fails, or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _row(name: str, value: str, good: bool, *, needed: bool = True) -> Row:
    return name, value, "ok" if good else ("BAD" if needed else "no")
