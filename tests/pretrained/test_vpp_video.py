"""The video model against recorded tensors of the original: features, losses, previews; and its own laws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from pretrained.vpp.preview import preview
from pretrained.vpp.towers import SCHEDULE, Towers, check, load_text, load_video
from pretrained.vpp.video import VideoModel
from tests.golden_files import golden_json, golden_tensors


def io() -> dict[str, Tensor]:
    return golden_tensors("vpp_tvp/io.safetensors")


def recorded(**options: Any) -> VideoModel:
    """The recorded U-Net and VAE; the text tower is not used, so it is the tiny one, as wide as CLIP's."""
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    meta = golden_json("vpp_tvp/meta.json")
    sizes, vae_sizes = meta["tiny_unet_config"], meta["tiny_vae_config"]
    unet: Any = UNetSpatioTemporalConditionModel(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
    )
    unet.load_state_dict({k: v.float() for k, v in golden_tensors("vpp_tvp/tiny.safetensors").items()})
    blocks = len(vae_sizes["block_out_channels"])
    vae: Any = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        block_out_channels=tuple(vae_sizes["block_out_channels"]),
        layers_per_block=vae_sizes["layers_per_block"],
        latent_channels=vae_sizes["latent_channels"],
        scaling_factor=vae_sizes["scaling_factor"],
    )
    vae.load_state_dict({k: v.float() for k, v in golden_tensors("vpp_tvp/tiny_vae.safetensors").items()})
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=512, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=260)
    )
    size = meta["sizes"]["pixels"]
    frames = options.pop("frames", meta["sizes"]["frames"])
    towers = Towers(unet, vae, EulerDiscreteScheduler(**SCHEDULE))
    return VideoModel(parts=(towers, text, load_text("tiny")[1]), frames=frames, size=(size, size),
                      **{"switches": {"fps": "four"}, **options})  # fmt: skip


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, **golden_json("vpp_tvp/meta.json")["suggested_tolerance"]["features"])


def first_latent(model: VideoModel) -> Tensor:
    return io()["first_frame_latent_scaled"][:, 0] / model.scale


def test_text_equals_the_recording() -> None:
    hidden = io()["text_hidden_512"][:2]
    close(recorded().states(hidden), io()["encoder_hidden_states"])
    close(recorded(positions=True).states(hidden), io()["encoder_hidden_states_with_position"])


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("all_layers_idx1.features", {}, 16),
        ("all_layers_idx2.features_frames0_3", {"block": 2}, 4),
        ("single_layer_idx0.features_frames0_3", {"block": 0, "all_blocks": False}, 4),
        ("single_layer_idx1.features_frames0_3", {"all_blocks": False}, 4),
        ("two_steps_idx1.features_frames0_3", {"passes": 2}, 4),
    ],
)
def test_features_equal_the_recording(name: str, options: dict[str, Any], rows: int) -> None:
    model = recorded(**options)
    states = model.states(io()["text_hidden_512"][:2])
    maps = model.features(first_latent(model), states, io()["unit_noise"])
    assert maps.shape[2:] == (model.channels, *model.grid)
    close(maps[:, :rows], io()[name])


def test_features_of_a_picture_equal_the_recording() -> None:
    model = recorded()
    first = model.latents(io()["first_frame_image"][:, 0])
    close(first, io()["image_input_latent_unscaled"])
    maps = model.features(first, model.states(io()["text_hidden_512"][:2]), io()["unit_noise"])
    close(maps[:, :4], io()["image_input_idx1.features_frames0_3"])


def test_the_pass_ends_at_the_last_block_that_is_asked() -> None:
    model, calls = recorded(), []
    for i, block in enumerate(model.net.up_blocks):
        block.register_forward_hook(lambda module, inputs, output, i=i: calls.append(i))
    model.features(first_latent(model), model.states(io()["text_hidden_512"][:2]), io()["unit_noise"])
    assert calls == [0, 1]
    assert all(len(block._forward_hooks) == 1 for block in model.net.up_blocks)  # ours are gone


def test_switch_of_the_frame_rate_matters() -> None:
    states = recorded().states(io()["text_hidden_512"][:2])
    a, b = (
        m.features(first_latent(m), states, io()["unit_noise"])
        for m in (recorded(), recorded(switches={"fps": "trained"}))
    )
    assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("kind", ["latents", "images"])
def test_loss_and_gradients_equal_the_recording(kind: str) -> None:
    model, x = recorded(learning=True, frames=5), io()
    part = {k.removeprefix(f"train_{kind}."): v for k, v in x.items() if k.startswith(f"train_{kind}.")}
    if kind == "latents":
        latents, strength = part["video"], torch.tensor(0.0)
        first = latents[:, 0] / model.scale
    else:
        latents = model.latents(part["video"].flatten(0, 1)).unflatten(0, (2, 5)) * model.scale
        close(latents, part["latents_scaled"])
        strength = part["aug_strength"]
        first = model.latents(part["video"][:, 0] + strength * part["aug_noise"])
    loss = model.loss(latents, first, model.states(x["train.text_hidden_512"]), sigma=part["sigma"],
                      noise=part["noise"], keep=part["text_keep"], augmentation=strength)  # fmt: skip
    torch.testing.assert_close(loss, part["loss"], rtol=1e-4, atol=0)
    if kind == "latents":
        loss.backward()
        norms = golden_json("vpp_tvp/meta.json")["grad_norms_of_train_latents_loss"]
        checked = 0
        for name, p in model.unet.named_parameters():
            if norms[name] > 5e-6:
                assert p.grad is not None
                torch.testing.assert_close(float(p.grad.norm()), norms[name], rtol=1e-3, atol=0, msg=name)
                checked += 1
        assert checked > 700


def test_preview_equals_the_recording() -> None:
    x = io()
    model = recorded(frames=4, switches={"preview_augmentation": "default"})
    states = x["preview.encoder_hidden_states"]
    latents = preview(model, x["preview.first_latent_scaled"] / model.scale, states, x["preview.unit_noise"],
                      steps=len(x["preview.sigmas"]) - 1)  # fmt: skip
    assert (latents - x["preview.latents"]).abs().max() < 1e-3 * x["preview.latents"].abs().max()
    other = preview(recorded(frames=4), x["preview.first_latent_scaled"] / model.scale, states,
                    x["preview.unit_noise"], steps=5)  # fmt: skip
    assert not torch.allclose(other, latents, atol=5e-4)


@pytest.mark.parametrize("steps", [5, 10, 20, 30])
def test_noise_levels_equal_the_recording(steps: int) -> None:
    scheduler = load_video("tiny").scheduler
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas.float(), io()[f"scheduler{steps}.sigmas"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps.float(), io()[f"scheduler{steps}.timesteps"], rtol=1e-5, atol=1e-5)


def test_published_size() -> None:
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    with torch.device("meta"):
        unet: Any = UNetSpatioTemporalConditionModel()
        vae: Any = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512), layers_per_block=2
        )
    for module, name in ((unet, "vpp_tvp/manifest_full.json"), (vae, "vpp_tvp/manifest_vae.json")):
        manifest = golden_json(name)
        shapes = {k: list(v.shape) for k, v in module.state_dict().items()}
        assert shapes == {k: v["shape"] for k, v in manifest["entries"].items()}
        assert sum(p.numel() for p in module.parameters()) == manifest["n_parameters"]


# --- laws ---


def tiny(**options: Any) -> VideoModel:
    return VideoModel(model="tiny", text="tiny", frames=3, size=(16, 16), **options)


def pictures(rows: int = 2) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    return {c: torch.from_numpy(rng.integers(0, 256, (rows, 20, 24, 3), dtype=np.uint8)) for c in ("front", "hand")}


def test_equal_seeds_equal_features() -> None:
    model = tiny()
    one, goals = model.foresee(pictures(), ["push", "pull"], torch.tensor([3, 4]))
    two, _ = model.foresee(pictures(), ["push", "pull"], torch.tensor([3, 4]))
    other, _ = model.foresee(pictures(), ["push", "pull"], torch.tensor([3, 5]))
    assert one.shape == (2, 3, 2 * model.grid[0] * model.grid[1], model.channels)
    assert torch.equal(one, two)
    assert torch.allclose(one[0], other[0], atol=1e-5)
    assert not torch.allclose(one[1], other[1], atol=1e-3)
    alone, _ = model.foresee({k: v[1:] for k, v in pictures().items()}, ["pull"], torch.tensor([4]))
    assert torch.allclose(alone[0], one[1], atol=1e-3)
    assert not torch.allclose(goals[0], goals[1])
    text, _ = model.foresee(pictures(), ["push", "lift"], torch.tensor([3, 4]))
    assert not torch.allclose(text[1], one[1], atol=1e-6)


def test_frozen_towers_are_no_parameters() -> None:
    assert not list(tiny().parameters())
    learning = tiny(learning=True)
    assert {k.split(".")[0] for k in learning.state_dict()} == {"unet"}
    assert all(p.requires_grad for p in learning.parameters())
    assert not any(p.requires_grad for p in (*learning.vae.parameters(), *learning.text.parameters()))


def test_folder_in_the_layout_of_a_pipeline(tmp_path: Path) -> None:
    towers = load_video("tiny")
    for name in ("unet", "vae", "scheduler"):
        getattr(towers, name).save_pretrained(tmp_path / name)
    a = tiny().foresee(pictures(), ["a", "b"], torch.tensor([1, 2]))[0]
    other = VideoModel(model=str(tmp_path), text="tiny", frames=3, size=(16, 16))
    assert torch.allclose(other.foresee(pictures(), ["a", "b"], torch.tensor([1, 2]))[0], a, atol=1e-5)
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no video model can be loaded"):
        load_video(str(tmp_path))


def test_video_model_of_another_latent_shape_is_refused() -> None:
    from diffusers import AutoencoderKLTemporalDecoder

    towers = load_video("tiny")
    wide: Any = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), layers_per_block=1, latent_channels=8
    )
    with pytest.raises(ValueError, match="another latent shape than its VAE: .* takes 8 .* expected 16"):
        check(towers._replace(vae=wide), "mine")
    model = tiny()
    states = model.sentences(["push"])[0]
    noise = model.noise(torch.tensor([0]), 1)[0]
    with pytest.raises(ValueError, match=r"takes \[4, 8, 8\] .* prepared for another"):
        model.features(torch.zeros(1, 4, 16, 16), states, noise[None])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (20, 16)}, "takes multiples of 16 pixels"),
        ({"block": 4}, "upper blocks 0 to 3"),
        ({"passes": 0}, "the schedule 20 steps"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VideoModel(**{"model": "tiny", "text": "tiny", "frames": 3, "size": (16, 16), **options})


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no video model can be loaded from '.*none'.*give a folder"):
        load_video(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="text tower cannot be loaded from '.*none'"):
        load_text(str(tmp_path / "none"))


def test_answers_that_are_not_finite_are_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.net.conv_in.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="features are not finite"):
        model.foresee(pictures(), ["a", "b"], torch.tensor([1, 2]))
