"""Where each weight of an official SPOC checkpoint goes: names of the towers, of DINOv2, and sizes of T5 and DINOv2."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SENSOR = "visual_encoder.visual_sensor_token_"
TIME = "time_encoder.div_term"
# Ours -> theirs, by prefix; {i} is the number of a layer.
PREFIXES = {
    "compress.": "visual_encoder.visual_compressor.",
    "adapt.": "visual_encoder.visual_adapter.",
    "adapt_text.": "visual_encoder.text_adapter.",
    "token": "visual_encoder.fusion_token",
    "last_action.": "last_actions_embed.",
    "in_hand.": "object_in_hand_embed.",
    "decoder.norm.": "decoder.norm.",
    "decoder.out.": "decoder.output.",
    "value_head.": "critic.fc.",
}
FUSION = {
    "qkv.weight": "self_attn.in_proj_weight",
    "qkv.bias": "self_attn.in_proj_bias",
    "out.weight": "self_attn.out_proj.weight",
    "out.bias": "self_attn.out_proj.bias",
    **{f"{a}.{end}": f"{b}.{end}" for a, b in (("up", "linear1"), ("down", "linear2")) for end in ("weight", "bias")},
    **{f"{norm}.{end}": f"{norm}.{end}" for norm in ("norm1", "norm2") for end in ("weight", "bias")},
}
DECODER = {
    **{f"{name}.weight": f"attention.w{name}.weight" for name in "qkvo"},
    "gate.weight": "feed_forward.w1.weight",
    "down.weight": "feed_forward.w2.weight",
    "up.weight": "feed_forward.w3.weight",
    "norm1.weight": "attention_norm.weight",
    "norm2.weight": "ffn_norm.weight",
}
# transformers' Dinov2Model -> the names of DINOv2 itself, as patterns; queries, keys and values are one matrix there.
DINO = {
    r"embeddings\.(cls_token|mask_token)": r"\1",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"encoder\.layer\.(\d+)\.(norm[12])\.(\w+)": r"blocks.\1.\2.\3",
    r"encoder\.layer\.(\d+)\.attention\.o_proj\.(\w+)": r"blocks.\1.attn.proj.\2",
    r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    r"encoder\.layer\.(\d+)\.mlp\.(fc[12])\.(\w+)": r"blocks.\1.mlp.\2.\3",
    r"layernorm\.(\w+)": r"norm.\1",
}


@dataclass(frozen=True)
class Found:
    """A tower in our names."""

    state: dict[str, Tensor]
    used: list[str]  # official names
    missing: list[str]
    image_dim: int


def tower_from_official(
    weights: Mapping[str, Tensor], cameras: tuple[str, ...], layout: str, sizes: Mapping[str, Any]
) -> Found:
    """The weights of one tower, as far as they are there."""
    state, used, missing = {}, [], []
    for ours, theirs in _names(sizes, layout):
        if theirs in weights:
            state[ours] = weights[theirs]
            used.append(theirs)
        else:
            missing.append(theirs)
    sensors = [SENSOR + camera for camera in cameras]
    absent = [k for k in sensors if k not in weights]
    if not absent:
        state["camera"] = torch.stack([weights[k] for k in sensors])
    used += [k for k in (*sensors, TIME) if k in weights]
    missing += absent + [TIME] * (TIME not in weights)
    first = state.get("compress.0.weight")
    return Found(state, used, missing, 0 if first is None else int(first.shape[1]))


def tower_to_official(state: Mapping[str, Tensor], cameras: tuple[str, ...], layout: str) -> dict[str, Tensor]:
    """One tower under its official names, the buffer of the time encoder included."""
    out = {_official(k, layout): v for k, v in state.items() if k != "camera"}
    out.pop("", None)
    out |= {SENSOR + camera: row.clone() for camera, row in zip(cameras, state["camera"], strict=True)}
    return out | {TIME: time_waves(int(state["token"].numel()))}


def time_waves(width: int) -> Tensor:
    """The frequencies of the time encoder."""
    return torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))


def check_time(weights: Mapping[str, Tensor], prefix: str) -> None:
    """Raise ValueError if the file's frequencies are not those that Spoc computes."""
    theirs = weights.get(TIME)
    if theirs is not None and not torch.allclose(theirs, time_waves(2 * len(theirs)), rtol=1e-4):
        raise ValueError(f"{prefix}{TIME} is not the sinusoid with base 10000; the checkpoint is of another model")


def _names(sizes: Mapping[str, Any], layout: str) -> list[tuple[str, str]]:
    """(ours, theirs) of a tower but for cameras and time."""
    ours = [f"{p}.{i}.{end}" for p, count in (("compress", (0, 2)), ("adapt", (0, 1)), ("adapt_text", (0, 1)))
            for i in count for end in ("weight", "bias")]  # fmt: skip
    ours += ["token", "last_action.weight", "in_hand.weight", "decoder.norm.weight", "decoder.out.weight"]
    ours += [f"fusion.{i}.{k}" for i in range(sizes["fusion_layers"]) for k in FUSION]
    ours += [f"decoder.layers.{i}.{k}" for i in range(sizes["decoder_layers"]) for k in DECODER]
    ours += ["action_head.weight", "action_head.bias"]
    if layout == "rl":
        places = {"linear": ("",), "mlp": ("0.", "2.", "4."), "hl_gauss": ("0.", "2.")}[sizes["value_head"]]
        ours += [f"value_head.{place}{end}" for place in places for end in ("weight", "bias")]
    return [(name, _official(name, layout)) for name in ours]


def _official(name: str, layout: str) -> str:
    """The official name of one of ours; "" if the layout has none."""
    if name.startswith("value_head.") and layout == "il":
        return ""
    if name.startswith("action_head."):
        return name.replace("action_head.", "actor." if layout == "il" else "actor.linear.")
    if m := re.fullmatch(r"fusion\.(\d+)\.(.+)", name):
        return f"visual_encoder.fusion_xformer.layers.{m[1]}.{FUSION[m[2]]}"
    if m := re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name):
        return f"decoder.layers.{m[1]}.{DECODER[m[2]]}"
    prefix = next(p for p in PREFIXES if name.startswith(p))
    return name.replace(prefix, PREFIXES[prefix], 1)


def dino_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' Dinov2Model -> DINOv2's own names."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, theirs in DINO.items():
            if re.fullmatch(pattern, name):
                out[re.sub(pattern, theirs, name)] = value
    for i in range(1 + max(int(k.split(".")[1]) for k in out if k.startswith("blocks."))):
        for end in ("weight", "bias"):
            parts = [state[f"encoder.layer.{i}.attention.{p}_proj.{end}"] for p in "qkv"]
            out[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(parts)
    return out


def dino_from_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's own names -> transformers' Dinov2Model; unknown names stay, so that loading complains about them."""
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        if m := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                out[f"encoder.layer.{m[1]}.attention.{part}_proj.{m[2]}"] = rows.clone()
        else:
            out[_dino_name(name)] = value
    return out


def _dino_name(name: str) -> str:
    if name in ("cls_token", "mask_token"):
        return f"embeddings.{name}"
    if name == "pos_embed":
        return "embeddings.position_embeddings"
    for theirs, ours in (
        (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
        (r"blocks\.(\d+)\.(norm[12])\.(\w+)", r"encoder.layer.\1.\2.\3"),
        (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.o_proj.\2"),
        (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (r"blocks\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"encoder.layer.\1.mlp.\2.\3"),
        (r"norm\.(\w+)", r"layernorm.\1"),
    ):
        if re.fullmatch(theirs, name):
            return re.sub(theirs, ours, name)
    return name


def vision_config(weights: Mapping[str, Tensor], heads: int = 0) -> Any:
    """transformers' configuration of a DINOv2 with these weights; `heads` 0 makes them 64 wide, as in all releases."""
    from transformers import Dinov2Config

    table, patch = weights["pos_embed"], weights["patch_embed.proj.weight"]
    width = int(table.shape[2])
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=1 + max(int(k.split(".")[1]) for k in weights if k.startswith("blocks.")),
        num_attention_heads=heads or max(1, width // 64),
        mlp_ratio=int(weights["blocks.0.mlp.fc1.weight"].shape[0]) // width,
        patch_size=int(patch.shape[-1]),
        image_size=round((table.shape[1] - 1) ** 0.5) * int(patch.shape[-1]),
    )


def t5_config(weights: Mapping[str, Tensor]) -> Any:
    """transformers' configuration of a T5 encoder with these weights."""
    from transformers import T5Config

    first = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = weights[first + "relative_attention_bias.weight"].shape
    return T5Config(
        vocab_size=int(weights["shared.weight"].shape[0]),
        d_model=int(weights["shared.weight"].shape[1]),
        d_kv=int(weights[first + "q.weight"].shape[0]) // int(heads),
        d_ff=int(weights["encoder.block.0.layer.1.DenseReluDense.wi.weight"].shape[0]),
        num_layers=1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.block.")),
        num_heads=int(heads),
        relative_attention_num_buckets=int(buckets),
    )
