"""FLIP's value model: against recorded tensors of the original, and by itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pretrained.flip.clip import RN50, Clip, sizes_of
from pretrained.flip.value import ValueModel, clip_frames, nce, similarity, vip
from tests.flip_parts import gradient_norms, recorded_shapes, shapes
from tests.golden_files import golden_json, golden_tensors

VARIANTS = {"cos": (0.98, "cos"), "cos_g90": (0.9, "cos"), "l2": (0.9, "l2")}


@pytest.fixture
def io() -> dict[str, torch.Tensor]:
    return golden_tensors("flip_liv/io.safetensors")


def recorded_model(**options: Any) -> ValueModel:
    """With the weights that the recording was made with."""
    weights = {k.removeprefix("model."): v for k, v in golden_tensors("flip_liv/tiny.safetensors").items()}
    model = ValueModel(clip=vars(sizes_of(weights)), tokenizer="bytes", **options)
    model.model.load_state_dict(weights)
    return model.eval()


def small(**options: Any) -> ValueModel:
    torch.manual_seed(0)
    return ValueModel(clip="tiny", tokenizer="bytes", **options).eval()


@torch.no_grad()
def test_embeddings_are_the_recorded_ones(io: dict[str, torch.Tensor]) -> None:
    model, near = recorded_model(), golden_json("flip_liv/meta.json")["suggested_tolerance"]["embeddings"]
    found = {
        "text": model.model.texts(io["img.tokens"]),
        "vision": model.pictures(io["img.frames01"]),
        "preprocessed_raw01": model.prepare(io["img.raw01"]),
        "vision_raw01": model.pictures(io["img.raw01"]),
        "vision_u255": model.pictures(io["img.u255"] / 255),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, io[f"eval.{name}"], **near)


@pytest.mark.parametrize("name", VARIANTS)
def test_vip_and_its_gradients_are_the_recorded_ones(name: str, io: dict[str, torch.Tensor]) -> None:
    gamma, distance = VARIANTS[name]
    e = {k.removeprefix("emb.e_").removeprefix("emb."): v for k, v in io.items() if k.startswith("emb.")}
    shown = tuple(e[k].clone().requires_grad_() for k in ("e0", "k", "k1", "goal"))
    loss = vip(*shown, gamma=gamma, distance=distance)
    loss.backward()
    for x, k in zip(shown, ("e0", "e_k", "e_k1", "e_goal"), strict=True):
        torch.testing.assert_close(x.grad, io[f"vip.{name}.grad_{k}"], rtol=1e-4, atol=1e-5)
    first = (e["e0"], e["k"], e["k1"])
    options = {"gamma": gamma, "distance": distance}
    found = {
        "": loss.detach(),
        ".reward_mixed": vip(*first, e["goal"], reward=e["reward_mixed"], **options),
        ".text_goal": vip(*first, e["text"], **options),
        ".with_negatives": vip(*first, e["goal"], negatives=io[f"vip.{name}.negative_perms"], **options),
    }
    for suffix, value in found.items():  # a cosine's rounding is 50 times as large in a value of gamma 0.98
        torch.testing.assert_close(value, io[f"vip.{name}{suffix}"], rtol=1e-5, atol=1e-5)
    for k in ("0", "k", "k1"):
        value = similarity(e["e0" if k == "0" else k], e["goal"], distance=distance) / (1 - gamma)
        torch.testing.assert_close(value, io[f"vip.{name}.V_{k}"], rtol=1e-5, atol=1e-5)


def test_nce_and_its_gradients_are_the_recorded_ones(io: dict[str, torch.Tensor]) -> None:
    pictures, texts = io["emb.e_last"].requires_grad_(), io["emb.e_text"].requires_grad_()
    loss = nce(pictures, texts)
    torch.testing.assert_close(loss, io["nce"], rtol=1e-5, atol=1e-6)
    loss.backward()
    torch.testing.assert_close(pictures.grad, io["nce.grad_image"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(texts.grad, io["nce.grad_text"], rtol=1e-4, atol=1e-6)


def test_losses_of_the_model_are_the_recorded_ones(io: dict[str, torch.Tensor]) -> None:
    model, gamma = recorded_model(), golden_json("flip_liv/meta.json")["gamma"]
    with torch.no_grad():
        terms = model.losses(io["img.frames01"], io["img.tokens"])
        found = torch.stack([terms["nce"], terms["vip"], terms["nce"] + terms["vip"]])
        torch.testing.assert_close(found, io["step.eval_mode_losses"], rtol=1e-4, atol=1e-4)
        terms = model.losses(io["img.frames01"], io["img.tokens"], negatives=io["pretrain.perms"])
        found = torch.stack([terms["nce"], terms["vip"], terms["vip_text"], torch.stack(list(terms.values())).sum()])
        torch.testing.assert_close(found, io["pretrain.eval_mode_losses"], rtol=1e-4, atol=1e-4)
    assert gamma == model.gamma


def test_a_step_of_training_is_the_recorded_one(io: dict[str, torch.Tensor]) -> None:
    model, meta = recorded_model().train(), golden_json("flip_liv/meta.json")
    o = meta["optimizer"]
    optimizer = torch.optim.Adam(
        model.parameters(), o["lr"], (o["betas"][0], o["betas"][1]), o["eps"], o["weight_decay"]
    )
    terms = model.losses(io["img.frames01"], io["img.tokens"])
    total = terms["nce"] + terms["vip"]
    found = torch.stack([terms["nce"], terms["vip"], total])
    torch.testing.assert_close(found, io["step.train_mode_losses"], rtol=1e-3, atol=1e-5)
    total.backward()
    assert model.model.logit_scale.grad is None
    norms = next(v for k, v in meta.items() if "grad_norm" in k)
    gradient_norms(model, norms, relative=1e-2)
    optimizer.step()
    after = {k.removeprefix("step.after."): v for k, v in io.items() if k.startswith("step.after.")}
    own = model.state_dict()
    for name, value in after.items():
        if "running" in name:
            torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-6)
            continue
        gap = (own[name] - value).abs()
        assert float((gap <= 2e-6).float().mean()) >= 0.995, name
        assert float(gap.max()) <= 2.5e-5, name


@torch.no_grad()
def test_scores_by_batch_are_the_recorded_ones(io: dict[str, torch.Tensor]) -> None:
    from pretrained.flip.value import _stretched

    frames = io["planner_reward.frames"]
    torch.testing.assert_close(_stretched(frames) * 255, io["planner_reward.rescaled"], rtol=0, atol=1e-3)
    model = recorded_model(quirks="faithful")
    found = torch.cosine_similarity(model.pictures(_stretched(frames)), model.model.texts(io["img.tokens"][:1]))
    torch.testing.assert_close(found, io["planner_reward.score"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_competitors_change_a_score_only_if_asked_to() -> None:
    pictures = torch.rand(3, 3, 32, 32)
    pictures[0] = 0.3 + 0.2 * pictures[0]
    for quirks, same in (("fixed", True), ("faithful", False)):
        model = small(quirks=quirks)
        together, alone = model.score(pictures, ["go"] * 3)[0], model.score(pictures[:1], ["go"])[0]
        assert (abs(float(together - alone)) < 1e-5) == same


def test_clip_frames_are_the_recorded_ones() -> None:
    cases = golden_json("flip_liv/clip_indices.json")["cases"]
    assert cases
    for c in cases:
        draws = iter(c["draws_low_high_value"])

        def draw(low: int, high: int, draws: Iterator[list[int]] = draws) -> int:
            first, last, value = next(draws)
            assert (first, last) == (low, high)
            return value

        found = clip_frames(c["video_len"], draw, clip=c["clip_len"])
        assert found == (c["f_start"], c["f_goal"], c["f_k"], c["f_k_plus_1"], c["video_len"] - 1)
        assert next(draws, None) is None


def test_short_videos_are_refused() -> None:
    for length, clip, _ in [*golden_json("flip_liv/clip_indices.json")["rejected"], (16, 0, "")]:
        with pytest.raises(ValueError, match="expected at least 4"):
            clip_frames(length, lambda low, high: low, clip=clip)


def test_full_size_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        model = Clip(RN50)
    assert {f"model.{k}": v for k, v in shapes(model).items()} == recorded_shapes("flip_liv/manifest_full.json")


def test_value_learns_to_rise_along_a_video() -> None:
    model = small()
    torch.manual_seed(1)
    steps = torch.linspace(0, 1, 16)[:, None, None, None]
    film = (1 - steps) * torch.rand(1, 3, 32, 32) + steps * torch.rand(1, 3, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    losses, random = [], torch.Generator().manual_seed(0)
    tokens = model._tokens(["mix"] * 4, 77)
    for _ in range(40):
        rows = [clip_frames(16, lambda a, b: int(torch.randint(a, b + 1, (), generator=random))) for _ in range(4)]
        terms = model.losses(torch.stack([film[list(row)] for row in rows]), tokens)
        optimizer.zero_grad()
        terms["vip"].backward()
        optimizer.step()
        losses.append(terms["vip"].item())
    with torch.no_grad():
        e = model.pictures(film)
        value = similarity(e, e[-1:])
    assert sum(losses[-5:]) < sum(losses[:5])
    assert float(value[0]) < float(value[8]) < float(value[14])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": "ViT-B-32"}, "RN50 or tiny"),
        ({"clip": {"depth": 3}}, "depth"),
        ({"gamma": 1.0}, "0 <= gamma < 1"),
        ({"switches": {"scores": "best"}}, "fixed or batch"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValueModel(**{"clip": "tiny", "tokenizer": "bytes", **options})


def test_bad_input_is_named(tmp_path: Any) -> None:
    model = small()
    with pytest.raises(ValueError, match="neither normalised"):
        model.score(torch.rand(1, 3, 32, 32) * 255, ["go"])
    with pytest.raises(ValueError, match="not the weights of a CLIP with a ResNet"):
        sizes_of({"visual.class_embedding": torch.zeros(3)})
    with pytest.raises(ValueError, match="tokenizer cannot be loaded"):
        ValueModel(clip="tiny", tokenizer=str(tmp_path)).texts(["go"])
    with pytest.raises(ValueError, match="cos or l2"):
        similarity(torch.zeros(1, 2), torch.zeros(1, 2), distance="dot")
