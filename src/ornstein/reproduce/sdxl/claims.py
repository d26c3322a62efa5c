"""The claims of `ornstein.reproduce.sdxl`: structure and laws, and those that need the published weights."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import Claim

STRUCTURE: Mapping[str, Claim] = {
    "The U-Net has 2.6 billion parameters": Claim("2.6B"),
    "Its transformer blocks lie at the lower resolutions": Claim("[0, 2, 10]"),
    "The two text encoders have 817 million parameters": Claim("817M"),
    "The context of a token joins both encoders": Claim("2048"),
    "Size, crop and target size enter as sinusoids": Claim("in words"),
    "Forty formats of about a megapixel": Claim("40 formats"),
    "The autoencoder has the architecture of Stable Diffusion's": Claim("in words"),
    "The refiner works on the first 200 of 1,000 noise levels": Claim("200 levels"),
    "Beside: the hand-over is a noise level": Claim("none"),
}
OUTCOMES: Mapping[str, Claim] = {
    "Users prefer SDXL with its refiner": Claim("48.44 % against 36.93, 7.91 and 6.71"),
    "Users prefer SDXL to Midjourney 5.1": Claim("54.9 % of 17,153"),
    "The autoencoder reconstructs better": Claim("PSNR 24.7 against 23.4, rFID 4.4 against 5.0"),
    "Conditioning on the size of a picture improves": Claim("FID 36.53 against 39.76 and 43.84"),
    "A larger size as the condition gives pictures of more detail": Claim("figure 3"),
    "A crop of (0, 0) as the condition centres the subject": Claim("figures 4 and 5"),
    "The refiner improves local detail": Claim("figure 6"),
    "The FID on COCO is worse than that of Stable Diffusion": Claim("a figure, no number"),
}
CLAIMS: Mapping[str, Claim] = STRUCTURE | OUTCOMES
