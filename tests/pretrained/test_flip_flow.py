"""FLIP's flow model: against recorded tensors of the original, and by itself."""

import math
from typing import Any

import pytest
import torch

from pretrained.flip.flow import Reconstruction, displacement, integrate, steps
from tests.flip_parts import flow_model, gradient_norms, recorded_flow_model, recorded_shapes, scene, shapes
from tests.golden_files import golden_json, golden_tensors

TERMS = {"direction": "direction", "scale": "scale", "ade": "ade", "kl": "kl_robust", "pictures": "img_recon",
         "tracks": "flow_recon"}  # fmt: skip


@pytest.fixture
def io() -> dict[str, torch.Tensor]:
    return golden_tensors("flip_cvae/io.safetensors")


@pytest.fixture
def near() -> dict[str, Any]:
    return golden_json("flip_cvae/meta.json")["suggested_tolerance"]


def reconstructed(model: Any, io: dict[str, torch.Tensor]) -> Reconstruction:
    return model(io["flow"], io["obs_history"], io["text"], io["eps"])


def test_forward_is_the_recorded_one(io: dict[str, torch.Tensor], near: dict[str, Any]) -> None:
    with torch.no_grad():
        out = reconstructed(recorded_flow_model(quirks="faithful"), io)
    found = {"z_mu": out.mu, "z_logvar": out.logvar, "z_legacy": out.z, "scale": out.tracks.scale,
             "direction": out.tracks.direction, "integrated_flow": out.tracks.flow, "img_output": out.pictures,
             "flow_output": out.shown}  # fmt: skip
    for name, value in found.items():
        torch.testing.assert_close(value, io[f"fwd.{name}"], **near)


def test_losses_and_gradients_are_the_recorded_ones(io: dict[str, torch.Tensor]) -> None:
    model = recorded_flow_model(quirks="faithful")
    terms = model.losses(reconstructed(model, io), io["flow"], io["obs_history"])
    meta, weights = golden_json("flip_cvae/meta.json"), {"direction": 10, "scale": 10, "kl": 1e-4, "pictures": 1e-5,
                                                         "tracks": 1e-5}  # fmt: skip
    for name, theirs in TERMS.items():
        torch.testing.assert_close(terms[name], weights.get(name, 1) * io[f"loss.{theirs}"], rtol=1e-5, atol=1e-7)
    total = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(total, io["loss.total"], rtol=1e-5, atol=1e-5)
    total.backward()
    gradient_norms(model, meta["grad_norms_of_total_loss"], relative=1e-3)


@pytest.mark.parametrize("kind", ["posterior_legacy", "posterior_single_exp", "prior_legacy_e", "prior_unit", "zero"])
def test_decoder_is_the_recorded_one(kind: str, io: dict[str, torch.Tensor], near: dict[str, Any]) -> None:
    with torch.no_grad():
        found = recorded_flow_model().decode(io[f"sample.{kind}.z"], io["sample.query_points"], io["obs_history"],
                                             io["text"])  # fmt: skip
    for name in ("scale", "direction", "flow"):
        torch.testing.assert_close(getattr(found, name), io[f"sample.{kind}.{name}"], **near)


def test_latents_of_both_kinds_are_the_recorded_ones(io: dict[str, torch.Tensor], near: dict[str, Any]) -> None:
    with torch.no_grad():
        for quirks, kind in (("faithful", "posterior_legacy"), ("fixed", "posterior_single_exp")):
            out = reconstructed(recorded_flow_model(quirks=quirks), io)
            torch.testing.assert_close(out.z, io[f"sample.{kind}.z"], **near)


@pytest.mark.parametrize("quirks", ["fixed", "faithful"])
def test_prior_has_its_standard_deviation(quirks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = flow_model(quirks=quirks), scene(200, 3)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(model, "decode", lambda z, *rest: seen.append(z))
    model.sample(x["history"], x["text"], x["flow"][:, :, 0], torch.Generator().manual_seed(0))
    assert float(seen[0].std()) == pytest.approx(math.e if quirks == "faithful" else 1.0, rel=0.05)


def test_metrics_are_the_recorded_ones(io: dict[str, torch.Tensor]) -> None:
    small = integrate(io["flow"][:, :, 0], io["eval_small.scale"], io["eval_small.direction"])
    for name, flow in (("eval", io["fwd.integrated_flow"]), ("eval_small", small)):
        found = displacement(flow, io["flow"])
        assert found["ade"] == pytest.approx(float(io[f"{name}.ade"]), rel=1e-5)
        assert found["ltdr"] == pytest.approx(float(io[f"{name}.ltdr"]), rel=1e-5)


def test_lengths_and_directions_give_the_tracks_again(io: dict[str, torch.Tensor]) -> None:
    scale, direction = steps(io["flow"])
    torch.testing.assert_close(scale, io["target_scale"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(direction, io["target_direction"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(integrate(io["flow"][:, :, 0], scale, direction), io["flow"], rtol=0, atol=1e-4)


def test_full_size_has_the_official_names_and_shapes() -> None:
    from pretrained.flip.flow import FlowModel

    with torch.device("meta"):
        model = FlowModel()
    assert shapes(model) == recorded_shapes("flip_cvae/manifest_full.json")
    counts = golden_json("flip_cvae/meta.json")["full_parameter_counts"]["CVAE-B"]
    assert sum(p.numel() for p in model.parameters()) == counts["all"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counts["trainable"]


def test_kl_of_the_prior_is_nothing() -> None:
    model, x = flow_model(), scene()
    zero = torch.zeros(2, model.width)
    out = model(x["flow"], x["history"], x["text"], zero)._replace(mu=zero, logvar=zero)
    assert float(model.losses(out, x["flow"], x["history"])["kl"]) == 0


def test_what_moves_weighs_more_not_what_is_wrong() -> None:
    model, x = flow_model(), scene()
    still = x["flow"][:, :, :1].expand_as(x["flow"])
    out = model(still, x["history"], x["text"], torch.zeros(2, model.width))
    far = out._replace(tracks=out.tracks._replace(flow=still + 10.0))
    assert float(model.losses(far, still, x["history"])["ade"]) == pytest.approx(math.sqrt(200), rel=1e-5)
    faithful = flow_model(quirks="faithful")
    assert float(faithful.losses(far, still, x["history"])["ade"]) == pytest.approx(100 * math.sqrt(200), rel=1e-5)


def test_padding_words_and_neighbours_change_nothing() -> None:
    model, x = flow_model(), scene(3)
    points, z = x["flow"][:, :, 0], torch.randn(3, model.width)
    with torch.no_grad():
        base = model.decode(z, points, x["history"], x["text"]).flow
        longer = torch.cat([x["text"], torch.zeros(3, 4, 12)], 1)
        torch.testing.assert_close(model.decode(z, points, x["history"], longer).flow, base, rtol=0, atol=1e-4)
        alone = model.decode(z[1:2], points[1:2], x["history"][1:2], x["text"][1:2]).flow
    torch.testing.assert_close(alone, base[1:2], rtol=0, atol=1e-4)


def test_rows_follow_their_own_generators() -> None:
    model, x = flow_model(), scene(2)
    points = x["flow"][:, :, 0] / 20  # an untrained model looks at nothing but points that are far out
    with torch.no_grad():
        both = model.sample(x["history"], x["text"], points, [torch.Generator().manual_seed(s) for s in (1, 2)]).flow
        one = model.sample(x["history"][1:], x["text"][1:], points[1:], [torch.Generator().manual_seed(2)]).flow
        other = model.sample(x["history"][1:], x["text"][1:], points[1:], [torch.Generator().manual_seed(3)]).flow
    assert float((both[1:] - one).abs().max()) < 0.01 * float((one - other).abs().max())


def test_it_learns_one_batch() -> None:
    model, x = flow_model(width=32), scene()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    first = last = math.inf
    for step in range(120):
        out = model(
            x["flow"], x["history"], x["text"], torch.randn(2, 32, generator=torch.Generator().manual_seed(step))
        )
        terms = model.losses(out, x["flow"], x["history"])
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = terms["ade"].item()
        first = last if step == 0 else first
    assert last < 0.7 * first, (first, last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": torch.zeros(2, 5, 13)}, "same text encoder"),
        ({"history": torch.zeros(2, 3, 3, 64, 64)}, "32, 32"),
        ({"history": torch.zeros(2, 4, 3, 32, 32)}, r"\[B, 3, 3"),
        ({"flow": torch.zeros(2, 7, 5, 2)}, "tracks of 6 positions, got 5"),
    ],
)
def test_bad_input_is_named(change: dict[str, torch.Tensor], message: str) -> None:
    model, x = flow_model(), scene() | change
    with pytest.raises(ValueError, match=message):
        model(x["flow"], x["history"], x["text"], torch.zeros(2, model.width))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 18}, "divisible"),
        ({"size": (30, 32)}, "patches"),
        ({"horizon": 1}, "horizon >= 2"),
        ({"quirks": "official"}, "fixed or faithful"),
        ({"switches": {"latent": "single"}}, "latent"),
        ({"units": "metres"}, "pixels or picture"),
        ({"latent": "nowhere"}, "token or everywhere"),
        ({"motion_weight": 0.0}, "expected more than 0"),
        ({"switches": {"latent_std": "triple"}}, "single or double"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow_model(**options)


def test_units_and_weights_of_a_small_model() -> None:
    x = scene()
    model, plain = flow_model(units="picture", motion_weight=10.0, kl_weight=0.5), flow_model()
    with torch.no_grad():
        out = model(x["flow"], x["history"], x["text"], torch.zeros(2, 16))
    torch.testing.assert_close(out.tracks.flow[:, :, 0], x["flow"][:, :, 0])  # pixels go in and come out
    terms, other = (m.losses(out, x["flow"], x["history"]) for m in (model, plain))
    torch.testing.assert_close(terms["kl"] / 0.5, other["kl"] / 1e-4)
    error = (out.tracks.flow - x["flow"])[:, :, 1:].norm(dim=-1)
    moves = steps(x["flow"])[0][..., 0] > 1
    assert bool(moves.any())
    torch.testing.assert_close(terms["ade"], torch.where(moves, 10 * error, error).mean())
    corner = torch.tensor([0.0, 31.0])
    torch.testing.assert_close(model._units(corner), torch.tensor([-15.5, 15.5]) / 8)


def test_a_latent_everywhere_is_heeded_without_attention() -> None:
    x = scene()
    for latent, heeds in (("token", False), ("everywhere", True)):
        model = flow_model(latent=latent)
        decoder: Any = model.cvae_decoder
        for layer in decoder.layers:
            layer.self_attn.out_proj.weight.data.zero_()
        still, moved = (model.decode(z, x["flow"][:, :, 0] / 20, x["history"], x["text"]).flow[:, :, -1]
                        for z in (torch.zeros(2, 16), torch.randn(2, 16)))  # fmt: skip
        assert bool(((still - moved).norm(dim=-1) > 1e-3).all()) == heeds
