"""The scale of a data set, which a trained model keeps: the sampler "auto" fits its noise levels to it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from ..data.base import Source
from ..data.loader import read_example
from ..errors import CheckpointError
from ..models.card import CONFIG, read_document, read_spec
from ..models.spec import DenoiserSpec, ModelSpec
from .config import shape_of

PICTURES = 256
"""Examples that are looked at, evenly spread over the set."""


def with_scale(out: Path, spec: ModelSpec, source: Source) -> ModelSpec:
    """The model with the scale of its data; a run that ``out`` holds keeps its own, or none if it is older."""
    if not isinstance(spec, DenoiserSpec):
        return spec
    if (out / CONFIG).is_file():
        try:
            begun = read_spec(read_document(out / CONFIG), out / CONFIG)
        except CheckpointError:
            return spec
        return replace(spec, data_std=begun.data_std) if isinstance(begun, DenoiserSpec) else spec
    return replace(spec, data_std=data_std(source))


def data_std(source: Source) -> float | None:
    """√(mean over numbers of the variance over samples): of pixels in [−1, 1], or of latents with their posteriors'.

    To four digits, so that two machines whose decoders differ by a rounding agree; None for a set of equal pictures.
    """
    count, channels = min(len(source), PICTURES), shape_of(source)[0]
    total = squares = torch.zeros((), dtype=torch.float64)
    spread = 0.0
    for i in range(count):
        image = read_example(source, i * len(source) // count)[0].image
        clean = image.to(torch.float64) / 127.5 - 1.0 if image.dtype == torch.uint8 else image.to(torch.float64)
        if clean.shape[0] == 2 * channels:
            clean, logvar = clean.chunk(2)
            spread += float(logvar.exp().mean()) / count
        total, squares = total + clean, squares + clean.square()
    variance = float((squares / count - (total / count).square()).clamp_min(0.0).mean())
    found = math.sqrt(variance * count / max(count - 1, 1) + spread)
    return float(f"{found:.4g}") if found > 0.0 else None
