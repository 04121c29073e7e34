"""From one configuration group to what each kind of cluster reads: a Slurm script, a KubeRay job, a `ray up` file.

`launch.py finetune cluster=slurm ...` writes the files into `<out>/cluster/` and says how to hand them in. Inside the
cluster the same command runs with `cluster=attached`, after the words that the configuration asks for, so that
simulators run on nodes with the custom resource `simulators`, learners on those with `learner` (rl/placement.py).
Every kind switches Ray's token authentication on.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from envs.build import build

TOKEN = ".ray/auth_token"  # in the home folder; where Ray looks for it
ATTACHED = "cluster=attached"
PORT = 6379


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind."""

    name: str
    cpus: int
    memory_gib: int
    nodes: int = 1
    most: int = 0  # nodes that autoscaling may go up to; 0: no autoscaling
    gpus: int = 0
    resources: Mapping[str, int] = field(default_factory=dict)  # of Ray, e.g. simulators: 16
    node: Mapping[str, Any] = field(default_factory=dict)  # the provider's own words, e.g. InstanceType

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.memory_gib < 1 or self.nodes < 0 or (self.most and self.most < self.nodes):
            raise ValueError(f"nodes '{self.name}': expected cpus and memory_gib of at least 1, and nodes <= most")


class Cluster(Protocol):
    """What can be written down and handed in."""

    @property
    def asks(self) -> Mapping[str, Sequence[str]]:
        """Verb -> words that its command begins with, so that processes go to the nodes that are meant for them."""
        ...

    def files(self, name: str, command: Sequence[str]) -> dict[str, str]:
        """File name -> content; the first one is handed in."""
        ...

    def submit(self, name: str, folder: Path, command: Sequence[str]) -> list[list[str]]:
        """The commands that hand it in, in order."""
        ...


@dataclass(frozen=True)
class Existing:
    """A Ray cluster that is there: the working tree and the command go to its job server."""

    address: str  # of the dashboard, e.g. http://head:8265
    exclude: Sequence[str] = ("runs", ".venv", ".venvs", ".git")
    asks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def files(self, name: str, command: Sequence[str]) -> dict[str, str]:
        """The runtime environment of the job."""
        environment = {"working_dir": ".", "excludes": [f"/{e}" for e in self.exclude],
                       "env_vars": {"MUJOCO_GL": "osmesa", "OMP_WAIT_POLICY": "PASSIVE"}}  # fmt: skip
        return {"runtime_env.yaml": yaml.safe_dump(environment, sort_keys=False)}

    def submit(self, name: str, folder: Path, command: Sequence[str]) -> list[list[str]]:
        """`ray job submit`."""
        environment = str(folder / "runtime_env.yaml")
        return [["ray", "job", "submit", "--address", self.address, "--runtime-env", environment, "--", *command]]


@dataclass(frozen=True)
class Slurm:
    """A batch script: a head on the first node, workers on the others, and the command beside the head."""

    group: NodeGroup
    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    setup: Sequence[str] = ()  # lines before anything else, e.g. `module load cuda`
    options: Sequence[str] = ()  # further #SBATCH options
    asks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def files(self, name: str, command: Sequence[str]) -> dict[str, str]:
        """The script."""
        g = self.group
        asked = [f"--job-name={name}", f"--nodes={g.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={g.cpus}",
                 f"--mem={g.memory_gib}G", f"--time={self.time}", f"--output={name}-%j.log"]  # fmt: skip
        asked += [f"--gpus-per-node={g.gpus}"] if g.gpus else []
        asked += [f"--partition={self.partition}"] if self.partition else []
        asked += [f"--account={self.account}"] if self.account else []
        resources = shlex.quote(json.dumps(dict(g.resources)))
        start = f"--num-cpus={g.cpus} --num-gpus={g.gpus} --resources={resources} --disable-usage-stats --block"
        lines = ["#!/bin/bash", *(f"#SBATCH {o}" for o in [*asked, *self.options]), "set -euo pipefail", *self.setup]
        return {f"{name}.sbatch": "\n".join([*lines, *_slurm_body(start, g.nodes, shlex.join(command))]) + "\n"}

    def submit(self, name: str, folder: Path, command: Sequence[str]) -> list[list[str]]:
        """`sbatch`."""
        return [["sbatch", str(folder / f"{name}.sbatch")]]


@dataclass(frozen=True)
class KubeRay:
    """A RayJob (KubeRay 1.5.1 or newer): the cluster lives as long as the job."""

    image: str
    head: NodeGroup
    groups: Sequence[NodeGroup]
    ray_version: str
    namespace: str = "default"
    shm_gib: int = 8
    claim: str = ""  # a PersistentVolumeClaim mounted at runs/, for checkpoints that outlive the job
    asks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def files(self, name: str, command: Sequence[str]) -> dict[str, str]:
        """The manifest."""
        head = {"rayStartParams": {"num-cpus": "0"}, "template": self._pod(self.head, "head")}
        workers = [
            {
                "groupName": g.name,
                "replicas": g.nodes,
                "minReplicas": g.nodes,
                "maxReplicas": g.most or g.nodes,
                "rayStartParams": {"resources": json.dumps(json.dumps(dict(g.resources)))} if g.resources else {},
                "template": self._pod(g, "worker"),
            }
            for g in self.groups
        ]
        spec = {
            "rayVersion": self.ray_version,
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": any(g.most > g.nodes for g in self.groups),
            "headGroupSpec": head,
            "workerGroupSpecs": workers,
        }
        manifest = {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": name.replace("_", "-").lower(), "namespace": self.namespace},
            "spec": {
                "entrypoint": shlex.join(command),
                "submissionMode": "K8sJobMode",
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": 600,
                "backoffLimit": 3,  # a job that is started again continues from its newest checkpoint
                "rayClusterSpec": spec,
            },
        }
        return {"rayjob.yaml": yaml.safe_dump(manifest, sort_keys=False)}

    def submit(self, name: str, folder: Path, command: Sequence[str]) -> list[list[str]]:
        """`kubectl apply`."""
        return [["kubectl", "apply", "--filename", str(folder / "rayjob.yaml")]]

    def _pod(self, g: NodeGroup, role: str) -> dict[str, Any]:
        amount = {
            "cpu": str(g.cpus),
            "memory": f"{g.memory_gib}Gi",
            **({"nvidia.com/gpu": str(g.gpus)} if g.gpus else {}),
        }
        mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
        volumes: list[dict[str, Any]] = [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{self.shm_gib}Gi"}}
        ]
        if self.claim:
            mounts.append({"name": "runs", "mountPath": "/temper/runs"})
            volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}})
        container = {
            "name": f"ray-{role}",
            "image": self.image,
            "resources": {"limits": amount, "requests": dict(amount)},
            "securityContext": {"allowPrivilegeEscalation": False},
            "volumeMounts": mounts,
        }
        return {"spec": {"automountServiceAccountToken": role == "head", "containers": [container], "volumes": volumes}}


@dataclass(frozen=True)
class RayUp:
    """A file for `ray up`: in a cloud by node types, or on machines of one's own (`provider.type: local`)."""

    provider: Mapping[str, Any]
    user: str
    image: str
    head: NodeGroup
    groups: Sequence[NodeGroup] = ()
    idle_minutes: int = 10  # before autoscaling gives a node back
    shm_gib: int = 8
    asks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def files(self, name: str, command: Sequence[str]) -> dict[str, str]:
        """The cluster file."""
        start = "ray stop && RAY_AUTH_MODE=token ray start --disable-usage-stats"
        options = [f"--shm-size={self.shm_gib}g", "--entrypoint=''"]  # `ray up` gives the image `bash` to run
        content: dict[str, Any] = {
            "cluster_name": name,
            "max_workers": sum(g.most or g.nodes for g in self.groups) or len(self.provider.get("worker_ips", [])),
            "idle_timeout_minutes": self.idle_minutes,
            "provider": dict(self.provider),
            "auth": {"ssh_user": self.user},
            "docker": {"image": self.image, "container_name": "temper", "run_options": options},
            "file_mounts": {f"/root/{TOKEN}": f"~/{TOKEN}"},
            "head_start_ray_commands": [
                f"{start} --head --port={PORT} --num-cpus=0 --dashboard-host=127.0.0.1 "
                "--autoscaling-config=~/ray_bootstrap_config.yaml"
            ],
            "worker_start_ray_commands": [f"{start} --address=$RAY_HEAD_IP:{PORT}"],
        }
        if self.provider.get("type") != "local":
            content["head_node_type"] = self.head.name
            content["available_node_types"] = {g.name: self._type(g, g is self.head) for g in (self.head, *self.groups)}
        return {"cluster.yaml": yaml.safe_dump(content, sort_keys=False)}

    def submit(self, name: str, folder: Path, command: Sequence[str]) -> list[list[str]]:
        """`ray up`, then the command on the head."""
        file, inside = str(folder / "cluster.yaml"), f"cd /temper && RAY_AUTH_MODE=token {shlex.join(command)}"
        return [["ray", "up", "--yes", file], ["ray", "exec", "--tmux", file, inside]]

    def _type(self, g: NodeGroup, head: bool) -> dict[str, Any]:
        resources = {"CPU": 0 if head else g.cpus, **({"GPU": g.gpus} if g.gpus else {}), **dict(g.resources)}
        least = 0 if head else g.nodes
        return {
            "resources": resources,
            "min_workers": least,
            "max_workers": max(least, g.most),
            "node_config": dict(g.node),
        }


def made(node: Any) -> Any:
    """Build a cluster with the nodes inside it."""
    if isinstance(node, Mapping):
        inner = {k: made(v) for k, v in node.items()}
        return build(inner) if "_target_" in inner else inner
    return [made(v) for v in node] if isinstance(node, list) else node


def render(
    cluster: Cluster, *, verb: str, words: Sequence[str], out: Path, write: bool = True
) -> tuple[dict[str, str], list[list[str]]]:
    """The files of a run's cluster in `out/cluster`, path -> content, and the commands that hand them in."""
    inside = [w for w in words if w.split("=")[0].split(".")[0] != "cluster"]
    python = "python" if isinstance(cluster, Existing) else ".venv/bin/python"
    command = [python, "launch.py", verb, *cluster.asks.get(verb, ()), *inside, ATTACHED]
    name, folder = f"temper-{out.name}", out / "cluster"
    texts = {str(folder / file): text for file, text in cluster.files(name, command).items()}
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            Path(file).write_text(text)
    return texts, cluster.submit(name, folder, command)


def _slurm_body(start: str, nodes: int, command: str) -> list[str]:
    """A head, workers, and the command; the token is made anew for each job, and no other user can read it."""
    step = "srun --nodes=1 --ntasks=1 --overlap"
    return [
        'cd "$SLURM_SUBMIT_DIR"',
        "export RAY_AUTH_MODE=token",
        'export RAY_AUTH_TOKEN_PATH="$SLURM_SUBMIT_DIR/.ray_token_$SLURM_JOB_ID"',
        "(umask 077; head -c 32 /dev/urandom | base64 | tr -d '\\n=+/' > \"$RAY_AUTH_TOKEN_PATH\")",
        "trap 'rm -f \"$RAY_AUTH_TOKEN_PATH\"' EXIT",
        'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'head="${nodes[0]}"',
        'address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d" " -f1)"',
        f'{step} --nodelist="$head" .venv/bin/ray start --head --node-ip-address="$address" --port={PORT} '
        f"--dashboard-host=127.0.0.1 {start} &",
        "sleep 15",
        'for node in "${nodes[@]:1}"; do',
        f'  {step} --nodelist="$node" .venv/bin/ray start --address="$address:{PORT}" {start} &',
        "done",
        f"for _ in $(seq 60); do  # until all {nodes} are there",
        f'  [ "$(.venv/bin/ray list nodes --address="$address:{PORT}" --filter state=ALIVE --format json '
        f'| grep -c node_id)" -ge {nodes} ] && break',
        "  sleep 5",
        "done",
        f'export RAY_ADDRESS="$address:{PORT}"',
        f'{step} --nodelist="$head" {command}',
    ]
