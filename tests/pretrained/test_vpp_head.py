"""The action head and its chain against recorded tensors of the original: answers, losses, noise levels, samples."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrained import chain
from pretrained.diffusion import Edm, log_logistic
from pretrained.imitate import ImitateRun, learning_rate
from pretrained.importers.vpp_names import former_names, head_names, take
from pretrained.vpp.former import VideoFormer
from pretrained.vpp.head import ActionHead
from tests.golden_files import golden_json, golden_tensors
from tests.vpp_parts import build_head, check_gradients, recorded_head

MODES = ("causal", "full")
EVALUATION = Edm(steps=10, spacing="exponential", sigma_min=1.0, sigma_max=80.0, eta=0.0, density="log_logistic")
KERNELS = {"eval": EVALUATION, "train": replace(EVALUATION, sigma_min=0.001)}


def io() -> dict[str, Tensor]:
    return golden_tensors("vpp_policy/io.safetensors")


def close(got: Tensor, expected: Tensor, what: str = "forward") -> None:
    torch.testing.assert_close(got, expected, **golden_json("vpp_policy/meta.json")["suggested_tolerance"][what])


def condition(head: ActionHead, x: dict[str, Tensor], **other: Tensor) -> Tensor:
    goal = other.get("goal", x["goal"]).flatten(1)
    proprio = x["proprio"][:, 0] if head.proprio is not None else None
    return head.condition(head.context(x["state_images"], goal, proprio))


def ask(head: ActionHead, cond: Tensor, sigma: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The head's answer and the clean chunk it implies, at noise levels [B]."""
    scale = (sigma**2 + EVALUATION.sigma_data**2).sqrt()[:, None, None]
    out = head((x / scale)[:, None], -sigma.log()[:, None] / 4, cond)[:, 0]
    return out, EVALUATION.denoised(sigma[:, None, None], x, out)


@torch.no_grad()
def test_context_equals_the_recording() -> None:
    x = io()
    for proprio, name in ((False, "context"), (True, "context_with_proprio")):
        head = recorded_head("full", proprio=proprio)
        close(head.context(x["state_images"], x["goal"][:, 0], x["proprio"][:, 0] if proprio else None), x[name])


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_answers_equal_the_recording(mode: str) -> None:
    x, head = io(), recorded_head(mode)
    cond = condition(head, x)
    close(head.embed(-x["fwd0.sigma"][:, None].log() / 4), x["fwd0.sigma_embedding"])
    for i in range(5):
        out, denoised = ask(head, cond, x[f"fwd{i}.sigma"], x[f"fwd{i}.x"])
        close(out, x[f"{mode}.fwd{i}.network_out"])
        close(denoised, x[f"{mode}.fwd{i}.denoised"])
    inputs = x["fwd2.sigma"], x["fwd2.x"]
    close(ask(head, condition(head, x, goal=torch.zeros_like(x["goal"])), *inputs)[1],
          x[f"{mode}.denoised_unconditional"])  # fmt: skip
    close(ask(head, condition(head, x, goal=x["goal"][:, 0]), *inputs)[1], x[f"{mode}.denoised_goal_2d"])
    knows = recorded_head(mode, proprio=True)
    close(ask(knows, condition(knows, x), *inputs)[1], x[f"{mode}.denoised_with_proprio"])


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_links_scored_together_equal_links_scored_alone(mode: str) -> None:
    x, head = io(), recorded_head(mode)
    cond = condition(head, x)
    many = torch.stack([x[f"fwd{i}.x"] for i in range(5)], 1)
    times = torch.stack([-x[f"fwd{i}.sigma"].log() / 4 for i in range(5)], 1)
    together = head(many, times, cond)
    for i in range(5):
        assert torch.allclose(together[:, i], head(many[:, i : i + 1], times[:, i : i + 1], cond)[:, 0], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_which_tokens_an_action_looks_at(mode: str) -> None:
    """By the gradient with respect to the keys and values of the context; the encoder before them mixes everything."""
    x, head = io(), recorded_head(mode)
    cond = condition(head, x).detach().requires_grad_()
    out, _ = ask(head, cond, x["fwd2.sigma"], x["fwd2.x"])
    seen = torch.zeros(out.shape[1], cond.shape[3], dtype=torch.bool)
    for i in range(out.shape[1]):
        (slope,) = torch.autograd.grad(out[:, i].sum(), cond, retain_graph=True)
        seen[i] = slope[:, -1].abs().sum((0, 1, 3)) > 0  # of the last layer: earlier ones also reach it through actions
    expected = io()["causal.context_dependence"].bool() if mode == "causal" else torch.ones_like(seen)
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_equal_the_recording(mode: str) -> None:
    x, head = io(), recorded_head(mode)
    lesson = EVALUATION.lesson_at(x["loss.sigma"], x["actions"], x["loss.noise"])
    out = head(lesson.input[:, None], lesson.time[:, None], condition(head, x))[:, 0]
    loss = EVALUATION.loss(out, lesson.target).mean()
    close(out, x[f"{mode}.loss.network_out"])
    torch.testing.assert_close(loss, x[f"{mode}.loss.value"], rtol=1e-4, atol=1e-4)
    loss.backward()
    names = {k: f"inner_model.{v}" for k, v in head_names(list(head.state_dict())).items()}
    recorded = golden_json("vpp_policy/meta.json")[f"grad_norms_of_loss_{mode}"]
    assert check_gradients(head, names, recorded, rtol=1e-3) > 60


def test_noise_levels_equal_the_recording() -> None:
    x = io()
    for name, kernel in KERNELS.items():
        torch.testing.assert_close(kernel.sigmas(), x[f"sigmas_{name}_config"], rtol=1e-5, atol=0)
    five = replace(EVALUATION, steps=5)
    torch.testing.assert_close(five.sigmas(), x["sigmas_exponential_n5_1_80"], rtol=1e-5, atol=0)
    karras = replace(KERNELS["train"], spacing="karras")
    torch.testing.assert_close(karras.sigmas(), x["sigmas_karras_rho7_n10_0.001_80"], rtol=1e-5, atol=0)
    drawn = log_logistic(x["sigma_density.uniform"], 0.5, 0.5, 0.001, 80.0)
    torch.testing.assert_close(drawn, x["sigma_density.sigma"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", KERNELS)
def test_samples_equal_the_recording(mode: str, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greedy chain is the original's deterministic sampler."""
    x, head = io(), recorded_head(mode)
    drawn = sample(KERNELS[config], head, condition(head, x), x["sample.unit_noise"], monkeypatch)
    close(drawn.trace[:, :-1].transpose(0, 1), x[f"{mode}.sample_{config}.x_trajectory"], "sampling")
    close(drawn.trace[:, -1], x[f"{mode}.sample_{config}.actions"], "sampling")


def sample(kernel: Edm, head: ActionHead, cond: Tensor, noise: Tensor, monkeypatch: pytest.MonkeyPatch) -> chain.Chain:
    """The greedy chain from given noise."""
    full = torch.zeros(len(noise), kernel.steps + 1, *noise.shape[1:])
    full[:, 0] = noise
    monkeypatch.setattr(chain, "randn", lambda shape, rng, device: full)
    with torch.no_grad():
        return chain.sample(kernel, lambda i, t, c: (head(i, t, c), None), cond, (noise.shape[1], noise.shape[2]),
                            torch.Generator(), execute=1, greedy=True)  # fmt: skip


def test_feature_maps_to_actions_equal_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    x, sizes = io(), golden_json("vpp_policy/meta.json")["tiny_e2e_config"]
    weights, f = golden_tensors("vpp_policy/tiny_e2e.safetensors"), sizes["former"]
    former = VideoFormer(channels=f["C"], frames=f["F"], latents=f["num_latents"], width=f["dim"], depth=f["depth"],
                         heads=f["heads"], head_width=f["dim_head"])  # fmt: skip
    names = former_names(list(former.state_dict()))
    former.load_state_dict(take(weights, names, "Video_Former.")[0])
    prefix = "model.inner_model."
    own = {k: v for k, v in weights.items() if k.startswith(prefix) and "proprio_emb" not in k}
    head = build_head(sizes["policy"], own, prefix, "causal")
    maps = x["e2e.feature_maps"].flatten(3).transpose(2, 3)  # [views, T, S, C]
    features = torch.cat(list(maps.unsqueeze(1)), 2)
    close(features, x["e2e.former_in"])
    with torch.no_grad():
        tokens = former(features)
        close(tokens, x["e2e.former_out"])
        cond = head.condition(head.context(tokens, x["e2e.goal"][:, 0]))
    drawn = sample(EVALUATION, head, cond, x["e2e.unit_noise"], monkeypatch)
    close(drawn.trace[:, -1], x["e2e.actions"], "sampling")


def test_published_size() -> None:
    manifest, sizes = golden_json("vpp_policy/manifest_full.json"), golden_json("vpp_policy/meta.json")["full_config"]
    with torch.device("meta"):
        head = ActionHead(channels=sizes["obs_dim"], goal_dim=sizes["goal_dim"], horizon=sizes["act_seq_len"],
                          action_dim=sizes["action_dim"], proprio_dim=sizes["proprio_dim"])  # fmt: skip
    prefix = "model.inner_model."
    shapes = {prefix + head_names([k])[k]: list(v.shape) for k, v in head.state_dict().items()}
    theirs = {k: v["shape"] for k, v in manifest["entries"].items() if k.startswith(prefix)}
    assert set(theirs) - set(shapes) == {k for k in theirs if ".goal_emb." in k or k.endswith("pos_emb")}
    assert all(theirs[k] == v for k, v in shapes.items())
    unused = sum(manifest["policy_parts"][k] for k in ("goal_emb", "pos_emb"))
    assert sum(p.numel() for p in head.parameters()) == manifest["counts"]["model.inner_model"]["elements"] - unused


def test_noise_makes_the_sampler_a_chain_that_is_scored() -> None:
    x, head = io(), recorded_head("full")
    for kernel in (replace(EVALUATION, eta=1.0), replace(EVALUATION, noise="learned")):
        learns = kernel.noise_head == "state"

        def network(inputs: Tensor, time: Tensor, cond: Tensor, learns: bool = learns) -> tuple[Tensor, Tensor | None]:
            return head(inputs, time, cond), 0.3 * inputs.sin() if learns else None

        with torch.no_grad():
            cond = condition(head, x)
            drawn = chain.sample(kernel, network, cond, (6, 7), torch.Generator().manual_seed(1), execute=6)
            scores, _ = chain.score(kernel, network, cond, drawn.trace, execute=6)
        assert drawn.active.all()
        assert torch.allclose(scores, drawn.log_prob, atol=1e-5)
        still = EVALUATION.transition(*link_of(network, cond, drawn.trace), ode=True).mean
        noisy = kernel.transition(*link_of(network, cond, drawn.trace), ode=False)
        assert (drawn.trace[:, 1:2] - still).abs().mean() > 1.0  # noise at level 49
        assert (noisy.std > 0).all()


@torch.no_grad()
def link_of(network: Any, cond: Tensor, trace: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Arguments of the first link's transition."""
    k = torch.zeros(len(trace), 1, dtype=torch.int64)
    inputs, time = EVALUATION.prepare(k, trace[:, :1])
    return k, trace[:, :1], *network(inputs, time, cond)


def test_learned_noise_is_bounded_and_relative_to_its_level() -> None:
    kernel = replace(EVALUATION, noise="learned", min_std=0.05, std=0.1, max_std=0.2)
    x = torch.randn(1, 10, 2, 3)
    k = torch.arange(10)[None]
    for raw, expected in ((0.0, 0.1), (50.0, 0.2), (-50.0, 0.05)):
        std = kernel.transition(k, x, torch.zeros_like(x), torch.full_like(x, raw)).std
        level = torch.cat([kernel.sigmas()[1:]])[None, :, None, None]
        relative = std / ((level**2 + 0.25).sqrt() / 0.5)
        assert torch.allclose(relative, torch.full_like(relative, expected), rtol=1e-3)


def test_learning_rate_equals_the_recording() -> None:
    recorded = golden_json("vpp_policy/lr_tri_stage.json")
    steps = recorded["config"]["total_steps"]
    run = ImitateRun(policy={}, demos="", out="", steps=steps, lr=recorded["config"]["lr"], schedule="tri_stage")
    for call, expected in recorded["lr_after_call"].items():
        assert learning_rate(run, int(call)) == pytest.approx(expected, rel=1e-6), call
    short = replace(run, steps=10)
    assert len({learning_rate(short, step) for step in range(10)}) > 5  # it does change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing": "linear"}, "spacing 'linear' is unknown; expected karras or exponential"),
        ({"noise": "loud"}, "noise 'loud' is unknown"),
        ({"density": "flat"}, "density 'flat' is unknown"),
        ({"noise": "learned", "std": 0.5}, "0 < min_std <= std <= max_std"),
        ({"sigma_min": 90.0}, "0 < sigma_min < sigma_max"),
    ],
)
def test_impossible_kernels_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(EVALUATION, **change)


def test_impossible_heads_are_refused() -> None:
    sizes: dict[str, Any] = {"channels": 4, "goal_dim": 3, "horizon": 2, "action_dim": 2, "width": 8, "heads": 2}
    with pytest.raises(ValueError, match="width 8 cannot be divided among 3 heads"):
        ActionHead(**{**sizes, "heads": 3})
    with pytest.raises(ValueError, match="expected three shares"):
        ActionHead(**sizes, dropout=[0.1])
    with pytest.raises(ValueError, match="trained with proprioception; give it"):
        ActionHead(**sizes, proprio_dim=2).context(torch.zeros(1, 5, 4), torch.zeros(1, 3))
