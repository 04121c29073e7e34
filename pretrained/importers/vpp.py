"""Official VPP checkpoints to Temper's, and back.

    python -m pretrained.importers.vpp import dp-calvin.pt runs/vpp --video svd-robot-calvin
    python -m pretrained.importers.vpp export runs/vpp dp-calvin.pt
    python -m pretrained.importers.vpp check svd-robot-calvin
    python -m pretrained.importers.vpp export-video runs/vpp_video svd-mine

An action checkpoint holds `model`, with the Video Former, the action head, and CLIP's text tower twice, in two layouts,
and `args`, a configuration that is not needed. Every weight must find its place, or the import is refused. Nothing of a
file is run: what is not a tensor, a number or a plain collection becomes an empty object. A video model is a folder in
diffusers' layout and needs no import; `check` compares its files with what its configuration asks for.
"""

import argparse
import json
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.build import build
from envs.types import EnvSpec
from pretrained import checkpoint
from pretrained.importers.vpp_names import UNUSED, clip_to_openai, former_names, head_names, take
from pretrained.importers.vpp_video import check_folder, export_video
from pretrained.vpp.former import VideoFormer
from pretrained.vpp.head import ActionHead
from pretrained.vpp.policy import Vpp

FORMER, HEAD = "Video_Former.", "model.inner_model."
TEXT, GOAL = "TVP_encoder.text_encoder.", "language_goal.clip_rn50."
IDLE = ("visual.", "logit_scale")  # of the goal's CLIP: its picture tower is never used
KERNEL = {
    "_target_": "pretrained.chain.Edm",
    "steps": 10,
    "sigma_min": 1.0,
    "sigma_max": 80.0,
    "spacing": "exponential",
    "density": "log_logistic",
}
TOLERANCE = 2e-3  # between CLIP's two copies; one of them was stored in half precision


@dataclass(frozen=True)
class ImportReport:
    """What became of the weights of an official checkpoint."""

    used: int
    idle: int  # official weights that nothing reads, there or here
    fresh: tuple[str, ...]  # ours, left at their initialisation because the file has none
    missing: tuple[str, ...]  # official names that were expected
    surplus: tuple[str, ...]  # official names that have no place
    text: str  # where CLIP's text tower is


@dataclass(frozen=True)
class Placed:
    """The weights of an official checkpoint under our names, and sizes read off their shapes."""

    former: dict[str, Tensor]
    head: dict[str, Tensor]
    text: dict[str, Tensor]  # transformers' layout
    options: dict[str, Any]  # arguments of Vpp
    channels: int  # of the features
    frames: int
    goal_dim: int
    idle: tuple[str, ...]
    missing: tuple[str, ...]
    surplus: tuple[str, ...]


def read(path: Path | str) -> dict[str, Tensor]:
    """The weights of a file. Raises ValueError if it is no action checkpoint of VPP."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; check the name")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_inert(), name) for name in names]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, TypeError) as e:
        raise ValueError(
            f"{path} cannot be read as plain tensors ({str(e).splitlines()[0]}); expected a checkpoint that torch wrote"
        ) from e
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        keys = sorted(content)[:8] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds {keys}, expected 'model' with the weights; it is a checkpoint of another kind")
    return dict(weights)


def place(weights: Mapping[str, Tensor], *, head_width: int = 64, heads: int = 8, proprio: bool = False) -> Placed:
    """Where each weight goes. `head_width` of the Former and `heads` of the action head cannot be read off shapes."""
    left = dict(weights)
    former, head = _sizes(left, head_width, heads)
    with torch.device("meta"):
        names = former_names(list(VideoFormer(**former).state_dict()))
        options: dict[str, Any] = {
            k: head[k] for k in ("horizon", "width", "encoder_layers", "decoder_layers", "heads")
        }
        extra: dict[str, Any] = {"proprio_dim": int(left[HEAD + "proprio_emb.0.weight"].shape[1])} if proprio else {}
        plain: dict[str, Any] = {
            "channels": head["channels"],
            "goal_dim": head["goal_dim"],
            "action_dim": head["action_dim"],
        }
        head_map = head_names(list(ActionHead(**options, **plain, **extra).state_dict()))
    first, missing = take(left, names, FORMER)
    second, also_missing = take(left, head_map, HEAD)
    text = {k.removeprefix(TEXT): v for k, v in left.items() if k.startswith(TEXT) and "position_ids" not in k}
    goal = {k.removeprefix(GOAL): v for k, v in left.items() if k.startswith(GOAL)}
    unused = UNUSED if proprio else (*UNUSED, "proprio_emb.")
    idle = [
        k
        for k in left
        if k.startswith(tuple(HEAD + u for u in unused)) or k == TEXT + "text_model.embeddings.position_ids"
    ]
    idle += [GOAL + k for k in goal if k.startswith(IDLE)]
    wrong = [*missing, *also_missing]
    if text or goal:
        wrong += _compare_text(text, {k: v for k, v in goal.items() if not k.startswith(IDLE)})
    used = {FORMER + v for v in names.values()} | {HEAD + v for v in head_map.values()} | set(idle)
    surplus = [k for k in left if k not in used and not k.startswith((TEXT, GOAL))]
    inner = {k: v for k, v in former.items() if k not in ("channels", "frames")}
    return Placed(first, second, text, {**options, "former": inner, "proprio": proprio}, former["channels"],
                  former["frames"], head["goal_dim"], tuple(idle), tuple(wrong), tuple(surplus))  # fmt: skip


def import_checkpoint(
    path: Path | str,
    out: Path | str,
    *,
    video: Mapping[str, Any],
    env: EnvSpec | None = None,
    tokenizer: str = "openai/clip-vit-base-patch32",
    quirks: str = "faithful",
    options: Mapping[str, Any] | None = None,
    head_width: int = 64,
    heads: int = 8,
    proprio: bool = False,
    tolerant: bool = False,
) -> ImportReport:
    """Write the Temper checkpoint `out`. Raises ValueError, naming them, if weights are missing or left over.

    `video` are arguments of `VideoModel`; unless it names a `text` tower, the file's is written to `<out>.towers/text`.
    Weights were trained with the original's quirks, so `faithful` is what they need. With `tolerant`, surplus weights
    are only reported."""
    out, weights = Path(out), read(path)
    found = place(weights, head_width=head_width, heads=heads, proprio=proprio)
    problems = [f"{k}: missing" for k in found.missing] + [f"{k}: surplus" for k in found.surplus if not tolerant]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{path} is not an action checkpoint of VPP: {listed}")
    text = str(video.get("text") or _write_text(found.text, out.with_name(out.name + ".towers") / "text", path))
    node = {
        "_target_": "pretrained.vpp.policy.Vpp",
        "video": {"_target_": "pretrained.vpp.video.VideoModel", "frames": found.frames, "tokenizer": tokenizer,
                  **video, "text": text},
        "kernel": KERNEL, "quirks": quirks, **found.options, **(options or {}),
    }  # fmt: skip
    env = env or calvin_env()
    policy: Vpp = build(node, env=env)
    _check_video(policy, found, path)
    fresh = _fill(policy, found, path)
    report = ImportReport(len(found.former) + len(found.head) + len(found.text), len(found.idle), fresh, found.missing,
                          found.surplus, text)  # fmt: skip
    config = {"import": json.loads(json.dumps(asdict(report)))}
    checkpoint.save(out, policy, node=node, env=env, parent=str(path), config=config)
    return report


def export_checkpoint(folder: Path | str, out: Path | str) -> None:
    """Write an official file from a Temper checkpoint: all that the original reads when it evaluates.

    The weights that nothing reads are zero; the picture tower of the goal's CLIP is left out."""
    folder = checkpoint.find(folder)
    policy = checkpoint.load_policy(folder)
    if not isinstance(policy, Vpp):
        raise ValueError(f"{folder} holds a {type(policy).__name__}, expected a Vpp")
    if policy.actor.position is not None and bool(policy.actor.position.any()):
        raise ValueError(f"{folder}: the original knows no action positions, and these were learned; it cannot be told")
    torch.save({"model": to_official(policy), "args": {}}, out)


def to_official(policy: Vpp) -> dict[str, Tensor]:
    """All weights of a policy under their official names."""
    former, head = policy.encoder.former.state_dict(), policy.actor.state_dict()
    head.pop("position", None)
    out = {FORMER + theirs: former[ours] for ours, theirs in former_names(list(former)).items()}
    out |= {HEAD + theirs: head[ours] for ours, theirs in head_names(list(head)).items()}
    width, goal_dim = head["goal.2.weight"].shape[0], head["goal.0.weight"].shape[1]
    for name, (rows, columns) in {"0": (2 * width, goal_dim), "2": (width, 2 * width)}.items():
        out[f"{HEAD}goal_emb.{name}.weight"], out[f"{HEAD}goal_emb.{name}.bias"] = (
            torch.zeros(rows, columns),
            torch.zeros(rows),
        )
    slots = former["latents"].shape[0] * former["latents"].shape[1] + 1 + policy.spec.horizon
    out[HEAD + "pos_emb"] = torch.zeros(1, slots, width)
    text = policy.encoder.video.text.state_dict()
    out |= {TEXT + k: v for k, v in text.items()}
    return out | {GOAL + k: v for k, v in clip_to_openai(text).items()}


def calvin_env() -> EnvSpec:
    """CALVIN's scene D with relative actions, which the published weights are for."""
    from envs.calvin.env import ACTIONS, PROPRIO
    from envs.calvin.scenes import CONTROL_HZ, SIZES
    from envs.calvin.states import single_tasks

    names, low, high = ACTIONS["relative"]
    return EnvSpec(
        env_id="calvin/D",
        cameras=dict(SIZES),
        proprio=dict(PROPRIO),
        actions=(*names, "gripper"),
        low=(*low, -1.0),
        high=(*high, 1.0),
        control_hz=CONTROL_HZ,
        max_steps=360,
        tasks=single_tasks(),
        action_convention="calvin_relative",
    )


# --- inside ----------------------------------------------------------------------------------------------------------


def _inert() -> type:
    """A class whose objects hold nothing and do nothing."""

    def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    return type("Inert", (), dict.fromkeys(("__init__", "__setstate__", "__setitem__", "append", "extend"), nothing))


def _sizes(weights: Mapping[str, Tensor], head_width: int, heads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = {
        "latents": FORMER + "latents",
        "embeddings": FORMER + "time_pos_emb",
        "channels": FORMER + "goal_emb.0.weight",
        "query": FORMER + "layers.0.0.to_q.weight",
        "tokens": HEAD + "tok_emb.weight",
        "action": HEAD + "action_emb.weight",
        "goal": HEAD + "lang_emb.0.weight",
        "slots": HEAD + "pos_emb",
        "proprio": HEAD + "proprio_emb.0.weight",
    }
    if absent := [name for name in keys.values() if name not in weights]:
        raise ValueError(f"weights {absent[:4]} are missing; expected Video_Former.* and model.inner_model.* of VPP")
    shape = {k: weights[name].shape for k, name in keys.items()}
    frames, each, width = shape["latents"]
    former = {
        "channels": int(shape["channels"][1]), "frames": int(frames), "latents": int(frames * each),
        "width": int(width), "depth": _layers(weights, FORMER + r"layers\.(\d+)\."),
        "heads": int(shape["query"][0]) // head_width, "head_width": head_width,
        "embeddings": int(shape["embeddings"][0]), "temporal": FORMER + "layers.0.1.qkv.weight" in weights,
    }  # fmt: skip
    head = {
        "channels": int(shape["tokens"][1]), "width": int(shape["tokens"][0]), "goal_dim": int(shape["goal"][1]),
        "action_dim": int(shape["action"][1]), "horizon": int(shape["slots"][1]) - 1 - int(frames * each),
        "heads": heads, "encoder_layers": _layers(weights, HEAD + r"encoder\.blocks\.(\d+)\."),
        "decoder_layers": _layers(weights, HEAD + r"decoder\.blocks\.(\d+)\."),
    }  # fmt: skip
    return former, head


def _layers(names: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for k in names if (m := re.match(pattern, k))), default=-1)


def _compare_text(text: Mapping[str, Tensor], goal: Mapping[str, Tensor]) -> list[str]:
    """Names missing in either copy of CLIP's text tower. Raises ValueError if the copies differ."""
    if "text_projection.weight" not in text:
        return [TEXT + "text_projection.weight"]
    expected = clip_to_openai(text)
    for name, value in expected.items():
        other = goal.get(name)
        if other is None or value.is_meta:
            continue
        if other.shape != value.shape or not torch.allclose(other.float(), value.float(), rtol=1e-2, atol=TOLERANCE):
            raise ValueError(
                f"{GOAL}{name} differs from {TEXT.rstrip('.')}'s; expected two copies of one frozen text tower"
            )
    return [GOAL + k for k in expected if k not in goal] + [f"{GOAL}{k} (unknown)" for k in goal if k not in expected]


def _write_text(weights: Mapping[str, Tensor], folder: Path, path: Path | str) -> str:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    if not weights:
        raise ValueError(f"{path} has no text tower; name one with video.text")
    words, width = weights["text_model.embeddings.token_embedding.weight"].shape
    ends: dict[str, Any] = {"bos_token_id": int(words) - 2, "eos_token_id": int(words) - 1} if words < 49408 else {}
    config = CLIPTextConfig(
        vocab_size=int(words), hidden_size=int(width), num_attention_heads=max(1, int(width) // 64),
        intermediate_size=int(weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]),
        num_hidden_layers=_layers(weights, r"text_model\.encoder\.layers\.(\d+)\."),
        max_position_embeddings=int(weights["text_model.embeddings.position_embedding.weight"].shape[0]),
        projection_dim=int(weights["text_projection.weight"].shape[0]), hidden_act="quick_gelu",
        **ends,
    )  # fmt: skip
    tower: Any = CLIPTextModelWithProjection(config)
    found = tower.load_state_dict(dict(weights), strict=False)
    if found.missing_keys or found.unexpected_keys:
        wrong = [*found.missing_keys, *found.unexpected_keys]
        raise ValueError(f"{path}: the text tower does not fit transformers' {type(tower).__name__}: {wrong[:8]}")
    tower.save_pretrained(folder)
    return str(folder.absolute())


def _check_video(policy: Vpp, found: Placed, path: Path | str) -> None:
    video = policy.encoder.video
    theirs, ours = (found.frames, found.channels, found.goal_dim), (video.frames, video.channels, video.goal_dim)
    if theirs != ours:
        raise ValueError(
            f"{path} was trained on {theirs[0]} frames of {theirs[1]} channels and goals of {theirs[2]} entries; this "
            f"video model gives {ours[0]} frames of {ours[1]} channels, and its text tower goals of {ours[2]}: take "
            "the video model that belongs to it"
        )


def _fill(policy: Vpp, found: Placed, path: Path | str) -> tuple[str, ...]:
    state = {f"encoder.former.{k}": v for k, v in found.former.items()} | {
        f"actor.{k}": v for k, v in found.head.items()
    }
    own = policy.state_dict()
    wrong = [
        f"{k}: {list(v.shape)}, expected {list(own[k].shape)}" for k, v in state.items() if v.shape != own[k].shape
    ]
    if wrong:
        raise ValueError(f"{path}: shapes do not fit the policy: {'; '.join(wrong[:8])}; check the options")
    policy.load_state_dict(state, strict=False)
    return tuple(k for k in own if k not in state)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.importers.vpp", description="Official VPP checkpoints.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("import", help="official file -> Temper checkpoint")
    one.add_argument("source")
    one.add_argument("out")
    one.add_argument("--video", required=True, help="folder in diffusers' layout, or hub id")
    one.add_argument("--text", default="", help="CLIP's text tower, if not the file's own")
    one.add_argument("--quirks", default="faithful", choices=("fixed", "faithful"))
    one.add_argument("--tolerant", action="store_true", help="report surplus weights instead of refusing them")
    for name, does in (("export", "Temper checkpoint -> official file"), ("export-video", "stage=video -> folder")):
        two = verbs.add_parser(name, help=does)
        two.add_argument("source")
        two.add_argument("out")
    verbs.add_parser("check", help="compare a video model's files with its configuration").add_argument("source")
    args = parser.parse_args(argv)
    try:
        if args.verb == "export":
            export_checkpoint(args.source, args.out)
        elif args.verb == "export-video":
            export_video(args.source, args.out)
        else:
            text = {"text": args.text} if args.verb == "import" and args.text else {}
            if args.verb == "check":
                report: Any = check_folder(args.source)
            else:
                report = import_checkpoint(args.source, args.out, video={"model": args.video, **text},
                                           quirks=args.quirks, tolerant=args.tolerant)  # fmt: skip
            sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
    except ValueError as e:
        parser.exit(2, f"error: {e}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
