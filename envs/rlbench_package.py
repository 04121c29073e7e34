"""What the installed RLBench and PyRep offer: imported here, and only when asked for."""

from __future__ import annotations

import importlib
import inspect
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Dict, Mapping, Sequence, Tuple

import numpy as np

from envs.rlbench_files import StoredDemo, load_demo
from envs.types import EnvError

RENDERERS = {"opengl": "OPENGL", "opengl3": "OPENGL3"}


def import_rlbench() -> Any:
    """The package `rlbench.environment`; EnvError, with what is missing on this machine, if it cannot be imported."""
    try:
        return importlib.import_module("rlbench.environment")
    except (ImportError, OSError, AttributeError) as e:
        from envs.rlbench_doctor import lacking

        raise EnvError(
            f"rlbench cannot be imported ({type(e).__name__}: {e}). It needs CoppeliaSim 4.1, PyRep and RLBench: "
            f"{'; '.join(lacking()) or 'the variables are set, so the packages are missing'}. docs/rlbench.md has the "
            "steps; `launch.py doctor env=rlbench` checks them"
        ) from e


def refusals() -> Tuple[Any, ...]:
    """What RLBench and PyRep raise for an action that cannot be done."""
    errors = importlib.import_module("rlbench.backend.exceptions")
    kinds = [errors.InvalidActionError]
    with suppress(ImportError):
        pyrep = importlib.import_module("pyrep.errors")
        kinds += [getattr(pyrep, n) for n in ("IKError", "ConfigurationPathError") if hasattr(pyrep, n)]
    return tuple(kinds)


def task_class(task: str) -> Any:
    """RLBench's class of a task's file: reach_target -> ReachTarget."""
    if not task.isidentifier():
        raise EnvError(f"rlbench: '{task}' is no task; expected the name of a file in rlbench/tasks, as reach_target")
    try:
        module = importlib.import_module("rlbench.tasks." + task)
    except ImportError as e:
        raise EnvError(f"rlbench: there is no task '{task}' ({e}); expected a file of rlbench/tasks") from e
    return getattr(module, "".join(w[0].upper() + w[1:] for w in task.split("_")))


def observation_config(sizes: Mapping[str, Tuple[int, int]], renderer: str, fields: Sequence[str], state: bool) -> Any:
    """RLBench's settings of what to observe: colour pictures of the chosen cameras, and the robot."""
    module = importlib.import_module("rlbench.observation_config")
    mode = getattr(importlib.import_module("pyrep.const").RenderMode, RENDERERS[renderer])
    config = module.ObservationConfig()
    config.set_all(False)
    for name in {*fields, "joint_positions", "joint_velocities", "gripper_open", "gripper_pose", "gripper_matrix"}:
        setattr(config, name, True)
    config.task_low_dim_state = state
    for camera, (y, x) in sizes.items():
        chosen = getattr(config, camera + "_camera", None)
        if chosen is None:
            raise EnvError(f"rlbench: the installed version has no camera '{camera}'; leave it out")
        chosen.rgb, chosen.image_size, chosen.render_mode = True, (x, y), mode
    return config


def demo_of(stored: StoredDemo) -> Any:
    """The package's object for a stored start."""
    start = load_demo(stored).start
    demo = importlib.import_module("rlbench.demo").Demo
    known = inspect.signature(demo).parameters
    frame = SimpleNamespace(misc={"variation_index": start.variation})
    extra = {"num_reset_attempts": start.attempts} if "num_reset_attempts" in known else {}
    return demo([frame], random_seed=start.random_state, **extra)


def poses_of(obs: Any, cameras: Sequence[str], opening: float) -> Dict[str, np.ndarray]:
    """Where joints, gripper and cameras are, in the names of `Arm.poses`. EnvError if the version does not say it."""
    misc = getattr(obs, "misc", None) or {}
    wanted = ["joint_poses", *(f"{c}_camera_{k}" for c in cameras for k in ("extrinsics", "intrinsics"))]
    absent = [k for k in wanted if misc.get(k) is None]
    if absent or obs.gripper_matrix is None:
        raise EnvError(f"rlbench: observations do not say {absent or 'gripper_matrix'}; poses need RLBench 1.2.0")
    gripper = np.eye(4)
    matrix = np.asarray(obs.gripper_matrix, dtype=np.float64)
    gripper[: len(matrix)] = matrix
    out = {"joint_poses": np.asarray(misc["joint_poses"]), "gripper_pose": gripper, "gripper_open": np.array([opening])}
    for camera in cameras:
        out["camera/" + camera] = np.asarray(misc[f"{camera}_camera_extrinsics"])
        out["intrinsics/" + camera] = np.asarray(misc[f"{camera}_camera_intrinsics"])
    return out
