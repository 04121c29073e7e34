"""Every YAML file composes and fits its class; mistakes get one clear message."""

from pathlib import Path

import pytest
import yaml

from configs.load import CONFIGS, STAGES, choices, load, verbs
from configs.schema import fits, parameters

FILES = sorted(CONFIGS.rglob("*.yaml"))
NODE_GROUPS = ("env", "algo", "policy", "proposal", "reward")


def nodes(value: object) -> list[dict]:
    """All nodes with a `_target_` in plain data."""
    if isinstance(value, dict):
        own = [value] if "_target_" in value else []
        return own + [n for v in value.values() for n in nodes(v)]
    return [n for v in value for n in nodes(v)] if isinstance(value, list) else []


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration folder with one verb, one group and one recipe, on classes that need no simulator."""
    files = {
        "groups.yaml": "defaults: [{env: toy}, {run: null}]",
        "go.yaml": "defaults: [groups, _self_]\n_target_: envs.types.EnvConfig\nstep_deadline_s: 3.0\npython: root",
        "env/toy.yaml": "# @package sim\n_target_: envs.toy.Toy\nname: reach\nmax_steps: 9",
        "env/discrete.yaml": "# @package sim\n_target_: envs.toy.Toy\nname: reach_discrete",
        "run/slow.yaml": "# @package _global_\ndefaults: [{override /env: discrete}]\n"
        "open_deadline_s: 7.0\nsim: {step_ms: 1.5}\ngo: {python: section}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_compose_layers_in_order(tiny: Path) -> None:
    assert load("go", [], tiny) == {
        "_target_": "envs.types.EnvConfig",
        "step_deadline_s": 3.0,
        "python": "root",
        "sim": {"_target_": "envs.toy.Toy", "name": "reach", "max_steps": 9},
    }
    tree = load("go", ["run=slow", "step_deadline_s=1", "sim.size=[8,8]"], tiny)
    assert tree["sim"] == {"_target_": "envs.toy.Toy", "name": "reach_discrete", "step_ms": 1.5, "size": [8, 8]}
    assert (tree["python"], tree["open_deadline_s"], tree["step_deadline_s"]) == ("section", 7.0, 1)
    assert load("go", ["run=slow", "env=toy"], tiny)["sim"]["name"] == "reach"  # the command line wins


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sim.max_step=3"], ["unknown key 'sim.max_step' in 'sim.max_step=3'", "did you mean 'max_steps'?"]),
        (["pythn=x"], ["unknown key 'pythn'", "did you mean 'python'?"]),
        (["sim.max_steps=many"], ["'sim.max_steps' is 'many' (str)", "expected int", "'sim.max_steps=many'"]),
        (["step_deadline_s=true"], ["'step_deadline_s' is True (bool)", "expected float"]),
        (["env=toi"], ["no configs/env/toi.yaml", "did you mean 'toy'?"]),
        (["run=fast"], ["no configs/run/fast.yaml", "slow"]),
        (["nonsense"], ["cannot read 'nonsense'", "key=value"]),
        (["step_deadline_s=1,2"], ["lists several values"]),
        (["sim._target_=os.system"], ["is not allowed", "envs., pretrained., rl."]),
        (["sim._target_=envs.toy.Toi"], ["module 'envs.toy' has no 'Toi'", "did you mean 'Toy'?"]),
        (["sim._target_=envs.child.subprocess"], ["is not a class of ours"]),
        (["sim._target_=envs.cache.Path"], ["is not a class of ours"]),  # it has only been imported there
        (["sim._target_=envs.toi.Toy"], ["no module 'envs.toi'"]),
        (["step_deadline_s=???"], ["'step_deadline_s' has no value"]),
        (["~sim.nothing"], ["no such key"]),
    ],
)
def test_mistakes_name_culprit_and_fix(tiny: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load("go", overrides, tiny)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistake_in_a_file_names_the_file(tiny: Path) -> None:
    (tiny / "env" / "toy.yaml").write_text("# @package sim\n_target_: envs.toy.Toy\nhodl: 3")
    with pytest.raises(ValueError, match=r"'sim.hodl' in configs/env/toy.yaml; did you mean 'hold'\?"):
        load("go", [], tiny)
    (tiny / "run" / "slow.yaml").write_text("# @package _global_\ngo: {pyton: x}")
    with pytest.raises(ValueError, match=r"'pyton' in configs/run/slow.yaml; did you mean 'python'\?"):
        load("go", ["run=slow", "env=discrete"], tiny)


def test_unknown_verb() -> None:
    with pytest.raises(ValueError, match="unknown verb 'finetun'; did you mean 'finetune'"):
        load("finetun")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (True, int, False),
        (1.5, int, False),
        (None, int | None, True),
        ("a", list[str], False),
        (["a", 1], list[str], False),
        ([1, 2], tuple[int, ...], True),
        ([1, 2, 3], tuple[int, int], False),
        ({"a": 1}, dict[str, int], True),
        ("runs/x", Path, True),
        ({"_target_": "x"}, Path, True),
    ],
)
def test_fits(value: object, hint: object, expected: bool) -> None:
    assert fits(value, hint) is expected


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_file_fits_its_class(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    for node in nodes(yaml.safe_load(text)):
        known = parameters(node["_target_"], str(path))
        for key, value in node.items():
            if key not in ("_target_", "defaults"):
                assert key in known, f"{path}: {key} is not a parameter of {node['_target_']}"
                assert fits(value, known[key]), f"{path}: {key}={value!r} is not {known[key]}"


@pytest.mark.parametrize("name", choices("run"))
def test_recipe_composes_for_every_verb(name: str) -> None:
    assert (CONFIGS / "run" / f"{name}.yaml").read_text().startswith("# @package _global_\n")
    for verb in verbs():
        assert load(verb, [f"run={name}"])["_target_"]


@pytest.mark.parametrize("group", NODE_GROUPS)
def test_every_choice_composes(group: str) -> None:
    assert choices(group)
    for choice in choices(group):
        load("finetune", [f"{group}={choice}"])


def test_demo_holds_one_complete_tree_per_stage(tiny: Path) -> None:
    for verb in ("demo", *STAGES):
        (tiny / f"{verb}.yaml").write_text("defaults: [groups, _self_]\n_target_: envs.types.EnvConfig\npython: root")
    (tiny / "run" / "demo.yaml").write_text("# @package _global_\nsim: {hold: 5}\ncollect: {python: section}")
    words = ["python=own", "pretrain.python=typed", "sim.max_steps=3", "env=discrete"]
    tree = load("demo", words, tiny)
    assert tree["python"] == "own"
    assert [tree[stage]["python"] for stage in STAGES] == ["section", "typed", "root", "root"]
    for stage in STAGES:
        assert tree[stage]["sim"] == {"_target_": "envs.toy.Toy", "name": "reach_discrete", "hold": 5, "max_steps": 3}
    with pytest.raises(ValueError, match="did you mean 'python'"):
        load("demo", ["collect.pythn=x"], tiny)
