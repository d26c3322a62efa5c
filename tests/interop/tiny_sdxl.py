"""Tiny SDXL of random weights, with the published structure: heads of 64, groups of 32, base, refiner, inpainting."""

import json

import diffusers
import torch
import transformers

from ornstein.interop.clip_vocabulary import clip_tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["!", *LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
POOLED, SIDE = 64, 16  # numbers of the pooled vector; pixels of a picture


def vocabulary(folder):
    """A vocabulary of letters in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def encoder(seed, *, projected):
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=1,
        vocab_size=len(WORDS),
        max_position_embeddings=77,
        bos_token_id=len(WORDS) - 2,
        eos_token_id=len(WORDS) - 1,
        projection_dim=POOLED,
        hidden_act="gelu" if projected else "quick_gelu",
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def unet(seed, *, refiner=False, channels=4):
    torch.manual_seed(seed)
    plain, attentive = "DownBlock2D", "CrossAttnDownBlock2D"
    down = (plain, attentive, attentive, plain) if refiner else (plain, attentive, attentive)
    up = tuple(kind.replace("Down", "Up") for kind in reversed(down))
    widths = (32, 64, 64, 64) if refiner else (32, 64, 64)
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=channels,
        out_channels=4,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=1,
        transformer_layers_per_block=1 if refiner else [1, 1, 2],
        attention_head_dim=[1] * len(widths),
        cross_attention_dim=64 if refiner else 128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 8 * (5 if refiner else 6),
    ).eval()


def autoencoder():
    torch.manual_seed(9)
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=0.13025,
        force_upcast=True,
    ).eval()


def pipeline(folder, *, refiner=False, channels=4, dtype=torch.float32, scheduler=None):
    """A pipeline in memory, its vocabulary in ``folder``."""
    tokenizers = clip_tokenizers(vocabulary(folder))
    kind = diffusers.StableDiffusionXLImg2ImgPipeline if refiner else diffusers.StableDiffusionXLPipeline
    kind = diffusers.StableDiffusionXLInpaintPipeline if channels == 9 else kind
    options = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False} if refiner else {}
    made = kind(
        vae=autoencoder(),
        text_encoder=None if refiner else encoder(1, projected=False),
        text_encoder_2=encoder(2, projected=True),
        tokenizer=None if refiner else tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet(4 if refiner else 3, refiner=refiner, channels=channels),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
        **options,
    )
    made.set_progress_bar_config(disable=True)
    return made.to(dtype)


class RowByRow(torch.nn.Module):
    """An embedding of numbers whose rows do not depend on their place in the batch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, numbers):
        return torch.cat([self.inner(one[None]) for one in numbers.flatten()])


def double(pipe):
    """A pipeline in float64 throughout, its scheduler's products included."""
    pipe.to(torch.float64)
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod.double()
    pipe.scheduler.final_alpha_cumprod = pipe.scheduler.alphas_cumprod[0]
    for name in ("time_proj", "add_time_proj"):
        setattr(pipe.unet, name, RowByRow(getattr(pipe.unet, name)))
    return pipe
