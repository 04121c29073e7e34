"""RLlib's three actors as thin shells around our own module, learner and rollout worker; `rl.engine` drives them."""

import os
from typing import Any, cast

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from pretrained.checkpoint import load_policy
from pretrained.types import Policy
from rl.border import Border
from rl.learner import Learner
from rl.rollout import RolloutWorker, Weights, get_weights, put_weights, to_numpy, to_torch
from rl.run import make_learner
from rl.types import Segment, join

SPACE = gym.spaces.Box(-1, 1, (1,), np.float32)  # RLlib wants spaces; our data never meets its connectors


class Held:
    """A value in the object store, which whoever made this keeps there: it travels as a reference, however often it is
    copied. Actors that Ray restarts need their arguments again, and Ray does not keep large ones for them."""

    def __init__(self, value: Any) -> None:
        self.reference = ray.put(value)

    def get(self) -> Any:
        """The value."""
        return ray.get(self.reference)

    def __deepcopy__(self, memo: Any) -> "Held":
        return self


class PolicyModule(TorchRLModule):
    """One of our policies, as RLlib wants to see a module."""

    def setup(self) -> None:
        """Load the policy named in the module configuration."""
        self.policy: Policy = load_policy(self.model_config["checkpoint"], overrides=self.model_config["overrides"])

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """NumPy weights; RLlib's own version cannot express bfloat16."""
        return get_weights(self.policy)

    def set_state(self, state: dict[str, Any]) -> None:
        """Inverse of get_state."""
        put_weights(self.policy, state)


class ShellLearner(TorchLearner):
    """RLlib's learner actor with our learner inside; process groups come from RLlib, gradients are averaged by us."""

    inner: Learner

    def build(self) -> None:
        """Build the module through RLlib and the learner around its policy."""
        super().build()
        settings = self.config.env_config
        module = cast(PolicyModule, self.module["default_policy"])
        self.inner = make_learner(settings["run"], settings["start"].get(), module.policy)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """The inner learner owns the optimizer."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """Part of RLlib's protocol; `update` never comes here."""
        raise NotImplementedError

    def _make_modules_ddp_if_necessary(self) -> None:
        """The inner learner averages gradients itself, so that no wrapper stands between it and the policy."""

    def update(self, training_data: Any = None, **kwargs: Any) -> dict[str, Any]:
        """One iteration on the segments of this learner's shard."""
        training_data.solve_refs()
        parts = training_data.batches or [training_data.batch]
        version, settings = self.inner.iteration, self.config.env_config["run"]
        stale = [p.version for p in parts if not version - settings.max_lag <= p.version <= version]
        if stale:
            raise RuntimeError(f"segments of policy version {stale} reached a learner at version {version}")
        segment = join([to_torch(p) for p in parts])
        metrics = self.inner.update(segment)
        weights = get_weights(self.inner.policy)
        return {
            "metrics": metrics,
            "weights": weights,
            "version": self.inner.iteration,
            "learned": segment.names,
            "state": self.inner.state() if kwargs.get("keep") else None,
        }

    def inner_state(self) -> dict[str, Any]:
        """Optimizer, generator and counters."""
        return self.inner.state()


class Runner(EnvRunner, Checkpointable):
    """RLlib's rollout actor with our rollout worker inside."""

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        again = ray.get_runtime_context().was_current_actor_reconstructed
        incarnation = 1 + int.from_bytes(os.urandom(4), "little") if again else 0  # nobody counts them
        index = max(0, self.worker_index - 1)
        border = None if again else config.env_config["start"].get().border(index)
        self.worker = RolloutWorker(config.env_config["plan"], index, incarnation, border)

    def sample(self, *, weights: Weights, version: int) -> tuple[dict[str, Any], Segment]:
        """(a small report for the driver, the segment for the learner); called with two returns."""
        self.worker.set_weights(weights, version)
        segment = to_numpy(self.worker.sample())
        report = {"stats": segment.stats, "episodes": segment.episodes, "reward": float(segment.env_reward.sum())}
        return report, segment

    def border(self) -> Border:
        """Where collection stands, for a resume."""
        return self.worker.border()

    def assert_healthy(self) -> None:
        """Part of RLlib's protocol."""
        assert self.worker.vector is not None

    def get_spaces(self) -> dict[str, Any]:
        """Stand-ins; see SPACE."""
        return {name: (SPACE, SPACE) for name in ("__env__", "__env_single__", "default_policy")}

    def get_metrics(self) -> dict[str, Any]:
        """Metrics travel with the report of `sample`."""
        return {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Weights arrive with every `sample`; there is nothing else to keep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """See get_state."""

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Part of RLlib's protocol."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[Any]:
        """Checkpoints are our own."""
        return []

    def stop(self) -> None:
        """Stop the simulators."""
        self.worker.stop()
