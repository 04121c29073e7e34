"""Spoc against recorded tensors of the original: the RL and the imitation model, step by step and over a sequence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from envs import stretch
from pretrained.checkpoint import load_policy
from pretrained.importers.spoc import IL_PREFIX, to_official
from pretrained.importers.spoc_names import dino_from_official, vision_config
from pretrained.spoc import Spoc
from pretrained.spoc.frozen import dino_pixels, siglip_pixels
from pretrained.spoc.network import Moments, bin_edges, bin_loss, bin_targets, expected_value
from tests.golden_files import golden_json, golden_tensors
from tests.spoc_parts import environment, imported

CASES = ("out_seq", "out_step", "out_after_update", "out_wrap", "out_pad")


class Recorded:
    """The inputs of the RL recording, batch first, as a policy's features, trace, starts and memory."""

    def __init__(self, prefix: str) -> None:
        io = golden_tensors("spoc/io.safetensors")
        x = {k.removeprefix(prefix + "/"): v.transpose(0, 1) for k, v in io.items() if k.startswith(prefix + "/")}
        self.x = {
            "maps": torch.stack([x["nav_features"], x["manip_features"]], 2),
            "tokens": x["text_input_ids"],
            "in_hand": x["in_hand"][..., 0],
        }
        self.starts = x["masks"][..., 0] == 0
        self.time, self.last, self.trajectory = x["time_step"], x["prev_actions"], x["traj_index"]
        self.text = x["text_features"]
        # The action of step t is the previous one of step t + 1; the recording has none for the last step.
        actions = torch.cat([self.last[:, 1:], self.last[:, :1]], 1)
        self.trace = torch.zeros(*actions.shape, 2, 1, 1)
        self.trace[:, :, 1, 0, 0] = actions.float()

    def memory(self, policy: Spoc, t: int) -> dict[str, Tensor]:
        """Before step t: nothing cached, but in the middle of an episode."""
        start = torch.full_like(self.last[:, t], policy.sizes.start)
        action = torch.where(self.starts[:, t], start, self.last[:, t])
        return policy.initial_memory(len(self.last)) | {"time": self.time[:, t], "action": action}


def compare(policy: Spoc, hidden: Tensor, judged: Tensor, case: str, rows: slice = slice(None)) -> None:
    """Hidden states [N, T, D] of the towers, and what the heads make of them, against a recorded case."""
    io, tolerance = golden_tensors("spoc/io.safetensors"), golden_json("spoc/meta.json")["suggested_tolerance"]
    with torch.no_grad():
        logits = policy.actor.action_head(hidden)
        got = {
            "actor_hidden": hidden,
            "critic_hidden": judged,
            "logits": logits,
            "log_probs": F.log_softmax(logits, -1),
            "values": policy.critic.value(judged)[..., None],
        }
    for name, value in got.items():
        torch.testing.assert_close(value, io[f"{case}/{name}"].transpose(0, 1)[:, rows], **tolerance)


@torch.no_grad()
def stepped(policy: Spoc, recorded: Recorded, first: int) -> tuple[Tensor, Tensor]:
    """Hidden states of single steps from `first` on. The cache is never emptied in between, as in the original."""
    memory, actor, critic = recorded.memory(policy, first), [], []
    for t in range(first, recorded.last.shape[1]):
        now = recorded.memory(policy, t)
        memory |= {"time": now["time"], "action": now["action"]}
        x = {k: v[:, t] for k, v in recorded.x.items()}
        hidden, new = policy.step("actor", x, memory)
        judged, also_new = policy.step("critic", x, memory)
        actor.append(hidden)
        critic.append(judged)
        memory = policy._remember(memory, new | also_new, now["action"])
    return torch.stack(actor, 1), torch.stack(critic, 1)


@pytest.mark.parametrize("quirks", ["faithful", "fixed"])
def test_rl_sequence(tmp_path: Path, quirks: str) -> None:
    """In the recording all sentences are equally long and nothing is cached before, so both settings agree."""
    policy, recorded = imported(tmp_path, "rl", quirks=quirks), Recorded("in")
    memory = recorded.memory(policy, 0)
    with torch.no_grad():
        hidden, judged = (
            policy.sequence(role, recorded.x, recorded.trace, recorded.starts, memory) for role in ("actor", "critic")
        )
        scores = policy.evaluate(recorded.x, recorded.trace, recorded.starts, memory)
    compare(policy, hidden, judged, "out_seq")
    recorded_scores = golden_tensors("spoc/io.safetensors")["out_seq/log_probs"].transpose(0, 1)
    picked = recorded_scores.gather(2, recorded.trace[:, :, 1, :, 0].long())
    torch.testing.assert_close(scores.log_prob, picked, **golden_json("spoc/meta.json")["suggested_tolerance"])


def test_rl_text_and_fusion(tmp_path: Path) -> None:
    policy, recorded = imported(tmp_path, "rl"), Recorded("in")
    tolerance = golden_json("spoc/meta.json")["suggested_tolerance"]
    with torch.no_grad():
        moments = policy.moments(recorded.x, recorded.last, recorded.time)
        torch.testing.assert_close(moments.text, recorded.text, **tolerance)
        for role in ("actor", "critic"):
            fused = policy._tower(role).fuse(
                moments.maps.flatten(0, 1), moments.text.flatten(0, 1), moments.words.flatten(0, 1)
            )
            expected = golden_tensors("spoc/io.safetensors")[f"out_seq/{role}_fused"].transpose(0, 1).flatten(0, 1)
            torch.testing.assert_close(fused, expected, **tolerance)


def test_rl_steps_with_cache(tmp_path: Path) -> None:
    policy, recorded = imported(tmp_path, "rl"), Recorded("in")
    compare(policy, *stepped(policy, recorded, 0), "out_step")


def test_rl_steps_after_an_update(tmp_path: Path) -> None:
    policy, recorded = imported(tmp_path, "rl"), Recorded("in")
    first = recorded.last.shape[1] - golden_tensors("spoc/io.safetensors")["out_after_update/values"].shape[0]
    compare(policy, *stepped(policy, recorded, first), "out_after_update")


def test_rl_full_cache_forgets_in_faithful_mode(tmp_path: Path) -> None:
    size = golden_json("spoc/meta.json")["config"]["max_steps_cache_wrap_case"]
    recorded = Recorded("in")
    policy = imported(tmp_path, "rl", window=size)
    compare(policy, *stepped(policy, recorded, 0), "out_wrap")
    sliding = load_policy(tmp_path / "out", overrides={"switches": {"cache": "slide"}})
    assert isinstance(sliding, Spoc)
    with pytest.raises(AssertionError):
        compare(sliding.eval(), *stepped(sliding, recorded, 0), "out_wrap")


def test_rl_padded_sentences(tmp_path: Path) -> None:
    policy, recorded = imported(tmp_path, "rl"), Recorded("pad_in")
    effect = golden_json("spoc/meta.json")["pad_effect"]
    row, memory = effect["env_with_the_shortest_sentence"], recorded.memory(policy, 0)
    fixed = load_policy(tmp_path / "out", overrides={"switches": {"text_padding": "masked"}})
    assert isinstance(fixed, Spoc)
    args = (recorded.x, recorded.trace, recorded.starts, memory)
    with torch.no_grad():
        compare(policy, policy.sequence("actor", *args), policy.sequence("critic", *args), "out_pad")
        masked = fixed.eval().sequence("actor", *args)[row]
        alone = [{k: v[row : row + 1] for k, v in part.items()} for part in (recorded.x, memory)]
        parts = (alone[0], recorded.trace[row : row + 1], recorded.starts[row : row + 1], alone[1])
        own = policy.sequence("actor", *parts)[0]  # its sentence alone has no padding
        seen = policy.sequence("actor", *args)[row]
        heads = policy.actor.action_head
        assert torch.allclose(masked, own, atol=1e-5)  # fixed: neighbours do not matter
        change = float((heads(seen) - heads(own)).abs().max())
    assert change == pytest.approx(effect["max_abs_logit_change_when_that_env_is_run_alone_without_padding"], abs=1e-4)


# --- imitation -------------------------------------------------------------------------------------------------------


def imitation_moments(policy: Spoc, io: dict[str, Tensor], maps: Tensor) -> Moments:
    ids = io["in/text_input_ids"]
    text = policy.encoder.embed_text(ids)
    b, t = io["in/actions"].shape
    return Moments(
        maps,
        text[:, None].expand(b, t, *text.shape[1:]),
        torch.ones(b, t, ids.shape[1], dtype=torch.bool),
        io["in/last_actions"],
        io["in/in_hand"],
        io["in/time_ids"],
    )


def test_imitation_from_frames(tmp_path: Path) -> None:
    policy = imported(tmp_path, "il")
    io, meta = golden_tensors("spoc/il_io.safetensors"), golden_json("spoc/il_meta.json")
    tolerance, real = meta["suggested_tolerance"], ~io["in/padding_mask"]
    maps = torch.stack([io["mid/nav_pooled"], io["mid/manip_pooled"]], 2)
    for i, name in enumerate(("nav", "manip")):
        frames = io[f"in/{name}_frames_u8"]
        torch.testing.assert_close(policy.encoder.maps(frames[real]), maps[:, :, i][real], **tolerance)
    pixels = dino_pixels(io["in/nav_frames_u8"][0, :1])[0, :, :2]
    torch.testing.assert_close(pixels, io["mid/nav_frame0_normalised_rows_0_1"], atol=1e-6, rtol=0)
    with torch.no_grad():
        moments = imitation_moments(policy, io, maps)
        torch.testing.assert_close(moments.text[:, 0], io["mid/text_features"], **tolerance)
        flat = (moments.maps.flatten(0, 1), moments.text.flatten(0, 1), moments.words.flatten(0, 1))
        torch.testing.assert_close(policy.actor.fuse(*flat), io["mid/fused"].flatten(0, 1), **tolerance)
        hidden = policy.imitate(moments)
        torch.testing.assert_close(hidden, io["mid/hidden"], **tolerance)
        torch.testing.assert_close(policy.actor.action_head(hidden), io["out/logits"], **tolerance)


def test_imitation_loss(tmp_path: Path) -> None:
    """From features, with the recorded padding; the hints say what came before the window."""
    policy = imported(tmp_path, "il")
    io, meta = golden_tensors("spoc/il_io.safetensors"), golden_json("spoc/il_meta.json")
    ids = io["in/text_input_ids"]
    b, t = io["in/actions"].shape
    x = {
        "maps": torch.stack([io["mid/nav_pooled"], io["mid/manip_pooled"]], 2),
        "tokens": ids[:, None].expand(b, t, -1),
        "in_hand": io["in/in_hand"],
        "last_action": io["in/last_actions"],
        "time": io["in/time_ids"],
    }
    actions = io["in/actions"][..., None].float()
    loss, metrics = policy.imitation_loss_of(x, actions, io["in/padding_mask"], torch.Generator())
    torch.testing.assert_close(loss.detach()[None], io["out/loss"], **meta["suggested_tolerance"])
    assert metrics["imitation_loss"] == pytest.approx(io["out/loss"].item(), rel=1e-3)
    wrong = torch.where(io["in/padding_mask"][..., None], 7.0, actions)
    assert policy.imitation_loss_of(x, wrong, io["in/padding_mask"], torch.Generator())[0] == loss


def test_imitation_acting_loop(tmp_path: Path) -> None:
    policy = imported(tmp_path, "il")
    io, meta = golden_tensors("spoc/il_io.safetensors"), golden_json("spoc/il_meta.json")
    row = meta["agent"]["sample"]
    memory, ids = policy.initial_memory(1), io["in/text_input_ids"][row : row + 1]
    for t in range(meta["agent"]["steps"]):
        maps = torch.stack([io["mid/nav_pooled"][row, t], io["mid/manip_pooled"][row, t]])[None]
        x = {"maps": maps, "tokens": ids, "in_hand": io["in/in_hand"][row : row + 1, t]}
        logits = policy.actor.action_head(policy.step("actor", x, memory)[0])[0]
        torch.testing.assert_close(logits, io["agent_out/logits"][t], **meta["suggested_tolerance"])
        decision, memory = policy.act(x, memory, torch.Generator(), greedy=True)
        assert decision.chunk.item() == io["agent_out/greedy_actions"][t]


def test_transfer_from_imitation_to_rl(tmp_path: Path) -> None:
    """The RL layout of an imported imitation model holds what the official transfer puts there, key by key."""
    policy, table = imported(tmp_path, "il"), golden_json("spoc/il_to_rl.json")
    weights = golden_tensors("spoc/il_tiny.safetensors")
    weights |= {a: weights[n] for a, n in golden_json("spoc/il_meta.json")["aliases_not_stored"].items()}
    ours = to_official(policy, "rl")
    assert set(ours) == set(table["copied_from"]) | set(table["kept_from_rl_initialisation"])
    for name, source in table["copied_from"].items():
        assert torch.allclose(ours[name], weights[source], rtol=1e-5), name
    unused = {k for k in weights if k not in table["copied_from"].values()}
    assert unused == set(table["unused_il_keys"])
    assert all(k.startswith(IL_PREFIX + "visual_encoder.image_encoder.") for k in unused)


# --- preprocessing ---------------------------------------------------------------------------------------------------


def test_frames() -> None:
    io, meta = golden_tensors("spoc_preprocess/io.safetensors"), golden_json("spoc_preprocess/meta.json")
    atol = meta["suggested_tolerance"]["normalised"]
    for name, source in (("nav", "in/nav_frame_u8"), ("manip", "in/manip_frame_u8_rgba")):
        cropped = stretch.crop_sides(io[source].numpy())
        assert np.array_equal(cropped, io[f"out/{name}_cropped_u8"].numpy())
        pixels = dino_pixels(torch.tensor(cropped)).permute(0, 2, 3, 1)
        key = "out/nav_normalised_hwc" if name == "nav" else "out/manip_normalised_hwc_first16rows"
        torch.testing.assert_close(pixels[:, : io[key].shape[1]], io[key], atol=atol, rtol=0)
    for width, expected in meta["width_after_crop"].items():
        assert stretch.crop_sides(np.zeros((2, int(width), 3), np.uint8)).shape[1] == expected


def test_vision_tower(tmp_path: Path) -> None:
    from transformers import Dinov2Model

    io, meta = golden_tensors("spoc_preprocess/io.safetensors"), golden_json("spoc_preprocess/meta.json")
    weights = golden_tensors("spoc_preprocess/dino_tiny.safetensors")
    model: Any = Dinov2Model(vision_config(weights, meta["dino_config"]["num_heads"]))
    model.load_state_dict(dino_from_official(weights))
    model.save_pretrained(tmp_path / "vision")
    options: dict[str, Any] = {"env": environment(), "vision": str(tmp_path / "vision"), "text": "tiny", "width": 64,
                               "fusion_hidden": 8}  # fmt: skip
    encoder = Spoc(**options).encoder
    tolerance = meta["suggested_tolerance"]["dino"]
    frames = io["out/nav_cropped_u8"]
    torch.testing.assert_close(encoder.patch_tokens(dino_pixels(frames))[0], io["out/dino_patch_tokens"], **tolerance)
    torch.testing.assert_close(encoder.maps(frames), io["out/dino_pooled"], **tolerance)
    exact = Spoc(**options, positions="exact").encoder.maps(frames)
    change = float((exact - io["out/dino_pooled"]).abs().max())
    recorded = meta["sensitivity_max_abs_change_of_dino_pooled"]["position table resized by exact size (no 0.1 offset)"]
    assert change == pytest.approx(recorded, rel=0.01)


def test_siglip_pixels() -> None:
    io, meta = golden_tensors("spoc_preprocess/io.safetensors"), golden_json("spoc_preprocess/meta.json")
    expected = io["out/nav_siglip_256_chw"]
    ours = siglip_pixels(io["out/nav_cropped_u8"], expected.shape[-1])
    atol = meta["suggested_tolerance"]["siglip_resize"]["atol"]
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)
    assert ((ours - expected).abs() > 1e-3).float().mean() < 0.01  # a grey level, here and there


# --- value bins ------------------------------------------------------------------------------------------------------


def test_value_bins() -> None:
    io = golden_tensors("flare_eval/hl_gauss.safetensors")
    torch.testing.assert_close(bin_edges(io["in/targets"]), io["support_edges"])
    torch.testing.assert_close(bin_targets(io["in/targets"]), io["out/target_probabilities"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(expected_value(io["in/logits"]), io["out/values_from_logits"], atol=1e-5, rtol=1e-5)
    loss = bin_loss(io["in/logits"], io["in/targets"]).mean()
    torch.testing.assert_close(loss[None], io["out/loss"], atol=1e-5, rtol=1e-5)
