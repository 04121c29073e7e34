"""Build the interpreters that simulators run in, and the system libraries they render with. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
STAMP = "temper_stamp.json"
NO_DEPS = "# no-deps"  # packages after this line declare dependencies that the adapters never import
SHOWN = ("Collecting", "Downloading", "Building", "Installing", "Successfully", "ERROR", "error:")  # of pip's output

# Offscreen rendering: what MuJoCo loads at run time for each back end (value of MUJOCO_GL).
GL_LIBRARIES: Dict[str, Tuple[Tuple[str, Tuple[str, ...]], ...]] = {
    "osmesa": (("OSMesa", ("libOSMesa.so.8", "libOSMesa.so", "libOSMesa.so.6")),),
    "egl": (("EGL", ("libEGL.so.1", "libEGL.so")), ("OpenGL", ("libOpenGL.so.0", "libGL.so.1"))),
}


class InstallError(RuntimeError):
    """An installation failed; the message says at what, with the end of the output, and what to do."""


def simulators() -> List[str]:
    """Names that `install` accepts."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def install(sim: str, root: Path, say: Callable[[str], None], *, python: str = "") -> Path:
    """Create `root/.venvs/<sim>` from `envs/requirements/<sim>.txt` and return its interpreter.

    Does nothing if it is there and the requirements are unchanged. It is built under another name and renamed when
    complete, so an interrupted installation leaves nothing that looks finished. `python` is the base interpreter.
    """
    if sim not in simulators():
        raise InstallError(f"there is no simulator '{sim}' to install; expected one of {', '.join(simulators())}")
    base = python or sys.executable
    target = root / ".venvs" / sim
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{sim}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands may ask for the same simulator at once
        if is_installed(sim, root, python=base):
            say(f"{sim}: up to date ({target})")
            return target / "bin" / "python"
        for leftover in target.parent.glob(f".{sim}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{sim}.partial-", dir=target.parent))
        try:
            _build(partial, base, REQUIREMENTS / f"{sim}.txt", say)
            record = {"requirements": _digest(sim, base), "python": base}
            (partial / STAMP).write_text(json.dumps(record), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    say(f"{sim}: installed ({target})")
    return target / "bin" / "python"


def is_installed(sim: str, root: Path, *, python: str = "") -> bool:
    """Whether `root/.venvs/<sim>` is complete and was built from the present requirements."""
    target = root / ".venvs" / sim
    try:
        stamp = json.loads((target / STAMP).read_text(encoding="utf-8"))
        wanted = _digest(sim, python or sys.executable)
        return stamp["requirements"] == wanted and (target / "bin" / "python").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(sim: str, base: str) -> str:
    """Changes with the requirements and with the interpreter that the environment is built on."""
    text = (REQUIREMENTS / f"{sim}.txt").read_text(encoding="utf-8")
    return hashlib.sha256(f"{os.path.realpath(base)}\n{text}".encode()).hexdigest()


def _build(folder: Path, base: str, requirements: Path, say: Callable[[str], None]) -> None:
    say(f"{requirements.stem}: creating a virtual environment with {base}")
    _run([base, "-m", "venv", "--clear", str(folder)], say)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    with_deps, without_deps = split_requirements(requirements.read_text(encoding="utf-8"))
    if with_deps:
        _run([*pip, *with_deps], say)
    if without_deps:
        _run([*pip, "--no-deps", *without_deps], say)


def split_requirements(text: str) -> Tuple[List[str], List[str]]:
    """The packages to install with their dependencies, and those to install alone (after the no-deps line)."""
    groups: Tuple[List[str], List[str]] = ([], [])
    alone = 0
    for line in (raw.strip() for raw in text.splitlines()):
        if line == NO_DEPS:
            alone = 1
        elif line and not line.startswith("#"):
            groups[alone].append(line)
    return groups


def _run(command: Sequence[str], say: Callable[[str], None]) -> None:
    """Run a command, pass on the lines that show progress, and raise InstallError with its end if it fails."""
    lines: List[str] = []
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        with subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            errors="replace", env=environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.lstrip().startswith(SHOWN):
                    say(line.strip()[:160])
    except OSError as e:
        raise InstallError(f"cannot run `{command[0]}` ({e}); expected it to be an executable program") from e
    if process.returncode:
        tail = "\n  ".join(lines[-15:])
        raise InstallError(
            f"`{' '.join(command)}` failed with status {process.returncode}; its output ended with\n  {tail}\n"
            "Check the network and the package index (pip config list), then run the same command again."
        )


# --- system libraries for rendering -----------------------------------------------------------------------------------


def check_gl(backend: str = "") -> List[str]:
    """Names of the system libraries that offscreen rendering needs and that cannot be loaded; [] is good."""
    backend = backend or os.environ.get("MUJOCO_GL", "") or "osmesa"
    return [name for name, files in GL_LIBRARIES.get(backend, ()) if not any(_loads(file) for file in files)]


def _loads(library: str) -> bool:
    with contextlib.suppress(OSError):
        ctypes.CDLL(library)
        return True
    return False


def gl_packages() -> Tuple[str, ...]:
    """The Debian and Ubuntu packages that bring those libraries."""
    return ("libosmesa6", "libegl1", "libegl-mesa0", "libgl1-mesa-dri", "libgl1", "libopengl0")


def gl_command() -> str:
    """What to type to install the rendering libraries."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {' '.join(gl_packages())}"


def install_gl(say: Callable[[str], None]) -> str:
    """Install the rendering libraries if this user may; returns "" when they are there, else the command to type."""
    if not check_gl():
        return ""
    prefix = _root_prefix()
    if prefix is None or shutil.which("apt-get") is None:
        return gl_command()
    say(f"installing the rendering libraries: {gl_command()}")
    quiet = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    with contextlib.suppress(InstallError):  # stale lists are often good enough
        _run([*quiet, "update"], say)
    _run([*quiet, "install", "-y", "--no-install-recommends", *gl_packages()], say)
    return "" if not check_gl() else gl_command()


def _root_prefix() -> List[str] | None:
    """How to become root without being asked anything: [] if root already, None if it is not possible."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    asked = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return ["sudo", "-n"] if asked.returncode == 0 else None
