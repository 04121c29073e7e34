"""Parts of VPP for several tests: models in the sizes of the recordings, filled with the recorded weights."""

from typing import Any

import torch
from torch import Tensor, nn

from pretrained.importers.vpp_names import UNUSED, former_names, head_names, take
from pretrained.vpp.former import VideoFormer
from pretrained.vpp.head import ActionHead
from tests.golden_files import golden_json, golden_tensors


def filled(module: Any, names: dict[str, str], weights: dict[str, Tensor], prefix: str) -> Any:
    """`module` with the weights under `prefix`; every weight of both sides must be used."""
    state, missing = take(weights, names, prefix)
    assert not missing
    assert len(state) == sum(k.startswith(prefix) for k in weights)
    module.load_state_dict(state)
    return module.eval()


def recorded_former(kind: str, frame_mask: str = "embedding") -> VideoFormer:
    """The Former of a recording: former3d, former3d_no_temporal or former2d."""
    sizes = golden_json("vpp_former/meta.json")["tiny_config"][kind]
    former = VideoFormer(
        channels=sizes["condition_dim"],
        frames=sizes["num_frame"],
        latents=sizes["num_latents"],
        width=sizes["dim"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        head_width=sizes["dim_head"],
        embeddings=sizes["num_time_embeds"],
        temporal=sizes.get("use_temporal", False),
        frame_mask=frame_mask,
    )
    return filled(
        former, former_names(list(former.state_dict())), golden_tensors("vpp_former/tiny.safetensors"), kind + "."
    )


def recorded_head(cross_attention: str, *, proprio: bool = False) -> ActionHead:
    """The action head of the recording."""
    weights = golden_tensors("vpp_policy/tiny.safetensors")
    if not proprio:
        weights = {k: v for k, v in weights.items() if ".proprio_emb." not in k}
    return build_head(golden_json("vpp_policy/meta.json")["tiny_config"], weights, "inner_model.", cross_attention,
                      proprio=proprio)  # fmt: skip


def build_head(
    sizes: dict[str, Any], weights: dict[str, Tensor], prefix: str, cross_attention: str, *, proprio: bool = False
) -> ActionHead:
    """A head of these sizes, in the names of the recordings, with its weights."""
    head = ActionHead(
        channels=sizes["obs_dim"],
        goal_dim=sizes["goal_dim"],
        horizon=sizes["act_seq_len"],
        action_dim=sizes["action_dim"],
        proprio_dim=sizes.get("proprio_dim", 0) if proprio else 0,
        width=sizes["embed_dim"],
        encoder_layers=sizes["n_enc_layers"],
        decoder_layers=sizes["n_dec_layers"],
        heads=sizes["n_heads"],
        cross_attention=cross_attention,
    )
    used = {k: v for k, v in weights.items() if not k.startswith(tuple(prefix + u for u in UNUSED))}
    return filled(head, head_names(list(head.state_dict())), used, prefix)


def check_gradients(module: nn.Module, names: dict[str, str], recorded: dict[str, float], *, rtol: float) -> int:
    """Compare the norm of each gradient with the recorded one; how many were compared."""
    checked = 0
    for name, p in module.named_parameters():
        expected = recorded.get(names[name])
        if expected is not None and expected > 5e-6:  # below, it is zero in exact arithmetic
            assert p.grad is not None, name
            torch.testing.assert_close(float(p.grad.norm()), expected, rtol=rtol, atol=0, msg=name)
            checked += 1
    return checked
