"""FLIP's video model: against recorded tensors of the original, and by itself."""

import importlib.util
from typing import Any

import pytest
import torch

from pretrained.flip import noise
from pretrained.flip.vae import Autoencoder, check_range, psnr, ssim
from pretrained.flip.video import VideoModel
from tests.flip_parts import gradient_norms, recorded_shapes, recorded_video_model, scene, shapes, video_model
from tests.golden_files import golden_json, golden_tensors

TABLES = {
    "betas": "betas",
    "kept": "alphas_cumprod",
    "kept_before": "alphas_cumprod_prev",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance": "posterior_log_variance_clipped",
    "of_clean": "posterior_mean_coef1",
    "of_noisy": "posterior_mean_coef2",
}
SCHEDULES = {
    **{f"steps{n}": noise.linear(n) for n in (25, 300, 500, 1000)},
    **{f"respaced_{n}_of_1000": noise.respaced(noise.linear(), n) for n in (10, 50)},
    "respaced_ddim20_of_1000": noise.respaced(noise.linear(), 20, strided=True),
}
needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")


@pytest.fixture
def io() -> dict[str, torch.Tensor]:
    return golden_tensors("flip_dit/io.safetensors")


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_recorded_ones(name: str) -> None:
    recorded, schedule = golden_tensors("flip_dit/schedules.safetensors"), SCHEDULES[name]
    for ours, theirs in TABLES.items():
        torch.testing.assert_close(getattr(schedule, ours), recorded[f"{name}.{theirs}"], rtol=1e-12, atol=1e-12)
    if f"{name}.timestep_map" in recorded:
        assert torch.equal(schedule.told, recorded[f"{name}.timestep_map"])


@torch.no_grad()
@pytest.mark.parametrize("case", ["fwd0", "fwd1"])
def test_forward_is_the_recorded_one(case: str, io: dict[str, torch.Tensor]) -> None:
    out = recorded_video_model()(io[f"{case}.x"], io[f"{case}.t"], io["flow"], io["text"])
    near = golden_json("flip_dit/meta.json")["suggested_tolerance"]["forward"]
    torch.testing.assert_close(out, io[f"{case}.out"], **near)


@pytest.mark.parametrize("case", ["loss0", "loss1"])
def test_losses_and_gradients_are_the_recorded_ones(case: str, io: dict[str, torch.Tensor]) -> None:
    model = recorded_video_model()
    terms = model.losses(io["x_start"], io[f"{case}.t"], io[f"{case}.noise"], io["flow"], io["text"])
    torch.testing.assert_close(terms["mse"], io[f"{case}.mse"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["bound"], io[f"{case}.vb"], rtol=1e-5, atol=1e-6)
    if case == "loss0":
        (terms["mse"] + terms["bound"]).mean().backward()
        gradient_norms(model, golden_json("flip_dit/meta.json")["grad_norms_of_loss0_mean"], relative=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("quirks", ["fixed", "faithful"])
def test_samples_are_the_recorded_ones(quirks: str, io: dict[str, torch.Tensor]) -> None:
    model, meta = recorded_video_model(quirks=quirks), golden_json("flip_dit/meta.json")["sampling"]
    name, steps = ("sample_legacy", meta["legacy_steps"]) if quirks == "faithful" else ("sample_respaced", 10)
    assert torch.equal(model.sampler(steps).told.flip(0), io[f"{name}.t_given_to_net"])
    start = io[f"{name}.init"]
    draws = [start, *io[f"{name}.noise"]]
    found = model.sample(start[:, : model.history], io["flow"], io["text"], steps=steps, eta=None, noise=draws)
    final = io[f"{name}.final"][:, model.history :]
    assert float((found - final).abs().max()) <= 1e-4 * float(final.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("clip", [False, True])
def test_posterior_is_the_recorded_one(clip: bool, io: dict[str, torch.Tensor]) -> None:
    schedule, name = noise.linear(25), f"post_clip{int(clip)}"
    out = recorded_video_model()(io["post.x"], io["post.t"], io["flow"], io["text"])
    found = noise.posterior(schedule, out, io["post.x"], io["post.t"], clip=clip)
    for value, theirs in ((found.mean, "mean"), (found.log_variance, "log_variance"), (found.clean, "pred_xstart")):
        torch.testing.assert_close(value, io[f"{name}.{theirs}"], rtol=1e-4, atol=1e-4)


def test_full_size_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        model = VideoModel()
    assert shapes(model) == recorded_shapes("flip_dit/manifest_full.json")


def latents(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 7, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_history_stays_and_same_seed_is_same_video(eta: float | None) -> None:
    model, x, clean = video_model(), scene(), latents()
    kept: list[torch.Tensor] = []
    answer = model.answer
    model.answer = lambda x, t, *rest: (kept.append(x), answer(x, t, *rest))[1]  # type: ignore[method-assign]

    def sample(seed: int) -> torch.Tensor:
        return model.sample(clean[:, :2], x["flow"], x["text"], torch.Generator().manual_seed(seed), steps=4, eta=eta)

    first = sample(0)
    assert len(kept) == 4
    assert all(torch.equal(seen[:, :2], clean[:, :2]) for seen in kept)
    assert first.shape == (2, 5, 4, 8, 8)
    assert torch.equal(first, sample(0))
    assert not torch.equal(first, sample(1))


def test_ddim_finds_the_clean_sample_of_a_perfect_network() -> None:
    schedule, clean = noise.linear(), latents()
    small = noise.respaced(schedule, 7)

    def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kept = noise.at(schedule.kept, t, x)
        return torch.cat([(x - kept.sqrt() * clean) / (1 - kept).sqrt(), torch.zeros_like(x)], 2)

    found = noise.sample(small, perfect, clean[:, :2], 5, torch.Generator().manual_seed(0), eta=0.0)
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-4)


def test_history_has_no_part_in_the_loss() -> None:
    model, x = video_model(), scene()
    clean = latents().requires_grad_()
    t, drawn = torch.tensor([0, 600]), torch.randn(2, 7, 4, 8, 8)
    out = model.losses(clean, t, drawn, x["flow"], x["text"])
    other = drawn.clone()
    other[:, :2] = 100.0
    again = model.losses(clean, t, other, x["flow"], x["text"])
    for name in out:
        assert torch.equal(out[name], again[name])


def test_nan_of_the_network_is_named() -> None:
    model, x = video_model(), scene()
    torch.nn.init.constant_(model.final_layer.linear.bias, float("nan"))
    with pytest.raises(ValueError, match="video model answers NaN or infinity at step 999"):
        model.sample(latents()[:, :2], x["flow"], x["text"], torch.Generator(), steps=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 7, 4, 16, 16)}, r"\[7, 4, 8, 8\]"),
        ({"flow": torch.zeros(2, 7, 5, 2)}, "6 positions, got 5"),
        ({"text": torch.zeros(2, 5, 13)}, "same text encoder"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    x = {"x": latents(), "flow": scene()["flow"], "text": scene()["text"], **change}
    with pytest.raises(ValueError, match=message):
        video_model()(x["x"], torch.zeros(2, dtype=torch.int64), x["flow"], x["text"])


def test_bad_schedules_are_named() -> None:
    with pytest.raises(ValueError, match="more than 20 steps"):
        noise.linear(20)
    with pytest.raises(ValueError, match="1 to 1000"):
        noise.respaced(noise.linear(), 1001)
    with pytest.raises(ValueError, match="whole stride"):
        noise.respaced(noise.linear(), 300, strided=True)
    with pytest.raises(ValueError, match="goes on from 2 frames, got 3"):
        video_model().sample(latents()[:, :3], scene()["flow"], scene()["text"], torch.Generator())


def test_wrong_range_of_pictures_is_named() -> None:
    for pictures, message in (
        (torch.rand(1, 3, 16, 16) * 255, "neither normalised"),
        (torch.rand(1, 3, 16, 16) * 2 - 1, "neither normalised"),
        (torch.full((1, 3, 16, 16), float("nan")), "expected"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "divide uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            check_range(pictures)


def test_metrics_of_pictures() -> None:
    picture = torch.rand(2, 3, 3, 16, 16)
    assert psnr((picture * 0.8) + 0.1, picture * 0.8) == pytest.approx(20.0, abs=1e-3)
    assert ssim(picture, picture) == pytest.approx(1.0, abs=1e-5)
    assert ssim(picture, 1 - picture) < 0
    with pytest.raises(ValueError, match="11x11"):
        ssim(picture[..., :8], picture[..., :8])


@needs_diffusers
@pytest.mark.parametrize("quirks", ["fixed", "faithful"])
def test_autoencoder_gives_latents_and_back(quirks: str) -> None:
    vae, pictures = Autoencoder(quirks=quirks), torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        code = vae.encode(pictures)
        assert code.shape == (2, 3, 4, 4, 4)
        back = vae.decode(code)
        assert back.shape == pictures.shape
        assert float(back.min()) >= 0
        assert float(back.max()) <= 1
        drawn = vae.encode(pictures, torch.Generator().manual_seed(0))
        assert torch.equal(drawn, vae.encode(pictures, torch.Generator().manual_seed(0)))
        assert not torch.equal(drawn, code)
    vae.tune_decoder()
    vae.loss(pictures).backward()
    learns = {k.split(".")[1] for k, p in vae.named_parameters() if p.grad is not None}
    assert learns == {"decoder", "post_quant_conv"}


@needs_diffusers
def test_autoencoder_names_what_is_wrong(tmp_path: Any) -> None:
    vae = Autoencoder()
    with pytest.raises(ValueError, match="do not divide by 8"):
        vae.encode(torch.rand(1, 3, 20, 32))
    with pytest.raises(ValueError, match="NaN"):
        vae.decode(torch.full((1, 4, 4, 4), float("nan")))
    with pytest.raises(ValueError, match="no autoencoder can be loaded"):
        Autoencoder(model=str(tmp_path))


@needs_diffusers
def test_full_autoencoder_has_the_official_names_and_shapes() -> None:
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        model = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, **kinds)
    assert shapes(model) == recorded_shapes("flip_dit/manifest_vae.json")
