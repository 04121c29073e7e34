"""Small parts that tests of learning share: toy environments, tiny policies of every family, synthetic segments."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from envs.build import build
from envs.toy import Toy
from envs.types import EnvConfig, EnvSpec
from pretrained.checkpoint import save
from pretrained.types import ObsBatch
from rl.collect import training_seed
from rl.types import Segment

POLICIES = Path(__file__).resolve().parents[1] / "configs" / "policy"
HAVE_DIFFUSERS = importlib.util.find_spec("diffusers") is not None  # which VPP needs
MODULES = {"flip"}  # files of modules that are trained in stages and decide nothing: there is no policy to have laws
ABSENT = set() if HAVE_DIFFUSERS else {"vpp"}
FAMILIES = sorted(path.stem for path in POLICIES.glob("*.yaml") if path.stem not in MODULES | ABSENT)
DISCRETE = ("categorical", "spoc")
TINY_SPOC = {"width": 16, "heads": 2, "fusion_layers": 1, "fusion_hidden": 16, "decoder_layers": 1, "grid": [2, 2],
             "window": 4, "vision": "tiny", "text": "tiny", "in_hand": ""}  # fmt: skip
TINY_ACT = {"heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": 1, "style_layers": 1, "latent": 4,
            "planes": [4, 4, 8, 8], "dropout": 0.0, "augment": []}  # fmt: skip
TINY_VPP = {
    "video": {"_target_": "pretrained.vpp.video.VideoModel", "model": "tiny", "text": "tiny", "frames": 2,
              "size": [16, 16]},
    "former": {"latents": 4, "width": 16, "depth": 1, "heads": 2, "head_width": 8},
    "width": 16, "critic_width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "horizon": 4,
}  # fmt: skip
SUCCESS = {"success": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}}}


def toy(*, step_deadline_s: float = 10.0, open_deadline_s: float = 60.0, **sim: Any) -> EnvConfig:
    """A toy environment in a child process; keyword arguments are those of `envs.toy.Toy`."""
    node = {"_target_": "envs.toy.Toy", "size": [16, 16], "max_steps": 10, **sim}
    return EnvConfig(node, step_deadline_s=step_deadline_s, open_deadline_s=open_deadline_s)


def toy_spec(**sim: Any) -> EnvSpec:
    """What that environment offers."""
    return Toy(**{"size": [16, 16], "max_steps": 10, **sim}).spec


def policy_node(family: str = "gaussian", **overrides: Any) -> dict[str, Any]:
    """configs/policy/<family>.yaml with tiny sizes."""
    node = yaml.safe_load((POLICIES / f"{family}.yaml").read_text())
    if family == "spoc":
        return {**node, **TINY_SPOC, **overrides}
    if family == "vpp":
        return {**node, **TINY_VPP, "kernel": {**node["kernel"], "steps": 4}, **overrides}
    node |= {"width": 16, "critic_width": 16}
    if "encoder" in node:
        node["encoder"] |= {"width": 16, "channels": [4, 4, 4]}
    if "clip" in node:
        node |= {"clip": "tiny", "binary": []}
    if node["horizon"] > 1:
        node["horizon"] = 4
    if family == "genima":
        node |= TINY_ACT
    if "steps" in node["kernel"]:
        node["kernel"]["steps"] = min(4, node["kernel"]["steps"])
    return {**node, **overrides}


def make_policy(family: str = "gaussian", spec: EnvSpec | None = None, *, seed: int = 0, **overrides: Any) -> Any:
    """A tiny policy; layers that start at zero are given some weight, as training would."""
    spec = spec or toy_spec(discrete=family in DISCRETE)
    torch.manual_seed(seed)
    policy = build(policy_node(family, **overrides), env=spec)
    for p in policy.parameters():
        if p.requires_grad and not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return policy.eval()


def checkpoint(folder: Path, family: str = "gaussian", *, seed: int = 0, **overrides: Any) -> Path:
    """A saved tiny policy for the toy environment."""
    spec = toy_spec(discrete=family in DISCRETE)
    policy = make_policy(family, spec, seed=seed, **overrides)
    save(folder, policy, node=policy_node(family, **overrides), env=spec)
    return folder


def observe(policy: Any, n: int, rng: np.random.Generator) -> ObsBatch:
    """Random observations."""
    steps = policy.spec.history
    return ObsBatch(
        images={c: rng.integers(0, 256, (n, steps, *s, 3), dtype=np.uint8) for c, s in policy.spec.cameras.items()},
        proprio=rng.normal(size=(n, steps, len(policy.spec.proprio))).astype(np.float32),
        texts=["reach the red target", "reach the blue target"] * (n // 2) + ["reach"] * (n % 2),
    )


def make_segment(policy: Any, n: int = 4, t: int = 6, *, seed: int = 0, ends: float = 0.2) -> Segment:
    """What a collector would return of a policy acting in a world of random pictures and rewards."""
    rng = np.random.default_rng(seed)
    noise = [torch.Generator().manual_seed(1000 * seed + i) for i in range(n)]
    done = torch.from_numpy(rng.random((n, t)) < ends)
    terminated = done & torch.from_numpy(rng.random((n, t)) < 0.5)
    starts = torch.cat([torch.ones(n, 1, dtype=torch.bool), done[:, :-1]], 1)
    memory = first = policy.initial_memory(n)
    features, decisions = [], []
    for i in range(t):
        fresh = policy.initial_memory(n)
        begins = starts[:, i]
        memory = {k: torch.where(begins.view(-1, *[1] * (v.ndim - 1)), fresh[k], v) for k, v in memory.items()}
        features.append(policy.encode(observe(policy, n, rng)))
        decision, memory = policy.act(features[-1], memory, noise)
        decisions.append(decision)
    last = policy.value(policy.encode(observe(policy, n, rng)), memory)
    value = torch.stack([d.value for d in decisions], 1).float()
    return Segment(
        features={k: torch.stack([f[k] for f in features], 1) for k in features[0]},
        texts=["reach"],
        text_id=torch.zeros(n, t, dtype=torch.int64),
        trace=torch.stack([d.trace for d in decisions], 1),
        log_prob=torch.stack([d.log_prob for d in decisions], 1),
        active=torch.stack([d.active for d in decisions], 1),
        value=value,
        next_value=torch.cat([value[:, 1:], last[:, None]], 1),
        env_reward=torch.from_numpy(rng.normal(size=(n, t)).astype(np.float32)),
        duration=torch.from_numpy(rng.integers(1, policy.spec.execute + 1, (n, t))),
        terminated=terminated,
        truncated=done & ~terminated,
        starts=starts,
        valid=torch.ones(n, t, dtype=torch.bool),
        memory=first,
        version=0,
    )


def seed_of(*, row: int, episode: int, run_seed: int = 0, worker: int = 0) -> int:
    """The seed of an episode of a fine-tuning run: of a row of a worker, counted from 0."""
    return training_seed(run_seed * 10**6 + worker, row, episode, toy_spec().seed_block)
