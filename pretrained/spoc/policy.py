"""SPOC, the policy that FLaRe fine-tunes: an actor tower and a critic tower over frozen DINOv2 and T5.

With `critic=shared` there is one tower, and the value is read off what the actor makes of the past.

What is remembered between decisions, one row per environment (C = window - 1 cached moments):

    actor_keys, actor_values, critic_*   [N, Ly, C, D] a ring of what the decoder of each tower attends to
    slot, count                          int64 [N] where the ring is written next, and how many of its moments count
    time, action                         int64 [N] steps since the start of the episode, and the last action

A moment attends to at most the `window` - 1 moments before it, of its own episode. Step by step and over a sequence the
same decoder runs, on cached and new moments joined; only `visible` differs. `Quirks` has what the original does
otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.types import EnvSpec
from pretrained import chain
from pretrained.heads import Categorical
from pretrained.observations import checked, on
from pretrained.spoc.frozen import FrozenTowers
from pretrained.spoc.network import Moments, Past, Sizes, Tower, ValueHead
from pretrained.spoc.quirks import choose
from pretrained.types import Decision, DemoBatch, Evaluation, Features, Memory, Metrics, ObsBatch, PolicySpec, Rng

IGNORE = -1  # an action that does not count
FAR = -999999.0  # logit of a forbidden action
KERNEL = Categorical()


class Spoc(nn.Module):
    """Meets `pretrained.types.Policy` for discrete actions."""

    frozen_encoder = True

    def __init__(
        self,
        *,
        env: EnvSpec,
        vision: str = "facebook/dinov2-small",
        text: str = "google-t5/t5-small",
        tokenizer: str = "",
        cameras: Sequence[str] | None = None,
        in_hand: str = "an_object_is_in_hand",
        forbidden: Sequence[int] = (),
        window: int = 128,
        width: int = 512,
        heads: int = 8,
        fusion_layers: int = 3,
        fusion_hidden: int = 2048,
        decoder_layers: int = 3,
        dropout: float = 0.1,
        value_head: str = "linear",
        critic: str = "separate",
        grid: Sequence[int] = (7, 12),
        max_tokens: int = 48,
        max_time: int = 1000,
        positions: str = "offset",
        half_features: bool = True,
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
    ) -> None:
        """`quirks` is fixed or faithful; `switches` changes single fields of `Quirks`. `in_hand` names the entry of the
        proprioception that says whether something is held, "" for none; `forbidden` actions are never taken.
        `critic` is separate, a tower of its own, or shared, a head on the actor's tower, which it then also teaches.
        `max_time` less the window's length bounds the random shift of time in imitation. `positions`: how DINOv2's
        position table is resized, as DINOv2 does itself (offset) or as transformers does (exact)."""
        super().__init__()
        self.quirks = choose(quirks, switches or {})
        self.spec = PolicySpec.of(env, cameras, memoryless=False)
        _check(env, self.spec, in_hand, window, positions, forbidden)
        if critic not in ("separate", "shared"):
            raise ValueError(f"critic '{critic}' is unknown; expected separate or shared")
        self.holds = list(env.proprio).index(in_hand) if in_hand else None
        self.forbidden = sorted(set(forbidden))
        self.window, self.max_time, self.half_features = window, max_time, half_features
        self.encoder = FrozenTowers(
            vision=vision, text=text, tokenizer=tokenizer, grid=grid, max_tokens=max_tokens, positions=positions
        )
        self.sizes = Sizes(
            image_dim=self.encoder.image_dim,
            text_dim=self.encoder.text_dim,
            cameras=len(self.spec.cameras),
            num_actions=env.num_actions,
            width=width,
            heads=heads,
            fusion_layers=fusion_layers,
            fusion_hidden=fusion_hidden,
            decoder_layers=decoder_layers,
            dropout=dropout,
            value_head=value_head,
        )
        self.actor = Tower(self.sizes, role="actor")
        self.critic = ValueHead(self.sizes) if critic == "shared" else Tower(self.sizes, role="critic")
        self.roles = ("actor",) if critic == "shared" else ("actor", "critic")  # the last one's tower has the value

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.actor.token.device

    # --- observations -> features -> moments ---

    @torch.no_grad()
    def encode(self, obs: ObsBatch) -> Features:
        """Pooled maps [N, cameras, C, *grid], tokens int64 [N, S] and in_hand int64 [N] of the last moment."""
        images, proprio = checked(obs, self.spec, self.device, history=None)
        maps = torch.stack([self.encoder.maps(images[c][:, -1]) for c in self.spec.cameras], 1)
        return {
            "maps": maps.half() if self.half_features else maps,
            "tokens": self.encoder.tokens(obs.texts).to(self.device),
            "in_hand": self._in_hand(proprio[:, -1]),
        }

    def _in_hand(self, proprio: Tensor) -> Tensor:
        if self.holds is None:
            return torch.zeros(proprio.shape[:-1], dtype=torch.int64, device=self.device)
        return (proprio[..., self.holds] > 0.5).long()

    def moments(self, x: Features, last_action: Tensor, time: Tensor) -> Moments:
        """Features [N, T, ...] with what the memory knows; sentences are cut to the longest of the call."""
        tokens = x["tokens"]
        longest = int((tokens != 0).sum(-1).max())
        text = self.encoder.embed_text(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])[:, :, :longest]
        words = tokens[:, :, :longest] != 0
        if self.quirks.text_padding == "visible":
            words = torch.ones_like(words)
        return Moments(x["maps"].float(), text, words, last_action, x["in_hand"], time)

    @property
    def _rl_dropout(self) -> float:
        return self.sizes.dropout if self.quirks.rl_dropout and self.training else 0.0

    # --- memory ---

    def initial_memory(self, n: int) -> Memory:
        """An empty cache at the start of an episode."""
        shape = (n, self.sizes.decoder_layers, self.window - 1, self.sizes.width)
        memory: Memory = {
            f"{role}_{what}": torch.zeros(shape, device=self.device)
            for role in self.roles
            for what in ("keys", "values")
        }
        memory |= {k: torch.zeros(n, dtype=torch.int64, device=self.device) for k in ("slot", "count", "time")}
        return memory | {"action": torch.full((n,), self.sizes.start, dtype=torch.int64, device=self.device)}

    def between_segments(self, memory: Memory) -> Memory:
        """What of the memory outlives an update of the weights; with context "segment" the cache does not."""
        if self.quirks.context == "episode":
            return memory
        return memory | {"count": torch.zeros_like(memory["count"]), "slot": torch.zeros_like(memory["slot"])}

    def _cached(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """How many moments ago each slot was written, int64 [N, C], and whether that moment may be seen."""
        slots = self.window - 1
        age = (memory["slot"][:, None] - 1 - torch.arange(slots, device=self.device)) % max(1, slots) + 1
        return age, age <= torch.minimum(memory["count"], memory["time"])[:, None]

    def _remember(self, memory: Memory, new: Mapping[str, Tensor], action: Tensor) -> Memory:
        """The memory one moment later."""
        slots, rows = self.window - 1, torch.arange(len(action), device=self.device)
        out = dict(memory)
        if slots:
            for name, value in new.items():
                out[name] = memory[name].clone()
                out[name][rows, :, memory["slot"]] = value[:, :, 0]
        count = memory["count"] + 1
        full = count > slots
        count = torch.where(full, 0 if self.quirks.cache == "wrap" else slots, count)
        out |= {"slot": (memory["slot"] + 1) % max(1, slots), "count": count}
        return out | {"time": memory["time"] + 1, "action": action}

    def step(self, role: str, x: Features, memory: Memory) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden [N, D] of one tower at one moment, and its new keys and values [N, Ly, 1, D] by memory name."""
        one = {k: v[:, None] for k, v in x.items()}
        moments = self.moments(one, memory["action"][:, None], memory["time"][:, None])
        seen = self._cached(memory)[1]
        visible = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)[:, None]
        past = Past(memory[f"{role}_keys"], memory[f"{role}_values"])
        hidden, new = self._tower(role)(moments, past, visible, dropout=self._rl_dropout)
        return hidden[:, 0], {f"{role}_keys": new.keys, f"{role}_values": new.values}

    def _tower(self, role: str) -> Tower:
        return self.critic if role == "critic" and isinstance(self.critic, Tower) else self.actor

    # --- the policy protocol ---

    @torch.no_grad()
    def act(self, x: Features, memory: Memory, rng: Rng, greedy: bool = False) -> tuple[Decision, Memory]:
        """Decide for N rows."""
        steps = {role: self.step(role, x, memory) for role in self.roles}
        hidden, judged = steps["actor"][0], steps[self.roles[-1]][0]
        drawn = chain.sample(KERNEL, self._logits, hidden, (1, 1), rng, execute=1, greedy=greedy)
        chunk = drawn.trace[:, -1].long()
        new = {name: value for _, entries in steps.values() for name, value in entries.items()}
        memory = self._remember(memory, new, chunk[:, 0, 0])
        return Decision(chunk, drawn.trace, drawn.log_prob, drawn.active, self.critic.value(judged)), memory

    def _logits(self, inputs: Tensor, time: Tensor, hidden: Tensor) -> tuple[Tensor, None]:
        """The action head as `pretrained.chain` calls networks; float32 whatever autocast does inside."""
        return self.logits(hidden)[:, None, None].expand(-1, inputs.shape[1], -1, -1), None

    def logits(self, hidden: Tensor) -> Tensor:
        """The action head, [..., D] -> [..., actions]; forbidden ones far down, as the original's bias puts them."""
        out = self.actor.action_head(hidden).float()
        return out.index_fill(-1, torch.tensor(self.forbidden, device=out.device), FAR) if self.forbidden else out

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation:
        """Score recorded decisions [N, T]."""
        n, t = starts.shape
        towers = {role: self.sequence(role, x, trace, starts, memory).flatten(0, 1) for role in self.roles}
        hidden, judged = towers["actor"], towers[self.roles[-1]]
        picks = None if links is None else links.flatten(0, 1)
        scores, entropy = chain.score(KERNEL, self._logits, hidden, trace.flatten(0, 1), execute=1, links=picks)
        value = self.critic.value(judged)
        return Evaluation(scores.unflatten(0, (n, t)), entropy.view(n, t), value.view(n, t))

    def sequence(self, role: str, x: Features, trace: Tensor, starts: Tensor, memory: Memory) -> Tensor:
        """Hidden [N, T, D] of one tower at recorded moments."""
        actions = trace[:, :, -1, 0, 0].long()
        last = torch.where(starts, self.sizes.start, torch.cat([memory["action"][:, None], actions[:, :-1]], 1))
        steps = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
        began = torch.where(starts, steps, IGNORE).cummax(1).values  # index of the episode's start, or -1
        time = torch.where(began < 0, memory["time"][:, None] + steps, steps - began)
        moments = self.moments(x, last, time)
        past = Past(memory[f"{role}_keys"], memory[f"{role}_values"])
        return self._tower(role)(moments, past, self._visible(starts, began, memory), dropout=self._rl_dropout)[0]

    def _visible(self, starts: Tensor, began: Tensor, memory: Memory) -> Tensor:
        """bool [N, T, C + T]."""
        steps = torch.arange(starts.shape[1], device=starts.device)
        behind = steps[:, None] - steps  # [T, T] how long ago
        fresh = (began[:, :, None] == began[:, None, :]) & (behind >= 0)
        age, cached = self._cached(memory)
        old = cached[:, None] & (began < 0)[:, :, None]
        if self.quirks.context == "segment":
            return torch.cat([torch.zeros_like(old), fresh], 2)
        old = old & (age[:, None] + steps[:, None] < self.window)
        return torch.cat([old, fresh & (behind < self.window)], 2)

    @torch.no_grad()
    def value(self, x: Features, memory: Memory) -> Tensor:
        """[N], without deciding."""
        return self.critic.value(self.step(self.roles[-1], x, memory)[0])

    # --- imitation ---

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross-entropy over windows: observations [B, T, ...] and actions [B, T, 1], padded at the end.

        The hints `last_action` and `time`, int64 [B, T], say what came before the window; without them it is the start
        of an episode. Hints may also hold what `encode` would give."""
        b, t = demo.actions.shape[:2]
        x = dict(demo.obs.hints)
        if "maps" not in x:
            flat = ObsBatch(
                {c: on(v, self.device).flatten(0, 1)[:, None] for c, v in demo.obs.images.items()},
                on(demo.obs.proprio, self.device).flatten(0, 1)[:, None],
                [text for text in demo.obs.texts for _ in range(t)],
            )
            x |= {k: v.unflatten(0, (b, t)) for k, v in self.encode(flat).items()}
        return self.imitation_loss_of(x, demo.actions.to(self.device), demo.is_pad.to(self.device), rng)

    def imitation_loss_of(
        self, x: Features, actions: Tensor, is_pad: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """As `imitation_loss`, from features [B, T, ...]; those of single moments may lack T."""
        if x["in_hand"].ndim == 1:
            x = {k: v[:, None] for k, v in x.items()}
        logits = self.logits(self.imitate(self._window(x, actions[..., 0].long(), is_pad, rng)))
        target = torch.where(is_pad, IGNORE, actions[..., 0].long())
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
        with torch.no_grad():
            right = (logits.argmax(-1) == target).sum() / (target != IGNORE).sum().clamp(min=1)
        return loss, {"imitation_loss": float(loss.detach()), "accuracy": float(right)}

    def imitate(self, moments: Moments) -> Tensor:
        """Hidden [B, T, D] of the actor over windows, causal, with dropout while training."""
        b, t = moments.time.shape
        empty = self.actor.token.new_zeros(b, self.sizes.decoder_layers, 0, self.sizes.width)
        causal = torch.ones(t, t, dtype=torch.bool, device=self.device).tril().expand(b, t, t)
        dropout = self.sizes.dropout if self.training else 0.0
        return self.actor(moments, Past(empty, empty), causal, dropout=dropout)[0]

    def _window(self, x: Features, actions: Tensor, is_pad: Tensor, rng: torch.Generator) -> Moments:
        b, t = actions.shape
        start = torch.full((b, 1), self.sizes.start, device=self.device)
        last = x.get("last_action", torch.cat([start, actions[:, :-1]], 1))
        time = x.get("time", torch.arange(t, device=self.device).expand(b, t))
        if self.training:  # one shift per window, so that late time steps are trained too
            room = max(0, self.max_time - t) + 1
            time = time + torch.randint(room, (b, 1), generator=rng).to(self.device)
        time = torch.where(is_pad, -1, time)
        x = x | {"in_hand": torch.where(is_pad, 2, x["in_hand"])}
        return self.moments(x, torch.where(is_pad, self.sizes.pad, last), time)

    def seed_critic(self) -> None:
        """Copy what imitation taught the actor tower to the critic tower; the value head keeps its weights."""
        if isinstance(self.critic, ValueHead):
            return
        weights = {k: v for k, v in self.actor.state_dict().items() if not k.startswith("value_head.")}
        self.critic.load_state_dict(weights, strict=False)

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`, for wrappers that call the module."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Nothing is normalised."""


def _check(env: EnvSpec, spec: PolicySpec, in_hand: str, window: int, positions: str, forbidden: Sequence[int]) -> None:
    if not env.num_actions:
        raise ValueError(f"{env.env_id} has continuous actions {list(env.actions)}; Spoc decides among discrete ones")
    if not spec.cameras:
        raise ValueError(f"policy.cameras is empty; Spoc sees, so name some of {list(env.cameras)}")
    if in_hand and in_hand not in env.proprio:
        raise ValueError(
            f"{env.env_id} has no proprioception '{in_hand}', only {list(env.proprio)}; set policy.in_hand to one of "
            'these, or to "" if nothing can be held'
        )
    if window < 1:
        raise ValueError(f"window is {window}, expected at least 1 moment, the present one")
    if positions not in ("offset", "exact"):
        raise ValueError(f"positions '{positions}' is unknown; expected offset or exact")
    if strange := [i for i in forbidden if not 0 <= i < env.num_actions]:
        raise ValueError(f"forbidden actions {strange} are not in [0, {env.num_actions})")
    if len(set(forbidden)) == env.num_actions:
        raise ValueError(f"all {env.num_actions} actions are forbidden; leave at least one")
