"""Checkpoints: what comes back, what a kill leaves, and what is refused."""

import dataclasses
import json
import os
import sys
import types

import pytest
import torch
from torch import nn

from envs.types import EnvSpec
from pretrained import checkpoint
from pretrained.types import PolicySpec

SPEC = EnvSpec(
    env_id="toy/reach",
    cameras={"top": (8, 8), "hand": (8, 8)},
    proprio={"x": "m", "y": "m"},
    actions=("dx", "dy"),
    low=(-1.0, -1.0),
    high=(1.0, 1.0),
    control_hz=10.0,
    max_steps=20,
    tasks=("red",),
    action_convention="toy_velocity",
)


class Dummy(nn.Module):
    """The least a checkpoint needs of a policy."""

    def __init__(self, *, env: EnvSpec, width: int = 4, noise: bool = False, kernel: dict | None = None) -> None:
        super().__init__()
        self.actor = nn.Linear(2, width)
        self.register_buffer("normalizer_mean", torch.zeros(2))
        if noise:
            self.noise = nn.Linear(width, 2)
        links = (kernel or {}).get("steps", 1)
        self.spec = PolicySpec(env.cameras, tuple(env.proprio), env.actions, env.low, env.high,
                               env.action_convention, env.control_hz, links=links)  # fmt: skip


NODE = {"_target_": "pretrained.dummy_checkpoint.Dummy", "width": 4, "kernel": {"steps": 2, "sigma": 0.1}}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    module = types.ModuleType("pretrained.dummy_checkpoint")
    module.Dummy = Dummy
    monkeypatch.setattr(Dummy, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, "pretrained.dummy_checkpoint", module)


def make(node=NODE, env=SPEC):
    torch.manual_seed(1)
    return Dummy(env=env, **{k: v for k, v in node.items() if k != "_target_"})


def written(folder, **kwargs):
    policy = make()
    policy.normalizer_mean.copy_(torch.tensor([0.25, -3.0]))
    checkpoint.save(folder, policy, node=NODE, env=SPEC, metrics={"loss": 0.5}, config={"lr": 0.1}, **kwargs)
    return policy


def replace_in_card(folder, **changes):
    """Edit the card and sign the folder again, as an importer or another version would."""
    card = json.loads((folder / "card.json").read_text())
    card.update(changes)
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "manifest.json").unlink()
    checkpoint._write_manifest(folder)


def test_weights_and_card_come_back(tmp_path):
    policy = written(tmp_path / "step_1", parent="runs/a/step_9")
    loaded = checkpoint.load_policy(tmp_path / "step_1", env=SPEC)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    card = checkpoint.read_card(tmp_path / "step_1")
    assert card.env == SPEC
    assert list(card.env.cameras) == ["top", "hand"]
    assert card.policy == policy.spec
    assert card.metrics == {"loss": 0.5}
    assert card.parent == "runs/a/step_9"
    assert card.normalizers == {"normalizer_mean": [0.25, -3.0]}
    assert loaded.load_report == checkpoint.LoadReport()
    assert "lr: 0.1" in (tmp_path / "step_1" / "config.yaml").read_text()


def test_learner_tree_comes_back_exactly(tmp_path):
    policy = make()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    policy.actor(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    learner = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "step": 7, "best": float("inf"),
               "tuple": (1, 2.5), "none": None, "names": ["a", True], 3: "int key", "$odd": 1}  # fmt: skip
    written(tmp_path / "step_1", learner=learner)
    back = checkpoint.load_learner(tmp_path / "step_1")
    assert back["tuple"] == (1, 2.5)
    assert back[3] == "int key"
    assert back["$odd"] == 1
    assert back["best"] == float("inf")
    assert back["names"] == ["a", True]
    assert torch.equal(back["rng"], learner["rng"])
    restored = torch.optim.AdamW(policy.parameters(), lr=5.0)
    restored.load_state_dict(back["optimizer"])
    assert restored.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, restored.state_dict()["state"][key][name])


def test_no_learner_is_none_and_objects_are_refused(tmp_path):
    written(tmp_path / "step_1")
    assert checkpoint.load_learner(tmp_path / "step_1") is None
    with pytest.raises(ValueError, match="learner/what is a object"):
        written(tmp_path / "step_2", learner={"what": object()})
    assert not (tmp_path / "step_2").exists()


def test_replacing_keeps_a_valid_folder_when_killed_anywhere(tmp_path, monkeypatch):
    folder = tmp_path / "best"
    written(folder)
    real, survives = os.replace, []

    def dies(source, target):
        survives.append(target)
        if len(survives) == 3:
            raise KeyboardInterrupt
        real(source, target)

    for first in ([0, 0], [0]):  # killed at the first rename, then at the second
        survives = list(first)
        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(folder, make(), node=NODE, env=SPEC, metrics={"loss": 0.1})
        monkeypatch.setattr(os, "replace", real)
        assert checkpoint.read_card(folder).metrics == {"loss": 0.5}  # the old one, still readable
        checkpoint.load_policy(folder)
    with pytest.raises(ValueError, match="object"):  # the next attempt fails too, before its renames
        checkpoint.save(folder, make(), node=NODE, env=SPEC, learner={"what": object()})
    assert checkpoint.read_card(folder).metrics == {"loss": 0.5}
    checkpoint.save(folder, make(), node=NODE, env=SPEC, metrics={"loss": 0.1})
    assert checkpoint.read_card(folder).metrics == {"loss": 0.1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]


def test_folder_without_valid_manifest_does_not_exist(tmp_path):
    for step in (5, 10, 100):
        written(tmp_path / f"step_{step}")
    assert checkpoint.newest(tmp_path).name == "step_100"
    (tmp_path / "step_100" / "manifest.json").unlink()
    assert checkpoint.newest(tmp_path).name == "step_10"
    with (tmp_path / "step_10" / "policy.safetensors").open("ab") as file:
        file.truncate(50)
    assert checkpoint.newest(tmp_path).name == "step_5"
    assert checkpoint.find(tmp_path).name == "step_5"
    assert checkpoint.find(tmp_path / "step_5").name == "step_5"
    with pytest.raises(ValueError, match="is not a checkpoint.*manifest"):
        checkpoint.load_policy(tmp_path / "step_100")
    with pytest.raises(ValueError, match="policy.safetensors has 50 bytes"):
        checkpoint.load_policy(tmp_path / "step_10")
    with pytest.raises(ValueError, match="no checkpoint at"):
        checkpoint.find(tmp_path / "nowhere")


def test_changed_byte_is_found(tmp_path):
    written(tmp_path / "step_1")
    file = tmp_path / "step_1" / "policy.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        checkpoint.load_policy(tmp_path / "step_1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cameras", {"hand": (8, 8), "top": (8, 8)}),  # only the order
        ("cameras", {"top": (8, 8), "hand": (16, 16)}),
        ("action_convention", "osc_pose_delta"),
        ("proprio", {"y": "m", "x": "m"}),
        ("high", (1.0, 2.0)),
        ("actions", ("dy", "dx")),
    ],
)
def test_another_environment_is_refused(tmp_path, name, value):
    written(tmp_path / "step_1")
    other = dataclasses.replace(SPEC, **{name: value})
    with pytest.raises(ValueError, match=f"was trained with {name} = .* but environment .* has {name} = "):
        checkpoint.load_policy(tmp_path / "step_1", env=other)


def test_spare_cameras_are_accepted_where_policies_choose_their_own(tmp_path):
    written(tmp_path / "step_1")
    side, top, hand = ("side", (4, 6)), ("top", (8, 8)), ("hand", (8, 8))
    for there in ((top, hand, side), (side, top, hand), (top, side, hand)):
        more = dataclasses.replace(SPEC, cameras=dict(there))
        assert checkpoint.load_policy(tmp_path / "step_1", env=more, spare_cameras=True).spec.cameras == SPEC.cameras
        with pytest.raises(ValueError, match="was trained with cameras = .* has cameras = .*side"):
            checkpoint.load_policy(tmp_path / "step_1", env=more)
    for there in ((hand, side, top), (top, side), (side,), (top, ("hand", (4, 6)), side), (top, ("wrist", (8, 8)))):
        other = dataclasses.replace(SPEC, cameras=dict(there))
        with pytest.raises(ValueError, match="was trained with cameras = .* but environment .* has cameras = "):
            checkpoint.load_policy(tmp_path / "step_1", env=other, spare_cameras=True)
    other = dataclasses.replace(SPEC, cameras=dict((top, hand, side)), proprio={"y": "m", "x": "m"})
    with pytest.raises(ValueError, match="was trained with proprio = "):
        checkpoint.load_policy(tmp_path / "step_1", env=other, spare_cameras=True)


def test_other_tasks_are_accepted(tmp_path):
    written(tmp_path / "step_1")
    checkpoint.load_policy(tmp_path / "step_1", env=dataclasses.replace(SPEC, tasks=("blue",), max_steps=99))


def test_newer_format_and_changed_card_are_refused(tmp_path):
    folder = tmp_path / "step_1"
    written(folder)
    spec = make().spec.to_json()
    replace_in_card(folder, policy={**spec, "image_convention": "bgr"})
    with pytest.raises(ValueError, match="image_convention = bgr, .* image_convention = rgb_uint8_row0_top"):
        checkpoint.load_policy(folder)
    replace_in_card(folder, format=checkpoint.FORMAT + 1)
    with pytest.raises(ValueError, match=f"format {checkpoint.FORMAT + 1}, this version reads up to"):
        checkpoint.load_policy(folder)


def test_incomplete_card_is_named(tmp_path):
    folder = tmp_path / "step_1"
    written(folder)
    replace_in_card(folder, env={"env_id": "toy/reach"})
    with pytest.raises(ValueError, match="card.json lacks an entry .*cameras"):
        checkpoint.load_policy(folder)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("os.system", "is not allowed"),
        ("envs.install.install", "is not allowed in a checkpoint"),  # ours, but no model
        ("pretrained.checkpoint.subprocess", "is not a class or function of ours"),
        ("pretrained.checkpoint.Path", "is not a class or function of ours"),
    ],
)
def test_foreign_targets_are_refused(tmp_path, target, words):
    folder = tmp_path / "step_1"
    written(folder)
    replace_in_card(folder, node={"_target_": target, "command": "true"})
    with pytest.raises(ValueError, match=f"'{target}' {words}"):
        checkpoint.load_policy(folder)


def test_foreign_targets_inside_a_policy_are_refused_before_it_is_built(tmp_path):
    folder = tmp_path / "step_1"
    written(folder)
    replace_in_card(folder, node={**NODE, "kernel": {"parts": [{"_target_": "rl.finetune.finetune"}]}})
    with pytest.raises(ValueError, match=r"'rl.finetune.finetune' is not allowed in a checkpoint"):
        checkpoint.load_policy(folder)


def test_overrides_may_add_heads_but_nothing_else(tmp_path):
    folder = tmp_path / "step_1"
    policy = written(folder)
    loaded = checkpoint.load_policy(folder, overrides={"noise": True, "kernel": {"steps": 3}})
    assert set(loaded.load_report.fresh) == {"noise.weight", "noise.bias"}
    assert loaded.spec.links == 3
    assert torch.equal(loaded.actor.weight, policy.actor.weight)
    with pytest.raises(ValueError, match=r"actor.weight: the file has \[4, 2\], the policy \[6, 2\]"):
        checkpoint.load_policy(folder, overrides={"width": 6})


def test_missing_and_surplus_weights(tmp_path):
    folder = tmp_path / "step_1"
    with_noise = {**NODE, "noise": True}
    checkpoint.save(folder, make(with_noise), node=NODE, env=SPEC)
    with pytest.raises(ValueError, match="noise.weight: surplus in the file"):
        checkpoint.load_policy(folder)
    assert set(checkpoint.load_policy(folder, overrides={"width": 4}).load_report.dropped) == {
        "noise.weight",
        "noise.bias",
    }
    checkpoint.save(folder, make(), node=with_noise, env=SPEC)
    with pytest.raises(ValueError, match="noise.weight: missing in the file"):
        checkpoint.load_policy(folder)


def test_merge_replaces_nodes_of_another_target():
    node = {"kernel": {"_target_": "pretrained.a.A", "steps": 2, "sigma": 0.1}, "width": 1}
    assert checkpoint.merge(node, {"kernel": {"steps": 4}})["kernel"] == {
        "_target_": "pretrained.a.A",
        "steps": 4,
        "sigma": 0.1,
    }
    other = {"_target_": "pretrained.b.B"}
    assert checkpoint.merge(node, {"kernel": other})["kernel"] == other


def test_tied_weights_are_saved(tmp_path):
    policy = make()
    policy.twin = policy.actor
    checkpoint.save(tmp_path / "step_1", policy, node=NODE, env=SPEC)
    loaded = checkpoint.load_policy(tmp_path / "step_1", overrides={"width": 4})
    assert set(loaded.load_report.dropped) == {"twin.weight", "twin.bias"}
    assert torch.equal(loaded.actor.weight, policy.actor.weight)
