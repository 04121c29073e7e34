"""The arrows, sizes and habits of the house, read from the source with `ast`."""

import ast
import graphlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("envs", "pretrained", "rl", "configs", "launch")
MAY_IMPORT = {  # folder -> folders of ours that it may import
    "envs": {"envs"},
    "pretrained": {"pretrained", "envs"},
    "rl": {"rl", "pretrained", "envs"},
    "configs": {"configs"},
    "launch.py": set(OURS) - {"launch"},
}
SIMULATORS = {
    "robosuite",
    "libero",
    "mujoco",
    "bddl",
    "calvin_env",
    "pybullet",
    "rlbench",
    "pyrep",
    "ai2thor",
    "metaworld",
}
CHILD_FREE = {
    "envs/alive.py",
    "envs/restarts.py",
    "envs/vector.py",
    "envs/gym_env.py",
    "envs/spaces.py",
    "envs/install.py",
    "envs/record.py",
    "envs/film.py",
}  # never imported in a simulator's interpreter
CHILD_NEEDS = {"envs", "numpy"}  # besides the standard library and, inside functions, the simulator


def _sources() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split() if listed.returncode == 0 else []
    names = names or [str(p.relative_to(ROOT)) for folder in OURS for p in (ROOT / folder).rglob("*.py")]
    return sorted(n for n in names if (ROOT / n).exists() and n.split("/")[0] in (*OURS[:-1], "launch.py"))


SOURCES = _sources()
TREES = {name: ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in SOURCES}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def imports(node: ast.AST, *, inside: bool = False) -> list[tuple[str, int, bool]]:
    """(module, line, whether inside a function) of every import that runs; those for type checkers do not."""
    found: list[tuple[str, int, bool]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [(alias.name, child.lineno, inside) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            found += [(f"{child.module}.{alias.name}", child.lineno, inside) for alias in child.names]
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        else:
            found += imports(child, inside=inside or isinstance(child, FUNCTIONS))
    return found


IMPORTS = {name: imports(tree) for name, tree in TREES.items()}


def test_there_is_something_to_check() -> None:
    assert {"envs/types.py", "pretrained/types.py", "rl/types.py", "configs/load.py", "launch.py"} <= set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_arrows(name: str) -> None:
    folder = name.split("/")[0]
    for module, line, _ in IMPORTS[name]:
        package = module.split(".")[0]
        if package in OURS:
            assert package in MAY_IMPORT[folder], f"{name}:{line} imports {module}: against the arrow"
        if package == "ray":
            assert folder == "rl", f"{name}:{line}: only rl/ imports ray"
        if package in ("hydra", "omegaconf"):
            assert name == "configs/load.py", f"{name}:{line}: only configs/load.py imports {package}"


@pytest.mark.parametrize("name", SOURCES)
def test_simulators_are_imported_in_functions_of_envs(name: str) -> None:
    for module, line, inside in IMPORTS[name]:
        if module.split(".")[0] in SIMULATORS:
            assert name.startswith("envs/"), f"{name}:{line}: only adapters import {module}"
            assert inside, f"{name}:{line}: import {module} inside the function that needs it"


def test_no_file_leads_back_to_itself() -> None:
    """Imports for type checkers count, too: two files that know each other are one that was cut in the wrong place."""
    files = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in SOURCES}
    arrows: dict[str, set[str]] = {}
    for name, tree in TREES.items():
        taken = [f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
        ends = [files.get(t) or files.get(t.rpartition(".")[0]) for t in taken]
        arrows[name] = {end for end in ends if end and end != name}
    assert sum(map(len, arrows.values())) > len(SOURCES)
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def _child_files() -> list[str]:
    """Files of envs/ that a child imports: those that a worker or an adapter reaches, and all of the adapters."""
    return [n for n in SOURCES if n.startswith("envs/") and n not in CHILD_FREE]


@pytest.mark.parametrize("name", _child_files())
def test_child_files_speak_python_38(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 8))
    if re.search(r"\w \| \w|\b(dict|list|tuple|type)\[", text):
        assert "from __future__ import annotations" in text, f"{name}: needs the annotations import for Python 3.8"
    assert "strict=" not in re.sub(r"#.*", "", text) or "zip(" not in text, f"{name}: zip(strict=) is not in Python 3.8"


@pytest.mark.parametrize("name", _child_files())
def test_child_files_need_numpy_alone(name: str) -> None:
    import sys

    known = set(sys.stdlib_module_names) | CHILD_NEEDS
    for module, line, inside in IMPORTS[name]:
        assert inside or module.split(".")[0] in known, f"{name}:{line} imports {module} at its top level"


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith("rl/")])
def test_learning_mathematics_run_without_ray(name: str) -> None:
    if name in ("rl/engine.py", "rl/placement.py", "rl/plain.py", "rl/shells.py"):
        return
    for module, line, inside in IMPORTS[name]:
        with_ray = ("rl.engine", "rl.placement", "rl.plain", "rl.shells")
        known = module.split(".")[0] != "ray" and not module.startswith(with_ray)
        assert inside or known, f"{name}:{line}: {module} pulls in ray"


@pytest.mark.parametrize("name", SOURCES)
def test_sizes(name: str) -> None:
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{name} has {lines} lines; split it (limit 400)"
    for node in ast.walk(TREES[name]):
        if isinstance(node, FUNCTIONS):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{name}:{node.lineno} {node.name} has {length} lines; split it (limit 60)"


@pytest.mark.parametrize("name", [n for n in SOURCES if n != "launch.py"])
def test_only_launch_prints(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name}:{node.lineno} prints; use logging or pretrained.progress"


@pytest.mark.parametrize("name", SOURCES)
def test_habits(name: str) -> None:
    assert Path(name).name not in ("utils.py", "helpers.py", "misc.py", "common.py")
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name}:{node.lineno}: a bare except also swallows interrupts"
        if isinstance(node, FUNCTIONS):
            for default in (*node.args.defaults, *node.args.kw_defaults):
                assert not isinstance(default, ast.List | ast.Dict | ast.Set), f"{name}:{node.lineno}: mutable default"


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_unpickled(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            call, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert not call.startswith(("pickle.load", "dill.", "joblib.load")), f"{name}:{node.lineno} unpickles"
            assert call != "torch.load" or keywords.get("weights_only") == "True", f"{name}:{node.lineno} unpickles"
            assert keywords.get("allow_pickle", "False") == "False", f"{name}:{node.lineno} unpickles"
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases):
            methods = {n.name for n in node.body if isinstance(n, FUNCTIONS)}
            assert "find_class" in methods, f"{name}:{node.lineno} {node.name} would import anything"


def test_every_public_thing_has_a_docstring() -> None:
    missing = []
    for name, tree in TREES.items():
        if not ast.get_docstring(tree) and tree.body:
            missing.append(name)
        missing += [
            f"{name}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name[0] != "_" and not ast.get_docstring(node)
        ]
    assert not missing, missing


def test_no_machine_paths() -> None:
    for name in SOURCES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"[\"' ]/(tmp|home|root|mnt|work)/\w", text), f"{name} names a path of one machine"


def test_recipes_and_yaml_files() -> None:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert files
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40, f"{path.name} has {len(lines)} lines (limit 40)"
        assert len(path.relative_to(ROOT / "configs").parts) <= 2, f"{path}: groups are one level deep"
        if path.parent.name in ("run", "cluster"):
            assert lines[0] == "# @package _global_", f"{path.name} lacks its package header"
