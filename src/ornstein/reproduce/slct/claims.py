"""The claims of `ornstein.reproduce.slct`: what the paper names for each, and the trainings it compares."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import Claim

_FOREIGN = ("cauchy, outliers", "ict, outliers")

CLAIMS: Mapping[str, Claim] = {
    "Latents contain outliers, many more than a Gaussian": Claim("in words"),
    "The Cauchy distance improves on pseudo-Huber": Claim("FID 7.27 against 9.97", ("cauchy", "ict")),
    "The diffusion loss at low noise improves on consistency alone": Claim(
        "FID 7.76 against 8.05", ("anchored", "cauchy")
    ),
    "Pairing by optimal transport improves on independent noise": Claim("none found", ("paired", "anchored")),
    "The adaptive scale c improves on a constant one": Claim("FID 7.27 against 7.53", ("adaptive", "paired")),
    "Non-scaling norms improve on group norms": Claim("FID 7.27 against 7.76", ("slct", "adaptive")),
    "sLCT is better than iCT at one evaluation": Claim("FID 7.27 against 37.15", ("slct", "ict")),
    "sLCT is better than iCT at two evaluations": Claim("FID 6.93 against 16.84", ("slct", "ict")),
    "sLCT is better with two evaluations than with one": Claim("FID 6.93 against 7.27", ("slct",)),
    "iCT is better with two evaluations than with one": Claim("FID 16.84 against 37.15", ("ict",)),
    "sLCT at one evaluation is better than a diffusion model of equal computing at 50": Claim(
        "FID 7.27 against 8.85", ("slct", "diffusion")
    ),
    "sLCT at one evaluation is better than a diffusion model of equal computing at ": Claim(
        "none", ("slct", "diffusion")
    ),
    "sLCT covers more of the data than iCT": Claim("recall 0.50 against 0.12", ("slct", "ict")),
    "Non-scaling norms keep features freer of outliers": Claim("in words", ("slct", "adaptive")),
    "The Cauchy distance makes outliers weigh less than pseudo-Huber does": Claim("in words", ("ict",)),
    "The Cauchy distance makes outliers weigh less than pseudo-Huber does, ": Claim("in words", ("ict, outliers",)),
    "Where the latents have outliers, the Cauchy distance improves on pseudo-Huber": Claim("in words", _FOREIGN),
    "With a longer training on latents with outliers sLCT is better than iCT": Claim(
        "FID 7.27 against 37.15", ("slct, long", "ict, long"), "--longer 10"
    ),
    "sLCT trains without diverging": Claim("in words", ("slct",)),
}
