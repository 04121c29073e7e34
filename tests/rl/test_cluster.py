"""What clusters are handed: scripts that bash reads, manifests with fields that KubeRay and Ray know, and tokens."""

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import launch
from configs.load import CONFIGS, choices, load, place
from rl.access import demand_token, local
from rl.cluster import KubeRay, NodeGroup, RayUp, made, render

ROOT = Path(launch.__file__).parent
COMMAND = [".venv/bin/python", "launch.py", "finetune", "env.tasks=[a b]", "cluster=attached"]
FAR = ("cloud", "existing", "kuberay", "own_machines", "slurm")
FILL = {
    "own_machines": ["cluster.user=me", "cluster.provider.head_ip=10.0.0.1", "cluster.provider.worker_ips=[10.0.0.2]"]
}
RAY_FIELDS = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
JOB_FIELDS = {"entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
              "rayClusterSpec"}  # fmt: skip


@pytest.fixture(scope="module")
def clusters() -> dict[str, Any]:
    """Every cluster that is elsewhere, built from its YAML file."""
    return {name: made(place("finetune", [f"cluster={name}", *FILL.get(name, [])])) for name in FAR}


def text_of(cluster: Any) -> str:
    (text,) = cluster.files("temper-run", COMMAND).values()
    return text


def test_every_file_is_one_or_the_other() -> None:
    """Those with a `cluster` node are elsewhere; the others are settings of the verbs, for here."""
    elsewhere = {p.stem for p in (CONFIGS / "cluster").glob("*.yaml") if "cluster" in yaml.safe_load(p.read_text())}
    assert elsewhere == set(FAR)
    assert {"attached", "laptop", "single_process", "workstation"} == set(choices("cluster")) - elsewhere


def test_the_run_is_the_same_wherever_it_goes() -> None:
    here, there = (load("finetune", [f"cluster={name}", "env=toy"]) for name in ("slurm", "attached"))
    assert {k for k in there if there[k] != here.get(k)} <= {"ray_address", "engine", "logger"}
    assert there["ray_address"] == "auto"


def test_slurm_script(clusters: dict[str, Any]) -> None:
    script = text_of(clusters["slurm"])
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(asked)] == asked  # Slurm stops reading at the first command
    assert {"#SBATCH --nodes=4", "#SBATCH --gpus-per-node=1"} <= set(asked)
    assert "export RAY_AUTH_MODE=token" in script
    assert "--dashboard-host=127.0.0.1" in script
    assert script.rstrip().endswith(".venv/bin/python launch.py finetune 'env.tasks=[a b]' cluster=attached")
    assert script.count("ray start") == 2


def test_slurm_token_is_for_its_owner_alone(clusters: dict[str, Any], tmp_path: Path) -> None:
    """The lines that make it, run."""
    lines = [line for line in text_of(clusters["slurm"]).splitlines() if "RAY_AUTH_TOKEN_PATH" in line][:2]
    environment = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], env=environment, check=True)
    token = tmp_path / ".ray_token_7"
    assert token.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[A-Za-z0-9]{32,}", token.read_text())


def test_kuberay_manifest(clusters: dict[str, Any]) -> None:
    manifest = yaml.safe_load(text_of(clusters["kuberay"]))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert set(manifest["spec"]) == JOB_FIELDS
    spec = manifest["spec"]["rayClusterSpec"]
    assert set(spec) == RAY_FIELDS
    assert spec["authOptions"] == {"mode": "token"}
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert spec["rayVersion"] == pinned[1]
    for group in spec["workerGroupSpecs"]:
        assert set(group) == GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    simulators, learners = spec["workerGroupSpecs"]
    # KubeRay puts the value into a shell command: one level of quotes is the shell's.
    assert json.loads(json.loads(simulators["rayStartParams"]["resources"])) == {"simulators": 16}
    assert learners["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["enableInTreeAutoscaling"]


@pytest.mark.parametrize("name", ["cloud", "own_machines"])
def test_ray_up_files_fit_ray_s_own_schema(clusters: dict[str, Any], name: str) -> None:
    from ray.autoscaler._private.docker import docker_start_cmds

    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    content = yaml.safe_load(text_of(clusters[name]))
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "docker": {"imagee": "x"}}, schema)
    for command in (*content["head_start_ray_commands"], *content["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][0]
    command = docker_start_cmds(
        "root", "temper", {}, "temper", content["docker"]["run_options"], "c", "/root", "docker"
    )
    words = shlex.split(command)
    assert words[-2:] == ["temper", "bash"]
    assert "--entrypoint=" in words  # the image's own would take `bash` for a verb
    if name == "cloud":
        types = content["available_node_types"]
        assert types[content["head_node_type"]]["resources"]["CPU"] == 0  # work goes to the workers
        assert types["simulators"]["max_workers"] == 8
        assert content["max_workers"] >= max(t["max_workers"] for t in types.values())


def test_the_command_line_writes_and_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "cluster=slurm", "cluster.group.nodes=2", "env=toy", f"out={tmp_path / 'run'}"]
    assert launch.main([*words, "--dry"]) == 0
    assert "#SBATCH --nodes=2" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert launch.main(words) == 0
    said = capsys.readouterr().out
    script = tmp_path / "run" / "cluster" / "temper-run.sbatch"
    assert f"sbatch {script}" in said
    assert f"launch.py finetune env=toy out={tmp_path / 'run'} cluster=attached" in script.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster=slurm", "cluster.tme=1"], "unknown key 'cluster.tme'"),
        (["cluster=slurm", "cluster.group.cpus=0"], "cpus and memory_gib of at least 1"),
        (["cluster=laptop", "cluster.time=1"], "runs here and has no such key"),
        (["cluster=own_machines"], "has no value"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["finetune", *words]) == 2
    assert message in capsys.readouterr().err


def test_jobs_leave_out_what_is_large(clusters: dict[str, Any], tmp_path: Path) -> None:
    texts, commands = render(clusters["existing"], verb="sweep", words=["cluster=existing", "a=1"], out=tmp_path / "s")
    assert {"/runs", "/.venv", "/.git"} <= set(yaml.safe_load(next(iter(texts.values())))["excludes"])
    assert commands[0][-5:] == ["python", "launch.py", "sweep", "a=1", "cluster=attached"]


@pytest.mark.parametrize("name", ["cloud", "kuberay"])
def test_processes_go_to_the_nodes_that_are_meant_for_them(clusters: dict[str, Any], name: str, tmp_path: Path) -> None:
    """What is asked for exists on some group of nodes, the command takes it, and the user's words win."""
    offered = {r for g in clusters[name].groups for r in g.resources}

    def inside(verb: str, *words: str) -> dict[str, Any]:
        texts, commands = render(clusters[name], verb=verb, words=[f"cluster={name}", *words], out=tmp_path / "run")
        command = yaml.safe_load(next(iter(texts.values())))["spec"]["entrypoint"] if name == "kuberay" else ""
        given = shlex.split(command or commands[-1][-1].partition("RAY_AUTH_MODE=token ")[2])
        assert given[1:3] == ["launch.py", verb]
        return load(verb, given[3:])

    run = inside("finetune", "env=toy", "num_learners=2")
    assert set(run["worker_resources"]) | set(run["learner_resources"]) == offered == {"simulators", "learner"}
    assert run["num_learners"] == 2
    assert inside("finetune", "env=toy")["num_learners"] == 1
    assert inside("sweep", "env=toy")["resources"] == {"simulators": 1}
    assert "resources" not in inside("evaluate", "env=toy")


def test_words_of_a_shell_stay_words() -> None:
    nasty = ["python", "launch.py", "finetune", "out=runs/$(touch x); rm -rf y"]
    head = NodeGroup("head", 1, 1)
    job = yaml.safe_load(next(iter(KubeRay("i", head, [], "1").files("r", nasty).values())))
    assert subprocess.run(["bash", "-c", f"printf '%s\\n' {job['spec']['entrypoint']}"], capture_output=True,
                          text=True, check=True).stdout.splitlines() == nasty  # fmt: skip
    assert (
        "'out=runs/$(touch x); rm -rf y'" in RayUp({"type": "aws"}, "u", "i", head).submit("r", Path("f"), nasty)[1][-1]
    )


# --- who may talk to a cluster ---


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.0.1:6379", True), ("localhost:6379", True), ("[::1]:6379", True), ("ray://127.0.0.1:10001", True),
     ("", True), ("local", True), ("10.0.0.1:6379", False), ("ray://head:10001", False), ("auto", False)],
)  # fmt: skip
def test_what_is_local(address: str, here: bool) -> None:
    assert local(address) is here


def test_a_token_is_demanded_elsewhere(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    assert demand_token("127.0.0.1:6379", environment, tmp_path) == ""
    assert environment == {}
    with pytest.raises(ValueError, match="no token for it.*ray get-auth-token"):
        demand_token("10.0.0.1:6379", environment, tmp_path)
    assert environment == {"RAY_AUTH_MODE": "token"}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert demand_token("10.0.0.1:6379", environment, tmp_path) == ""
    assert "secret" not in environment.values()
    assert "can run code on it" in demand_token("10.0.0.1:6379", {"RAY_AUTH_MODE": "disabled"}, tmp_path)
    with pytest.raises(ValueError, match="expected token, or disabled"):
        demand_token("10.0.0.1:6379", {"RAY_AUTH_MODE": "tokn"}, tmp_path)


def test_a_run_is_refused_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # and taken away again afterwards
    assert launch.main(["finetune", "env=toy", "ray_address=10.0.0.1:6379"]) == 2
    assert "no token for it" in capsys.readouterr().err
