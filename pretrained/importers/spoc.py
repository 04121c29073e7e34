"""Official SPOC and FLaRe checkpoints to Temper's, and back.

    python -m pretrained.importers.spoc import spoc_il.ckpt runs/spoc_il --tokenizer google-t5/t5-small
    python -m pretrained.importers.spoc export runs/flare/step_000400 model.pt --layout rl

Two layouts are read: `il`, a Lightning file whose `state_dict` has the prefix `model.` and holds DINOv2 and T5; and
`rl`, an AllenAct file whose `model_state_dict` holds two towers and T5 twice, but no vision tower. Files are read with
`weights_only`, so that none of their code runs. Every weight must find its place, or the import is refused.
"""

import argparse
import json
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from envs import stretch
from envs.build import build
from envs.types import EnvSpec
from pretrained import checkpoint
from pretrained.importers.spoc_names import (
    check_time,
    dino_from_official,
    dino_to_official,
    t5_config,
    tower_from_official,
    tower_to_official,
    vision_config,
)
from pretrained.spoc import Spoc

IL_PREFIX, CRITIC, TEXT = "model.", "critic_tsfm.", "visual_encoder.text_encoder."
VISION = "visual_encoder.image_encoder.model."
ALIAS = "encoder.embed_tokens.weight"  # of shared.weight
LAYOUTS = ("il", "rl")


@dataclass(frozen=True)
class Official:
    """An official checkpoint, read."""

    layout: str  # il | rl
    weights: dict[str, Tensor]  # under their names, without the prefix of the Lightning module
    steps: int  # environment steps (rl) or gradient steps (il)


@dataclass(frozen=True)
class ImportReport:
    """What became of the weights of an official checkpoint."""

    layout: str
    used: int
    fresh: tuple[str, ...]  # ours, left at their initialisation because the layout has none
    missing: tuple[str, ...]  # official names that were expected
    surplus: tuple[str, ...]  # official names that have no place
    towers: dict[str, str]  # where the frozen towers come from


def read(path: Path | str) -> Official:
    """Read a file of either layout. Raises ValueError if it is none, or would need to run code."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; check the name")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as e:
        raise ValueError(
            f"{path} cannot be read as plain tensors ({str(e).splitlines()[0]}); expected a checkpoint that torch "
            "wrote and that holds tensors, numbers and dictionaries only: other content is not unpickled"
        ) from e
    keys = sorted(content) if isinstance(content, Mapping) else []
    if "model_state_dict" in keys:
        return Official("rl", dict(content["model_state_dict"]), int(content.get("total_steps", 0)))
    if "state_dict" in keys:
        named = dict(content["state_dict"])
        weights = {k.removeprefix(IL_PREFIX): v for k, v in named.items() if k.startswith(IL_PREFIX)}
        if len(weights) != len(named):
            other = [k for k in named if not k.startswith(IL_PREFIX)][:5]
            raise ValueError(f"{path}: state_dict has names without the prefix '{IL_PREFIX}', such as {other}")
        return Official("il", weights, int(content.get("global_step", 0)))
    raise ValueError(
        f"{path} holds {keys[:8] or type(content).__name__}, expected 'state_dict' (imitation, Lightning) or "
        "'model_state_dict' (reinforcement learning, AllenAct); it is a checkpoint of another kind"
    )


def import_checkpoint(
    path: Path | str,
    out: Path | str,
    *,
    vision: str = "",
    text: str = "",
    tokenizer: str = "",
    options: Mapping[str, Any] | None = None,
    env: EnvSpec | None = None,
    vision_heads: int = 0,
    tolerant: bool = False,
) -> ImportReport:
    """Write the Temper checkpoint `out`. Raises ValueError, naming them, if weights are missing or left over.

    `vision` and `text` name the frozen towers; "" takes those of the file, written to `<out>.towers` in transformers'
    layout (an `rl` file has no vision tower: then DINOv2 of the right width from the hub). `tokenizer` is T5's, which
    no file has. `options` are further arguments of `Spoc`; with `tolerant`, surplus weights are only reported.
    """
    official, out, env = read(path), Path(out), env or stretch.spec()
    weights = dict(official.weights)
    cameras = tuple(env.cameras)
    fill = _fill(weights, official.layout, cameras)
    towers = {"vision": vision, "text": text}
    texts = {k.removeprefix(TEXT): weights.pop(k) for k in list(weights) if k.startswith(TEXT)}
    again = {k.removeprefix(CRITIC + TEXT): weights.pop(k) for k in list(weights) if k.startswith(CRITIC + TEXT)}
    visions = {k.removeprefix(VISION): weights.pop(k) for k in list(weights) if k.startswith(VISION)}
    surplus = tuple(sorted(weights))
    missing = tuple(sorted(fill.missing)) + _missing_text(texts, again, official.layout)
    problems = [f"{k}: missing" for k in missing] + [f"{k}: surplus" for k in surplus if not tolerant]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{path} is not a SPOC checkpoint of layout '{official.layout}': {listed}")
    folder = out.with_name(out.name + ".towers")
    towers["text"] = text or _write_text(texts, folder / "text")
    towers["vision"] = vision or _write_vision(visions, folder / "vision", vision_heads, fill.image_dim)
    node = {"_target_": "pretrained.spoc.Spoc", **towers, "tokenizer": tokenizer or text or "google-t5/t5-small",
            **fill.options, **(options or {})}  # fmt: skip
    policy = build(node, env=env)
    fresh = _load(policy, fill.state, path)
    report = ImportReport(official.layout, len(official.weights) - len(surplus), fresh, missing, surplus, towers)
    checkpoint.save(
        out, policy, node=node, env=env, metrics={"official_steps": official.steps}, parent=str(path),
        config={"import": {**asdict(report), "fresh": list(fresh), "missing": list(missing), "surplus": list(surplus)}},
    )  # fmt: skip
    return report


def export_checkpoint(folder: Path | str, out: Path | str, *, layout: str) -> None:
    """Write an official file from a Temper checkpoint. Optimiser states are not written: it can be started from and
    evaluated there, not resumed."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout '{layout}' is unknown; expected one of {LAYOUTS}")
    folder = checkpoint.find(folder)
    policy = checkpoint.load_policy(folder)
    if not isinstance(policy, Spoc):
        raise ValueError(f"{folder} holds a {type(policy).__name__}, expected a Spoc")
    steps = int(checkpoint.read_card(folder).metrics.get("official_steps", 0))
    weights = to_official(policy, layout)
    if layout == "rl":
        content: dict[str, Any] = {"model_state_dict": weights, "total_steps": steps, "trainer_seed": None}
    else:
        content = {"state_dict": {IL_PREFIX + k: v for k, v in weights.items()}, "epoch": 0, "global_step": steps}
    torch.save(content, out)


def to_official(policy: Spoc, layout: str) -> dict[str, Tensor]:
    """All weights of a policy under their official names, without the prefix of the Lightning module."""
    cameras = tuple(policy.spec.cameras)
    text = {TEXT + k: v for k, v in policy.encoder.text.state_dict().items()}
    text[TEXT + ALIAS] = text[TEXT + "shared.weight"]
    out = tower_to_official(policy.actor.state_dict(), cameras, layout) | text
    if layout == "il":
        if policy.encoder.kind != "dinov2":
            raise ValueError(f"layout 'il' is known for DINOv2, and the vision tower is a {policy.encoder.kind}")
        return out | {VISION + k: v for k, v in dino_to_official(policy.encoder.vision.state_dict()).items()}
    if len(policy.roles) < 2:
        raise ValueError("layout 'rl' has a critic tower, and this policy's critic is shared; export it as layout 'il'")
    critic = tower_to_official(policy.critic.state_dict(), cameras, layout) | text
    return out | {CRITIC + k: v for k, v in critic.items()}


# --- inside ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Filled:
    state: dict[str, Tensor]  # ours
    options: dict[str, Any]  # sizes read off the shapes
    image_dim: int
    missing: list[str]


def _fill(weights: dict[str, Tensor], layout: str, cameras: tuple[str, ...]) -> _Filled:
    """Takes the towers' weights out of `weights`."""
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    options: dict[str, Any] = {}
    image_dim = 0
    for role, prefix in (("actor", ""), ("critic", CRITIC)) if layout == "rl" else (("actor", ""),):
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        if not prefix:
            part = {k: v for k, v in part.items() if not k.startswith(CRITIC)}
        options = options or _sizes(part)
        found = tower_from_official(part, cameras, layout, options)
        image_dim = found.image_dim or image_dim
        state |= {f"{role}.{k}": v for k, v in found.state.items()}
        missing += [prefix + k for k in found.missing]
        check_time(part, prefix)
        for k in found.used:
            weights.pop(prefix + k)
    if layout == "il":  # the critic tower starts as the actor tower; there is no value head
        state |= {k.replace("actor.", "critic.", 1): v for k, v in state.items()}
    return _Filled(state, options, image_dim, missing)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of a tower, as far as shapes show them; heads are 64 wide in all published models."""
    token, up = (
        weights.get("visual_encoder.fusion_token"),
        weights.get("visual_encoder.fusion_xformer.layers.0.linear1.weight"),
    )
    if token is None or up is None:
        raise ValueError(
            "the checkpoint has no visual_encoder.fusion_token or fusion_xformer; it is of a model without early "
            "fusion, which is not supported"
        )
    value = weights.get("critic.fc.4.weight"), weights.get("critic.fc.2.weight")
    kind = "mlp" if value[0] is not None else "hl_gauss" if value[1] is not None else "linear"
    return {
        "width": int(token.numel()),
        "heads": max(1, int(token.numel()) // 64),
        "fusion_layers": _layers(weights, r"visual_encoder\.fusion_xformer\.layers\.(\d+)\."),
        "fusion_hidden": int(up.shape[0]),
        "decoder_layers": _layers(weights, r"decoder\.layers\.(\d+)\."),
        "value_head": kind,
    }


def _layers(names: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for k in names if (m := re.match(pattern, k))), default=-1)


def _missing_text(first: Mapping[str, Tensor], second: Mapping[str, Tensor], layout: str) -> tuple[str, ...]:
    """T5 weights that are not there, or that differ between the two towers, which were one frozen T5."""
    if "shared.weight" not in first:
        return (TEXT + "shared.weight",)
    if layout == "il":
        return ()
    for k, v in first.items():
        if k in second and not torch.equal(v, second[k]):
            raise ValueError(f"{TEXT}{k} differs between the two towers; expected one frozen T5: it was trained")
    return tuple(CRITIC + TEXT + k for k in first if k not in second)


def _write_text(weights: dict[str, Tensor], folder: Path) -> str:
    from transformers import T5EncoderModel

    model = T5EncoderModel(t5_config(weights))
    _fill_library(model, weights, "T5", allow={ALIAS})
    cast(Any, model).save_pretrained(folder)
    return str(folder.absolute())


def _write_vision(weights: dict[str, Tensor], folder: Path, heads: int, image_dim: int) -> str:
    if not weights:
        known = {384: "facebook/dinov2-small", 768: "facebook/dinov2-base"}
        if image_dim not in known:
            raise ValueError(f"the vision tower has width {image_dim} and is not in the file; name it with `vision`")
        return known[image_dim]
    from transformers import Dinov2Model

    model = Dinov2Model(vision_config(weights, heads))
    _fill_library(model, dino_from_official(weights), "DINOv2", allow=set())
    cast(Any, model).save_pretrained(folder)
    return str(folder.absolute())


def _fill_library(model: Any, weights: dict[str, Tensor], what: str, *, allow: set[str]) -> None:
    found = model.load_state_dict(weights, strict=False)
    wrong = [k for k in (*found.missing_keys, *found.unexpected_keys) if k not in allow]
    if wrong:
        raise ValueError(f"the {what} of the checkpoint does not fit transformers' {type(model).__name__}: {wrong[:8]}")


def _load(policy: Spoc, state: dict[str, Tensor], path: Path | str) -> tuple[str, ...]:
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
    parser = argparse.ArgumentParser(
        prog="python -m pretrained.importers.spoc", description="Official SPOC checkpoints."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    take = verbs.add_parser("import", help="official file -> Temper checkpoint")
    take.add_argument("source")
    take.add_argument("out")
    for name in ("vision", "text", "tokenizer"):
        take.add_argument(f"--{name}", default="", help="folder in transformers' layout, or hub id")
    take.add_argument("--quirks", default="fixed", choices=("fixed", "faithful"))
    take.add_argument("--tolerant", action="store_true", help="report surplus weights instead of refusing them")
    give = verbs.add_parser("export", help="Temper checkpoint -> official file")
    give.add_argument("source")
    give.add_argument("out")
    give.add_argument("--layout", required=True, choices=LAYOUTS)
    args = parser.parse_args(argv)
    try:
        if args.verb == "export":
            export_checkpoint(args.source, args.out, layout=args.layout)
            return 0
        report = import_checkpoint(args.source, args.out, vision=args.vision, text=args.text, tokenizer=args.tokenizer,
                                   options={"quirks": args.quirks}, tolerant=args.tolerant)  # fmt: skip
    except ValueError as e:
        parser.exit(2, f"error: {e}\n")
    sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
