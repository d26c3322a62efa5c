"""The options of `ornstein eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..options import Count, Limits, Option, Positive
from .image_sets import How


@dataclass(frozen=True, kw_only=True)
class EvalArgs:
    """Distances between a run's samples (or a folder of images) and data, and the rarity and diversity of samples.

    The features are EfficientNet-lite0's by default and every number carries their name; only the standard Inception
    weights, from a file or the cache, make it an FID. Of an autoencoder the reconstructions are measured.

    Example: ornstein eval runs/critters --reference critters --n 1000 --sampler dpmpp-2m --steps 20
    """

    what: Annotated[str, Option(positional=True, value="WHAT")]
    """A run, checkpoint folder or shipped model to sample from; an autoencoder; or a folder of images."""
    other: Annotated[str | None, Option(positional=True, value="DATA")] = None
    """The same as --reference: ornstein eval A B."""
    reference: str | None = None
    """The data: a name, a folder, parquet or shards, as for train --data; critters unless named."""
    metrics: str = "fd,kid"
    """Separated by commas: fd, sfd, kid, is, prdc, avgknn, lof, rarity, diversity, clip, retrieval; fid and sfid
    insist."""
    n: Annotated[int, Limits(least=2)] = 1000
    """How many images of each (fewer if the data has fewer)."""
    k: Count | None = None
    """Neighbours, for prdc, avgknn, lof and rarity; by default 3 and 5, 5, 20, 3, as they were defined."""
    features: str = "lite0"
    """Feature networks, separated by commas: lite0, inception, dinov2."""
    weights: str | None = None
    """Weights of inception or dinov2: a path, or NAME=PATH,NAME=PATH; by default looked for in the caches."""
    lpips: str = "lite0"
    """Distance for diversity: lite0, vgg, alex, squeeze, or the path of LPIPS weights."""
    clip: str | None = None
    """Folder or cached repository of the CLIP network; openai/clip-vit-base-patch32 by default."""
    reference_statistics: Path | None = None
    """Statistics of the data from a file, instead of the data."""
    statistics_out: Path | None = None
    """Write the statistics of the data (of the one set, if only one is named) to this file."""
    per_image: Path | None = None
    """Write avgknn, lof, rarity and clip of each image: a .csv or .jsonl file."""
    resize: How = "auto"
    """Filter for folders of another resolution: bicubic, lanczos (as for training); auto: lanczos beside a run."""
    sampler: str | None = None
    """Sampler, when sampling from a run; by default dpmpp-2m, or ancestral on a pyramid; auto chooses it with its
    grid; package.module:Class is one of your own."""
    steps: Count | None = None
    """Length of the time grid, when sampling from a run; 20, or as many as a consistency model keeps levels for."""
    ema: Positive | None = None
    """A further average of the run's weights, by its number in --ema.also of the training."""
    seed: int = 0
    """Stream of samples."""
    batch: Count = 16
    """Images at a time."""
    size: Annotated[int, Limits(least=4)] | None = None
    """Resolution; by default the run's own, or that of the images in the folder."""
    device: str = "cpu"
    """Where to run, e.g. cuda."""
    json: bool = False
    """Print one JSON document instead of text."""
