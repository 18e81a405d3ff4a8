"""The aesthetic reward on a tiny CLIP: the predictor's arithmetic, gradients, and its files."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fastrl.rewards import aesthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CLIP in `clip/`, and the predictor's weights under the names that are published."""
    place = tmp_path_factory.mktemp("aesthetic")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4, projection_dim=6,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(place / "clip")
    sizes = (6, 1024, 128, 64, 16, 1)
    places = (0, 2, 4, 6, 7)  # of the linear layers, dropout between the first
    weights = {}
    for number, at in enumerate(places):
        linear = nn.Linear(sizes[number], sizes[number + 1])
        weights |= {
            f"layers.{at}.weight": linear.weight.data,
            f"layers.{at}.bias": linear.bias.data,
        }
    torch.save(weights, place / "head.pth")
    return place


def test_scores_are_the_networks_of_normalised_features(folder, monkeypatch):
    monkeypatch.setattr(aesthetic, "CLIP", str(folder / "clip"))
    scorer = aesthetic.AestheticScorer(
        dtype=torch.float32, model_id=str(folder), model_filename="head.pth",
        clip=str(folder / "clip"),
    )  # fmt: skip
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    found = scorer(images)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (images.permute(0, 2, 3, 1) - mean) / deviation
    clip = CLIPVisionModelWithProjection.from_pretrained(folder / "clip").eval()
    value = clip(pixel_values=pixels.permute(0, 3, 1, 2)).image_embeds
    value = value / value.norm(dim=1, keepdim=True)
    weights = torch.load(folder / "head.pth")
    for at in (0, 2, 4, 6, 7):
        value = value @ weights[f"layers.{at}.weight"].T + weights[f"layers.{at}.bias"]
    torch.testing.assert_close(found, value[:, 0], rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in scorer.parameters())
    assert scorer(torch.rand(2, 3, 20, 30)).shape == (2,)  # other sizes are brought to CLIP's
