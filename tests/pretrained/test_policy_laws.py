"""The policy laws, for every configs/policy/*.yaml, at K of 1, 2 and 5, with and without memory."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from envs.build import build
from envs.types import EnvSpec
from pretrained.types import Decision, DemoBatch, Features, ObsBatch
from tests.toy_parts import MODULES

FOLDER = Path(__file__).parents[2] / "configs" / "policy"
# VPP's video model is of another package, which a small installation may lack.
HAVE_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
ABSENT = MODULES | (set() if HAVE_DIFFUSERS else {"vpp"})
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in ABSENT)
SINGLE = ("Gaussian", "Categorical")  # kernels of one link
# A diffusion of a single step divides the network's output, rounding included, by sqrt(alpha_bar) * std = 0.017.
ROUNDING = {("ddim", 1): 1e-4, ("ddpm", 1): 1e-4}
OWN = ("spoc", "vpp")  # policies of a class of their own
CHUNKS = [n for n in NAMES if n not in OWN]  # the policies made of an encoder, a fusion and a kernel
DISCRETE = ("categorical", "spoc")
TINY_SPOC = {
    "vision": "tiny",
    "text": "tiny",
    "in_hand": "finger",
    "heads": 2,
    "fusion_layers": 1,
    "fusion_hidden": 32,
    "decoder_layers": 2,
    "grid": [2, 3],
    "window": 3,  # shorter than the sequences of the laws
    "dropout": 0.0,
    "half_features": False,
}
TINY_VPP = {
    "video": {"_target_": "pretrained.vpp.video.VideoModel", "model": "tiny", "text": "tiny", "frames": 2,
              "size": [16, 16]},
    "former": {"latents": 4, "width": 16, "depth": 1, "heads": 2, "head_width": 8},
    "encoder_layers": 1,
    "decoder_layers": 1,
    "heads": 2,
    "horizon": 4,
    "critic_width": 16,
    "dropout": [0.0, 0.0, 0.0],
    "half_features": False,
}  # fmt: skip

TINY_ACT = {
    "heads": 2,
    "ffn": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "style_layers": 1,
    "latent": 4,
    "planes": [8, 8, 16, 16],
    "dropout": 0.0,
    "augment": [],
}


def environment(*, discrete: bool = False, actions: int = 3, size: int = 24) -> EnvSpec:
    return EnvSpec(
        env_id="fake/laws",
        cameras={"front": (size, size), "hand": (size, size)},
        proprio={**{f"eef_{n}": "m" for n in ("x", "y", "z", "qx", "qy", "qz", "qw")}, "finger": "m"},
        actions=("move",) if discrete else tuple(f"a{i}" for i in range(actions)),
        low=(0.0,) if discrete else (-1.0, -2.0, -1.0)[:actions],
        high=(4.0,) if discrete else (1.0, 0.5, 1.0)[:actions],
        control_hz=20.0,
        max_steps=50,
        tasks=("t",),
        action_convention="fake",
        num_actions=5 if discrete else 0,
    )


def tiny_node(name: str, **overrides: Any) -> dict[str, Any]:
    """The YAML with small sizes; lists and dicts of `overrides` replace what the file says."""
    node = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if name not in CHUNKS:
        return {**node, "width": 32, **(TINY_SPOC if name == "spoc" else TINY_VPP), **overrides}
    node |= {"width": 32, "critic_width": 16}
    if "encoder" in node:
        node["encoder"] |= {"width": 16, "channels": [4, 8, 8]}
    if node.get("clip"):
        node["clip"] = "tiny"
    if node.get("binary"):
        node["binary"] = [2]
    if node["horizon"] > 1:
        node["horizon"] = 4
    if name == "genima":
        node |= TINY_ACT
    return {**node, **overrides}


def make(name: str, steps: int | None = None, *, seed: int = 0, disturb: bool = True, **overrides: Any) -> Any:
    """A tiny policy. `disturb` gives the layers that start at zero some weight, as training would."""
    node = tiny_node(name, **overrides)
    if steps is not None:
        node["kernel"] = {**node["kernel"], "steps": steps}
    torch.manual_seed(seed)
    policy = build(node, env=environment(discrete=name in DISCRETE))
    if disturb:
        for p in policy.parameters():
            if p.requires_grad and not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return policy.eval()


def cases() -> list[tuple[str, int, str]]:
    """(file, K, memory)."""
    found = []
    for name in NAMES:
        node = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        if "kernel" not in node:
            found.append((name, 1, "own"))
            continue
        links = (1,) if node["kernel"]["_target_"].endswith(SINGLE) else (1, 2, 5)
        found += [(name, k, "none") for k in links]
        if node["_target_"].endswith("ChunkPolicy"):
            found.append((name, links[-1], "gru"))
    return found


@pytest.fixture(params=cases(), ids=lambda c: f"{c[0]}-K{c[1]}-{c[2]}")
def policy(request: pytest.FixtureRequest) -> Any:
    return variant(*request.param)


def variant(name: str, steps: int, memory: str, **options: Any) -> Any:
    """The policy of a case."""
    if name in CHUNKS and memory != "none":
        options["memory"] = memory
    return make(name, None if memory == "own" else steps, **options)


def observe(policy: Any, n: int, seed: int = 0) -> ObsBatch:
    rng = np.random.default_rng(seed)
    steps = policy.spec.history
    return ObsBatch(
        images={c: rng.integers(0, 256, (n, steps, *s, 3), dtype=np.uint8) for c, s in policy.spec.cameras.items()},
        proprio=rng.normal(size=(n, steps, len(policy.spec.proprio))).astype(np.float32),
        texts=["lift the red cube", "open the drawer"][:n] + ["push"] * max(0, n - 2),
    )


def generators(n: int, seed: int = 7) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def rollout(policy: Any, n: int, t: int, starts: Tensor) -> tuple[Features, list[Decision], Mapping[str, Tensor]]:
    """T decisions of N rows with the collector's handling of memory; features [N, T, ...]."""
    rng, first = generators(n), used_memory(policy, n)
    memory, features, decisions = dict(first), [], []
    for i in range(t):
        fresh = policy.initial_memory(n)
        for k, v in memory.items():
            memory[k] = v.clone()
            memory[k][starts[:, i]] = fresh[k][starts[:, i]]
        features.append(policy.encode(observe(policy, n, seed=i)))
        decision, memory = policy.act(features[-1], memory, rng)
        decisions.append(decision)
    return {k: torch.stack([f[k] for f in features], 1) for k in features[0]}, decisions, first


def used_memory(policy: Any, n: int) -> dict[str, Tensor]:
    """What is remembered after two decisions."""
    memory = policy.initial_memory(n)
    for i in range(2):
        memory = policy.act(policy.encode(observe(policy, n, seed=100 + i)), memory, generators(n, seed=50))[1]
    return dict(memory)


def stack(decisions: list[Decision], field: str) -> Tensor:
    return torch.stack([getattr(d, field) for d in decisions], 1)


def demonstrations(policy: Any, n: int) -> DemoBatch:
    spec = policy.spec
    rng = torch.Generator().manual_seed(3)
    if spec.num_actions:
        actions = torch.randint(0, spec.num_actions, (n, 1, 1), generator=rng).float()
    else:
        low, high = torch.tensor(spec.low), torch.tensor(spec.high)
        share = 0.1 + 0.8 * torch.rand(n, spec.horizon, spec.action_dim, generator=rng)
        actions = low + share * (high - low)
        actions[..., 2] = torch.where(actions[..., 2] > 0, 1.0, -1.0)  # a gripper
    return DemoBatch(observe(policy, n), actions, torch.zeros(n, spec.horizon, dtype=torch.bool))


# --- sampling and scoring ---


@pytest.mark.parametrize("train", [False, True])
def test_evaluate_equals_act(policy: Any, train: bool, request: pytest.FixtureRequest) -> None:
    policy.train(train)
    tolerance = ROUNDING.get(request.node.callspec.params["policy"][:2], 1e-5)
    n, t = 3, 4
    starts = torch.tensor([[True, False, False, True], [False] * 4, [False, True, True, False]])
    x, decisions, memory = rollout(policy, n, t, starts)
    trace = stack(decisions, "trace")
    assert trace.shape == (n, t, policy.spec.links + 1, policy.spec.horizon, policy.spec.action_dim)
    scores = policy.evaluate(x, trace, starts, memory)
    assert scores.log_prob.dtype == torch.float32
    assert (scores.log_prob - stack(decisions, "log_prob")).abs().max() < tolerance
    assert (scores.value - stack(decisions, "value")).abs().max() < 1e-5
    assert scores.entropy.shape == (n, t)


def test_picked_links_are_those_of_the_whole_chain(policy: Any) -> None:
    starts = torch.ones(2, 3, dtype=torch.bool)
    x, decisions, memory = rollout(policy, 2, 3, starts)
    trace = stack(decisions, "trace")
    whole = policy.evaluate(x, trace, starts, memory).log_prob
    picks = torch.randint(0, policy.spec.links, (2, 3, 2), generator=torch.Generator().manual_seed(0))
    some = policy.evaluate(x, trace, starts, memory, picks).log_prob
    assert torch.allclose(some, whole.gather(2, picks), atol=1e-5)


def test_same_generator_same_decision(policy: Any) -> None:
    x, memory = policy.encode(observe(policy, 3)), policy.initial_memory(3)
    for greedy in (False, True):
        for rng in (lambda: generators(3), lambda: torch.Generator().manual_seed(5)):
            a, b = policy.act(x, memory, rng(), greedy)[0], policy.act(x, memory, rng(), greedy)[0]
            assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    assert not policy.act(x, memory, generators(3), True)[0].active.any()
    other = policy.act(x, memory, generators(3, seed=99))[0]
    if policy.spec.num_actions == 0:
        assert not torch.equal(other.trace[:, -1], policy.act(x, memory, generators(3))[0].trace[:, -1])


def test_rows_are_independent(policy: Any) -> None:
    x, n = policy.encode(observe(policy, 4)), 4
    memory = used_memory(policy, n)
    together, after = policy.act(x, memory, generators(n))
    for i in range(n):
        row = {k: v[i : i + 1] for k, v in x.items()}
        alone, after_alone = policy.act(row, {k: v[i : i + 1] for k, v in memory.items()}, [generators(n)[i]])
        for name, a, b in zip(Decision._fields, alone, together, strict=True):
            if name == "log_prob":  # tens of terms divided by a small std: compare where it was drawn the same
                assert torch.allclose(a[0], b[i], atol=1e-3), name
            elif a.is_floating_point():
                assert torch.allclose(a[0], b[i], atol=1e-5), name
            else:
                assert torch.equal(a[0], b[i]), name
        assert all(torch.allclose(after_alone[k][0], after[k][i], atol=1e-5) for k in after)


def test_value_agrees_with_act(policy: Any) -> None:
    x, memory = policy.encode(observe(policy, 3)), policy.initial_memory(3)
    assert torch.allclose(policy.value(x, memory), policy.act(x, memory, generators(3))[0].value, atol=1e-6)


def test_memory_matters_only_where_there_is_one(policy: Any) -> None:
    starts = torch.zeros(2, 2, dtype=torch.bool)
    x, decisions, memory = rollout(policy, 2, 2, starts)
    trace = stack(decisions, "trace")
    kept = policy.evaluate(x, trace, starts, memory).value
    reset = policy.evaluate(x, trace, torch.ones_like(starts), memory).value
    assert torch.equal(kept, reset) == policy.spec.memoryless
    assert bool(memory) != policy.spec.memoryless


def test_chunks_lie_in_the_action_space(policy: Any) -> None:
    for p in policy.parameters():
        p.data.mul_(3.0)  # wild weights
    chunk = policy.act(policy.encode(observe(policy, 8)), policy.initial_memory(8), generators(8))[0].chunk
    assert (chunk >= torch.tensor(policy.spec.low)).all()
    assert (chunk <= torch.tensor(policy.spec.high)).all()
    assert chunk.dtype == (torch.int64 if policy.spec.num_actions else torch.float32)


# --- gradients, storage, learning ---


def test_gradients_reach_every_trainable_parameter_and_no_other(policy: Any) -> None:
    starts = torch.ones(3, 2, dtype=torch.bool)
    x, decisions, memory = rollout(policy, 3, 2, starts)
    scores = policy.evaluate(x, stack(decisions, "trace"), starts, memory)
    (scores.log_prob.sum() + scores.entropy.sum() + scores.value.sum()).backward()
    for name, p in policy.named_parameters():
        if not name.startswith(getattr(policy, "imitation_only", ())):
            assert (p.grad is not None) == p.requires_grad, name
    assert any(p.grad.abs().sum() > 0 for p in policy.actor.parameters() if p.grad is not None)
    assert all(p.grad is None for p in policy.encoder.parameters()) == policy.frozen_encoder


def test_critic_does_not_shape_the_actor(policy: Any) -> None:
    starts = torch.ones(2, 2, dtype=torch.bool)
    x, decisions, memory = rollout(policy, 2, 2, starts)
    policy.evaluate(x, stack(decisions, "trace"), starts, memory).value.sum().backward()
    assert all(p.grad is None for p in (*policy.actor.parameters(), *policy.encoder.parameters()))
    assert all((p.grad is not None) == p.requires_grad for p in policy.critic.parameters())


@pytest.mark.parametrize("name", [n for n in CHUNKS if n not in ("vla", "genima")])
def test_frozen_encoder_stores_its_output(name: str) -> None:
    free, frozen = make(name), make(name, frozen_encoder=True)
    frozen.load_state_dict(free.state_dict())
    obs = observe(free, 3)
    x, y = free.encode(obs), frozen.encode(obs)
    assert {k for k in x if k.startswith("image/")} == {"image/front", "image/hand"}
    assert not any(k.startswith("image/") for k in y)
    assert all(len(v) == 3 for v in (*x.values(), *y.values()))
    a, b = (p.act(f, {}, generators(3))[0] for p, f in ((free, x), (frozen, y)))
    assert torch.allclose(a.trace, b.trace, atol=1e-5)
    loss, _ = frozen.imitation_loss(demonstrations(frozen, 3), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen.encoder.parameters())


def test_state_dict_carries_the_decision(policy: Any, request: pytest.FixtureRequest) -> None:
    actions = torch.rand(50, policy.spec.action_dim, generator=torch.Generator().manual_seed(0)) - 0.5
    policy.fit_normalizers(actions, torch.randn(50, len(policy.spec.proprio)) * 3)
    other = variant(*request.node.callspec.params["policy"], seed=1)
    obs = observe(policy, 3)
    before = other.act(other.encode(obs), other.initial_memory(3), generators(3))[0]
    other.load_state_dict(policy.state_dict())
    a, b = (p.act(p.encode(obs), p.initial_memory(3), generators(3))[0] for p in (policy, other))
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    assert not torch.equal(before.value, b.value)


@pytest.mark.parametrize("name", NAMES)
def test_imitation_overfits_one_batch(name: str) -> None:
    plain = {"augment": 0} if name in CHUNKS and name not in ("vla", "genima") else {}
    policy = make(name, disturb=False, width=64, **plain)
    rate = 1e-3 if name == "genima" else 5e-3  # a transformer that is normalised after its layers wants smaller steps
    demo, copies, count = demonstrations(policy, 4), 8, 300
    if hasattr(policy, "learn_by_imitation"):
        policy.learn_by_imitation()
    x = {k: torch.cat([v] * copies) for k, v in policy.encode(demo.obs).items()}
    actions, is_pad = torch.cat([demo.actions] * copies), torch.cat([demo.is_pad] * copies)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=rate)
    policy.train()
    for step in range(count):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / count)
        loss, metrics = policy.imitation_loss_of(x, actions, is_pad, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["imitation_loss"] == pytest.approx(loss.item())
    policy.eval()
    chunk = policy.act(policy.encode(demo.obs), policy.initial_memory(4), generators(4), greedy=True)[0].chunk
    error = (chunk.float() - demo.actions).abs().mean()
    assert error < 0.1, error
    assert error < 0.3 * (demo.actions - demo.actions.mean(0)).abs().mean()


# --- densities ---


@pytest.mark.parametrize("name", [n for n in NAMES if n not in DISCRETE])
@pytest.mark.parametrize("steps", [1, 2])
def test_densities_integrate_to_one(name: str, steps: int) -> None:
    node = tiny_node(name, **({"horizon": 1} if name == "vpp" else {"horizon": 1, "binary": []}))
    if node["kernel"]["_target_"].endswith(SINGLE):
        steps = 1
    node["kernel"] = {**node["kernel"], "steps": steps}
    torch.manual_seed(0)
    policy = build(node, env=environment(actions=1))
    for p in policy.parameters():
        if p.requires_grad and not p.any():
            torch.nn.init.normal_(p, std=0.1)
    x = policy.encode(observe(policy, 1))
    point = policy.act(x, {}, generators(1))[0].trace[:, None]  # [1, 1, K+1, 1, 1]
    for link in range(steps):
        scale = 25.0 if name == "edm" and link == 0 else 4.0
        grid = torch.linspace(-4 * scale, 4 * scale, 16001)
        traces = point.expand(1, len(grid), *point.shape[2:]).clone()
        traces[0, :, link + 1, 0, 0] = grid
        many = {k: v[:, None].expand(1, len(grid), *v.shape[1:]) for k, v in x.items() if not k.startswith("image/")}
        if not policy.frozen_encoder:  # the same picture 16001 times: encode it once
            policy_x = policy.condition(x)
            policy.condition = lambda f, c=policy_x: tuple(v.expand(len(f["proprio"]), -1) for v in c)
        starts = torch.ones(1, len(grid), dtype=torch.bool)
        picks = torch.full((1, len(grid), 1), link)
        with torch.no_grad():
            density = policy.evaluate(many, traces, starts, {}, picks).log_prob[0, :, 0].exp()
        assert torch.trapezoid(density.double(), grid.double()) == pytest.approx(1.0, abs=1e-3)


def test_two_link_density_of_the_whole_chain_integrates_to_one() -> None:
    """Joint density of (x_1, x_2) given x_0 on a grid, for a flow with K = 2."""
    from pretrained import chain

    kernel = chain.FlowNoise(steps=2, min_std=0.2, max_std=0.4, std=0.3)

    def network(x: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(3 * x) - x + time[..., None, None], 0.5 * torch.cos(x)

    grid = torch.linspace(-4, 4, 201)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    trace = torch.stack([torch.full_like(first, 0.3), first, second], -1).view(-1, 3, 1, 1)
    scores, _ = chain.score(kernel, network, torch.zeros(len(trace), 1), trace, execute=1)
    joint = scores.sum(-1).exp().view(201, 201).double()
    total = torch.trapezoid(torch.trapezoid(joint, grid.double()), grid.double())
    assert total == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", DISCRETE)
def test_categorical_probabilities_sum_to_one(name: str) -> None:
    policy = make(name)
    x = policy.encode(observe(policy, 1))
    traces = torch.zeros(1, 5, 2, 1, 1)
    traces[0, :, 1, 0, 0] = torch.arange(5)
    many = {k: v[:, None].expand(1, 5, *v.shape[1:]) for k, v in x.items()}
    with torch.no_grad():
        scores = policy.evaluate(many, traces, torch.ones(1, 5, dtype=torch.bool), policy.initial_memory(1))
    assert scores.log_prob.exp().sum() == pytest.approx(1.0, abs=1e-5)
    entropy = -(scores.log_prob * scores.log_prob.exp()).sum()
    assert scores.entropy[0, 0] == pytest.approx(entropy.item(), abs=1e-5)
