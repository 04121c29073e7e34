"""The path to the real CLIP: a ViT-B/16 of random weights in transformers' layout, loaded from a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.build import build
from pretrained.checkpoint import load_policy, save
from tests.pretrained.test_policy_laws import environment
from tests.toy_parts import observe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes and special tokens of openai/clip-vit-base-patch16; a vocabulary of single bytes."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    out = tmp_path_factory.mktemp("clip")
    text = CLIPTextConfig(vocab_size=49408, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
                          num_attention_heads=8, max_position_embeddings=77, projection_dim=512,
                          bos_token_id=49406, eos_token_id=49407)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                              image_size=224, patch_size=16, projection_dim=512)  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(out)
    letters = [chr(c) for c in range(33, 127)]
    words = {t: i for i, t in enumerate([*letters, *(f"{t}</w>" for t in letters)])}
    words |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (out / "vocab.json").write_text(json.dumps(words))
    (out / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt"), model_max_length=77).save_pretrained(out)
    return out


def test_forward_save_load_and_a_step_of_training(folder: Path, tmp_path: Path) -> None:
    node = {"_target_": "pretrained.rectified_flow.vla_model", "clip": str(folder)}
    spec = environment(actions=3)
    policy: Any = build(node, env=spec)
    towers = sum(p.numel() for tower in policy.encoder._frozen for p in tower.parameters())
    assert 149e6 < towers < 151e6  # as the released model
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert 4e6 < trainable < 8e6
    x = policy.encode(observe(policy, 2, np.random.default_rng(0)))
    assert x["pooled"].shape == (2, 2 * 512)
    assert x["text"].shape == (2, 512)
    assert not torch.equal(x["text"][0], x["text"][1])  # two instructions
    assert (x["pooled"][0] - x["pooled"][1]).abs().mean() > 1e-4

    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=3e-4)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    target, none = torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.bool)
    loss, _ = policy.imitation_loss_of(x, target, none, torch.Generator().manual_seed(0))
    loss.backward()
    optimizer.step()
    assert any(not torch.equal(v, before[k]) for k, v in policy.state_dict().items() if k.startswith("actor"))

    save(tmp_path / "step_000001", policy, node=node, env=spec)
    size = sum(f.stat().st_size for f in (tmp_path / "step_000001").iterdir())
    assert size < 5 * trainable  # the towers stay in their folder
    again: Any = load_policy(tmp_path / "step_000001")
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    first = policy.act(x, {}, noise)[0]
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    obs = observe(policy, 2, np.random.default_rng(0))
    assert torch.equal(again.act(again.encode(obs), {}, noise)[0].chunk, first.chunk)
