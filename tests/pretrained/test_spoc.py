"""Spoc: its size, its memory, its quirks, and what it says to bad input."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import stretch
from envs.types import EnvSpec
from pretrained.checkpoint import load_policy, save
from pretrained.importers.spoc import to_official
from pretrained.spoc import FAITHFUL, FIXED, Spoc
from pretrained.spoc.frozen import siglip_pixels
from pretrained.spoc.network import Sizes, Tower
from pretrained.types import DemoBatch, ObsBatch
from tests.golden_files import golden_json

REAL: dict[str, Any] = {"image_dim": 384, "text_dim": 512, "cameras": 2, "num_actions": 20}
CAMERAS = (stretch.NAVIGATION, stretch.MANIPULATION)


def environment() -> EnvSpec:
    return stretch.spec(frame=(16, 24))


SMALL: dict[str, Any] = {
    "vision": "tiny",
    "text": "tiny",
    "width": 16,
    "heads": 2,
    "fusion_layers": 1,
    "fusion_hidden": 16,
    "decoder_layers": 2,
    "grid": (2, 3),
    "half_features": False,
}


def make(**options: Any) -> Spoc:
    torch.manual_seed(0)
    return Spoc(env=environment(), **{**SMALL, **options}).eval()


def observe(n: int, seed: int = 0, texts: list[str] | None = None) -> ObsBatch:
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 256, (n, 1, 16, 24, 3), dtype=np.uint8) for c in CAMERAS}
    held = rng.integers(0, 2, (n, 1, 1)).astype(np.float32)
    return ObsBatch(images, held, texts or ["find a mug"] * n)


def rollout(policy: Spoc, n: int, starts: Tensor, memory: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Features [N, T], trace, log-prob and value of decisions, with the memory forgotten where an episode starts."""
    rng, features, decisions = torch.Generator().manual_seed(0), [], []
    for t in range(starts.shape[1]):
        fresh = policy.initial_memory(n)
        for k in memory:
            memory = memory | {k: memory[k].clone()}
            memory[k][starts[:, t]] = fresh[k][starts[:, t]]
        features.append(policy.encode(observe(n, seed=t)))
        decision, memory = policy.act(features[-1], memory, rng)
        decisions.append(decision)
    x = {k: torch.stack([f[k] for f in features], 1) for k in features[0]}
    trace, log_prob, value = (
        torch.stack([getattr(d, k) for d in decisions], 1) for k in ("trace", "log_prob", "value")
    )
    return x, trace, log_prob, value


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_real_size() -> None:
    with torch.device("meta"):
        actor, critic = Tower(Sizes(**REAL), role="actor"), Tower(Sizes(**REAL), role="critic")
    counts = golden_json("spoc/manifest_full.json")["rl_checkpoint"]["parameter_counts"]
    for tower in (actor, critic):
        assert sum(p.numel() for p in tower.parameters()) == 20_958_741
        assert sum(p.numel() for p in tower.parameters()) == counts["per_tower_without_t5_incl_both_heads"]
    assert {k for k, p in actor.named_parameters() if not p.requires_grad} == {"value_head.weight", "value_head.bias"}
    assert {k for k, p in critic.named_parameters() if not p.requires_grad} == {
        "action_head.weight",
        "action_head.bias",
    }


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "critic"), [(1, "separate"), (2, "separate"), (4, "separate"), (30, "separate"), (4, "shared")]
)
def test_steps_equal_the_sequence_across_episodes_and_windows(window: int, critic: str) -> None:
    policy, n, t = make(window=window, critic=critic), 3, 9
    starts = torch.zeros(n, t, dtype=torch.bool)
    starts[1, 0] = starts[1, 5] = starts[2, 3] = starts[2, 4] = True
    memory = policy.initial_memory(n)
    for i in range(5):  # in the middle of an episode, with a cache that has gone round if the window is short
        memory = policy.act(policy.encode(observe(n, seed=50 + i)), memory, torch.Generator().manual_seed(i))[1]
    x, trace, log_prob, value = rollout(policy, n, starts, dict(memory))
    scores = policy.evaluate(x, trace, starts, memory)
    assert (scores.log_prob - log_prob).abs().max() < 1e-5
    assert (scores.value - value).abs().max() < 1e-5


@pytest.mark.parametrize(("layers", "reach"), [(1, 2), (2, 4)])
def test_the_window_is_what_it_says(layers: int, reach: int) -> None:
    """A layer looks window - 1 moments back, so a decision depends on layers * (window - 1) of them and no more."""
    policy = make(window=3, decoder_layers=layers)
    starts = torch.zeros(1, 8, dtype=torch.bool)
    memory = policy.initial_memory(1)
    x, trace, _, _ = rollout(policy, 1, starts, memory)
    before = policy.evaluate(x, trace, starts, memory).value[0]
    x["maps"][0, 2] += 1.0
    changed = (policy.evaluate(x, trace, starts, memory).value[0] - before).abs() > 1e-7
    assert changed.tolist() == [2 <= i <= 2 + reach for i in range(8)]


def test_acting_leaves_the_given_memory_alone() -> None:
    policy = make()
    memory = policy.initial_memory(2)
    before = {k: v.clone() for k, v in memory.items()}
    after = policy.act(policy.encode(observe(2)), memory, torch.Generator())[1]
    assert all(torch.equal(memory[k], before[k]) for k in memory)
    assert after["time"].tolist() == [1, 1]
    assert after["actor_keys"][:, :, 0].abs().sum() > 0


def test_last_action_and_hand_matter() -> None:
    policy = make()
    x, memory = policy.encode(observe(1)), policy.initial_memory(1)
    values = [
        policy.value(*args).item()
        for args in (
            (x, memory),
            (x, memory | {"action": torch.tensor([3])}),
            (x, memory | {"time": torch.tensor([3])}),
            (x | {"in_hand": 1 - x["in_hand"]}, memory),
            (x | {"tokens": x["tokens"].flip(1)}, memory),
        )
    ]
    assert len(set(values)) == len(values)


# --- quirks ----------------------------------------------------------------------------------------------------------


def test_presets_and_single_switches() -> None:
    assert make().quirks == FIXED
    assert make(quirks="faithful").quirks == FAITHFUL
    differ = [f.name for f in dataclasses.fields(FIXED) if getattr(FIXED, f.name) == getattr(FAITHFUL, f.name)]
    assert differ == []
    assert make(switches={"cache": "wrap"}).quirks == dataclasses.replace(FIXED, cache="wrap")


def test_padding_of_neighbours_matters_only_if_visible() -> None:
    for padding, same in (("masked", True), ("visible", False)):
        policy = make(switches={"text_padding": padding})
        x = policy.encode(observe(2, texts=["fetch", "go to the red mug near the sofa"]))
        memory = policy.initial_memory(2)
        together = policy.value(x, memory)[0]
        alone = policy.value({k: v[:1] for k, v in x.items()}, {k: v[:1] for k, v in memory.items()})[0]
        assert torch.allclose(together, alone, atol=1e-6) == same


def test_context_of_a_segment() -> None:
    """With context "segment" a segment is scored as if nothing had gone before, and acting agrees once told."""
    n, starts = 2, torch.zeros(2, 4, dtype=torch.bool)
    for context, agrees in (("segment", False), ("episode", True)):
        policy = make(switches={"context": context}, window=20)
        memory = policy.initial_memory(n)
        for i in range(3):
            memory = policy.act(policy.encode(observe(n, seed=50 + i)), memory, torch.Generator().manual_seed(i))[1]
        x, trace, _, value = rollout(policy, n, starts, dict(memory))
        assert torch.allclose(policy.evaluate(x, trace, starts, memory).value, value, atol=1e-6) == agrees
        memory = policy.between_segments(memory)
        assert memory["time"].tolist() == [3, 3]
        assert memory["count"].tolist() == ([3, 3] if context == "episode" else [0, 0])
        x, trace, _, value = rollout(policy, n, starts, dict(memory))
        assert torch.allclose(policy.evaluate(x, trace, starts, memory).value, value, atol=1e-6)


def test_dropout_where_log_probs_are_computed_is_a_quirk() -> None:
    for quirks, equal in (("fixed", True), ("faithful", False)):
        policy = make(quirks=quirks, dropout=0.5).train()
        x, memory = policy.encode(observe(1)), policy.initial_memory(1)
        assert torch.equal(policy.value(x, memory), policy.value(x, memory)) == equal


def test_forbidden_actions_are_never_taken() -> None:
    """As in navigation-only use, where 13 of the 20 are masked."""
    allowed = (0, 1, 2, 3, 4, 6, 7)
    policy = make(forbidden=tuple(i for i in range(20) if i not in allowed))
    x, memory = policy.encode(observe(1)), policy.initial_memory(1)
    trace = torch.arange(20).float().view(1, 20, 1, 1, 1).expand(1, 20, 2, 1, 1)
    many = {k: v[:, None].expand(1, 20, *v.shape[1:]) for k, v in x.items()}
    with torch.no_grad():
        scores = policy.evaluate(many, trace, torch.ones(1, 20, dtype=torch.bool), memory)
    probability = scores.log_prob[0, :, 0].exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert [i for i in range(20) if probability[i] > 0] == list(allowed)
    assert torch.isfinite(scores.entropy).all()
    assert scores.entropy.max() < np.log(len(allowed)) + 1e-5


# --- imitation and heads ---------------------------------------------------------------------------------------------


def windows(b: int, t: int) -> DemoBatch:
    rng = np.random.default_rng(0)
    images: dict[str, Any] = {c: torch.tensor(rng.integers(0, 256, (b, t, 16, 24, 3), dtype=np.uint8)) for c in CAMERAS}
    actions = torch.tensor(rng.integers(0, 20, (b, t, 1))).float()
    pad = torch.zeros(b, t, dtype=torch.bool)
    pad[0, t - 1] = True
    return DemoBatch(ObsBatch(images, torch.zeros(b, t, 1), ["find a mug"] * b), actions, pad)


def test_imitation_of_windows_agrees_with_acting_and_ignores_padding() -> None:
    policy, demo, rng = make(), windows(2, 4), torch.Generator()
    loss, metrics = policy.imitation_loss(demo, rng)
    memory, terms = policy.initial_memory(2), []
    for t in range(4):
        obs = ObsBatch({c: v[:, t : t + 1] for c, v in demo.obs.images.items()}, torch.zeros(2, 1, 1), demo.obs.texts)
        x = policy.encode(obs)
        hidden, _ = policy.step("actor", x, memory)
        action = demo.actions[:, t, 0].long()
        picked = policy.actor.action_head(hidden).log_softmax(-1)[torch.arange(2), action]
        terms.append(-torch.where(demo.is_pad[:, t], 0.0, picked))
        memory = policy.act(x, memory, rng)[1] | {"action": action}
    expected = torch.stack(terms).sum() / (~demo.is_pad).sum()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert metrics["imitation_loss"] == pytest.approx(expected.item(), abs=1e-5)
    demo.actions[0, 3] = 7.0
    assert torch.equal(policy.imitation_loss(demo, rng)[0], loss)


def test_training_shifts_time_within_its_bound() -> None:
    policy, demo = make(max_time=6, dropout=0.0).train(), windows(2, 4)
    losses = {round(policy.imitation_loss(demo, torch.Generator().manual_seed(i))[0].item(), 6) for i in range(20)}
    assert 1 < len(losses) <= 9  # each of the two windows is shifted by 0, 1 or 2
    assert (
        policy.eval().imitation_loss(demo, torch.Generator().manual_seed(1))[0]
        == policy.imitation_loss(demo, torch.Generator().manual_seed(2))[0]
    )


@pytest.mark.parametrize("value_head", ["linear", "mlp", "hl_gauss"])
def test_critic_tower_starts_as_the_actor(value_head: str) -> None:
    policy = make(value_head=value_head)
    kept = policy.critic.value_head.state_dict()
    kept = {k: v.clone() for k, v in kept.items()}
    x, memory = policy.encode(observe(2)), policy.initial_memory(2)
    assert not torch.equal(policy.step("actor", x, memory)[0], policy.step("critic", x, memory)[0])
    policy.seed_critic()
    assert torch.equal(policy.step("actor", x, memory)[0], policy.step("critic", x, memory)[0])
    assert all(torch.equal(v, kept[k]) for k, v in policy.critic.value_head.state_dict().items())
    assert policy.value(x, memory).shape == (2,)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_shared_critic_teaches_the_actor_and_needs_no_tower(critic: str) -> None:
    policy, shared = make(critic=critic), critic == "shared"
    assert any(k.startswith("critic.fusion.") for k, _ in policy.named_parameters()) != shared
    memory = policy.initial_memory(2)
    assert ("critic_keys" in memory) != shared
    many = {k: v[:, None] for k, v in policy.encode(observe(2)).items()}
    trace, starts = torch.zeros(2, 1, 2, 1, 1), torch.ones(2, 1, dtype=torch.bool)
    policy.evaluate(many, trace, starts, memory).value.sum().backward()
    assert (policy.actor.token.grad is not None) == shared
    assert policy.critic.value_head.get_parameter("weight").grad is not None


def test_a_checkpoint_with_two_towers_starts_a_shared_critic(tmp_path: Path) -> None:
    whole = make()
    node = {"_target_": "pretrained.spoc.Spoc", **SMALL}
    save(tmp_path / "il", whole, node=node, env=environment())
    shared = load_policy(tmp_path / "il", overrides={"critic": "shared"})
    assert isinstance(shared, Spoc)
    x, rng = whole.encode(observe(2)), torch.Generator()
    acts = [p.act(x, p.initial_memory(2), rng.manual_seed(0))[0] for p in (whole, shared.eval())]
    assert torch.equal(acts[0].log_prob, acts[1].log_prob)
    assert torch.equal(shared.critic.value_head.weight, whole.critic.value_head.weight)
    with pytest.raises(ValueError, match="critic is shared; export it as layout 'il'"):
        to_official(shared, "rl")
    with pytest.raises(ValueError, match="expected separate or shared"):
        make(critic="own")


def test_features_are_pooled_and_half() -> None:
    x = make(half_features=True).encode(observe(3))
    assert x["maps"].shape == (3, 2, 16, 2, 3)
    assert x["maps"].dtype == torch.float16
    assert set(x) == {"maps", "tokens", "in_hand"}


def test_siglip_tower(tmp_path: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    model: Any = SiglipVisionModel(config)
    model.save_pretrained(tmp_path)
    encoder = make(vision=str(tmp_path)).encoder
    assert encoder.kind == "siglip"
    images = torch.tensor(observe(2).images[stretch.NAVIGATION][:, 0])
    maps = encoder.maps(images)
    assert maps.shape == (2, 16, 2, 3)
    tokens = model(pixel_values=siglip_pixels(images, 32)).last_hidden_state.detach()
    assert torch.allclose(maps.mean((2, 3)), tokens.mean(1), atol=0.2)  # pooled cells overlap, so about the mean
    assert make(vision=str(tmp_path)).encode(observe(2))["maps"].shape == (2, 2, 16, 2, 3)


def test_pixels_as_maps() -> None:
    policy = make(vision="pixels")
    obs = observe(2)
    maps = policy.encode(obs)["maps"]
    assert maps.shape == (2, 2, 3 * 256 + 2 + 3, 2, 3)
    grey = ObsBatch({c: np.zeros_like(v) for c, v in obs.images.items()}, obs.proprio, obs.texts)
    grey.images[stretch.NAVIGATION][:, :, 8:, 16:] = 255  # the lower right cell of the 2 x 3 grid
    lit = (policy.encode(grey)["maps"][0, 0, : 3 * 256] > 0).float().mean(0)
    assert lit.tolist() == [[0, 0, 0], [0, 0, 1]]


@torch.no_grad()
def test_pixels_tell_left_from_right() -> None:
    """The fusion has no positions of its own, so the maps must have them."""
    policy = make(vision="pixels")

    def hidden(column: int) -> Tensor:
        obs = observe(1)
        obs.images[stretch.NAVIGATION][:] = 0
        obs.images[stretch.NAVIGATION][:, :, :, 8 * column : 8 * (column + 1)] = 255
        return policy.step("actor", policy.encode(obs), policy.initial_memory(1))[0]

    assert torch.equal(hidden(0), hidden(0))
    assert (hidden(0) - hidden(2)).abs().max() > 1e-2


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quirks": "exact"}, "quirks 'exact' is unknown"),
        ({"switches": {"cash": "wrap"}}, r"switches \['cash'\] are unknown; expected some of"),
        ({"switches": {"cache": "roll"}}, "quirk cache 'roll' is unknown; expected slide or wrap"),
        ({"window": 0}, "window is 0"),
        ({"positions": "near"}, "positions 'near' is unknown"),
        ({"forbidden": (3, 20)}, r"forbidden actions \[20\] are not in \[0, 20\)"),
        ({"forbidden": range(20)}, "all 20 actions are forbidden"),
        ({"in_hand": "grip"}, "has no proprioception 'grip'"),
        ({"cameras": ("front",)}, r"cameras \['front'\] are not in"),
        ({"value_head": "big"}, "value_head 'big' is unknown"),
        ({"heads": 3}, "cannot be divided among 3 heads"),
        ({"vision": "no/such-folder"}, "policy.vision cannot be loaded from 'no/such-folder'"),
    ],
)
def test_wrong_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_wrong_observations() -> None:
    policy = make(max_tokens=4)
    with pytest.raises(ValueError, match="has 6 tokens, max_tokens is 4; raise max_tokens"):
        policy.encode(observe(1, texts=["go to the red mug"]))
    bad = observe(1)
    bad.images = {stretch.NAVIGATION: bad.images[stretch.NAVIGATION]}
    with pytest.raises(ValueError, match="camera 'raw_manipulation_camera' is missing"):
        policy.encode(bad)
    bad = observe(1)
    bad.images[stretch.NAVIGATION] = bad.images[stretch.NAVIGATION][:, :, 2:]
    with pytest.raises(ValueError, match="set the camera size"):
        policy.encode(bad)
    bad = observe(1)
    bad.proprio = np.full((1, 1, 1), np.nan, np.float32)
    with pytest.raises(ValueError, match="'an_object_is_in_hand' of row 0 is not finite"):
        policy.encode(bad)


def test_continuous_actions_are_refused() -> None:
    env = dataclasses.replace(environment(), num_actions=0)
    with pytest.raises(ValueError, match="has continuous actions"):
        Spoc(env=env, vision="tiny", text="tiny")
