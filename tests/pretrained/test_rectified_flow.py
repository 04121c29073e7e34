"""The vision-language-action model: size, samplers, inference from Python and the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from envs.build import build
from envs.types import EnvSpec
from pretrained import checkpoint, inference
from pretrained.networks import VelocityMlp
from pretrained.rectified_flow import VlaFusion, flow_sample, split_proprio
from pretrained.types import ObsBatch

NAMES = ("eef_x", "eef_y", "eef_z", "eef_qx", "eef_qy", "eef_qz", "eef_qw", *(f"joint_{i}" for i in range(7)))
SPEC = EnvSpec(
    env_id="fake/vla",
    cameras={"front": (40, 48)},
    proprio=dict.fromkeys(NAMES, "1"),
    actions=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
    control_hz=20.0,
    max_steps=50,
    tasks=("t",),
    action_convention="fake",
)
NODE: dict[str, Any] = {
    "_target_": "pretrained.rectified_flow.vla_model",
    "clip": "tiny",
    "width": 64,
    "binary": [6],
    "critic_width": 16,
}


def make(env: EnvSpec = SPEC, **overrides: Any) -> Any:
    torch.manual_seed(0)
    policy = build({**NODE, **overrides}, env=env)
    for p in policy.parameters():
        if p.requires_grad and not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return policy.eval()


def observe(n: int, env: EnvSpec = SPEC) -> ObsBatch:
    rng = np.random.default_rng(0)
    return ObsBatch(
        {c: rng.integers(0, 256, (n, 1, *s, 3), dtype=np.uint8) for c, s in env.cameras.items()},
        rng.normal(size=(n, 1, 14)).astype(np.float32),
        ["stack the bowls"] * n,
    )


def test_about_five_million_weights_are_trained_at_full_size() -> None:
    with torch.device("meta"):
        fusion = VlaFusion(image_dim=512, text_dim=512, proprio_dim=14, proprio=NAMES, width=512)
        network = VelocityMlp(horizon=1, action_dim=7, outputs=7, cond_dim=512, width=512, layers=3)
    count = sum(p.numel() for m in (fusion, network) for p in m.parameters())
    assert 5.0e6 < count < 5.25e6, count


def test_proprioception_is_split_by_name() -> None:
    assert split_proprio(NAMES, None, None) == (list(range(7, 14)), list(range(7)))
    assert split_proprio(("a", "b"), None, None) == ([0, 1], [0, 1])
    assert split_proprio(NAMES, ["joint_3"], ["eef_z"]) == ([10], [2])
    with pytest.raises(ValueError, match=r"no entries \['elbow'\]"):
        split_proprio(NAMES, ["elbow"], None)


@pytest.mark.parametrize("options", [{}, {"fusion": "attention"}, {"horizon": 4}, {"horizon": 4, "network": "mlp"}])
def test_every_input_matters(options: dict[str, Any]) -> None:
    policy = make(**options)
    obs = observe(1)

    def cond(obs: ObsBatch) -> torch.Tensor:
        return policy.condition(policy.encode(obs))[0]

    base = cond(obs)
    changes = (
        ObsBatch({"front": 255 - obs.images["front"]}, obs.proprio, obs.texts),
        ObsBatch(obs.images, obs.proprio + np.eye(14, dtype=np.float32)[1], obs.texts),
        ObsBatch(obs.images, obs.proprio + np.eye(14, dtype=np.float32)[9], obs.texts),
        ObsBatch(obs.images, obs.proprio, ["open the drawer"]),
    )
    assert all(not torch.allclose(base, cond(c), atol=1e-5) for c in changes)


def test_samplers_converge_to_one_another() -> None:
    policy = make(horizon=2)
    x = policy.encode(observe(3))

    def run(steps: int, method: str) -> torch.Tensor:
        return flow_sample(policy, x, torch.Generator().manual_seed(0), steps=steps, method=method)[..., :6]

    fine = run(400, "euler")
    error = {m: float((run(20, m) - fine).abs().max()) for m in ("euler", "midpoint", "heun")}
    assert max(error.values()) < 0.1
    assert error["midpoint"] < error["euler"]
    assert set(flow_sample(policy, x, torch.Generator(), steps=2)[..., 6].unique().tolist()) <= {-1.0, 1.0}
    with pytest.raises(ValueError, match="method 'rk4'"):
        run(2, "rk4")


def test_no_sampler_asks_at_the_end_of_time() -> None:
    policy, asked = make(), []
    inner = policy.run_network
    policy.run_network = lambda x, t, c: (asked.append(float(t.max())), inner(x, t, c))[1]
    x = policy.encode(observe(1))
    for method in ("euler", "midpoint", "heun"):
        flow_sample(policy, x, torch.Generator(), steps=4, method=method)
    policy.act(x, {}, torch.Generator())
    assert min(asked) >= 0
    assert max(asked) < 1


def test_euler_with_as_many_steps_as_links_is_the_greedy_chain() -> None:
    policy = make(kernel={"_target_": "pretrained.chain.FlowSde", "steps": 4}, greedy_start="zero")
    x = policy.encode(observe(2))

    def start(*shape: int, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(*shape)

    greedy = policy.act(x, {}, torch.Generator(), greedy=True)[0].chunk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrained.types.torch.randn", start)
        euler = flow_sample(policy, x, torch.Generator(), steps=4)
    assert torch.allclose(greedy, euler, atol=1e-5)


def test_bad_models_are_refused() -> None:
    with pytest.raises(ValueError, match="not a flow"):
        make(kernel={"_target_": "pretrained.chain.Ddpm"})
    with pytest.raises(ValueError, match="horizon=17"):
        make(horizon=17)
    with pytest.raises(ValueError, match="fusion 'sum'"):
        make(fusion="sum")


# --- inference ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy = make(horizon=2)
    policy.fit_normalizers(torch.rand(40, 7) - 0.5, torch.randn(40, 14))
    node = {**NODE, "horizon": 2}
    checkpoint.save(tmp_path / "step_1", policy, node=node, env=SPEC, metrics={})
    return tmp_path / "step_1"


def test_python_api(folder: Path, tmp_path: Path) -> None:
    config_file = tmp_path / "vla.yaml"
    config_file.write_text(yaml.safe_dump({"clip": "tiny", "horizon": 9}))
    model, config = inference.load_model(folder, config_file, "cpu")
    assert config["horizon"] == 2  # the checkpoint knows
    array = observe(1).images["front"][0, 0]
    Image.fromarray(array).save(tmp_path / "view.png")
    image = inference.preprocess_image(tmp_path / "view.png", 32)
    assert image.shape == (1, 3, 32, 32)
    assert inference.preprocess_image(array).shape == (1, 3, 224, 224)
    assert torch.equal(image, inference.preprocess_image(Image.fromarray(array), 32))
    joints, pose = np.linspace(-1, 1, 7), [0.1, 0, 1, 1, 0.1, 0, 0]
    action = inference.predict_action(model, image, "stack the bowls", joints, pose, 10, "cpu")
    assert action.shape == (7,)
    assert action[6] in (-1.0, 1.0)
    chunk = inference.predict_action(model, image, "stack the bowls", joints, pose, 10, return_chunk=True)
    assert chunk.shape == (2, 7)
    assert np.array_equal(chunk[0], action)
    opposite = [0.1, 0, 1, -1, -0.1, 0, 0]
    assert np.allclose(
        inference.predict_action(model, image, "stack the bowls", joints, opposite, 10), action, atol=1e-6
    )


def test_inference_sees_what_the_policy_sees(folder: Path) -> None:
    """Features built from a preprocessed image and two vectors are those that `encode` builds."""
    model, _ = inference.load_model(folder)
    obs = observe(1)
    chunk = flow_sample(model, model.encode(obs), torch.Generator().manual_seed(0), steps=5)[0]
    image = inference.preprocess_image(obs.images["front"][0, 0], 32)
    row = obs.proprio[0, 0]
    ours = inference.predict_action(model, image, obs.texts[0], row[7:], row[:7], 5, return_chunk=True)
    assert np.allclose(ours, chunk.numpy(), atol=1e-5)


def test_bad_arguments_are_named(folder: Path) -> None:
    model, _ = inference.load_model(folder)
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="ee_pose: expected 7 finite numbers.*eef_x"):
        inference.predict_action(model, image, "x", [0.0] * 7, [0.0] * 6)
    with pytest.raises(ValueError, match="one image.*32.*got.*224"):
        inference.predict_action(model, torch.zeros(1, 3, 224, 224), "x", [0.0] * 7, [0.0] * 7)
    with pytest.raises(ValueError, match="does not exist"):
        inference.preprocess_image("nowhere.png")
    with pytest.raises(ValueError, match="uint8"):
        inference.preprocess_image(np.zeros((4, 4, 3)))


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(observe(1).images["front"][0, 0]).save(tmp_path / "view.png")
    words = ["--checkpoint", str(folder), "--image", str(tmp_path / "view.png"), "--instruction", "stack the bowls"]
    minus, pose = "-0.1,0,0,0,0,0,0.5", "-0.2,0,1,1,0,0,0"
    tail = ["--num-flow-steps", "5", "--device", "cpu"]
    assert inference.main([*words, f"--proprio={minus}", f"--ee-pose={pose}", *tail]) == 0
    first = json.loads(capsys.readouterr().out)
    assert len(first) == 7
    assert inference.main([*words, "--proprio", minus, "--ee-pose", pose, *tail, "--chunk"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == first
    with pytest.raises(SystemExit) as stop:
        inference.main([*words, "--proprio", "-1,2", "--ee-pose", pose, *tail])
    assert stop.value.code == 2
    assert "expected 7 finite numbers" in capsys.readouterr().err


def test_two_cameras(tmp_path: Path) -> None:
    env = replace(SPEC, cameras={"front": (40, 48), "hand": (32, 32)})
    policy = make(env)
    obs = observe(1, env)
    images = [inference.preprocess_image(obs.images[c][0, 0], 32) for c in env.cameras]
    assert inference.predict_action(policy, images, "x", [0.0] * 7, [0.0] * 7, 2).shape == (7,)
    with pytest.raises(ValueError, match="front.*hand"):
        inference.predict_action(policy, images[0], "x", [0.0] * 7, [0.0] * 7, 2)
