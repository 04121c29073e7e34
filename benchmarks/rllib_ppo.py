"""RLlib's own PPO, as its documentation has it, around the same network and the same toy: the other side of vs_rllib.

New API stack, its default EnvRunner (vectorised in the runner's process), connectors, learner and loss. What is given
to it is an environment, a module, and the hyper-parameters that ours has too.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule

from envs.build import build
from rl.ppo import Ppo


class ToyEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """The toy with its first task, in this process."""

    def __init__(self, sim: dict[str, Any]) -> None:
        """`sim` is the node of the toy."""
        self.toy: Any = build(sim)
        spec, limit = self.toy.spec, np.finfo(np.float32)
        images = {name: gym.spaces.Box(0, 255, (y, x, 3), np.uint8) for name, (y, x) in spec.cameras.items()}
        proprio = gym.spaces.Box(limit.min, limit.max, (spec.proprio_dim,), np.float32)
        self.observation_space = gym.spaces.Dict({**images, "proprio": proprio})
        low, high = (bound.astype(np.float32) for bound in spec.bounds)
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new initial state."""
        super().reset(seed=seed)
        obs = self.toy.reset(self.toy.spec.tasks[0], int(self.np_random.integers(2**31)))
        return {**obs.images, "proprio": obs.proprio}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One step; out of bounds is clipped, as our policies do."""
        low, high = self.toy.spec.bounds
        step = self.toy.step(np.clip(action, low, high))
        return {**step.obs.images, "proprio": step.obs.proprio}, step.reward, step.terminated, step.truncated, {}


class Module(TorchRLModule, ValueFunctionAPI):
    """The networks of one of our Gaussian policies of one action per decision, behind RLlib's interface."""

    def setup(self) -> None:
        """Build them from the node and the toy in the module's configuration."""
        spec = build(self.model_config["sim"]).spec
        self.policy = build(self.model_config["policy"], env=spec)
        self.register_buffer("tokens", self.policy.towers.tokens([f"reach the {spec.tasks[0]} target"]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        cond, proprio = self._condition(batch)
        k = torch.zeros(len(cond), 1, dtype=torch.int64, device=cond.device)
        x = cond.new_zeros(len(cond), 1, 1, self.policy.spec.action_dim)
        inputs, time = self.policy.kernel.prepare(k, x)
        link = self.policy.kernel.transition(k, x, *self.policy.run_network(inputs, time, cond))
        mean = link.mean.flatten(1)
        std = link.std.expand_as(link.mean).flatten(1)
        return {
            Columns.ACTION_DIST_INPUTS: torch.cat([mean, std.log()], -1),
            Columns.EMBEDDINGS: torch.cat([cond, proprio], -1),  # else the towers would run again for the value
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """[B]."""
        if embeddings is None:
            return self.policy._value(*self._condition(batch))
        last = len(self.policy.spec.proprio)
        return self.policy._value(embeddings[:, :-last], embeddings[:, -last:])

    def _condition(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        seen = batch[Columns.OBS]
        x = {f"image/{c}": seen[c][:, None] for c in self.policy.spec.cameras}
        x["proprio"] = seen["proprio"][:, None]
        x["tokens"] = self.tokens.expand(len(seen["proprio"]), -1)
        return self.policy.condition(x)


def make_config(sim: dict[str, Any], policy: dict[str, Any], algo: Ppo, *, workers: int, envs: int,
                decisions: int) -> PPOConfig:  # fmt: skip
    """Workers x envs x decisions samples per iteration, the learner in the driver."""
    batch = workers * envs * decisions
    rate = algo.lr[""] if isinstance(algo.lr, Mapping) else algo.lr
    return (
        PPOConfig()
        .environment(ToyEnv, env_config=sim)
        .env_runners(num_env_runners=workers, num_envs_per_env_runner=envs, create_local_env_runner=False)
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=batch,
            minibatch_size=batch // algo.minibatches,
            num_epochs=algo.epochs,
            lr=rate,
            gamma=algo.gamma,
            lambda_=algo.lam,
            clip_param=algo.clip,
            vf_loss_coeff=algo.value_coef,
            vf_clip_param=float("inf"),
            grad_clip=algo.max_grad_norm,
            use_kl_loss=False,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=Module, model_config={"sim": sim, "policy": policy}))
        .debugging(log_level="ERROR")
    )
