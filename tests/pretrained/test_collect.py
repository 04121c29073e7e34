"""Collection: the same file whoever finishes first, and whatever is killed on the way."""

import json
import os
import signal

import h5py
import numpy as np
import pytest

from envs.types import EnvError
from envs.vector import SimVector
from pretrained.demos import Demos, stored_spec
from pretrained.demos.collect import CollectRun, attempt_seed, collect
from pretrained.demos.libero import DemoWriter, read_file

SIM = {"_target_": "envs.toy.Toy", "size": [16, 16], "max_steps": 10}
TOY = {"_target_": "envs.types.EnvConfig", "sim": SIM, "tasks": []}


def settings(out, **kwargs):
    return CollectRun(**{"env": TOY, "out": str(out), "episodes": 6, "workers": 2, "quiet": True, **kwargs})


def content(path):
    """Everything in a demonstration file but what the time of day decides."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, node: found.update({name: node[()]} if isinstance(node, h5py.Dataset) else {}))
        for name in file["data"]:
            found[name + "@"] = dict(file["data"][name].attrs)
    return found


def assert_same(a, b):
    a, b = content(a), content(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_equal(a[name], b[name])


def test_episodes_are_replayable(tmp_path):
    """Starting from the recorded seed, the recorded actions lead to the recorded pictures and to success."""
    from envs.toy import Toy

    path = collect(settings(tmp_path / "a.hdf5", noise=0.3, label="executed", seed=2))
    spec = stored_spec(path)
    toy = Toy(size=(16, 16), max_steps=10)
    assert spec == toy.spec
    episodes = read_file(path, env=spec)
    assert len(episodes) == 6
    with h5py.File(path) as file:
        tasks = [str(file["data"][e.name].attrs["task"]) for e in episodes]
        seeds = [int(file["data"][e.name].attrs["seed"]) for e in episodes]
        full = [file["data"][e.name]["actions"][()] for e in episodes]
        states = [file["data"][e.name]["states"][()] for e in episodes]
    assert sorted(tasks) == ["blue"] * 3 + ["red"] * 3
    for episode, task, seed, actions, state in zip(episodes, tasks, seeds, full, states, strict=True):
        obs, images = toy.reset(task, seed), episode.images("top")
        for t, action in enumerate(actions):
            np.testing.assert_array_equal(obs.images["top"], images[t])
            np.testing.assert_array_equal(obs.proprio, episode.proprio[t])
            np.testing.assert_array_equal(obs.privileged["state"], state[t])
            step = toy.step(action)
            obs = step.obs
        assert step.success
        assert episode.instruction == f"reach the {task} target"


def test_clean_labels_differ_from_what_was_executed(tmp_path):
    path = collect(settings(tmp_path / "a.hdf5", noise=0.5, episodes=2))
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        clean, executed, state = demo["actions"][()], demo["executed_actions"][()], demo["states"][()]
        task = demo.attrs["task"]
    target = state[:, 2:4] if task == "red" else state[:, 4:6]
    np.testing.assert_allclose(clean, np.clip((target - state[:, :2]) / 0.15, -1, 1), atol=1e-9)
    assert np.abs(clean - executed).mean() > 0.1
    assert np.abs(executed).max() <= 1


def test_independent_of_workers_and_order(tmp_path):
    # With this much noise and ten steps, some attempts fail, so the filter and the quotas are exercised.
    one = collect(settings(tmp_path / "one.hdf5", noise=1.5, workers=1, seed=4))
    many = collect(settings(tmp_path / "many.hdf5", noise=1.5, workers=5, seed=4))
    assert_same(one, many)
    said = [json.loads(p.with_suffix(".json").read_text()) for p in (one, many)]
    assert said[0]["attempts"] == said[1]["attempts"]
    assert "failure" in said[0]["attempts"].values()
    assert said[0]["success_rate"] < 1
    assert said[0]["seeds"] == {k: attempt_seed(4, int(k)) for k, o in said[0]["attempts"].items() if o == "success"}


def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    whole = collect(settings(tmp_path / "whole.hdf5", noise=1.5))
    real, notes = DemoWriter.note, []

    def dies(self, attempt, outcome):
        notes.append(attempt)
        if len(notes) == 4:
            raise KeyboardInterrupt  # after the episode was stored, before it was noted
        real(self, attempt, outcome)

    monkeypatch.setattr(DemoWriter, "note", dies)
    with pytest.raises(KeyboardInterrupt):
        collect(settings(tmp_path / "cut.hdf5", noise=1.5))
    assert not (tmp_path / "cut.hdf5").exists()
    monkeypatch.setattr(DemoWriter, "note", real)
    cut = collect(settings(tmp_path / "cut.hdf5", noise=1.5))
    assert_same(whole, cut)
    assert not list(tmp_path.glob("*.parts"))


def test_finished_collection_is_not_repeated_but_can_grow(tmp_path, monkeypatch):
    path = collect(settings(tmp_path))
    assert path == tmp_path / "demo.hdf5"
    stamp = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("pretrained.demos.collect.SimVector", None)  # not even started
        assert collect(settings(tmp_path)).stat().st_mtime_ns == stamp
    first = content(path)
    grown = content(collect(settings(tmp_path, episodes=8)))
    assert sum(name.endswith("@") for name in grown) == 8
    for name in first:
        np.testing.assert_equal(first[name], grown[name])
    with pytest.raises(ValueError, match="was begun with noise = 0.0, now noise = 0.2; choose another 'out'"):
        collect(settings(tmp_path, noise=0.2))


def test_failures_can_be_kept(tmp_path):
    path = collect(settings(tmp_path / "a.hdf5", noise=1.5, seed=4, keep_failures=True))
    with h5py.File(path) as file:
        success = [bool(file["data"][k].attrs["success"]) for k in file["data"]]
    assert success.count(True) == 6
    assert success.count(False) > 0


def test_crashing_simulator_is_counted_apart(tmp_path):
    """The attempt whose seed crashes is given up after a few tries; the others are kept."""
    sim = {**SIM, "crash_at": 2, "fault_seed": attempt_seed(0, 1)}
    path = collect(settings(tmp_path / "a.hdf5", env={"sim": sim}, episodes=4))
    said = json.loads(path.with_suffix(".json").read_text())
    assert said["attempts"]["1"] == "simulator_failed"
    assert said["simulator_failures"] == 3
    assert said["success_rate"] == 1.0
    assert said["demos"] == 4


def test_a_child_killed_from_outside_changes_nothing(tmp_path, monkeypatch):
    env = {"sim": {**SIM, "step_ms": 2.0}}
    whole = collect(settings(tmp_path / "whole.hdf5", env=env))
    calls, real = [], SimVector.wait

    def wait(self):
        calls.append(self)
        if len(calls) == 12:
            os.kill(self.pids()[0], signal.SIGKILL)
        return real(self)

    monkeypatch.setattr(SimVector, "wait", wait)
    hurt = collect(settings(tmp_path / "hurt.hdf5", env=env))
    assert_same(whole, hurt)
    assert json.loads(hurt.with_suffix(".json").read_text())["simulator_failures"] == 1


def test_hopeless_expert_is_reported(tmp_path):
    hard = {"sim": {**SIM, "max_steps": 1}}
    with pytest.raises(RuntimeError, match=r"succeeded in 0 of 5 attempts at '(red|blue)', expected 3 successes"):
        collect(settings(tmp_path / "a.hdf5", env=hard, max_attempts=5))
    assert not (tmp_path / "a.hdf5").exists()


def test_discrete_actions_are_a_column(tmp_path):
    env = {"sim": {"_target_": "envs.toy.Toy", "name": "reach_discrete", "size": [16, 16]}}
    path = collect(settings(tmp_path / "a.hdf5", env=env, episodes=2))
    batch = Demos(path, env=stored_spec(path), horizon=1).batch([0, 1])
    assert batch.actions.shape == (2, 1, 1)
    assert set(batch.actions.flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="label = 'dirty' is unknown; expected one of"):
        settings(tmp_path, label="dirty")
    with pytest.raises(ValueError, match="episodes = 0"):
        settings(tmp_path, episodes=0)
    with pytest.raises(EnvError):
        collect(settings(tmp_path, env={"sim": {**SIM, "tasks": ["green"]}}))
