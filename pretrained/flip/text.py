"""Text encoders of FLIP's models: instructions to vectors per word. They are plug-ins, frozen, outside of checkpoints.

"words" needs no weights: each word has a random vector of its own, drawn from its name. Others are a folder in
transformers' layout or a hub id: T5's and CLIP's text towers, or a language model such as the original's Llama 3.1 8B,
of which the last block's output is taken, before the final norm.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

WORDS = "words"


class TextEncoder(Protocol):
    """Texts to vectors."""

    name: str
    dim: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, S, dim], padded with rows of zeros to the longest text, or to a fixed length."""
        ...


class Words:
    """A random vector per word, the same on every machine."""

    def __init__(self, *, dim: int = 64, length: int = 24) -> None:
        self.name, self.dim, self.length = f"{WORDS}:{dim}", dim, length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[N, length, dim]. Raises ValueError if a text has more words, or none."""
        out = torch.zeros(len(texts), self.length, self.dim)
        for row, text in zip(out, texts, strict=True):
            words = re.findall(r"[a-z0-9]+", text.lower())
            _check(text, len(words), self.length)
            for place, word in zip(row, words, strict=False):
                drawn = torch.Generator().manual_seed(zlib.crc32(word.encode()))
                place.copy_(torch.randn(self.dim, generator=drawn))
        return out


class Transformer:
    """A text tower from transformers, each text computed once."""

    def __init__(self, *, model: str, length: int = 32) -> None:
        """`length`: tokens that all texts are padded to. Raises ValueError if `model` cannot be loaded."""
        self.name, self.length = model, length
        self._tokenizer, self._model = _load(model)
        self._last: list[Tensor] = []
        self.dim = int(self._model.config.hidden_size if hasattr(self._model.config, "hidden_size") else 0)
        layers = getattr(self._model, "layers", None)
        if layers is not None and hasattr(self._model, "norm"):  # a decoder: before its final norm
            layers[-1].register_forward_hook(self._keep)
        self._known: dict[str, Tensor] = {}

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self._last[:] = [output[0] if isinstance(output, tuple) else output]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[N, length, dim]. Raises ValueError if a text has more tokens."""
        for text in set(texts) - set(self._known):
            ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
            _check(text, ids.shape[1], self.length)
            self._last.clear()
            out = self._model(input_ids=ids).last_hidden_state
            hidden = (self._last[0] if self._last else out)[0].float()
            self._known[text] = torch.cat([hidden, hidden.new_zeros(self.length - len(hidden), hidden.shape[1])])
        return torch.stack([self._known[text] for text in texts])


def text_encoder(name: str, *, length: int = 32) -> TextEncoder:
    """The encoder of that name: "words", "words:<dim>", a folder or a hub id."""
    kind, _, dim = name.partition(":")
    if kind == WORDS:
        if dim and not dim.isdigit():
            raise ValueError(f"text encoder '{name}': expected words or words:<number>, such as words:64")
        return Words(dim=int(dim or 64), length=length)
    return Transformer(model=name, length=length)


def check_same(names: dict[str, str]) -> str:
    """The one text encoder of several models. Raises ValueError, naming them, if they were trained with others."""
    if len(set(names.values())) != 1:
        listed = ", ".join(f"{model}: {name}" for model, name in names.items())
        raise ValueError(f"the models of a plan were trained with different text encoders ({listed}); expected one")
    return next(iter(names.values()))


def _check(text: str, count: int, length: int) -> None:
    if not 0 < count <= length:
        raise ValueError(f"instruction '{text}' has {count} words, expected 1 to {length}; change it, or `length`")


def _load(model: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel, T5EncoderModel

    try:
        kind = AutoConfig.from_pretrained(model).model_type
        own = {"t5": T5EncoderModel, "clip": CLIPTextModel, "clip_text_model": CLIPTextModel}
        tower = own.get(kind, AutoModel).from_pretrained(model)
        return AutoTokenizer.from_pretrained(model), tower.requires_grad_(False).eval()
    except (OSError, ValueError, KeyError) as e:
        why = (str(e).strip() or type(e).__name__).split("\n")[0]
        raise ValueError(
            f"no text encoder can be loaded from '{model}': {why}; give a folder in transformers' layout with its "
            "tokenizer, a hub id that can be reached, or words"
        ) from e
