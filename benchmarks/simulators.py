"""Our adapters as the simulator benchmarks make them, and a child that measures in the simulator's interpreter."""

import importlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.child import interpreter
from envs.types import Env, EnvConfig

ROOT = Path(__file__).resolve().parents[1]


def target(name: str) -> dict[str, Any]:
    """The adapter of a LIBERO suite or robosuite task and its name, without cameras and core."""
    kind = "libero.Libero" if name.startswith("libero") else "robosuite.Robosuite"
    return {"_target_": f"envs.{kind}", "name": name}


def adapter(name: str, core: str, cameras: Mapping[str, tuple[int, int]], quality: str = "", **settings: Any) -> Env:
    """Our environment; it sees `cameras` if a quality is given, else none."""
    arguments = target(name)
    module, kind = arguments.pop("_target_").rsplit(".", 1)
    make = getattr(importlib.import_module(module), kind)
    views = dict(cameras) if quality else {}
    return make(**arguments, core=core, cameras=views, render_quality=quality or "exact", **settings)


def arm(env: Any) -> Any:
    """What drives the robot in one of our environments."""
    return env._arm if hasattr(env, "_arm") else env._scene.arm


def rows(program: str, env: str, name: str, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What `benchmarks.<program> --serve --env <env>` prints, one JSON object per line; `name` is the simulator's.

    Raises RuntimeError if it fails.
    """
    command = [interpreter(EnvConfig(sim=target(name))), "-m", f"benchmarks.{program}", "--serve", "--env", env]
    threads = {k: "1" for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with subprocess.Popen(
        [*command, *options], cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):  # simulators print things of their own
                yield json.loads(line)
    if child.returncode:
        raise RuntimeError(f"the simulator process of {env} ended with status {child.returncode}")
