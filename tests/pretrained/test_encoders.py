"""Encoders, image preprocessing, normalisers and the networks' small parts."""

import numpy as np
import pytest
import torch
from torch import nn

from pretrained import networks
from pretrained.encoders import CLIP_MEAN, CLIP_STD, ClipEncoder, PixelEncoder, clip_pixels
from pretrained.networks import SmallCnn, VelocityTransformer, random_shift
from pretrained.normalize import ActionNormalizer, ProprioNormalizer, find_quaternions

CAMERAS = {"front": (20, 24), "hand": (16, 16)}


def images(n: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {c: torch.randint(0, 256, (n, *s, 3), dtype=torch.uint8, generator=rng) for c, s in CAMERAS.items()}


def test_pixel_encoder_sees_images_and_words() -> None:
    encoder = PixelEncoder(cameras=CAMERAS, width=8, channels=(4, 4, 4), text_dim=6, words=5)
    out = encoder.embed_images(images(3))
    assert out.shape == (3, encoder.image_dim) == (3, 16)
    dark = encoder.embed_images({**images(3), "hand": torch.zeros(3, 16, 16, 3, dtype=torch.uint8)})
    assert torch.equal(out[:, :8], dark[:, :8])
    assert not torch.equal(out[:, 8:], dark[:, 8:])
    tokens = encoder.tokens(["Lift the CUBE!", "lift the cube", "cube", "", "a b c d e f g"])
    assert tokens.shape == (5, 5)
    assert torch.equal(tokens[0], tokens[1])
    text = encoder.embed_text(tokens)
    assert torch.equal(text[0], text[1])
    assert not torch.equal(text[0], text[2])
    assert torch.equal(text[3], torch.zeros(6))  # no words
    assert tokens.equal(
        PixelEncoder(cameras=CAMERAS, words=5).tokens(["lift the cube", "lift the cube", "cube", "", "a b c d e"])
    )


@pytest.mark.parametrize("window", [(8, 8, 0), (5, 2, 2)], ids=["patches", "overlapping"])
def test_pixels_become_floats_a_few_pictures_at_a_time_as_they_would_at_once(
    monkeypatch: pytest.MonkeyPatch, window: tuple[int, int, int]
) -> None:
    size, stride, pad = window
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (7, 24, 32, 3), dtype=torch.uint8, generator=rng)
    weight, bias = torch.randn(4, 3, size, size, generator=rng), torch.randn(4, generator=rng)
    monkeypatch.setattr(networks, "SLAB", 2 * 24 * 32 * 3 // torch.get_num_threads())  # two pictures and one left over
    results = []
    for convolve in (networks.pixel_conv, lambda x, *a: nn.functional.conv2d(x.permute(0, 3, 1, 2) - 127.5, *a)):
        leaves = [weight.clone().requires_grad_(True), bias.clone().requires_grad_(True)]
        out = convolve(images, *leaves, (stride, stride), (pad, pad))
        (out / 127.5).square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_keypoints_follow_a_blob() -> None:
    cnn = SmallCnn((32, 32), out=4, channels=(1,), kernels=(1,), strides=(1,), pool="softmax")
    torch.nn.init.constant_(cnn.convs[0].weight, 20.0)
    torch.nn.init.zeros_(cnn.convs[0].bias)
    map_ = torch.zeros(1, 1, 32, 32)
    map_[0, 0, 31, 0] = 50.0
    y, x = cnn._keypoints(map_)[0].tolist()
    assert (y, x) == pytest.approx((1.0, -1.0), abs=1e-3)


def test_random_shift_moves_and_repeats_edges() -> None:
    image = torch.arange(8 * 8).view(1, 8, 8, 1).expand(64, 8, 8, 3).to(torch.uint8)
    moved = random_shift(image, 2, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    assert moved.dtype == torch.uint8
    distinct = {tuple(m[:, :, 0].flatten().tolist()) for m in moved}
    assert 10 < len(distinct) <= 25
    padded = torch.nn.functional.pad(image[:1].permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="replicate")
    crops = {tuple(padded[0, 0, i : i + 8, j : j + 8].flatten().int().tolist()) for i in range(5) for j in range(5)}
    assert distinct <= crops


def test_clip_pixels_of_the_right_size_are_only_normalised() -> None:
    image = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    expected = (image.permute(0, 3, 1, 2) / 255 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[
        :, None, None
    ]
    assert torch.allclose(clip_pixels(image, 32), expected, atol=1e-5)


def test_clip_pixels_agree_with_pillow() -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (64, 48), Image.Resampling.BICUBIC
    )
    resized = coarse.resize((43, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
    ours = clip_pixels(torch.from_numpy(np.array(coarse))[None], 32)[0]
    ours = ours * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    assert (ours.permute(1, 2, 0) * 255 - torch.from_numpy(np.array(resized))).abs().max() < 2.0


def test_tiny_clip_is_frozen_repeatable_and_outside_the_state() -> None:
    a, b = (ClipEncoder(cameras=CAMERAS, model="tiny") for _ in range(2))
    assert not list(a.parameters())
    assert not a.state_dict()
    assert torch.equal(a.embed_images(images(2)), b.embed_images(images(2)))
    assert a.embed_images(images(2)).shape == (2, 32)
    tokens = a.tokens(["open the drawer", "close it", "open the drawer"])
    text = a.embed_text(tokens)
    assert torch.equal(text[0], text[2])
    assert not torch.allclose(text[0], text[1])
    assert len(a._cache) == 2  # each instruction once
    assert a.to(torch.float64)._frozen[0].dtype == torch.float64  # the towers move along


def test_missing_clip_is_one_clear_error(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="CLIP cannot be loaded from.*tiny"):
        ClipEncoder(cameras=CAMERAS, model=f"{tmp_path}/nothing")


def test_transformer_tells_the_actions_of_a_chunk_apart() -> None:
    net = VelocityTransformer(horizon=4, action_dim=2, outputs=2, cond_dim=8, width=16, layers=2, heads=2)
    torch.nn.init.normal_(net.output.weight)
    x = torch.randn(3, 2, 4, 2)
    out = net(x, torch.rand(3, 2), torch.randn(3, 8))
    assert out.shape == x.shape
    assert not torch.allclose(net(x.zero_(), torch.zeros(3, 2), torch.zeros(3, 8))[0, 0, 0], out[0, 0, 1])
    with pytest.raises(ValueError, match="multiple"):
        VelocityTransformer(horizon=4, action_dim=2, outputs=2, cond_dim=8, width=18)


# --- normalisers ---


def test_quantiles_map_to_plus_and_minus_one() -> None:
    n = ActionNormalizer([-9.0, -1.0, -1.0], [9.0, 1.0, 1.0], mode="quantile", binary=[2])
    actions = torch.stack(
        [torch.linspace(0, 1, 101), torch.full((101,), 0.25), torch.tensor([-1.0] * 50 + [1.0] * 51)], 1
    )
    n.fit(actions)
    x = n.encode(actions)
    assert x[1, 0] == pytest.approx(-1.0, abs=1e-5)
    assert x[99, 0] == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(x[:, 1], actions[:, 1])  # it never moves: unchanged
    assert set(x[:, 2].tolist()) == {-1.0, 1.0}
    assert torch.allclose(n.decode(x), actions, atol=1e-6)
    assert n.decode(torch.tensor([100.0, 3.0, 0.1])).tolist() == [9.0, 1.0, 1.0]  # inside the bounds, gripper shut


def test_minmax_identity_and_unknown_modes() -> None:
    actions = torch.tensor([[0.0], [0.5], [2.0]])
    n = ActionNormalizer([-4.0], [4.0], mode="minmax")
    assert n.encode(torch.tensor([2.0])) == 0.5  # before any demonstration: the legal bounds
    n.fit(actions)
    assert n.encode(actions).flatten().tolist() == [-1.0, -0.5, 1.0]
    same = ActionNormalizer([-4.0], [4.0], mode="identity")
    same.fit(actions)
    assert torch.equal(same.encode(actions), actions)
    with pytest.raises(ValueError, match="normalize 'z'"):
        ActionNormalizer([0.0], [1.0], mode="z")
    with pytest.raises(ValueError, match=r"binary entries \[6\]"):
        ActionNormalizer([0.0], [1.0], mode="identity", binary=[6])


def test_proprio_is_scored_with_a_floor_and_canonical_quaternions() -> None:
    names = ["eef_x", "eef_qx", "eef_qy", "eef_qz", "eef_qw", "still"]
    assert find_quaternions(names) == [(1, 2, 3, 4)]
    assert find_quaternions(["hand_quat_w", "hand_quat_x", "hand_quat_y", "hand_quat_z", "qw"]) == [(1, 2, 3, 0)]
    n = ProprioNormalizer(names)
    q = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.9, 1.0], [2.0, -0.1, -0.2, -0.3, -0.9, 1.0]])
    n.fit(q)
    z = n(q)
    assert torch.equal(z[0, 1:], z[1, 1:])
    assert z[:, 0].tolist() == pytest.approx([-1.0, 1.0])
    assert float(n(q + torch.tensor([0, 0, 0, 0, 0, 0.005]))[0, 5]) == pytest.approx(0.5, abs=1e-3)  # floor 0.01
    assert float(n(q + 100.0).max()) == 10.0


def test_a_hand_that_points_down_has_one_sign() -> None:
    """There w is about 0, and turning quaternions to w >= 0 would make the noise of w choose their sign."""
    down = torch.tensor([[1.0, 0.02, 0.0, 0.001], [0.999, 0.03, 0.01, -0.001], [-1.0, -0.02, 0.0, 0.002]])
    n = ProprioNormalizer(["qx", "qy", "qz", "qw"])
    n.fit(down)
    turned = n.canonical(down)
    assert torch.equal(turned.sign()[:, 0], torch.full((3,), float(turned[0, 0].sign())))
    assert torch.equal(n(down), n(-down))
    copy = ProprioNormalizer(["qx", "qy", "qz", "qw"])
    copy.load_state_dict(n.state_dict())
    assert torch.equal(copy(down), n(down))
