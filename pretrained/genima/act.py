"""GENIMA's controller as a policy: pictures with targets, joints and instruction to a chunk of joint positions.

The network is ACT with a FiLM ResNet; the policy is a Gaussian around its chunk, with a Bernoulli gripper, so that PPO
can tune it. The latent is its prior's mean whenever the policy acts or is scored; imitation alone draws it. `Quirks`
has what the original does otherwise. It sees whatever pictures its cameras give: raw ones make it plain ACT.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.build import build
from envs.types import EnvSpec
from pretrained import chain
from pretrained.encoders import ClipEncoder
from pretrained.genima import augment as disturb
from pretrained.genima.network import Act, Sizes, Style, StyleEncoder, Views
from pretrained.genima.quirks import choose
from pretrained.genima.resnet import load_imagenet
from pretrained.genima.stats import ActionScale, StateScale
from pretrained.networks import Critic, FreeNoise
from pretrained.observations import checked
from pretrained.types import Decision, DemoBatch, Evaluation, Features, Memory, Metrics, ObsBatch, PolicySpec, Rng

STATE_STATS = ("own", "actions")


class Losses(NamedTuple):
    """Terms of the imitation loss, unweighted."""

    l1: Tensor
    gripper: Tensor
    kl: Tensor


class ActPolicy(nn.Module):
    """Meets `pretrained.types.Policy`."""

    frozen_encoder = False
    imitation_only = ("style.",)  # parameters that no log-prob or value depends on
    stages = {"diffusion": "pretrained.genima.painter.diffusion_stage"}  # noqa: RUF012  a constant

    def __init__(
        self,
        *,
        env: EnvSpec,
        kernel: Mapping[str, Any],
        horizon: int = 20,
        execute: int | None = None,
        cameras: Sequence[str] | None = None,
        state: Sequence[str] | None = None,
        plain_state: Sequence[str] = (),
        state_stats: str = "own",
        binary: Sequence[int] = (),
        clip: str = "openai/clip-vit-base-patch32",
        imagenet: str = "",
        width: int = 256,
        heads: int = 8,
        ffn: int = 2048,
        encoder_layers: int = 4,
        decoder_layers: int = 6,
        style_layers: int = 4,
        latent: int = 32,
        planes: Sequence[int] = (64, 128, 256, 512),
        critic_width: int = 256,
        dropout: float = 0.1,
        state_dropout: float = 0.0,
        kl_weight: float = 10.0,
        gripper_weight: float = 0.05,
        augment: Sequence[str] = ("elastic", "colorjitter", "crop", "noise"),
        targets: bool = False,
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
        painter: Mapping[str, Any] | None = None,
    ) -> None:
        """`state` picks entries of the proprioception; those in `plain_state` are not normalised. `state_stats`: by its
        own statistics, or, for [gripper, joints] of a robot with actions [joints, gripper], by theirs, as the original
        does. `state_dropout`: share of imitated windows without it, so that a small controller learns to look.
        `targets`: where it acts, pictures come as hints of the proposal `target_image`, and must. `binary` actions are
        Bernoulli. `clip`: text tower, a folder, hub id or "tiny"; `imagenet`: the ResNet's weights, "" for random.
        `quirks`: fixed or faithful; `switches` changes fields of `Quirks`. `painter`: of stage=diffusion."""
        super().__init__()
        self.quirks = choose(quirks, switches or {})
        entries = sorted({*binary, *kernel.get("binary", ())})
        self.kernel: chain.Gaussian = build({**kernel, "binary": entries} if entries else kernel)
        self.spec = _spec(env, cameras, horizon, execute, memoryless=self.quirks.first_state == "normalized")
        self.entries, names = _entries(env, state)
        _check(self, env, state_stats, [*plain_state], names)
        disturb.check_names(augment, disturb.OF_CONTROLLERS)
        self.state_stats, self.dropout, self.augment, self.targets = state_stats, dropout, tuple(augment), targets
        self.kl_weight, self.gripper_weight, self.state_dropout = kl_weight, gripper_weight, state_dropout
        self.actions = ActionScale(env.low, env.high, binary=self.kernel.binary)
        self.state = StateScale(len(names), plain=[names.index(n) for n in plain_state])
        self.text = ClipEncoder(cameras={}, model=clip)
        self.sizes = Sizes(
            state_dim=len(names), action_dim=env.action_dim, text_dim=self.text.text_dim, horizon=horizon, width=width,
            heads=heads, ffn=ffn, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
            style_layers=style_layers, latent=latent, planes=tuple(planes))  # fmt: skip
        self.encoder, self.actor, self.style = Views(self.sizes), Act(self.sizes), StyleEncoder(self.sizes)
        load_imagenet(self.encoder.backbone, imagenet)
        self.noise = FreeNoise(horizon=horizon, action_dim=env.action_dim)
        self.critic = Critic(width + len(names), width=critic_width)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.actions.low.device

    # --- observations -> features -> condition ---

    @torch.no_grad()
    def encode(self, obs: ObsBatch) -> Features:
        """Checked pictures, proprioception, the instruction's vector, and hints. With `targets`, the hints
        `target/<camera>` take the place of the cameras' pictures."""
        return self._encode(self._with_targets(obs) if self.targets else obs)

    def _encode(self, obs: ObsBatch) -> Features:
        images, proprio = checked(obs, self.spec, self.device, history=1)
        x: Features = {f"image/{c}": v for c, v in images.items()}
        x |= {"proprio": proprio, "text": self.text.embed_text(self.text.tokens(obs.texts).to(self.device)).float()}
        return x | {f"hint/{k}": v.to(self.device) for k, v in obs.hints.items()}

    def _with_targets(self, obs: ObsBatch) -> ObsBatch:
        missing = [c for c in self.spec.cameras if f"target/{c}" not in obs.hints]
        if missing:
            raise ValueError(
                f"targets for cameras {missing} are missing, there are hints {list(obs.hints)}; choose "
                "proposal=target_image with a painter of these cameras, or policy.targets=false"
            )
        images = {c: obs.hints[f"target/{c}"][:, None] for c in self.spec.cameras}
        hints = {k: v for k, v in obs.hints.items() if not k.startswith("target/")}
        return ObsBatch(images, obs.proprio, obs.texts, hints)

    def condition(self, x: Features) -> tuple[Tensor, Tensor]:
        """Features [B, ...] to the chunk [B, H A] and what the critic sees [B, D + P]. `x["first"]`, bool [B], says
        where an episode begins, for those who care."""
        state = self._state(x)
        hidden, tokens = self._run(self._images(x), state, x["text"])
        judged = torch.cat([tokens.mean(1).detach().float(), state], -1)
        return self.actor.head(hidden).float().flatten(1), judged

    def _images(self, x: Features) -> Tensor:
        """[B, V, 3, Y, X]; of a history the last."""
        return torch.stack([x[f"image/{c}"][:, -1] for c in self.spec.cameras], 1).permute(0, 1, 4, 2, 3)

    def _state(self, x: Features) -> Tensor:
        raw = x["proprio"][:, -1][:, self.entries]
        state = self.state(raw)
        state = torch.where(x["first"][:, None], raw, state) if "first" in x else state
        return state.masked_fill(x["unseen"][:, None], 0.0) if "unseen" in x else state

    def _run(
        self, images: Tensor, state: Tensor, text: Tensor, latent: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        maps, text = self.encoder(images, text)
        return self.actor(maps, text, state, latent, views=images.shape[1], dropout=dropout)

    def _network(self, inputs: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `pretrained.chain` calls networks: the chunk is decided already."""
        out = cond.view(len(cond), 1, self.spec.horizon, self.spec.action_dim).expand(-1, inputs.shape[1], -1, -1)
        if self.quirks.gripper == "logit" and self.kernel.binary:
            out = out.clone()
            out[..., list(self.kernel.binary)] -= 0.5
        return out, self.noise(time, cond).float()

    # --- the policy protocol ---

    def initial_memory(self, n: int) -> Memory:
        """Nothing, unless the first decision of an episode is special."""
        return {} if self.spec.memoryless else {"begun": torch.zeros(n, dtype=torch.int64, device=self.device)}

    def _first(self, memory: Memory) -> Features:
        return {} if self.spec.memoryless else {"first": memory["begun"] == 0}

    @torch.no_grad()
    def act(self, x: Features, memory: Memory, rng: Rng, greedy: bool = False) -> tuple[Decision, Memory]:
        """Decide for N rows."""
        cond, judged = self.condition(x | self._first(memory))
        shape = (self.spec.horizon, self.spec.action_dim)
        drawn = chain.sample(self.kernel, self._network, cond, shape, rng, execute=self.spec.execute, greedy=greedy)
        chunk = self.actions.decode(drawn.trace[:, -1])
        memory = {k: torch.ones_like(v) for k, v in memory.items()}
        return Decision(chunk, drawn.trace, drawn.log_prob, drawn.active, self.critic(judged).float()), memory

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation:
        """Score recorded decisions [N, T]."""
        n, t = starts.shape
        flat = {k: v.flatten(0, 1) for k, v in x.items()}
        if not self.spec.memoryless:
            first = starts.clone()
            first[:, 0] |= memory["begun"] == 0
            flat["first"] = first.flatten()
        cond, judged = self.condition(flat)
        picks = None if links is None else links.flatten(0, 1)
        scores, entropy = chain.score(
            self.kernel, self._network, cond, trace.flatten(0, 1), execute=self.spec.execute, links=picks
        )
        value = self.critic(judged).float()
        return Evaluation(scores.unflatten(0, (n, t)), entropy.view(n, t), value.view(n, t))

    @torch.no_grad()
    def value(self, x: Features, memory: Memory) -> Tensor:
        """[N], without deciding."""
        return self.critic(self.condition(x | self._first(memory))[1]).float()

    # --- imitation ---

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Loss of a batch of windows, on disturbed pictures."""
        with torch.no_grad():
            x = self._encode(demo.obs)
        if self.augment and self.training:
            images = torch.cat([x[f"image/{c}"][:, -1] for c in self.spec.cameras]).permute(0, 3, 1, 2).float()
            images = disturb.controller_view(images, rng, self.augment, same=self.quirks.augmentation == "batch")
            for c, part in zip(
                self.spec.cameras, images.permute(0, 2, 3, 1).chunk(len(self.spec.cameras)), strict=True
            ):
                x[f"image/{c}"] = part[:, None]
        return self.imitation_loss_of(x, demo.actions.to(self.device), demo.is_pad.to(self.device), rng)

    def imitation_loss_of(
        self, x: Features, actions: Tensor, is_pad: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """As `imitation_loss`, from features."""
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("demonstrated actions are not finite; drop the broken episodes")
        if self.state_dropout and self.training:
            unseen = torch.rand(len(actions), generator=rng) < self.state_dropout
            x = {**x, "unseen": unseen.to(self.device)}
        noise = torch.randn(len(actions), self.sizes.latent, generator=rng).to(self.device)
        losses, _, _ = self.learn(x, self.actions.encode(actions.float()), is_pad, noise)
        loss = losses.l1 + self.gripper_weight * losses.gripper + self.kl_weight * losses.kl
        values = [float(v.detach()) for v in (loss, *losses)]
        return loss, dict(zip(("imitation_loss", "l1", "gripper", "kl"), values, strict=True))

    def learn(self, x: Features, target: Tensor, is_pad: Tensor, noise: Tensor) -> tuple[Losses, Tensor, Style]:
        """Loss terms, hidden [B, H, D] and style, from normalised chunks [B, H, A] and noise [B, Z] of the latent."""
        dropout, state, binary = self.dropout if self.training else 0.0, self._state(x), list(self.kernel.binary)
        shown = target.clone()
        shown[..., binary] = (shown[..., binary] + 1) / 2  # the style encoder knows grippers as 0 and 1
        style = self.style(state, shown, is_pad, dropout=dropout)
        latent = style.mean + torch.exp(style.log_var / 2) * noise
        hidden, _ = self._run(self._images(x), state, x["text"], latent, dropout)
        out = self.actor.head(hidden).float()
        joints = [i for i in range(self.spec.action_dim) if i not in binary]
        keep = (~is_pad).float()
        count = is_pad.numel() if self.quirks.padding == "counted" else keep.sum().clamp(min=1)
        l1 = ((out - target)[..., joints].abs() * keep[..., None]).sum() / (count * max(1, len(joints)))
        bits = F.binary_cross_entropy_with_logits(out[..., binary], shown[..., binary], reduction="none")
        gripper = (bits * keep[..., None]).sum() / (count * max(1, len(binary)))
        kl = -0.5 * (1 + style.log_var - style.mean**2 - style.log_var.exp()).sum(-1).mean()
        return Losses(l1, gripper, kl.float()), hidden, style

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`, for wrappers that call the module."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """From all demonstrated actions [M, A] and proprioception [M, P]."""
        self.actions.fit(actions.to(self.device))
        if self.state_stats == "own":
            self.state.fit(proprio.to(self.device)[:, self.entries])
        else:
            self.state.set(self.actions.mean.roll(1), self.actions.std.roll(1))


def _spec(
    env: EnvSpec, cameras: Sequence[str] | None, horizon: int, execute: int | None, *, memoryless: bool
) -> PolicySpec:
    missing = [c for c in cameras or () if c not in env.cameras]
    if missing:
        raise ValueError(f"cameras {missing} are not in {env.env_id}; it has {list(env.cameras)}")
    seen = {c: env.cameras[c] for c in (env.cameras if cameras is None else cameras)}
    if len(set(seen.values())) != 1:
        raise ValueError(f"the views must be of one size, got {seen}; set the cameras' sizes in the environment")
    return PolicySpec(
        cameras=seen, proprio=tuple(env.proprio), actions=env.actions, low=env.low, high=env.high,
        action_convention=env.action_convention, control_hz=env.control_hz, num_actions=env.num_actions,
        horizon=horizon, execute=horizon if execute is None else execute, memoryless=memoryless,
    )  # fmt: skip


def _entries(env: EnvSpec, state: Sequence[str] | None) -> tuple[list[int], list[str]]:
    """Where the state's entries are in the proprioception, and their names."""
    there = list(env.proprio)
    names = there if state is None else list(state)
    if missing := [n for n in names if n not in there]:
        raise ValueError(f"state {missing} is not in the proprioception of {env.env_id}; it has {there}")
    return [there.index(n) for n in names], names


def _check(policy: ActPolicy, env: EnvSpec, state_stats: str, plain: list[str], names: list[str]) -> None:
    spec = policy.spec
    if spec.num_actions:
        raise ValueError(
            f"{env.env_id} has {spec.num_actions} discrete actions, and this policy gives chunks of numbers"
        )
    if getattr(policy.kernel, "noise_head", "") != "free":
        raise ValueError(f"kernel {type(policy.kernel).__name__} is not for this policy; use pretrained.chain.Gaussian")
    if not 1 <= spec.execute <= spec.horizon:
        raise ValueError(f"expected 1 <= execute <= horizon, got execute={spec.execute}, horizon={spec.horizon}")
    if state_stats not in STATE_STATS:
        raise ValueError(f"state_stats '{state_stats}' is unknown; expected {' or '.join(STATE_STATS)}")
    if unknown := [n for n in plain if n not in names]:
        raise ValueError(f"plain_state {unknown} is not in the state, which has {names}")
    if state_stats == "actions" and (len(names) != env.action_dim or plain != names[:1]):
        raise ValueError(
            f"state_stats: actions needs a state [gripper, joints] of {env.action_dim} numbers with a plain gripper, "
            f"got {names} with plain_state {plain}; use state_stats: own"
        )
