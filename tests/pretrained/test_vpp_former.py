"""The Video Former against recorded tensors of the original, and what its switches change."""

import pytest
import torch

from pretrained.importers.vpp_names import former_names
from pretrained.vpp.former import VideoFormer
from pretrained.vpp.quirks import FAITHFUL, FIXED, choose
from tests.golden_files import golden_json, golden_tensors
from tests.vpp_parts import check_gradients, recorded_former

KINDS = ("former3d", "former3d_no_temporal", "former2d")


def small(**options: object) -> VideoFormer:
    torch.manual_seed(0)
    sizes = {"channels": 5, "frames": 3, "latents": 6, "width": 8, "depth": 2, "heads": 2, "head_width": 4}
    return VideoFormer(**{**sizes, **options}).eval()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_masked_output_equal_the_recording(kind: str) -> None:
    io, tolerance = golden_tensors("vpp_former/io.safetensors"), golden_json("vpp_former/meta.json")
    former = recorded_former(kind)
    with torch.no_grad():
        for got, expected in (
            (former(io[f"{kind}.x"]), "y"),
            (former(io[f"{kind}.x"], io[f"{kind}.mask"].bool()), "y_masked"),
        ):
            torch.testing.assert_close(got, io[f"{kind}.{expected}"], **tolerance["suggested_tolerance"])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_the_recording(kind: str) -> None:
    io, former = golden_tensors("vpp_former/io.safetensors"), recorded_former(kind)
    (former(io[f"{kind}.x"]) * io[f"{kind}.grad_probe"]).sum().backward()
    recorded = golden_json("vpp_former/meta.json")["grad_norms_of_sum_y_times_probe"][kind]
    names = former_names(list(former.state_dict()))
    assert check_gradients(former, names, recorded, rtol=1e-3) == len(recorded)


def test_published_size() -> None:
    manifest = golden_json("vpp_former/manifest_full.json")
    sizes = golden_json("vpp_former/meta.json")["full_config"]
    with torch.device("meta"):
        former = VideoFormer(channels=sizes["condition_dim"])
    names = former_names(list(former.state_dict()))
    shapes = {names[k]: list(v.shape) for k, v in former.state_dict().items()}
    assert shapes == {k: v["shape"] for k, v in manifest["entries"].items()}
    assert sum(p.numel() for p in former.parameters()) == manifest["n_parameters"]


def test_masked_frames_are_not_seen_unless_faithful() -> None:
    x, shown = torch.randn(2, 3, 7, 5), torch.tensor([[True, True, False], [True, False, True]])
    other = torch.where(shown[:, :, None, None], x, x + 1.0)
    with torch.no_grad():
        fixed, faithful = small(), small(frame_mask="embedding")
        assert torch.allclose(fixed(x, shown), fixed(other, shown), atol=1e-6)
        assert not torch.allclose(faithful(x, shown), faithful(other, shown), atol=1e-3)
        assert torch.allclose(fixed(x), faithful(x), atol=1e-6)
        assert not torch.allclose(fixed(x), fixed(x, shown), atol=1e-3)


def test_frames_meet_in_the_3d_form_only() -> None:
    x = torch.randn(1, 3, 7, 5)
    other = x.clone()
    other[:, 2] += 1.0
    for temporal in (True, False):
        former = small(temporal=temporal)
        with torch.no_grad():
            same = torch.allclose(former(x)[:, :2], former(other)[:, :2], atol=1e-6)  # the first frame's tokens
        assert same != temporal


@pytest.mark.parametrize(
    ("features", "shown", "words"),
    [
        (torch.zeros(1, 3, 7, 6), None, r"expected \[B, 3, S, 5\]; the video model is not the one"),
        (torch.zeros(1, 4, 7, 5), None, r"shape \(1, 4, 7, 5\)"),
        (torch.zeros(1, 3, 7, 5), torch.zeros(1, 3, dtype=torch.bool), "show at least one frame"),
    ],
)
def test_features_of_another_model_are_refused(features: torch.Tensor, shown: torch.Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small()(features, shown)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="7 latents cannot be divided among 3 frames"):
        small(latents=7)
    with pytest.raises(ValueError, match="3 frames need as many embeddings"):
        small(embeddings=2)


def test_quirks() -> None:
    assert choose("fixed", {}) == FIXED
    assert choose("faithful", {"fps": "trained"}) != FAITHFUL
    assert all(getattr(FIXED, f) != getattr(FAITHFUL, f) for f in vars(FIXED))
    with pytest.raises(ValueError, match="switches \\['fsp'\\] are unknown"):
        choose("fixed", {"fsp": "four"})
    with pytest.raises(ValueError, match="quirk fps 'ten' is unknown; expected trained or four"):
        choose("fixed", {"fps": "ten"})
    with pytest.raises(ValueError, match="quirks 'none' is unknown"):
        choose("none", {})
