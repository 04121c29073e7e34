"""Text encoders of FLIP, and its models put together: a plan from untrained models."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrained.flip.imagine import Imagination
from pretrained.flip.planner import Planner
from pretrained.flip.text import Transformer, Words, check_same, text_encoder
from pretrained.flip.vae import Autoencoder
from pretrained.flip.value import ValueModel
from tests.flip_parts import flow_model, video_model

needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")


def parts(**options: Any) -> dict[str, Any]:
    node = {
        "flow": flow_model(size=(32, 32)),
        "video": video_model(size=(4, 4)),
        "vae": Autoencoder(),
        "value": ValueModel(clip="tiny", tokenizer="bytes").eval(),
        "text": Words(dim=12, length=8),
        "points": 9,
        "steps": 3,
    }
    return {**node, **options}


@needs_diffusers
def test_a_plan_of_untrained_models() -> None:
    imagination = Imagination(**parts())
    picture = torch.rand(3, 32, 32)
    planner = Planner(segments=2, beams=1, candidates=2)

    def plan(seed: int) -> Any:
        return planner.plan(
            picture,
            lambda pictures, rngs: imagination.imagine(pictures, ["open the drawer"] * len(pictures), rngs),
            history=imagination.history,
            seed=seed,
        )

    first = plan(0)
    assert first.flow.shape == (2, 9, 5, 2)
    assert first.video.shape == (2, 5, 3, 32, 32)
    assert 0 <= float(first.video.min()) <= float(first.video.max()) <= 1
    assert torch.equal(first.video, plan(0).video)
    assert not torch.equal(first.video, plan(1).video)


@needs_diffusers
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None, "value": None}, "missing: video, value"),
        ({"text": Words(dim=16)}, "one text encoder"),
        ({"video": video_model(size=(8, 8))}, "of one resolution"),
        ({"video": video_model(size=(4, 4), horizon=5)}, "one horizon"),
    ],
)
def test_models_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Imagination(**parts(**change))


@needs_diffusers
def test_pictures_of_another_resolution_are_named() -> None:
    imagination = Imagination(**parts())
    with pytest.raises(ValueError, match="32, 32"):
        imagination.imagine(torch.rand(1, 3, 3, 64, 64), ["open"], [torch.Generator()])


@needs_diffusers
def test_common_noise_leaves_only_tracks_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    imagination = Imagination(**parts(), common=True)
    draw = imagination.flow.sample

    def same(history: Any, text: Any, points: Any, rngs: Any) -> Any:
        return draw(history, text, points, [torch.Generator().manual_seed(0) for _ in rngs])

    monkeypatch.setattr(imagination.flow, "sample", same)
    pictures, rngs = torch.rand(1, 3, 3, 32, 32).expand(2, -1, -1, -1, -1), [torch.Generator() for _ in range(2)]
    for seed, g in enumerate(rngs):
        g.manual_seed(seed)
    video = imagination.imagine(pictures, ["open"] * 2, rngs).video
    torch.testing.assert_close(video[0], video[1])
    imagination.common = False
    video = imagination.imagine(pictures, ["open"] * 2, rngs).video
    assert float((video[0] - video[1]).abs().max()) > 1e-3
    imagination.common, imagination.eta = True, None
    with pytest.raises(ValueError, match="common noise goes with eta=0"):
        imagination.imagine(pictures, ["open"] * 2, rngs)


@needs_diffusers
def test_clean_latents_are_bounded() -> None:
    model = parts()["video"]
    flow, text = torch.rand(1, 5, 6, 2), torch.rand(1, 4, 12)
    for clip, bounded in ((0.25, True), (0.0, False)):
        out = model.sample(torch.rand(1, model.history, 4, 4, 4), flow, text, torch.Generator(), steps=3, clip=clip)
        assert (float(out.abs().max()) <= 0.25) == bounded


def test_words_are_the_same_everywhere() -> None:
    encoder = Words(dim=6, length=5)
    out = encoder(["Open the drawer!", "open it"])
    assert out.shape == (2, 5, 6)
    assert torch.equal(out[0, 0], out[1, 0])
    assert not torch.equal(out[0, 1], out[1, 1])
    assert bool((out[1, 2:] == 0).all())
    assert torch.equal(encoder(["open it"])[0], out[1])
    assert text_encoder("words:6", length=5).name == encoder.name


@pytest.mark.parametrize("text", ["", "a b c d e f g h i"])
def test_texts_of_a_wrong_length_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 8"):
        Words(dim=4, length=8)([text])


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "open": 1, "drawer": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)


def test_towers_of_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaModel, T5Config, T5EncoderModel

    tokenizer(tmp_path / "t5")
    T5EncoderModel(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    tokenizer(tmp_path / "llama")
    llama = LlamaModel(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    llama.save_pretrained(tmp_path / "llama")
    for name in ("t5", "llama"):
        encoder = text_encoder(str(tmp_path / name), length=6)
        out = encoder(["open drawer", "open"])
        assert out.shape == (2, 6, 8)
        assert encoder.dim == 8
        assert bool((out[1, 1:] == 0).all())
        assert not bool((out[0, 1] == 0).all())
    before = llama(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
    found = text_encoder(str(tmp_path / "llama"), length=6)(["open drawer"])[0, :2]
    torch.testing.assert_close(llama.norm(found[None]), before.last_hidden_state, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected 1 to 1"):
        text_encoder(str(tmp_path / "t5"), length=1)(["open drawer"])


def test_bad_text_encoders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text encoder can be loaded"):
        Transformer(model=str(tmp_path))
    with pytest.raises(ValueError, match="words:<number>"):
        text_encoder("words:big")
    assert check_same({"flow": "words:64", "video": "words:64"}) == "words:64"
    with pytest.raises(ValueError, match="flow: words:64, video: t5"):
        check_same({"flow": "words:64", "video": "t5"})
