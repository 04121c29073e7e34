"""A rollout actor without simulator and policy: what the driver sees of one, in a small process. NumPy alone."""

import time
from typing import Any

import numpy as np

EPISODE = {"env": "toy/reach", "task": "red", "seed": 1234567, "success": True, "length": 200, "reward": 1.0,
           "valid": True, "cause": "", "version": 1}  # fmt: skip


class Light:
    """Answers like `rl.engine.Runner.sample`: a report, and a segment that nobody but a learner opens."""

    def __init__(self, steps: int, segment_bytes: int, pause_s: float) -> None:
        """Each answer stands for `steps` environment steps."""
        self.steps, self.segment_bytes, self.pause_s = steps, segment_bytes, pause_s

    def sample(self, *, weights: dict[str, np.ndarray], version: int) -> tuple[dict[str, Any], np.ndarray]:
        """(report, segment)."""
        read = float(sum(w[:1].sum() for w in weights.values()))  # they have arrived
        time.sleep(self.pause_s)
        stats = {"collect_s": self.pause_s, "wait_s": self.pause_s, "policy_s": 0.0, "restarts": 0,
                 "started": 1, "carried": 8, "in_flight": 8, "env_steps": float(self.steps)}  # fmt: skip
        report = {"stats": stats, "episodes": [EPISODE] * max(1, self.steps // 200), "reward": 0.0 * read}
        return report, np.ones(self.segment_bytes, np.uint8)

    def arrived(self, weights: dict[str, np.ndarray]) -> float:
        """Time at which weights were here and readable."""
        sum(float(w[:1].sum()) for w in weights.values())
        return time.time()

    def ping(self) -> bool:
        """Part of what Ray's actor manager asks."""
        return True
