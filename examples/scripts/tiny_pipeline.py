"""A Stable Diffusion pipeline of a few thousand weights, for smoke runs: no hub, seconds on a CPU.

Its images are noise; DDPO and AlignProp can still move them, which is all a smoke run has to show.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS = 1000  # of the noise schedule that Stable Diffusion was trained with


def _tokenizer(folder: Path, length: int) -> Any:
    """CLIP's tokenizer with letters for words."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return CLIPTokenizer(*files, model_max_length=length, pad_token="<|endoftext|>")


def fill(module: torch.nn.Module, seed: int) -> None:
    """Weights that depend on names and the seed alone, whichever releases made the module."""
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(module.named_parameters())):
            draw = np.random.RandomState(1000 * seed + number).standard_normal(tuple(weight.shape))
            if name.endswith("bias"):
                draw = 0.05 * draw
            elif weight.dim() == 1:
                draw = 1 + 0.05 * draw
            else:
                draw = draw / np.sqrt(weight[0].numel())
            weight.copy_(torch.from_numpy(draw))


def parts(folder: Path, seed: int = 0, width: int = 8, size: int = 8) -> dict[str, Any]:
    """UNet, autoencoder, text model, tokenizer and scheduler of the pipeline.

    Args:
        folder: the tokenizer's files are written there.
        seed: of all weights.
        width: channels of the UNet's first block.
        size: of the latents; images are twice as large.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _tokenizer(folder, length=12)
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    for number, module in enumerate((unet, vae, text)):
        fill(module, 10 * seed + number)
    scheduler = DDIMScheduler(
        num_train_timesteps=STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }


def save(folder: Path, seed: int = 0, width: int = 8, size: int = 8) -> str:
    """Write the pipeline to a folder, which `DefaultDDPOStableDiffusionPipeline` loads."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        **parts(folder / "words", seed, width, size),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(str(folder))
    return str(folder)
