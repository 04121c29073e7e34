"""Made-up robots, policies and segments, so that learners and policies are measured without a simulator."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from envs.build import build
from envs.types import EnvSpec
from pretrained.types import ObsBatch
from rl.types import Segment

ROWS = 256  # observations encoded at once


@dataclass(frozen=True)
class Case:
    """A policy and the size of what it learns from."""

    node: dict[str, Any] = field(default_factory=dict)  # goes over `NODE`
    pixels: int = 64  # side of each of the two cameras
    streams: int = 8  # N
    decisions: int = 64  # T


NODE: dict[str, Any] = {
    "_target_": "pretrained.chunk_policy.ChunkPolicy",
    "kernel": {"_target_": "pretrained.chain.FlowNoise", "steps": 4},
    "horizon": 8,
    "encoder": {"_target_": "pretrained.encoders.PixelEncoder", "width": 128},
    "network": "mlp",
    "width": 256,
}
GAUSSIAN = {"_target_": "pretrained.chain.Gaussian", "std": 0.1}
LARGE = {"_target_": "pretrained.networks.VelocityTransformer", "layers": 12, "heads": 16}
CASES: dict[str, Case] = {
    "tiny": Case({"width": 32}, pixels=16, streams=2, decisions=4),  # for tests
    "gaussian": Case({"kernel": GAUSSIAN}),
    "flow": Case(),
    "large": Case({"network": LARGE, "width": 1024, "horizon": 16}, pixels=128, streams=64, decisions=32),
}


def robot(pixels: int) -> EnvSpec:
    """An arm with a gripper, two cameras and nine entries of proprioception."""
    actions = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    return EnvSpec(
        env_id="synthetic/arm",
        cameras={"front": (pixels, pixels), "hand": (pixels, pixels)},
        proprio={f"p{i}": "m" for i in range(9)},
        actions=actions,
        low=(-1.0,) * len(actions),
        high=(1.0,) * len(actions),
        control_hz=20.0,
        max_steps=200,
        tasks=("lift",),
        action_convention="osc_pose_delta",
    )


def make_policy(case: Case, seed: int = 0) -> Any:
    """The policy of a case; layers that start at zero are given some weight, as training would."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = build({**NODE, **case.node}, env=robot(case.pixels))
        for p in policy.parameters():
            if p.requires_grad and not p.any():
                torch.nn.init.normal_(p, std=0.02)
    return policy.eval()


def observations(policy: Any, count: int, rng: np.random.Generator) -> ObsBatch:
    """Noise to look at."""
    spec = policy.spec
    return ObsBatch(
        images={
            c: rng.integers(0, 256, (count, spec.history, y, x, 3), np.uint8) for c, (y, x) in spec.cameras.items()
        },
        proprio=rng.normal(size=(count, spec.history, len(spec.proprio))).astype(np.float32),
        texts=["lift the cube"] * count,
    )


def make_segment(policy: Any, case: Case, seed: int = 0) -> Segment:
    """What a collector would return of a memoryless policy on the CPU; rewards are noise, episodes end at random."""
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    n, t = case.streams, case.decisions
    features, decisions = [], []
    for start in range(0, n * t, ROWS):
        x = policy.encode(observations(policy, min(ROWS, n * t - start), rng))
        features.append(x)
        decisions.append(policy.act(x, {}, noise)[0])

    def joined(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts).unflatten(0, (n, t))

    value = joined([d.value for d in decisions]).float()
    done = torch.from_numpy(rng.random((n, t)) < 0.05)
    return Segment(
        features={k: joined([x[k] for x in features]) for k in features[0]},
        texts=["lift the cube"],
        text_id=torch.zeros(n, t, dtype=torch.int64),
        trace=joined([d.trace for d in decisions]),
        log_prob=joined([d.log_prob for d in decisions]),
        active=joined([d.active for d in decisions]),
        value=value,
        next_value=torch.cat([value[:, 1:], value[:, -1:]], 1),
        env_reward=torch.from_numpy(rng.normal(size=(n, t)).astype(np.float32)),
        duration=torch.full((n, t), policy.spec.execute),
        terminated=done,
        truncated=torch.zeros_like(done),
        starts=torch.cat([torch.ones(n, 1, dtype=torch.bool), done[:, :-1]], 1),
        valid=torch.ones(n, t, dtype=torch.bool),
        memory={},
        version=0,
    )
