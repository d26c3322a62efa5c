"""The front door: trained runs, checkpoints, exported models, codecs and pipelines, opened by their place."""

from ..interop.opened import OpenedModel
from .codecs import is_codec, open_codec, save_codec
from .formats import (
    ModelFormat,
    format_of,
    formats,
    is_run,
    load,
    open_run,
    register_format,
    unregister_format,
)
from .open import TrainedModel, export, open_own, usable_device
from .places import CARD, CODEC, SAMPLING_CONFIG, WEIGHTS, RunFiles, read_run, resolve_model_path, shipped

__all__ = [
    "CARD",
    "CODEC",
    "SAMPLING_CONFIG",
    "WEIGHTS",
    "ModelFormat",
    "OpenedModel",
    "RunFiles",
    "TrainedModel",
    "export",
    "format_of",
    "formats",
    "is_codec",
    "is_run",
    "load",
    "open_codec",
    "open_own",
    "open_run",
    "read_run",
    "register_format",
    "resolve_model_path",
    "save_codec",
    "shipped",
    "unregister_format",
    "usable_device",
]
