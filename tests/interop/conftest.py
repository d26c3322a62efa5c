"""Tiny pipelines with random weights, saved to a folder: nothing is ever downloaded."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

STEPS = 100


def library():
    return pytest.importorskip("diffusers")


def small_unet(diffusers, **changes):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    options = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        **blocks,
        **changes,
    }
    return diffusers.UNet2DModel(**options).eval()


def small_vae(diffusers, **changes):
    torch.manual_seed(1)
    options = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 16,
        "scaling_factor": 0.7,
        **changes,
    }
    return diffusers.AutoencoderKL(**options).eval()


def small_text(transformers, folder: Path, *, projection: bool = False, width: int = 16):
    """(tokenizer, encoder)."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=16
    )
    torch.manual_seed(2 + projection)
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(words),
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        projection_dim=12,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tokenizer, kind(config).eval()


def small_conditional(diffusers, context: int, **changes):
    torch.manual_seed(3)
    options = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": context,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        **changes,
    }
    return diffusers.UNet2DConditionModel(**options).eval()


SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="session")
def pixels(tmp_path_factory) -> Path:
    """A DDPMPipeline of 8 pixels."""
    diffusers = library()
    folder = tmp_path_factory.mktemp("ddpm")
    diffusers.DDPMPipeline(small_unet(diffusers), diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stable(tmp_path_factory) -> Path:
    """A StableDiffusionPipeline of 16 pixels."""
    diffusers, transformers = library(), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sd")
    tokenizer, encoder = small_text(transformers, folder / "words")
    scheduler = diffusers.DDIMScheduler(
        **SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    diffusers.StableDiffusionPipeline(
        vae=small_vae(diffusers),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=small_conditional(diffusers, 16),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture(scope="session")
def xl(tmp_path_factory) -> Path:
    """A StableDiffusionXLPipeline of 16 pixels."""
    diffusers, transformers = library(), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sdxl")
    tokenizer, encoder = small_text(transformers, folder / "words")
    tokenizer_2, encoder_2 = small_text(transformers, folder / "words2", projection=True)
    unet = small_conditional(
        diffusers,
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )
    scheduler = diffusers.EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading")
    diffusers.StableDiffusionXLPipeline(
        vae=small_vae(diffusers, scaling_factor=0.13025, force_upcast=True),
        text_encoder=encoder,
        text_encoder_2=encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    ).save_pretrained(folder / "pipe")
    return folder / "pipe"
