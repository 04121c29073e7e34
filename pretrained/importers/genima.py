"""Official snapshots of GENIMA's controller to Temper's checkpoints, and back.

    python -m pretrained.importers.genima import exp_local/act/snapshots runs/genima
    python -m pretrained.importers.genima export runs/genima/step_00010000 snapshots

A snapshot folder holds `latest.pt` (or <epoch>.pt), `action_stats.json` and `proprio_stats.json`. The file has tensors,
two counters and a pickled configuration of a foreign class: it is read with `weights_only`, and stand-ins that do
nothing take the place of that class, so that none of its code runs. Most tensors are there under two names, which must
agree. Every weight must find its place, or the import is refused.
"""

import argparse
import json
import pickle
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from envs.build import build
from envs.types import EnvSpec
from pretrained import checkpoint
from pretrained.genima.act import ActPolicy
from pretrained.genima.stats import OFFICIAL_GRIPPER, PANDA_HIGH, PANDA_LOW, Stats
from pretrained.genima.tiles import ORDER

ACTOR = "actor."
ALIASES = {"encoder.": "actor.encoder_model.", "actor_model.": "actor.actor_model."}  # second name -> first
UNUSED = "projection_layer."  # for stacked frames, which the original never has
NAMES = {  # beginning of an official name, without "actor." -> of ours
    "encoder_model.backbone.0.resnet_film_model.": "encoder.backbone.",
    "encoder_model.backbone.0.film_models.": "encoder.backbone.film.",
    "encoder_model.input_proj.": "encoder.project.",
    "encoder_model.proj_text_emb.": "encoder.text.",
    "actor_model.pos_table": "style.table",
    "actor_model.encoder.layers.": "style.layers.",
    "actor_model.cls_embed.": "style.cls.",
    "actor_model.encoder_action_proj.": "style.action.",
    "actor_model.encoder_joint_proj.": "style.state.",
    "actor_model.latent_proj.": "style.latent.",
    "actor_model.is_pad_head.": "style.pad_head.",
    "actor_model.transformer.encoder.layers.": "actor.encoder.",
    "actor_model.transformer.decoder.layers.": "actor.decoder.",
    "actor_model.transformer.decoder.norm.": "actor.norm.",
    "actor_model.input_proj_robot_state.0.": "actor.state.0.",
    "actor_model.input_proj_robot_state.2.": "actor.state.1.",
    "actor_model.latent_out_proj.": "actor.latent.",
    "actor_model.additional_pos_embed.": "actor.positions.",
    "actor_model.query_embed.": "actor.query.",
    "actor_model.action_head.": "actor.head.",
}
OWN = ("noise.", "critic.", "actions.", "state.")  # ours alone; `actions` and `state` come from the statistics
NODE_KINDS = ("AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode", "IntegerNode", "InterpolationResultNode",
              "PathNode", "StringNode", "ValueNode")  # fmt: skip
TASKS = (
    "basketball_in_hoop", "insert_usb_in_computer", "lamp_on", "move_hanger", "open_box", "open_door", "open_drawer",
    "open_grill", "open_microwave", "open_washing_machine", "open_window", "phone_on_base", "pick_up_cup", "play_jenga",
    "press_switch", "push_button", "put_books_on_bookshelf", "put_knife_on_chopping_board", "put_rubbish_in_bin",
    "scoop_with_spatula", "slide_block_to_target", "take_lid_off_saucepan", "take_plate_off_colored_dish_rack",
    "toilet_seat_up", "turn_tap",
)  # fmt: skip


@dataclass(frozen=True)
class Official:
    """A snapshot, read."""

    path: Path
    weights: dict[str, Tensor]  # under their first names, without "actor."
    epoch: int
    iterations: int
    config: dict[str, Any]  # plain data
    actions: Stats
    state: Stats


@dataclass(frozen=True)
class ImportReport:
    """What became of the weights of a snapshot."""

    file: str
    epoch: int
    used: int
    unused: tuple[str, ...]  # official ones that never did anything
    fresh: tuple[str, ...]  # ours, left at their initialisation because the layout has none
    missing: tuple[str, ...]
    surplus: tuple[str, ...]


def genima_env(*, size: tuple[int, int] = (256, 256)) -> EnvSpec:
    """What the published controllers act in: RLBench's Panda in joint positions."""
    joints = tuple(f"joint_{i}" for i in range(7))
    return EnvSpec(
        env_id="rlbench/genima",
        cameras=dict.fromkeys(ORDER, size),
        proprio={"gripper_open": "1", **dict.fromkeys(joints, "rad")},
        actions=(*joints, "gripper"),
        low=PANDA_LOW,
        high=PANDA_HIGH,
        control_hz=20.0,
        max_steps=200,
        tasks=TASKS,
        action_convention="joint_position",
    )


# --- reading ---------------------------------------------------------------------------------------------------------


class _Inert:
    """Stands in for a foreign class; keeps what it was given and does nothing."""

    def __init__(self, *args: Any) -> None:  # not called for all of them
        self.args = args


def _stand_ins() -> list[Any]:
    """(stand-in, name in the file) of all that a pickled configuration mentions."""
    kinds = [f"omegaconf.nodes.{name}" for name in NODE_KINDS]
    kinds += ["omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
              "omegaconf.base.Metadata", "omegaconf.base.Node", "typing.Any", "typing.Union", "typing.Optional",
              "pathlib.PosixPath"]  # fmt: skip
    inert = [(type(kind.rsplit(".", 1)[1], (_Inert,), {}), kind) for kind in kinds]
    kept = (dict, list, tuple, int, float, str, bool, bytes)
    return [*inert, *((kind, f"{home}.{kind.__name__}") for kind in kept for home in ("builtins", "__builtin__")),
            (int, "__builtin__.long"), (defaultdict, "collections.defaultdict")]  # fmt: skip


def read(path: Path | str, *, file: str = "latest.pt") -> Official:
    """Read a snapshot folder, or one of its files. Raises ValueError if it is none, or would need to run code."""
    path = Path(path)
    if path.is_dir():
        there = sorted(p.name for p in path.glob("*.pt"))
        if file not in there:
            raise ValueError(f"{path} has no {file}; it has {there or 'no *.pt file'}: name one, or another folder")
        path = path / file
    if not path.is_file():
        raise ValueError(f"there is no snapshot {path}; check the name")
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{path} cannot be read as tensors and a configuration ({_cause(e)}); expected a snapshot as "
            "the original writes it: anything else is not unpickled"
        ) from e
    keys = sorted(content) if isinstance(content, Mapping) else []
    if not isinstance(content, Mapping) or not isinstance(content.get("agent"), Mapping):
        raise ValueError(f"{path} holds {keys or type(content).__name__}, expected agent, cfg, _epoch, _num_iters")
    config = plain(content.get("cfg"))
    beside = path.parent / "config.yaml"
    if not config and beside.is_file():
        config = yaml.safe_load(beside.read_text()) or {}
    stats = [Stats.read(path.parent / f"{name}_stats.json") for name in ("action", "proprio")]
    return Official(path, merge_names(content["agent"], path), int(content.get("_epoch", 0)),
                    int(content.get("_num_iters", 0)), config if isinstance(config, dict) else {}, *stats)  # fmt: skip


def _cause(error: Exception) -> str:
    """The line that says what was refused."""
    lines = [*filter(None, str(error).splitlines()), type(error).__name__]
    refused = next((line for line in lines if "unsupported" in line.lower()), lines[0])
    return refused.strip().removeprefix("WeightsUnpickler error: ").split(" was not an allowed")[0]


def plain(node: Any, depth: int = 0) -> Any:
    """The values of a pickled configuration; what is not plain data is named by its type."""
    if depth > 32:
        raise ValueError("the pickled configuration is nested more than 32 deep; it is not one of GENIMA")
    if isinstance(node, _Inert):
        inside = vars(node)
        return plain(inside.get("_content", inside.get("_val", list(inside.get("args", ())) or None)), depth + 1)
    if isinstance(node, Mapping):
        return {str(k): plain(v, depth + 1) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(v, depth + 1) for v in node]
    return node if node is None or isinstance(node, (bool, int, float, str)) else f"<{type(node).__name__}>"


def merge_names(agent: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """All tensors under their first names, without "actor."; twins must agree."""
    weights: dict[str, Tensor] = {}
    for name, value in agent.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: agent/{name} is a {type(value).__name__}, expected a tensor")
        first = next((new + name.removeprefix(old) for old, new in ALIASES.items() if name.startswith(old)), name)
        key = first.removeprefix(ACTOR)
        if key in weights and not torch.equal(weights[key], value):
            raise ValueError(f"{path}: {name} and its twin {first} differ; expected one tensor under two names")
        weights[key] = value
    return weights


# --- names and sizes -------------------------------------------------------------------------------------------------


def our_name(official: str) -> str | None:
    """The name that a weight has here."""
    return _renamed(official, NAMES)


def official_name(ours: str) -> str | None:
    """The name that a weight of ours has there, without "actor."."""
    return _renamed(ours, {new: old for old, new in NAMES.items()})


def _renamed(name: str, beginnings: Mapping[str, str]) -> str | None:
    fit = max((b for b in beginnings if name.startswith(b)), key=len, default=None)
    return None if fit is None else beginnings[fit] + name.removeprefix(fit)


def sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes show. Heads they do not: 8 in the published ones."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ValueError(f"actor.{name}: missing; the file is not of GENIMA's controller")
        return weights[name].shape

    def layers(beginning: str) -> int:
        return 1 + max(
            (int(k.removeprefix(beginning).split(".")[0]) for k in weights if k.startswith(beginning)), default=-1
        )

    body = "encoder_model.backbone.0.resnet_film_model."
    return {
        "width": shape("encoder_model.input_proj.weight")[0],
        "horizon": shape("actor_model.query_embed.weight")[0],
        "latent": shape("actor_model.latent_out_proj.weight")[1],
        "ffn": shape("actor_model.transformer.encoder.layers.0.linear1.weight")[0],
        "encoder_layers": layers("actor_model.transformer.encoder.layers."),
        "decoder_layers": layers("actor_model.transformer.decoder.layers."),
        "style_layers": layers("actor_model.encoder.layers."),
        "planes": [shape(f"{body}layer{i}.0.conv1.weight")[0] for i in range(1, 5)],
    }


# --- import and export -----------------------------------------------------------------------------------------------


def import_checkpoint(
    path: Path | str,
    out: Path | str,
    *,
    file: str = "latest.pt",
    clip: str = "openai/clip-vit-base-patch32",
    options: Mapping[str, Any] | None = None,
    env: EnvSpec | None = None,
    tolerant: bool = False,
) -> ImportReport:
    """Write the Temper checkpoint `out`. Raises ValueError, naming them, if weights are missing or left over.

    `options` are further arguments of `ActPolicy`; with `tolerant`, surplus weights are only reported."""
    official, env = read(path, file=file), env or genima_env()
    kernel = {"_target_": "pretrained.chain.Gaussian", "std": 0.1, "min_std": 0.02, "max_std": 0.5}
    node = {"_target_": "pretrained.genima.act.ActPolicy", "kernel": kernel, "clip": clip, "state_stats": "actions",
            "plain_state": [next(iter(env.proprio))], "binary": [env.action_dim - 1], **sizes(official.weights),
            **(options or {})}  # fmt: skip
    policy: ActPolicy = build(node, env=env)
    report = fill(policy, official, tolerant=tolerant)
    config = {"import": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(report).items()}}
    counts = {"official_epoch": official.epoch, "official_iterations": official.iterations}
    checkpoint.save(out, policy, node=node, env=env, metrics=counts, parent=str(official.path),
                    config=config | {"official": official.config})  # fmt: skip
    return report


def fill(policy: ActPolicy, official: Official, *, tolerant: bool = False) -> ImportReport:
    """Put an official snapshot's weights and statistics into a policy."""
    own, state = policy.state_dict(), {}
    unused = tuple(sorted(k for k in official.weights if k.startswith(UNUSED)))
    surplus = []
    for name, value in official.weights.items():
        key = our_name(name)
        if key in own:
            state[key] = value.float()
        elif name not in unused:
            surplus.append(name)
    missing = tuple(sorted(f"{ACTOR}{official_name(k)}" for k in own if k not in state and not k.startswith(OWN)))
    wrong = [
        f"{k}: {list(v.shape)}, expected {list(own[k].shape)}" for k, v in state.items() if v.shape != own[k].shape
    ]
    problems = [f"{k}: missing" for k in missing] + wrong
    problems += [f"{ACTOR}{k}: surplus" for k in sorted(surplus) if not tolerant]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{official.path} is not a snapshot of GENIMA's controller: {'; '.join(problems[:8])}{more}")
    policy.load_state_dict(state, strict=False)
    for scale, stats, size in ((policy.actions, official.actions, policy.spec.action_dim),
                               (policy.state, official.state, len(policy.entries))):  # fmt: skip
        if len(stats.mean) != size:
            raise ValueError(f"{official.path.parent}: statistics of {len(stats.mean)} numbers, expected {size}")
        mean, std = torch.tensor(stats.mean), torch.tensor(stats.std)
        if scale is policy.state:
            policy.state.set(mean, std)
        else:
            policy.actions.mean.copy_(mean)
            policy.actions.std.copy_(std)
    fresh = tuple(k for k in own if k.startswith(OWN[:2]))
    return ImportReport(official.path.name, official.epoch, len(state), unused, fresh, missing, tuple(sorted(surplus)))


def export_checkpoint(folder: Path | str, out: Path | str) -> None:
    """Write a snapshot folder from a Temper checkpoint. What the original never uses is written as zeros, and the
    configuration as a plain dictionary: it can be evaluated there, not resumed."""
    folder, out = checkpoint.find(folder), Path(out)
    policy = checkpoint.load_policy(folder)
    if not isinstance(policy, ActPolicy):
        raise ValueError(f"{folder} holds a {type(policy).__name__}, expected an ActPolicy")
    card = checkpoint.read_card(folder)
    out.mkdir(parents=True, exist_ok=True)
    content = {"cfg": {}, "_epoch": int(card.metrics.get("official_epoch", 0)),
               "_num_iters": int(card.metrics.get("official_iterations", 0)), "agent": to_official(policy)}  # fmt: skip
    torch.save(content, out / "latest.pt")
    actions = Stats(tuple(policy.actions.mean.tolist()), tuple(policy.actions.std.tolist()))
    mean, std = OFFICIAL_GRIPPER
    actions = Stats((*actions.mean[:-1], mean), (*actions.std[:-1], std))
    actions.write(out / "action_stats.json")
    actions.of_state().write(out / "proprio_stats.json")


def to_official(policy: ActPolicy) -> dict[str, Tensor]:
    """All weights under both of their official names."""
    width = policy.sizes.width
    found = {f"{UNUSED}{i}.{k}": torch.zeros(shape) for i in (0, 2)
             for k, shape in (("weight", (width, width, 1, 1)), ("bias", (width,)))}  # fmt: skip
    for key, value in policy.state_dict().items():
        if not key.startswith(OWN):
            name = official_name(key)
            assert name is not None, key
            found[name] = value.cpu()
    agent = {ACTOR + k: v for k, v in found.items()}
    twins = {
        old + k.removeprefix(new): v for old, new in ALIASES.items() for k, v in agent.items() if k.startswith(new)
    }
    return twins | agent


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.importers.genima", description="GENIMA's controllers.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    take = verbs.add_parser("import", help="snapshot folder -> Temper checkpoint")
    give = verbs.add_parser("export", help="Temper checkpoint -> snapshot folder")
    for verb in (take, give):
        verb.add_argument("source")
        verb.add_argument("out")
    take.add_argument("--file", default="latest.pt", help="of the folder; <epoch>.pt are older ones")
    take.add_argument(
        "--clip", default="openai/clip-vit-base-patch32", help="folder in transformers' layout, or hub id"
    )
    take.add_argument("--quirks", default="fixed", choices=("fixed", "faithful"))
    take.add_argument("--heads", type=int, default=8, help="of the attention, which no shape shows")
    take.add_argument("--tolerant", action="store_true", help="report surplus weights instead of refusing them")
    args = parser.parse_args(argv)
    try:
        if args.verb == "export":
            export_checkpoint(args.source, args.out)
            return 0
        report = import_checkpoint(args.source, args.out, file=args.file, clip=args.clip, tolerant=args.tolerant,
                                   options={"quirks": args.quirks, "heads": args.heads})  # fmt: skip
    except ValueError as e:
        parser.exit(2, f"error: {e}\n")
    sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
