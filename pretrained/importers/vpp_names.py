"""Where each weight of an official VPP checkpoint goes: names of the Video Former, the action head and CLIP's text."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Ours -> theirs, as patterns. Layers of a Former without attention among frames have their MLP in second place.
FORMER = {
    r"project\.(\d)\.(\w+)": r"goal_emb.\1.\2",
    r"frame": r"time_pos_emb",
    r"latents": r"latents",
    r"layers\.(\d+)\.cross\.(norm_\w+)\.(\w+)": r"layers.\1.0.\2.\3",
    r"layers\.(\d+)\.cross\.(q|k|v|out)\.(\w+)": r"layers.\1.0.to_\2.\3",
    r"layers\.(\d+)\.temporal\.(\w+)\.(\w+)": r"layers.\1.1.\2.\3",
    r"layers\.(\d+)\.mlp\.(\d)\.(\w+)": r"layers.\1.{mlp}.\2.\3",
    r"norm\.(\w+)": r"norm.\1",
}

HEAD = {
    r"tokens\.(\w+)": r"tok_emb.\1",
    r"goal\.(\d)\.(\w+)": r"lang_emb.\1.\2",
    r"proprio\.(\d)\.(\w+)": r"proprio_emb.\1.\2",
    r"action\.(\w+)": r"action_emb.\1",
    r"answer\.(\w+)": r"action_pred.\1",
    r"sigma\.0\.(\w+)": r"sigma_emb.1.\1",
    r"sigma\.2\.(\w+)": r"sigma_emb.3.\1",
    r"(en|de)coder_norm\.(\w+)": r"\1coder.ln.\2",
    r"(en|de)coder\.(\d+)\.norm([12])\.(\w+)": r"\1coder.blocks.\2.ln_\3.\4",
    r"decoder\.(\d+)\.norm_cross\.(\w+)": r"decoder.blocks.\1.ln3.\2",
    r"decoder\.(\d+)\.modulation\.(\w+)": r"decoder.blocks.\1.adaLN_zero.modulation.1.\2",
    r"(en|de)coder\.(\d+)\.mlp\.up\.(\w+)": r"\1coder.blocks.\2.mlp.c_fc.\3",
    r"(en|de)coder\.(\d+)\.mlp\.down\.(\w+)": r"\1coder.blocks.\2.mlp.c_proj.\3",
    r"(en|de)coder\.(\d+)\.attention\.out\.(\w+)": r"\1coder.blocks.\2.attn.c_proj.\3",
    r"(en|de)coder\.(\d+)\.attention\.(\w+)\.(\w+)": r"\1coder.blocks.\2.attn.\3.\4",
    r"decoder\.(\d+)\.cross\.out\.(\w+)": r"decoder.blocks.\1.cross_att.c_proj.\2",
    r"decoder\.(\d+)\.cross\.(\w+)\.(\w+)": r"decoder.blocks.\1.cross_att.\2.\3",
}
# Weights of the official action head that nothing reads; the proprioception's neither where there is none.
UNUSED = ("goal_emb.", "pos_emb")
# transformers' CLIP text tower -> the one of OpenAI's layout; queries, keys and values are one matrix there.
CLIP = {
    r"text_model\.embeddings\.token_embedding\.weight": r"token_embedding.weight",
    r"text_model\.embeddings\.position_embedding\.weight": r"positional_embedding",
    r"text_model\.final_layer_norm\.(\w+)": r"ln_final.\1",
    r"text_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)": r"transformer.resblocks.\1.attn.out_proj.\2",
    r"text_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.(\w+)": r"transformer.resblocks.\1.ln_\2.\3",
    r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(\w+)": r"transformer.resblocks.\1.mlp.c_fc.\2",
    r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(\w+)": r"transformer.resblocks.\1.mlp.c_proj.\2",
}


def former_names(ours: Sequence[str]) -> dict[str, str]:
    """Our name -> theirs, for all weights of a Video Former."""
    mlp = "2" if any(".temporal." in name for name in ours) else "1"
    return {name: official(name, FORMER).replace("{mlp}", mlp) for name in ours}


def head_names(ours: Sequence[str]) -> dict[str, str]:
    """Our name -> theirs, for all weights of an action head."""
    return {name: official(name, HEAD) for name in ours}


def official(name: str, patterns: Mapping[str, str]) -> str:
    """The official name of one of ours."""
    for ours, theirs in patterns.items():
        if re.fullmatch(ours, name):
            return re.sub(ours, theirs, name)
    raise ValueError(f"weight {name} has no official name")


def take(weights: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under our names, and the official names that are missing."""
    found = {ours: weights[prefix + theirs] for ours, theirs in names.items() if prefix + theirs in weights}
    return found, [prefix + theirs for ours, theirs in names.items() if ours not in found]


def clip_to_openai(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIP text tower under OpenAI's names."""
    out: dict[str, Tensor] = {"text_projection": weights["text_projection.weight"].T.contiguous()}
    for name, value in weights.items():
        if m := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name):
            parts = [weights[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            out[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[2]}"] = torch.cat(parts)
        elif not re.search(r"(k|v)_proj\.|^text_projection|position_ids", name):
            out[official(name, CLIP)] = value
    return out
