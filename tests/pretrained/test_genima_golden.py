"""The controller against recorded tensors of the official one: outputs, losses, gradients, statistics, actions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrained.checkpoint import load_policy
from pretrained.genima.network import sine_positions
from pretrained.genima.quirks import FIXED
from pretrained.genima.stats import ActionScale, StateScale, Stats, extract_actions, within
from pretrained.importers.genima import import_checkpoint, our_name
from tests.genima_parts import recorded_inputs, recorded_weights, snapshot, tiny_clip
from tests.golden_files import golden, golden_json, golden_tensors


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The recorded weights, through the importer; the state is fed as recorded, already normalised."""
    folder = tmp_path_factory.mktemp("genima")
    heads = golden_json("genima_act/meta.json")["config"]["heads"]
    source = snapshot(folder / "snapshots", recorded_weights())
    options = {"heads": heads, "dropout": 0.0, "augment": []}
    report = import_checkpoint(source, folder / "out", clip=str(tiny_clip(folder / "clip")), options=options)
    assert not report.missing
    assert not report.surplus
    policy: Any = load_policy(folder / "out")
    policy.state.set(torch.zeros(8), torch.ones(8))
    return policy.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: dict[str, float]) -> bool:
    return torch.allclose(ours, theirs, atol=tolerance["atol"], rtol=tolerance["rtol"])


def test_outputs(policy: Any) -> None:
    x, io, meta = recorded_inputs()
    tolerance = meta["suggested_tolerance"]
    images = torch.stack([x[f"image/{c}"][:, 0] for c in meta["batch"]["views_order"]], 1).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        maps, text = policy.encoder(images, x["text"])
        hidden, _ = policy.actor(maps, text, x["proprio"][:, 0], views=4)
        chunk = policy.condition(x)[0].view(2, policy.spec.horizon, 8)
    assert close(maps, io["mid/image_features"], tolerance["mid/image_features"])
    assert close(text, io["mid/text_projected"], tolerance["out"])
    code = sine_positions(*maps.shape[2:3], maps.shape[3] // 4, policy.sizes.width, maps.device).repeat(1, 1, 4)
    assert torch.allclose(code[None], io["mid/image_position_code"], atol=1e-6)
    assert close(policy.style.pad_head(hidden), io["out/is_pad_logits"], tolerance["out"])
    assert close(chunk, io["out/actions"], tolerance["out"])  # whatever the order of the views
    x["text"] = torch.zeros_like(x["text"])
    with torch.no_grad():
        blind = policy.condition(x)[0].view(2, policy.spec.horizon, 8)
    assert (blind - io["out/actions"]).abs().max() > 0.5


@pytest.mark.parametrize(("case", "padding"), [("nopad", "masked"), ("nopad", "counted"), ("pad", "counted")])
def test_losses_and_gradients(policy: Any, case: str, padding: str) -> None:
    x, io, meta = recorded_inputs()
    said, tolerance = meta["train_losses"][case], meta["suggested_tolerance"]
    target = io["train/in/actions"].clone()
    target[..., 7] = 2 * target[..., 7] - 1  # our grippers are -1 and +1
    is_pad = io["train/in/is_pad_some"] if case == "pad" else torch.zeros(2, 20, dtype=torch.bool)
    policy.quirks = replace(FIXED, padding=padding)
    policy.train()
    policy.zero_grad()
    losses, hidden, style = policy.learn(x, target, is_pad, io["train/in/latent_noise"])
    loss = losses.l1 + policy.gripper_weight * losses.gripper + policy.kl_weight * losses.kl
    l1, gripper, kl = (v.item() for v in losses)
    policy.eval()
    assert torch.allclose(style.mean, io[f"train/{case}/mu"], atol=2e-4)
    assert torch.allclose(style.log_var, io[f"train/{case}/logvar"], atol=2e-4)
    assert close(policy.actor.head(hidden), io[f"train/{case}/actions_hat"], tolerance["out"])
    near = {"rel": tolerance["losses"]["rtol"]}
    assert l1 == pytest.approx(said["l1"], **near)
    assert policy.gripper_weight * gripper == pytest.approx(said["gripper_loss"], **near)
    assert kl == pytest.approx(said["kl"], **near)
    assert loss.item() == pytest.approx(said["loss"], **near)
    if case == "pad":
        policy.quirks = FIXED
        assert policy.learn(x, target, is_pad, io["train/in/latent_noise"])[0].l1.item() > 1.05 * said["l1"]
        return
    loss.backward()
    own, checked = dict(policy.named_parameters()), 0
    for name, norm in meta["train_gradient_norms_nopad"].items():
        key = our_name(name.removeprefix("actor."))
        if key is None or norm is None or norm < 1e-5:  # never used, or nothing but rounding
            continue
        assert float(own[key].grad.norm()) == pytest.approx(norm, rel=tolerance["gradient_norms"]["rtol"]), name
        checked += 1
    assert checked > 100


def demos() -> list[tuple[np.ndarray, dict[str, Any]]]:
    io = {k: v.numpy() for k, v in golden_tensors("genima_act/norm_io.safetensors").items()}
    count = golden_json("genima_act/norm_meta.json")["demos"]["count"]
    names = ("joint_positions", "commanded_joints", "has_commanded_joints", "gripper_open")
    return [(extract_actions(*(io[f"demo{i}/in/{n}"] for n in names)), io) for i in range(count)]


def test_actions_of_demonstrations() -> None:
    dropped = golden_json("genima_act/norm_meta.json")["demos"]["dropped_demo_indices"]
    for i, (actions, io) in enumerate(demos()):
        assert within(actions, io["in/limits_low"], io["in/limits_high"]) == (i not in dropped)
        if i not in dropped:
            assert actions.dtype == np.float32
            assert np.abs(actions - io[f"demo{i}/out/actions"]).max() < 1e-6
    with pytest.raises(ValueError, match="expected \\[T, A\\]"):
        within(np.zeros((4, 7)))


def test_statistics_and_normalisation(tmp_path: Path) -> None:
    made = demos()
    dropped, io = golden_json("genima_act/norm_meta.json")["demos"]["dropped_demo_indices"], made[0][1]
    kept = [i for i in range(len(made)) if i not in dropped]
    stats = Stats.of_actions(np.concatenate([made[i][0] for i in kept]))
    said = Stats.read(golden("genima_act/action_stats.json"))
    state = Stats.read(golden("genima_act/proprio_stats.json"))
    assert np.allclose(stats.mean, said.mean, atol=1e-6)
    assert np.allclose(stats.std, said.std, atol=1e-6)
    assert said.of_state() == state
    stats.write(tmp_path / "stats.json")
    assert Stats.read(tmp_path / "stats.json") == stats

    scale = ActionScale([-9.0] * 7 + [0.0], [9.0] * 7 + [1.0], binary=[7])
    scale.mean.copy_(torch.tensor(said.mean))
    scale.std.copy_(torch.tensor(said.std))
    for i in kept:
        ours = scale.encode(torch.from_numpy(made[i][0]))
        theirs = torch.from_numpy(io[f"demo{i}/out/actions_normalised"])
        assert torch.allclose(ours[:, :7], theirs[:, :7], atol=1e-5)
        assert torch.equal((ours[:, 7] + 1) / 2, theirs[:, 7])
    out, expected = torch.from_numpy(io["in/network_output"]), torch.from_numpy(io["out/environment_action"])
    assert torch.allclose(scale.decode(out)[:, :7], expected[:, :7], atol=1e-5)
    assert torch.equal(scale.decode(out)[:, 7] > 0, expected[:, 7] > 0)  # a logit there, a decision here

    judge = StateScale(8, plain=[0])
    judge.set(torch.tensor(state.mean), torch.tensor(state.std))
    low_dim = torch.from_numpy(io["in/low_dim_state"])
    assert torch.allclose(judge(low_dim), torch.from_numpy(io["out/low_dim_state_normalised"]), atol=1e-5, rtol=1e-5)
    judge.std[3] = 0.0
    zero = torch.from_numpy(io["out/low_dim_state_normalised_with_std3_zero"])
    assert torch.allclose(judge(low_dim), zero, rtol=1e-3, atol=1e-5)


def test_broken_statistics(tmp_path: Path) -> None:
    for text in ("", "[]", '{"mean": [1.0]}', '{"mean": [1.0], "std": ["x"]}'):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read"):
            Stats.read(tmp_path / "s.json")
    (tmp_path / "s.json").write_text('{"mean": [1.0, 2.0], "std": [1.0]}')
    with pytest.raises(ValueError, match="of one length"):
        Stats.read(tmp_path / "s.json")
