"""VPP as a policy: a video model foresees, the Video Former sums up, a diffusion head decides.

    pictures, instruction --video model, once--> maps --Former--> tokens --head, kernel--> x_0 .. x_K --> chunk
                                                                    '--critic--> value

The video model is frozen and not part of a checkpoint. In fine-tuning the Former is frozen too, and `encode` stores its
tokens; imitation trains it together with the head, and then features are the maps before it. Letters as in
`pretrained.types`; B rows are N, or N T when sequences are scored; S tokens, C their width, G size of the goal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.build import build
from envs.types import EnvSpec
from pretrained import chain
from pretrained.heads import Kernel
from pretrained.networks import Critic, StateNoise
from pretrained.normalize import ActionNormalizer, ProprioNormalizer
from pretrained.observations import checked
from pretrained.types import Decision, DemoBatch, Evaluation, Features, Memory, Metrics, ObsBatch, PolicySpec, Rng
from pretrained.vpp.former import VideoFormer
from pretrained.vpp.head import DROPOUT, ActionHead
from pretrained.vpp.quirks import choose
from pretrained.vpp.video import VideoModel

NO_SEED = (
    "stored features hold no 'seed', so nobody can tell which noise of the video model they come from, or take them "
    "again; encode the observations anew"
)


class Foresight(nn.Module):
    """The video model, which has no weights of its own here, and the Former."""

    def __init__(self, video: VideoModel, former: VideoFormer) -> None:
        super().__init__()
        self.video, self.former = video, former.requires_grad_(False)


class Vpp(nn.Module):
    """Meets `pretrained.types.Policy`. `stages` are what imitation can train instead (`pretrain stage=...`)."""

    stages = {"video": "pretrained.vpp.stage.VideoStage"}  # noqa: RUF012  a constant
    former_learns, frozen_encoder = False, True  # until imitation begins

    def __init__(
        self,
        *,
        env: EnvSpec,
        video: Mapping[str, Any],
        kernel: Mapping[str, Any],
        former: Mapping[str, Any] | None = None,
        cameras: Sequence[str] | None = None,
        horizon: int = 10,
        execute: int | None = None,
        proprio: bool = False,
        width: int = 384,
        encoder_layers: int = 4,
        decoder_layers: int = 4,
        heads: int = 8,
        dropout: Sequence[float] = DROPOUT,
        normalize: str = "identity",
        binary: Sequence[int] = (),
        critic_width: int = 256,
        critic_detach: bool = True,
        seed: int = 0,
        train_former: bool = True,
        keep_maps: bool = False,
        half_features: bool = True,
        rows_per_pass: int = 8,
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
    ) -> None:
        """`former` holds arguments of `VideoFormer`; `proprio`: whether the head sees proprioception, not the critic
        alone; `seed` of the video model's noise; `train_former`, in imitation; `keep_maps`: imitation then keeps all
        maps in memory, 42 MB per window at the published size; `rows_per_pass` through the video model at once."""
        super().__init__()
        self.quirks = choose(quirks, switches or {})
        self.kernel: Kernel = build(kernel)
        model: VideoModel = build(video, quirks=quirks, switches=switches)
        tokens = VideoFormer(
            channels=model.channels, frames=model.frames, frame_mask=self.quirks.frame_mask, **(former or {})
        )
        self.encoder = Foresight(model, tokens)
        self.spec = _spec(env, self.kernel, cameras, horizon, execute)
        self.seed, self.critic_detach, self.rows_per_pass = seed, critic_detach, rows_per_pass
        self.train_former, self.keep_maps, self.half_features = train_former, keep_maps, half_features
        self.actions = ActionNormalizer(env.low, env.high, mode=normalize, binary=binary)
        self.proprio = ProprioNormalizer(self.spec.proprio)
        sizes = {"horizon": horizon, "action_dim": self.spec.action_dim}
        self.actor = ActionHead(
            channels=tokens.latents.shape[2],
            goal_dim=model.goal_dim,
            proprio_dim=env.proprio_dim if proprio else 0,
            width=width,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            heads=heads,
            dropout=dropout,
            cross_attention=self.quirks.cross_attention,
            action_positions=self.quirks.action_positions,
            **sizes,
        )
        self.noise = StateNoise(cond_dim=2 * width, **sizes) if self.kernel.noise_head == "state" else None
        self.critic = Critic(2 * width + env.proprio_dim, width=critic_width)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.actions.low.device

    # --- observations -> features -> condition ---

    @torch.no_grad()
    def encode(self, obs: ObsBatch) -> Features:
        """Tokens [N, S, C] (while the Former learns: maps [N, T, V S, C]), goal [N, G], proprio [N, P], seed [N]."""
        seen, proprio = checked(obs, self.spec, self.device, history=1)
        images = {c: v[:, 0] for c, v in seen.items()}
        if self.quirks.noise == "fresh":
            seeds = torch.randint(2**62, (len(obs),))
        else:
            seeds = torch.full((len(obs),), self.seed, dtype=torch.int64)
        parts = []
        for first in range(0, len(obs), self.rows_per_pass):
            rows = slice(first, first + self.rows_per_pass)
            maps, goal = self.encoder.video.foresee(
                {c: v[rows] for c, v in images.items()}, obs.texts[rows], seeds[rows]
            )
            parts.append((maps if self.former_learns else self.encoder.former(maps.float()), goal))
        kept, goals = (torch.cat(p) for p in zip(*parts, strict=True))
        return {
            "maps" if self.former_learns else "tokens": kept.half() if self.half_features else kept.float(),
            "goal": goals,
            "proprio": proprio[:, 0],
            "seed": seeds.to(self.device),
        }

    def condition(self, x: Features, *, drop: bool = False) -> tuple[Tensor, Tensor]:
        """Features [B, ...] -> what the head is asked under, [B, Ly, 2, S, D], and z-scored proprioception [B, P]."""
        if "seed" not in x:
            raise ValueError(NO_SEED)
        proprio, former = self.proprio(x["proprio"]), self.encoder.former
        if "maps" in x:
            tokens = former(x["maps"].float())
        else:
            tokens = x["tokens"].float()
            expected = (former.latents.shape[0] * former.latents.shape[1], former.latents.shape[2])
            if tuple(tokens.shape[1:]) != expected:
                raise ValueError(
                    f"stored features are {list(tokens.shape[1:])} tokens, expected {list(expected)}; they were taken "
                    "with another Video Former: encode the observations anew"
                )
        known = proprio if self.actor.proprio is not None else None
        return self.actor.condition(self.actor.context(tokens, x["goal"].float(), known, drop=drop)), proprio

    def run_network(self, inputs: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """Head and learned noise, as `pretrained.chain` calls them; float32 whatever autocast does inside."""
        out = self.actor(inputs, time, cond).float()
        return out, None if self.noise is None else self.noise(time, _summary(cond)).float()

    def _value(self, cond: Tensor, proprio: Tensor) -> Tensor:
        seen = _summary(cond)
        return self.critic(torch.cat([seen.detach() if self.critic_detach else seen, proprio], -1).float()).float()

    # --- the policy protocol ---

    def initial_memory(self, n: int) -> Memory:
        """Nothing."""
        return {}

    @torch.no_grad()
    def act(self, x: Features, memory: Memory, rng: Rng, greedy: bool = False) -> tuple[Decision, Memory]:
        """Decide for N rows; a greedy decision is the original's deterministic sampler."""
        cond, proprio = self.condition(x)
        shape = (self.spec.horizon, self.spec.action_dim)
        drawn = chain.sample(self.kernel, self.run_network, cond, shape, rng, execute=self.spec.execute, greedy=greedy)
        chunk = self.actions.decode(drawn.trace[:, -1])
        return Decision(chunk, drawn.trace, drawn.log_prob, drawn.active, self._value(cond, proprio)), memory

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation:
        """Score recorded decisions [N, T]."""
        n, t = trace.shape[:2]
        cond, proprio = self.condition({k: v.flatten(0, 1) for k, v in x.items()})
        picks = None if links is None else links.flatten(0, 1)
        scores, entropy = chain.score(
            self.kernel, self.run_network, cond, trace.flatten(0, 1), execute=self.spec.execute, links=picks
        )
        value = self._value(cond, proprio)
        return Evaluation(scores.unflatten(0, (n, t)), entropy.view(n, t), value.view(n, t))

    @torch.no_grad()
    def value(self, x: Features, memory: Memory) -> Tensor:
        """[N], without deciding."""
        return self._value(*self.condition(x))

    # --- imitation ---

    def learn_by_imitation(self) -> None:
        """From here on the Former learns too, unless `train_former` says otherwise."""
        if self.train_former:
            self.former_learns, self.frozen_encoder = True, self.keep_maps
            self.encoder.former.requires_grad_(True)

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """The kernel's loss of a batch of windows."""
        x = self.encode(demo.obs)
        return self.imitation_loss_of(x, demo.actions.to(self.device), demo.is_pad.to(self.device), rng)

    def imitation_loss_of(
        self, x: Features, actions: Tensor, is_pad: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """As `imitation_loss`, from features; with dropout while training."""
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("demonstrated actions are not finite; drop the broken episodes")
        lesson = self.kernel.lesson(self.actions.encode(actions.float()), rng)
        cond, _ = self.condition(x, drop=self.training)
        out = self.actor(lesson.input[:, None], lesson.time[:, None], cond, drop=self.training)[:, 0].float()
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


def _summary(cond: Tensor) -> Tensor:
    """[B, 2 D]: mean keys and values of the last decoder layer."""
    return cond[:, -1].mean(2).flatten(1)


def chosen_cameras(env: EnvSpec, wanted: Sequence[str] | None) -> dict[str, tuple[int, int]]:
    """Cameras and their sizes, in the order wanted. Raises ValueError if there is none, or not that one."""
    names = list(env.cameras if wanted is None else wanted)
    missing = [c for c in names if c not in env.cameras]
    if missing or not names:
        raise ValueError(f"cameras {missing or names} are not in {env.env_id}; it has {list(env.cameras)}")
    return {c: env.cameras[c] for c in names}


def _spec(env: EnvSpec, kernel: Kernel, cameras: Sequence[str] | None, horizon: int, execute: int | None) -> PolicySpec:
    if env.num_actions or kernel.discrete:
        raise ValueError(f"{env.env_id}: VPP decides on continuous actions, with a continuous kernel such as Edm")
    execute = horizon if execute is None else execute
    if not 1 <= execute <= horizon:
        raise ValueError(f"expected 1 <= execute <= horizon, got execute={execute}, horizon={horizon}")
    return PolicySpec(
        cameras=chosen_cameras(env, cameras),
        proprio=tuple(env.proprio),
        actions=env.actions,
        low=env.low,
        high=env.high,
        action_convention=env.action_convention,
        control_hz=env.control_hz,
        horizon=horizon,
        execute=execute,
        links=kernel.steps,
    )
