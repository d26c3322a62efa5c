"""Loading with diffusers: found or refused in one line, and in silence."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import UsageError

SINGLE_FILES = (".safetensors", ".ckpt")
"""Ends of the names of models in one file."""


def diffusers_library() -> Any:
    """The library; `UsageError` where it is not installed."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise UsageError(f"diffusers cannot be imported ({error}): pip install 'ornstein[diffusers]'") from None


def offline() -> bool:
    """Whether the Hugging Face Hub is not to be asked (``HF_HUB_OFFLINE``)."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return True
    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def silenced() -> Iterator[None]:
    """No progress bars and no warnings about what was left out on purpose; errors still come."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    quieted: list[Any] = []
    try:
        from transformers.utils import logging as theirs

        quieted = [theirs, theirs.get_verbosity(), theirs.is_progress_bar_enabled()]
        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
    except ImportError:
        pass
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
        if quieted:
            quieted[0].set_verbosity(quieted[1])
            if quieted[2]:
                quieted[0].enable_progress_bar()
