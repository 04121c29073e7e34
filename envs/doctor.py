"""What `launch.py doctor env=...` tries on a simulator: start it, look at it, step it, and put it through the laws."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from envs.check import check_vector, sample_action
from envs.types import EnvConfig
from envs.vector import SimVector


def simulator(config: EnvConfig) -> list[tuple[str, str, str]]:
    """(name, value, verdict) of two children that take random steps."""
    began = time.perf_counter()
    vector = SimVector([replace(config, process="own")] * 2)
    try:
        spec = vector.env_spec
        rows = [("simulator", f"{spec.env_id}: started in {time.perf_counter() - began:.1f} s", "ok")]
        rows.append(
            ("tasks", f"{len(spec.tasks)}: {', '.join(spec.tasks[:12])}{' ...' if spec.tasks[12:] else ''}", "ok")
        )
        rows.append(("cameras", ", ".join(f"{k} {y}x{x}" for k, (y, x) in spec.cameras.items()), "ok"))
        rows.append(("actions", f"{', '.join(spec.actions)} ({spec.action_convention}, {spec.control_hz:g} Hz)", "ok"))
        rng = np.random.default_rng(0)
        vector.send_reset(0, spec.tasks[0], 0)
        vector.wait()
        vector.take(0)
        began, steps = time.perf_counter(), 0
        for _ in range(20):
            vector.send_step(0, sample_action(spec, rng)[None])
            vector.wait()
            arrival = vector.take(0)
            steps += arrival.executed
            if arrival.kind == "failed" or arrival.terminated or arrival.truncated:
                break
        rows.append(("random steps", f"{steps} rendered, {steps / (time.perf_counter() - began):.0f} per second", "ok"))
        rows += [(f"law: {law}", "holds", "ok") for law in check_vector(vector)]
    except AssertionError as e:
        rows.append(("law", str(e), "BAD"))
    finally:
        vector.close()
    return rows
