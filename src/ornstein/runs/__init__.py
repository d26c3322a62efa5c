"""The front door: trained runs, checkpoints, exported models, codecs and pipelines, opened by their place."""

from .codecs import is_codec, open_codec, save_codec
from .open import TrainedModel, export, load, open_own, open_run, usable_device
from .places import CARD, CODEC, SAMPLING_CONFIG, WEIGHTS, RunFiles, is_run, place, read_run, shipped

__all__ = [
    "CARD",
    "CODEC",
    "SAMPLING_CONFIG",
    "WEIGHTS",
    "RunFiles",
    "TrainedModel",
    "export",
    "is_codec",
    "is_run",
    "load",
    "open_codec",
    "open_own",
    "open_run",
    "place",
    "read_run",
    "save_codec",
    "shipped",
    "usable_device",
]
