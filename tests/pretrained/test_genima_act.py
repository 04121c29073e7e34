"""GENIMA's controller as a policy: the original's quirks, disturbed pictures, and mistakes. Laws: test_policy_laws."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrained.genima import augment
from pretrained.genima.quirks import FAITHFUL, FIXED, choose
from pretrained.genima.resnet import FilmResNet, load_imagenet
from tests.pretrained.test_policy_laws import demonstrations, environment, generators, make, observe


def act(policy: Any, memory: Any = None, greedy: bool = True) -> Any:
    x = policy.encode(observe(policy, 3))
    return policy.act(x, policy.initial_memory(3) if memory is None else memory, generators(3), greedy)


# --- quirks ---


def test_presets_differ_in_every_field() -> None:
    assert all(getattr(FIXED, k) != getattr(FAITHFUL, k) for k in vars(FIXED))
    assert choose("fixed", {"gripper": "logit"}).gripper == "logit"
    with pytest.raises(ValueError, match=r"switches \['griper'\] are unknown"):
        choose("fixed", {"griper": "logit"})
    with pytest.raises(ValueError, match="quirk gripper 'x' is unknown; expected probability or logit"):
        choose("fixed", {"gripper": "x"})


def test_a_logit_of_a_quarter_closes_the_faithful_gripper() -> None:
    chunks = []
    for quirks in ("fixed", "faithful"):
        policy = make("genima", binary=[2], quirks=quirks)
        torch.nn.init.zeros_(policy.actor.head.weight)
        policy.actor.head.bias.data[:] = 0.25
        chunks.append(act(policy)[0].chunk[..., 2])
    assert (chunks[0] == 1.0).all()
    assert (chunks[1] == -1.0).all()


def test_faithful_first_decision_sees_the_raw_state() -> None:
    policy = make("genima", quirks="faithful")
    policy.state.set(torch.full((8,), 3.0), torch.full((8,), 2.0))
    assert not policy.spec.memoryless
    first, memory = act(policy)
    second, _ = act(policy, memory)
    assert not torch.equal(first.chunk, second.chunk)
    fixed = make("genima")
    fixed.load_state_dict(policy.state_dict())
    assert torch.equal(act(fixed)[0].trace, second.trace)
    starts = torch.tensor([[True, False], [False, False], [False, True]])
    memory = {"begun": torch.tensor([0, 1, 1])}
    x = {k: torch.stack([v, v], 1) for k, v in policy.encode(observe(policy, 3)).items()}
    trace = torch.zeros(3, 2, 2, policy.spec.horizon, 3)
    value = policy.evaluate(x, trace, starts, memory).value
    raw, scaled = (
        policy.value({k: v[:, 0] for k, v in x.items()}, policy.initial_memory(3)),
        policy.value({k: v[:, 0] for k, v in x.items()}, {"begun": torch.ones(3, dtype=torch.int64)}),
    )
    expected = torch.stack([raw[0], scaled[0], scaled[1], scaled[1], scaled[2], raw[2]]).view(3, 2)
    assert torch.allclose(value, expected, atol=1e-5)


def test_padding_counts_only_in_the_faithful_loss() -> None:
    losses = []
    for quirks in ("fixed", "faithful"):
        policy = make("genima", switches={"padding": {"fixed": "masked", "faithful": "counted"}[quirks]})
        demo = demonstrations(policy, 2)
        demo.is_pad[:, 1:] = True
        losses.append(policy.imitation_loss(demo, torch.Generator().manual_seed(0))[1]["l1"])
    assert losses[0] == pytest.approx(4 * losses[1], rel=1e-5)


# --- pictures ---


def pictures(n: int = 3, size: int = 40) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return augment.blur(torch.rand(n, 3, size, size, generator=rng) * 255, sigma=1.5)


@pytest.mark.parametrize("name", ["elastic", "colorjitter", "crop", "blur", "noise"])
def test_each_disturbance_disturbs_and_repeats(name: str) -> None:
    images = pictures()
    out = [augment.controller_view(images, torch.Generator().manual_seed(4), [name], share=1.0) for _ in range(2)]
    assert torch.equal(out[0], out[1])
    assert out[0].shape == images.shape
    assert 0.5 < (out[0] - images).abs().mean() < 60
    assert 0 <= out[0].min() <= out[0].max() <= 255


def test_batchwise_disturbance_is_one_for_all() -> None:
    images = pictures(1).expand(3, -1, -1, -1).contiguous()
    names = ["elastic", "colorjitter", "crop"]
    same = augment.controller_view(images, torch.Generator().manual_seed(0), names, same=True, share=1.0)
    each = augment.controller_view(images, torch.Generator().manual_seed(0), names, share=1.0)
    assert torch.allclose(same[0], same[1], atol=1e-3)
    assert not torch.allclose(each[0], each[1], atol=1.0)


def test_half_of_the_pictures_stay() -> None:
    images = pictures(200, 16)
    out = augment.controller_view(images, torch.Generator().manual_seed(0), ["crop"])
    kept = (out == images).flatten(1).all(1).float().mean()
    assert 0.4 < kept < 0.65


@pytest.mark.parametrize(("size", "most"), [(32, 1), (64, 1), (256, 4)])
def test_shifts_are_the_same_share_of_every_picture(size: int, most: int) -> None:
    """Where a sphere is says what to do: four pixels of 64 are as far as sixteen of 256."""
    images = torch.zeros(64, 3, size, size)
    images[:, :, size // 2, size // 2] = 255
    out = augment.controller_view(images, torch.Generator().manual_seed(0), ["crop"], share=1.0)
    places = (out[:, 0] > 200).nonzero()[:, 1:] - size // 2
    assert len(places) == 64
    assert int(places.abs().max()) == most


def test_geometry_and_colour_of_the_disturbances() -> None:
    images = pictures()
    assert torch.allclose(augment.elastic(images, torch.Generator(), alpha=0.0), images, atol=0.1)
    shifted = augment.crop(images, torch.Generator().manual_seed(1), pad=2)
    found = [
        (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
        if torch.equal(shifted[0, :, 4:-4, 4:-4], images[0, :, 4 + dy : 36 + dy, 4 + dx : 36 + dx])
    ]  # fmt: skip
    assert len(found) == 1
    grey = torch.full((2, 3, 8, 8), 100.0)
    jittered = augment.colour_jitter(grey, torch.Generator().manual_seed(0))
    assert torch.allclose(jittered[:, :1].expand_as(jittered), jittered, atol=0.1)  # grey stays grey
    moved = augment.affine(images, torch.Generator().manual_seed(0))
    assert (moved - images).abs().mean() > 1
    with pytest.raises(ValueError, match=r"augmentations \['colour'\] are unknown"):
        make("genima", augment=["colour"])


def test_training_disturbs_pictures_and_evaluation_does_not() -> None:
    policy = make("genima", augment=["noise"])
    demo = demonstrations(policy, 2)
    plain = policy.imitation_loss(demo, torch.Generator().manual_seed(0))[0]
    again = policy.imitation_loss(demo, torch.Generator().manual_seed(0))[0]
    policy.train()
    assert plain == again
    assert plain != policy.imitation_loss(demo, torch.Generator().manual_seed(0))[0]


def test_some_windows_are_shown_without_their_state() -> None:
    """With all of them, the state changes nothing while it imitates, and as much as ever when it acts."""
    policy = make("genima", augment=[], state_dropout=1.0, dropout=0.0)
    demo = demonstrations(policy, 2)
    other = dataclasses.replace(demo, obs=dataclasses.replace(demo.obs, proprio=demo.obs.proprio + 1.0))

    def losses() -> list[float]:
        return [float(policy.imitation_loss(d, torch.Generator().manual_seed(0))[0]) for d in (demo, other)]

    policy.train()
    assert losses()[0] == losses()[1]
    policy.eval()
    assert losses()[0] != losses()[1]


def test_imagenet_weights_of_torchvisions_names(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    source = FilmResNet(text_dim=4, planes=(4, 4, 8, 8))
    weights = {k: v for k, v in source.state_dict().items() if not k.startswith("film.")}
    path = tmp_path / "model.safetensors"
    save_file(weights | {"fc.weight": torch.zeros(2, 2), "bn1.num_batches_tracked": torch.zeros(())}, path)
    other = FilmResNet(text_dim=4, planes=(4, 4, 8, 8))
    load_imagenet(other, str(tmp_path))
    assert torch.equal(other.conv1.weight, source.conv1.weight)
    save_file({k: v for k, v in weights.items() if "layer4" not in k}, path)
    with pytest.raises(ValueError, match="is not a ResNet-18: missing"):
        load_imagenet(other, str(path))


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cameras": ["front", "wrist"]}, r"cameras \['wrist'\] are not in fake/laws"),
        ({"state": ["elbow"]}, r"state \['elbow'\] is not in the proprioception"),
        ({"state_stats": "actions"}, "state_stats: actions needs a state"),
        ({"state_stats": "mine"}, "expected own or actions"),
        ({"plain_state": ["x"]}, r"plain_state \['x'\] is not in the state"),
        ({"execute": 9}, "expected 1 <= execute <= horizon"),
        ({"width": 30}, "must be divisible by heads"),
        ({"binary": [5]}, r"binary entries \[5\] do not exist"),
        ({"kernel": {"_target_": "pretrained.chain.FlowNoise", "steps": 1}}, "use pretrained.chain.Gaussian"),
    ],
)
def test_mistakes_in_the_configuration(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make("genima", **options)


def test_mistakes_in_observations() -> None:
    policy = make("genima")
    good = observe(policy, 2)
    good.images = {"front": good.images["front"]}
    with pytest.raises(ValueError, match=r"camera 'hand' is missing; got \['front'\]"):
        policy.encode(good)
    wrong = observe(policy, 2)
    wrong.images["hand"] = np.zeros((2, 1, 12, 24, 3), np.uint8)
    with pytest.raises(ValueError, match="set the camera size of the environment"):
        policy.encode(wrong)
    broken = observe(policy, 2)
    broken.proprio[1, 0, 7] = np.nan  # type: ignore[index]
    with pytest.raises(ValueError, match="'finger' of row 1 is not finite"):
        policy.encode(broken)
    spec = environment()
    spec.cameras["hand"] = (12, 12)
    from envs.build import build
    from tests.pretrained.test_policy_laws import tiny_node

    with pytest.raises(ValueError, match="the views must be of one size"):
        build(tiny_node("genima"), env=spec)
