"""Whether this machine has what RLBench needs: CoppeliaSim, the variables that lead to it, packages, a display.

CoppeliaSim is not started. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from envs.child import interpreter
from envs.thor_doctor import x_display
from envs.types import EnvConfig, EnvError

Row = Tuple[str, str, str]  # name, value, verdict: ok | BAD | no (not known)
ROOT, LIBRARIES, PLUGINS = "COPPELIASIM_ROOT", "LD_LIBRARY_PATH", "QT_QPA_PLATFORM_PLUGIN_PATH"
WANTED = "4.1"  # the only CoppeliaSim that PyRep works with
LIBRARY = "libcoppeliaSim.so"
VERSIONS = {"rlbench": "1.2.0", "pyrep": "4.1.0.3"}
WAIT_S = 60.0
# Printed by the interpreter of the configuration: versions, and where a package is, without importing it.
_ASK = """
import importlib.util, json
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
def home(name):
    found = importlib.util.find_spec(name)
    return next(iter(found.submodule_search_locations or []), "") if found else ""
print(json.dumps({n: [version(n), home(n)] for n in ("rlbench", "pyrep")}))
"""


def examine(config: EnvConfig, environment: Optional[Mapping[str, str]] = None) -> List[Row]:
    """Rows for `launch.py doctor`."""
    values = os.environ if environment is None else environment
    rows = [_root(values), _libraries(values), _plugins(values)]
    text, good = x_display(values)
    rows.append(("rlbench: X display", text + ("" if good else "; needed unless another way to OpenGL is set up"),
                 "ok" if good else "no"))  # fmt: skip
    try:
        return rows + _packages(interpreter(config))
    except EnvError as e:
        return [*rows, ("rlbench: interpreter", str(e), "BAD")]


def lacking(environment: Optional[Mapping[str, str]] = None) -> List[str]:
    """What is wrong with the variables, in words."""
    values = os.environ if environment is None else environment
    found = [_root(values), _libraries(values), _plugins(values)]
    return [f"{name.split(': ')[1]}: {text}" for name, text, verdict in found if verdict == "BAD"]


def _root(values: Mapping[str, str]) -> Row:
    name = f"rlbench: {ROOT}"
    if not values.get(ROOT):
        return name, f"not set; download CoppeliaSim {WANTED} (Ubuntu) and `export {ROOT}=<its folder>`", "BAD"
    folder = Path(values[ROOT])
    if not (folder / LIBRARY).exists():
        return name, f"{folder} has no {LIBRARY}; expected the unpacked folder of CoppeliaSim {WANTED}", "BAD"
    version = re.search(r"V(\d+)_(\d+)(?:_\d+)?", folder.resolve().name)
    if version is None:
        return name, f"{folder}, whose name does not tell its version; PyRep needs {WANTED}", "no"
    if f"{version[1]}.{version[2]}" != WANTED:
        return name, f"{folder} is CoppeliaSim {version[1]}.{version[2]}; PyRep needs {WANTED} exactly", "BAD"
    return name, str(folder), "ok"


def _libraries(values: Mapping[str, str]) -> Row:
    name, root = f"rlbench: {LIBRARIES}", values.get(ROOT, "")
    places = [p for p in values.get(LIBRARIES, "").split(os.pathsep) if p]
    if root and any(os.path.realpath(p) == os.path.realpath(root) for p in places):
        return name, "has the folder", "ok"
    return name, f"lacks the folder; `export {LIBRARIES}=$LD_LIBRARY_PATH:${ROOT}`, before Python starts", "BAD"


def _plugins(values: Mapping[str, str]) -> Row:
    name, root, place = f"rlbench: {PLUGINS}", values.get(ROOT, ""), values.get(PLUGINS, "")
    if root and place and os.path.realpath(place) == os.path.realpath(root):
        return name, "is the folder", "ok"
    return name, f"is '{place}'; `export {PLUGINS}=${ROOT}`", "BAD"


def _packages(python: str) -> List[Row]:
    """Versions of the packages in the interpreter that would run the simulator."""
    try:
        said = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=WAIT_S, check=False)
        found: Dict[str, List[str]] = json.loads(said.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as e:
        return [("rlbench: interpreter", f"{python} does not answer ({type(e).__name__}: {e})", "BAD")]
    return [("rlbench: interpreter", python, "ok"), *(_package(name, found[name], python) for name in VERSIONS)]


def _package(name: str, found: Sequence[str], python: str) -> Row:
    version, home = found
    row, wanted = f"rlbench: {name}", VERSIONS[name]
    if not home:
        return row, f"not in {python}; install it from github.com/stepjam (docs/rlbench.md)", "BAD"
    if name == "pyrep" and not (Path(home) / "robots").is_dir():
        return row, f"{home} is another package of this name; install github.com/stepjam/PyRep", "BAD"
    if version and version != wanted:
        return row, f"{version}; the adapter was written for {wanted}", "BAD"
    return row, version or f"{home}, of unknown version", "ok" if version else "no"
