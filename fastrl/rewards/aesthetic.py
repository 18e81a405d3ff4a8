"""How pleasing an image is, by a small network on CLIP's image features (the LAION predictor)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CLIP = "openai/clip-vit-large-patch14"
# Channel means and deviations of CLIP's training images.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_WIDTHS = (1024, 128, 64, 16, 1)
_DROPOUTS = (0.2, 0.2, 0.1)  # behind the first layers; they hold places in the published weights


def _head(width: int) -> nn.Sequential:
    """The network of the published weights, which is linear: it has no activations."""
    layers: list[nn.Module] = []
    for number, size in enumerate(_WIDTHS):
        layers.append(nn.Linear(width, size))
        if number < len(_DROPOUTS):
            layers.append(nn.Dropout(_DROPOUTS[number]))
        width = size
    return nn.Sequential(*layers)


class AestheticScorer(nn.Module):
    """Scores of images, about 1 to 10, differentiable in the images.

    Args:
        dtype: CLIP computes in it.
        model_id: a folder, or a name on the hub, with the weights of the network.
        model_filename: their file.
        clip: a folder, or a name on the hub, of the CLIP model.
    """

    def __init__(
        self, *, dtype: torch.dtype, model_id: str, model_filename: str, clip: str = CLIP
    ) -> None:
        super().__init__()
        from transformers import CLIPVisionModelWithProjection

        self.clip = CLIPVisionModelWithProjection.from_pretrained(clip, dtype=dtype)
        self.layers = _head(self.clip.config.projection_dim)
        weights = torch.load(_file(model_id, model_filename), map_location="cpu", weights_only=True)
        self.layers.load_state_dict({k.removeprefix("layers."): v for k, v in weights.items()})
        self.dtype = dtype
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (B,) in fp32 of images (B, 3, H, W) in [0, 1]."""
        images = images.to(next(self.parameters()).device, torch.float32)
        size = int(self.clip.config.image_size)  # type: ignore[arg-type]
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        mean, deviation = (images.new_tensor(c).view(3, 1, 1) for c in (_MEAN, _DEVIATION))
        pixels = ((images - mean) / deviation).to(self.dtype)
        features = self.clip(pixel_values=pixels).image_embeds.float()
        return self.layers(functional.normalize(features, dim=-1)).squeeze(1)


def _file(model_id: str, model_filename: str) -> str:
    local = Path(model_id) / model_filename
    if local.exists():
        return str(local)
    from huggingface_hub import hf_hub_download

    return hf_hub_download(model_id, model_filename)


def aesthetic_scorer(
    hub_model_id: str, model_filename: str
) -> Callable[[torch.Tensor, Any, Any], tuple[torch.Tensor, dict[str, Any]]]:
    """A reward function of DDPO and AlignProp: the scores of images, on a GPU if there is one."""
    scorer = AestheticScorer(
        dtype=torch.float32, model_id=hub_model_id, model_filename=model_filename
    )
    scorer.to(torch.accelerator.current_accelerator() or torch.device("cpu"))

    def score(images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict]:
        return scorer(images.clamp(0, 1)), {}

    return score
