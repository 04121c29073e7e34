"""PyBullet's OpenGL renderer on a GPU that has no screen, through the EGL plugin of its wheel (`renderer: egl`)."""

from __future__ import annotations

import glob
import importlib.util
from typing import Any

from envs.types import EnvError

DEVICES = ("/dev/nvidia[0-9]*", "/dev/dri/renderD*")
INSTEAD = "take env.sim.renderer=fast or exact, which draw on the processor"


def load_egl(bullet: Any, client: int) -> None:
    """Let this client draw by OpenGL whatever it loads from now on. Raises EnvError where that cannot be."""
    if not any(glob.glob(pattern) for pattern in DEVICES):
        # PyBullet would end the process here, without a word that helps.
        raise EnvError(f"renderer: egl needs a GPU, and this machine shows none ({', '.join(DEVICES)}); {INSTEAD}")
    found = importlib.util.find_spec("eglRenderer")
    if found is None or not found.origin:
        raise EnvError(f"renderer: egl: this build of PyBullet has no EGL plugin (eglRenderer); {INSTEAD}")
    if bullet.loadPlugin(found.origin, "_eglRendererPlugin", physicsClientId=client) < 0:
        raise EnvError(f"renderer: egl: the plugin {found.origin} cannot be loaded; see the driver's EGL, or {INSTEAD}")
