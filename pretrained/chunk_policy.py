"""The one policy class: encoder -> fusion (-> memory) -> chain of links over action chunks, and a critic.

Which family it is (flow, diffusion, Gaussian, categorical) is its `kernel`, a node under `pretrained.chain`.

    images, text, proprio --encoder, fusion--> condition [B, D] --network, kernel--> x_0 .. x_K --normaliser--> chunk
                                                    '--critic--> value

The encoder runs inside the gradient unless `frozen_encoder`; then `encode` stores its output instead of images.
Letters as in `pretrained.types`; B rows are N, or N T when sequences are scored.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from envs.build import build
from envs.types import EnvSpec
from pretrained import chain
from pretrained.encoders import Encoder
from pretrained.frozen_actor import FrozenActor
from pretrained.heads import Kernel, Lesson
from pretrained.networks import (
    Critic,
    FreeNoise,
    GruMemory,
    StateNoise,
    random_shift,
)
from pretrained.normalize import ActionNormalizer, ProprioNormalizer
from pretrained.observations import checked
from pretrained.types import Decision, DemoBatch, Evaluation, Features, Memory, Metrics, ObsBatch, PolicySpec, Rng

NETWORKS = {
    "mlp": {"_target_": "pretrained.networks.VelocityMlp"},
    "transformer": {"_target_": "pretrained.networks.VelocityTransformer"},
}
PIXELS = {"_target_": "pretrained.encoders.PixelEncoder"}
CONCAT = {"_target_": "pretrained.fusion.ConcatFusion"}


class ChunkPolicy(nn.Module):
    """A chain policy over action chunks. Meets `pretrained.types.Policy`.

    With `tuned_links` fine-tuning learns the last so many links only; a frozen copy draws those before them.
    """

    def __init__(
        self,
        *,
        env: EnvSpec,
        kernel: Mapping[str, Any],
        horizon: int = 8,
        execute: int | None = None,
        history: int = 1,
        cameras: Sequence[str] | None = None,
        encoder: Mapping[str, Any] = PIXELS,
        frozen_encoder: bool = False,
        fusion: Mapping[str, Any] = CONCAT,
        network: Mapping[str, Any] | str = "mlp",
        width: int = 256,
        critic_width: int = 256,
        critic_detach: bool = True,
        memory: str = "none",
        normalize: str = "quantile",
        binary: Sequence[int] = (),
        quaternions: Sequence[Sequence[int]] | None = None,
        augment: int = 4,
        greedy_start: str = "sample",
        tuned_links: int | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        """`plan`: node of what looks at a proposal's plan, such as `pretrained.flip.condition.PlanEncoder`."""
        super().__init__()
        self.kernel: Kernel = build(kernel)
        self.spec = PolicySpec.of(
            env,
            cameras,
            horizon=horizon,
            execute=horizon if execute is None else execute,
            history=history,
            links=self.kernel.steps,
            frozen_links=0 if tuned_links is None else self.kernel.steps - tuned_links,
            memoryless=memory == "none",
        )
        _check(env.env_id, self.spec, self.kernel)
        _check_choice("memory", memory, ("none", "gru"))
        _check_choice("greedy_start", greedy_start, ("sample", "zero"))
        self.augment, self.zero_start, self.critic_detach = augment, greedy_start == "zero", critic_detach
        binary = sorted({*binary, *getattr(self.kernel, "binary", ())})
        mode = "identity" if self.kernel.discrete else normalize
        self.actions = ActionNormalizer(env.low, env.high, mode=mode, binary=binary)
        self.proprio = ProprioNormalizer(self.spec.proprio, quaternions=quaternions)
        self.encoder = build(encoder, cameras=self.spec.cameras)
        self.towers = cast(Encoder, self.encoder)
        self.frozen_encoder = frozen_encoder or self.towers.always_frozen
        if self.frozen_encoder:
            self.encoder.requires_grad_(False)
        self._build_actor(fusion, network, width, memory)
        if plan is not None:
            self.actor["plan"] = build(plan, width=width)
        self.critic = Critic(width + history * env.proprio_dim, width=critic_width)
        self.base = FrozenActor(*self._tuned_parts()) if self.spec.frozen_links else None
        self.register_load_state_dict_post_hook(_renew_base)

    def _tuned_parts(self) -> tuple[nn.ModuleDict, nn.Module | None, nn.Module | None]:
        """What acts and is fine-tuned."""
        return self.actor, self.noise, None if self.frozen_encoder else self.encoder

    def _build_actor(
        self, fusion: Mapping[str, Any], network: Mapping[str, Any] | str, width: int, memory: str
    ) -> None:
        spec, sizes = self.spec, {"horizon": self.spec.horizon, "action_dim": self.spec.action_dim}
        self.actor = nn.ModuleDict()
        self.actor["fusion"] = build(
            fusion,
            image_dim=spec.history * self.towers.image_dim,
            text_dim=self.towers.text_dim,
            proprio_dim=spec.history * len(spec.proprio),
            proprio=spec.proprio,
            width=width,
        )
        if memory == "gru":
            self.actor["memory"] = GruMemory(width, width)
        if isinstance(network, str):
            _check_choice("network", network, tuple(NETWORKS))
            network = NETWORKS[network]
        outputs = spec.num_actions if self.kernel.discrete else spec.action_dim
        self.actor["network"] = build({"width": width, **network}, outputs=outputs, cond_dim=width, **sizes)
        self.noise: nn.Module | None = None
        if self.kernel.noise_head == "state":
            self.noise = StateNoise(cond_dim=width, **sizes)
        elif self.kernel.noise_head == "free":
            self.noise = FreeNoise(**sizes)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.actions.low.device

    # --- observations -> features -> condition ---

    @torch.no_grad()
    def encode(self, obs: ObsBatch) -> Features:
        """Checked tensors: images (or, with a frozen encoder, their vectors), proprioception, instruction, hints."""
        images, proprio = checked(obs, self.spec, self.device, history=self.spec.history)
        x: Features = {"proprio": proprio}
        tokens = self.towers.tokens(obs.texts).to(self.device)
        if self.frozen_encoder:
            n, steps = x["proprio"].shape[:2]
            flat = {c: v.flatten(0, 1) for c, v in images.items()}
            pooled = self.towers.embed_images(flat) if flat else x["proprio"].new_zeros(n * steps, 0)
            x["pooled"] = pooled.view(n, -1).float()
            x["text"] = self.towers.embed_text(tokens).float()
        else:
            x |= {f"image/{c}": v for c, v in images.items()}
            x["tokens"] = tokens
        return x | {f"hint/{k}": v.to(self.device) for k, v in obs.hints.items()}

    def condition(self, x: Features) -> tuple[Tensor, Tensor]:
        """Features [B, ...] -> fused [B, D] and z-scored proprioception [B, L P]."""
        return self._condition(x, self.towers, self.actor)

    def _condition(self, x: Features, towers: Encoder, actor: nn.ModuleDict) -> tuple[Tensor, Tensor]:
        proprio = self.proprio(x["proprio"]).flatten(1)
        if self.frozen_encoder:
            pooled, text = x["pooled"], x["text"]
        else:
            b = len(proprio)
            images = {c: x[f"image/{c}"].flatten(0, 1) for c in self.spec.cameras}
            pooled = towers.embed_images(images).view(b, -1) if images else proprio.new_zeros(b, 0)
            text = towers.embed_text(x["tokens"])
        fused = actor["fusion"](pooled, text, proprio)
        return (fused + actor["plan"](x) if "plan" in actor else fused), proprio

    def _base(self, x: Features) -> chain.Base | None:
        """Who draws the links that are not fine-tuned."""
        if self.base is None:
            return None
        actor, noise = self.base.actor, self.base.noise

        def network(inputs: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
            out = actor["network"](inputs, time, cond).float()
            return out, None if noise is None else noise(time, cond).float()

        towers = self.towers if self.base.encoder is None else cast(Encoder, self.base.encoder)
        return chain.Base(self.spec.frozen_links, network, self._condition(x, towers, actor)[0])

    def _value(self, cond: Tensor, proprio: Tensor) -> Tensor:
        """With `critic_detach` the critic learns from the actor's condition without shaping it."""
        cond = cond.detach() if self.critic_detach else cond
        return self.critic(torch.cat([cond.float(), proprio], -1)).float()

    def run_network(self, inputs: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """Network and noise head, as `pretrained.chain` calls them; float32 whatever autocast does inside."""
        out = self.actor["network"](inputs, time, cond).float()
        return out, None if self.noise is None else self.noise(time, cond).float()

    @property
    def _gru(self) -> GruMemory:
        return cast(GruMemory, self.actor["memory"])

    # --- the policy protocol ---

    def initial_memory(self, n: int) -> Memory:
        """Zeros, or nothing."""
        return {} if self.spec.memoryless else {"h": torch.zeros(n, self._gru.width, device=self.device)}

    @torch.no_grad()
    def act(self, x: Features, memory: Memory, rng: Rng, greedy: bool = False) -> tuple[Decision, Memory]:
        """Decide for N rows."""
        cond, proprio = self.condition(x)
        cond, memory = self._remember(cond, memory)
        drawn = chain.sample(
            self.kernel,
            self.run_network,
            cond,
            (self.spec.horizon, self.spec.action_dim),
            rng,
            execute=self.spec.execute,
            greedy=greedy,
            zero_start=self.zero_start,
            base=self._base(x),
        )
        last = drawn.trace[:, -1]
        chunk = last.long() if self.kernel.discrete else self.actions.decode(last)
        return Decision(chunk, drawn.trace, drawn.log_prob, drawn.active, self._value(cond, proprio)), memory

    def _remember(self, cond: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        if self.spec.memoryless:
            return cond, memory
        cond, h = self._gru(cond, memory["h"])
        return cond, {"h": h}

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation:
        """Score recorded decisions [N, T]."""
        n, t = trace.shape[:2]
        cond, proprio = self.condition({k: v.flatten(0, 1) for k, v in x.items()})
        if not self.spec.memoryless:
            cond = self._gru.sequence(cond.unflatten(0, (n, t)), starts, memory["h"]).flatten(0, 1)
        scores, entropy = chain.score(
            self.kernel,
            self.run_network,
            cond,
            trace.flatten(0, 1),
            execute=self.spec.execute,
            links=None if links is None else links.flatten(0, 1),
            first=self.spec.frozen_links,
        )
        value = self._value(cond, proprio)
        return Evaluation(scores.unflatten(0, (n, t)), entropy.view(n, t), value.view(n, t))

    @torch.no_grad()
    def value(self, x: Features, memory: Memory) -> Tensor:
        """[N], without deciding."""
        cond, proprio = self.condition(x)
        return self._value(self._remember(cond, memory)[0], proprio)

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Loss of a batch of windows; images are shifted at random unless the encoder is frozen."""
        x = self.encode_augmented(demo.obs, rng)
        return self.imitation_loss_of(x, demo.actions.to(self.device), demo.is_pad.to(self.device), rng)

    def encode_augmented(self, obs: ObsBatch, rng: torch.Generator) -> Features:
        """As `encode`, with the images as imitation sees them."""
        x = self.encode(obs)
        if self.augment and not self.frozen_encoder:
            for c in self.spec.cameras:
                image = x[f"image/{c}"]
                x[f"image/{c}"] = random_shift(image.flatten(0, 1), self.augment, rng).view_as(image)
        return x

    def imitation_loss_of(
        self, x: Features, actions: Tensor, is_pad: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """As `imitation_loss`, from features: with a frozen encoder they can be computed once for a whole data set."""
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("demonstrated actions are not finite; drop the broken episodes")
        target = actions.float() if self.kernel.discrete else self.actions.encode(actions.float())
        return self.lesson_loss(self.start_condition(x), self.kernel.lesson(target, rng), is_pad)

    def start_condition(self, x: Features) -> Tensor:
        """[B, D], as if every row began an episode."""
        cond, _ = self.condition(x)
        return self._remember(cond, self.initial_memory(len(cond)))[0]

    def lesson_loss(self, cond: Tensor, lesson: Lesson, is_pad: Tensor) -> tuple[Tensor, Metrics]:
        """Mean loss of one lesson per row, over the steps bool [B, H] that are not padding."""
        if self.base is not None:
            raise ValueError(
                "tuned_links is for fine-tuning: a frozen copy would miss what imitation learns; leave it out"
            )
        out = self.actor["network"](lesson.input[:, None], lesson.time[:, None], cond)[:, 0].float()
        terms = self.kernel.loss(out, lesson.target)
        keep = (~is_pad)[..., None].to(terms.dtype).expand_as(terms)
        loss = (terms * keep).sum() / keep.sum().clamp(min=1)
        return loss, {"imitation_loss": float(loss.detach())}

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`, for wrappers that call the module."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Set the normaliser buffers from all demonstrated actions [M, A] and proprioception [M, P]."""
        self.actions.fit(actions.to(self.device))
        self.proprio.fit(proprio.to(self.device))


def _renew_base(policy: nn.Module, keys: Any) -> None:
    """Weights that were saved without a frozen copy: this is where fine-tuning begins, so the copy is taken now."""
    assert isinstance(policy, ChunkPolicy)
    if policy.base is not None and any(key.startswith("base.") for key in keys.missing_keys):
        policy.base.take(*policy._tuned_parts())


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} '{value}' is unknown; expected {' or '.join(choices)}")


def _check(env_id: str, spec: PolicySpec, kernel: Kernel) -> None:
    if kernel.discrete != (spec.num_actions > 0):
        kind = f"{spec.num_actions} discrete actions" if spec.num_actions else "continuous actions"
        need = "pretrained.chain.Categorical" if spec.num_actions else "a continuous kernel, such as FlowNoise"
        raise ValueError(f"{env_id} has {kind}, but the kernel is {type(kernel).__name__}; use {need}")
    if spec.num_actions and spec.horizon != 1:
        raise ValueError(f"{env_id} has discrete actions: expected horizon 1, got {spec.horizon}")
    if not 0 <= spec.frozen_links < spec.links:
        tuned = spec.links - spec.frozen_links
        raise ValueError(
            f"tuned_links = {tuned} of a chain of {spec.links}; expected 1 to {spec.links}, or null for all"
        )
    if spec.frozen_links and (not spec.memoryless or getattr(kernel, "links", "all") != "all"):
        raise ValueError("tuned_links goes with memory: none and a kernel that draws all links; set tuned_links: null")
    if not 1 <= spec.execute <= spec.horizon:
        raise ValueError(f"expected 1 <= execute <= horizon, got execute={spec.execute}, horizon={spec.horizon}")
