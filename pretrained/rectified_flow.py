"""The vision-language-action model with rectified flow: frozen CLIP, two proprioception towers, AdaLN velocity network.

    image  --CLIP vision--> 512 --.
    text   --CLIP text----> 512 --+--fusion--> 512 --AdaLN velocity network--> chunk of actions
    proprio --MLP-> 512 ----------+
    hand pose --MLP-> 512 --------'

It is a `ChunkPolicy` with other parts, so imitation, fine-tuning and checkpoints treat it like every policy. The flow
is that of Liu et al. 2022: a_t = t a + (1 - t) noise, v = a - noise, noise at t = 0. Inference may use another sampler
and more steps than the chain has links: `flow_sample`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.types import EnvSpec
from pretrained.chain import FlowNoise, FlowSde, flow_lesson
from pretrained.chunk_policy import ChunkPolicy
from pretrained.networks import TransformerBlock
from pretrained.types import Features, Metrics, Rng, randn

METHODS = ("euler", "midpoint", "heun")
FLOW = {"_target_": "pretrained.chain.FlowNoise", "steps": 4}


def vla_model(
    *,
    env: EnvSpec,
    kernel: Mapping[str, Any] = FLOW,
    horizon: int = 1,
    execute: int | None = None,
    cameras: Sequence[str] | None = None,
    clip: str = "openai/clip-vit-base-patch16",
    fusion: str = "concat",
    proprio_names: Sequence[str] | None = None,
    ee_names: Sequence[str] | None = None,
    network: str = "auto",
    layers: int = 3,
    width: int = 512,
    critic_width: int = 256,
    critic_detach: bool = True,
    normalize: str = "quantile",
    binary: Sequence[int] = (),
    greedy_start: str = "sample",
    tuned_links: int | None = None,
) -> ChunkPolicy:
    """Build the model. `clip` is a folder, a hub id or "tiny"; `network: auto` takes the transformer for chunks."""
    if not 1 <= horizon <= 16:
        raise ValueError(f"the model predicts chunks of 1 to 16 actions, got horizon={horizon}")
    if network not in ("auto", "mlp", "transformer"):
        raise ValueError(f"network '{network}' is unknown; expected auto, mlp or transformer")
    mlp = network == "mlp" or (network == "auto" and horizon == 1)
    kind = "VelocityMlp" if mlp else "VelocityTransformer"
    policy = ChunkPolicy(
        env=env,
        kernel=kernel,
        horizon=horizon,
        execute=execute,
        cameras=cameras,
        encoder={"_target_": "pretrained.encoders.ClipEncoder", "model": clip},
        fusion={
            "_target_": "pretrained.rectified_flow.VlaFusion",
            "mode": fusion,
            "proprio_names": proprio_names,
            "ee_names": ee_names,
        },
        network={"_target_": f"pretrained.networks.{kind}", "layers": layers},
        width=width,
        critic_width=critic_width,
        critic_detach=critic_detach,
        normalize=normalize,
        binary=binary,
        greedy_start=greedy_start,
        tuned_links=tuned_links,
    )
    if not isinstance(policy.kernel, FlowNoise | FlowSde):
        raise ValueError(f"kernel {type(policy.kernel).__name__} is not a flow; expected FlowNoise or FlowSde")
    return policy


class VlaFusion(nn.Module):
    """Vision, text, proprioception and hand pose to one vector: side by side, or as four tokens of a transformer."""

    def __init__(
        self,
        *,
        image_dim: int,
        text_dim: int,
        proprio_dim: int,
        proprio: Sequence[str],
        width: int,
        mode: str = "concat",
        proprio_names: Sequence[str] | None = None,
        ee_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("concat", "attention"):
            raise ValueError(f"fusion '{mode}' is unknown; expected concat or attention")
        if proprio_dim != len(proprio):
            raise ValueError(f"the model takes no history: expected {len(proprio)} proprioception entries")
        self.mode = mode
        self.body, self.pose = split_proprio(proprio, proprio_names, ee_names)
        self.body_tower, self.pose_tower = _tower(len(self.body), width), _tower(len(self.pose), width)
        if mode == "concat":
            self.layers = nn.Sequential(
                nn.Linear(image_dim + text_dim + 2 * width, width),
                nn.LayerNorm(width),
                nn.GELU(),
                nn.Linear(width, width),
            )
        else:
            self.image, self.text = nn.Linear(image_dim, width), nn.Linear(text_dim, width)
            self.kinds = nn.Parameter(0.02 * torch.randn(4, width))
            self.blocks = nn.ModuleList(TransformerBlock(width, heads=max(1, width // 64)) for _ in range(2))
            self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor, text: Tensor, proprio: Tensor) -> Tensor:
        """image [B, V], text [B, S], z-scored proprioception [B, P] -> [B, D]."""
        body, pose = self.body_tower(proprio[:, self.body]), self.pose_tower(proprio[:, self.pose])
        if self.mode == "concat":
            return self.layers(torch.cat([image, text, body, pose], -1))
        tokens = torch.stack([self.image(image), self.text(text), body, pose], 1) + self.kinds
        c = F.silu(tokens.mean(1, keepdim=True))  # each block is modulated by what all tokens say together
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.norm(tokens.mean(1))


def _tower(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 256), nn.GELU(), nn.Linear(256, width), nn.LayerNorm(width))


def split_proprio(
    names: Sequence[str], proprio_names: Sequence[str] | None, ee_names: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """Indices of the proprioception and of the hand pose. By default the pose is what is named eef_* or ee_*."""
    if ee_names is None:
        ee_names = [n for n in names if n.startswith(("eef_", "ee_"))] or list(names)
    if proprio_names is None:
        proprio_names = [n for n in names if n not in ee_names] or list(names)
    unknown = [n for n in (*proprio_names, *ee_names) if n not in names]
    if unknown:
        raise ValueError(f"proprioception has no entries {unknown}; the environment offers {list(names)}")
    return [list(names).index(n) for n in proprio_names], [list(names).index(n) for n in ee_names]


@torch.no_grad()
def flow_sample(policy: ChunkPolicy, x: Features, rng: Rng, *, steps: int = 50, method: str = "euler") -> Tensor:
    """Chunks [N, H, A] in env units by the noiseless flow. No method evaluates at t = 1, where nothing was trained."""
    if method not in METHODS:
        raise ValueError(f"method '{method}' is unknown; expected {', '.join(METHODS)}")
    if steps < 1:
        raise ValueError(f"a flow needs at least 1 step, got {steps}")
    if not isinstance(policy.kernel, FlowNoise | FlowSde):
        raise ValueError(f"kernel {type(policy.kernel).__name__} is not a flow; use the policy's own act()")
    if policy.base is not None:
        raise ValueError(
            "the first links of this flow belong to a frozen copy (tuned_links); use the policy's own act()"
        )
    cond, _ = policy.condition(x)
    noise = randn((len(cond), policy.spec.horizon, policy.spec.action_dim), rng, cond.device)
    return policy.actions.decode(integrate(policy, cond, noise, steps=steps, method=method))


@torch.no_grad()
def integrate(policy: ChunkPolicy, cond: Tensor, noise: Tensor, *, steps: int, method: str = "euler") -> Tensor:
    """Where the flow takes `noise` [B, H, A] under conditions [B, D]: normalised chunks."""

    def velocity(at: Tensor, t: float) -> Tensor:
        return policy.run_network(at[:, None], at.new_full((len(at), 1), t), cond)[0][:, 0]

    x_t, dt = noise, 1.0 / steps
    for k in range(steps):
        t = k * dt
        v = velocity(x_t, t)
        if method == "midpoint":
            v = velocity(x_t + 0.5 * dt * v, t + 0.5 * dt)
        elif method == "heun" and k < steps - 1:
            v = 0.5 * (v + velocity(x_t + dt * v, t + dt))
        x_t = x_t + dt * v
    return x_t


class Reflow:
    """The second stage of rectified flow (Liu et al. 2022): straighten the paths of a trained flow, its teacher.

    Each lesson pairs noise with the chunk to which the teacher takes it, instead of with a demonstrated one. Where
    paths are straight, one step of the sampler goes as far as many. Pairs are drawn anew for each batch, never stored.
    """

    def __init__(self, teacher: ChunkPolicy, *, steps: int) -> None:
        """`steps` of the teacher's sampler per pair. Raises ValueError if the teacher is not a flow."""
        if not isinstance(teacher.kernel, FlowNoise | FlowSde):
            raise ValueError(f"reflow straightens flows, and init has the kernel {type(teacher.kernel).__name__}")
        if steps < 2:
            raise ValueError(f"reflow = {steps}; expected at least 2 steps of the sampler that is to become short")
        self.teacher, self.steps = teacher.eval().requires_grad_(False), steps

    def loss(self, policy: ChunkPolicy, x: Features, is_pad: Tensor, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """The flow's loss on pairs for features `x`."""
        assert isinstance(policy.kernel, FlowNoise | FlowSde)
        shape = (len(is_pad), policy.spec.horizon, policy.spec.action_dim)
        noise = randn(shape, rng, policy.device)
        ends = integrate(self.teacher, self.teacher.start_condition(x), noise, steps=self.steps)
        lesson = flow_lesson(ends, rng, policy.kernel.times, noise=noise)
        return policy.lesson_loss(policy.start_condition(x), lesson, is_pad)
