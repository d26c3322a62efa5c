"""What a training method takes of its data, and what it measures on held-out examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from ..data.base import Source
from ..denoisers import Denoiser


class Validation(Protocol):
    """What a method computes on held-out examples, for the log."""

    @property
    def every(self) -> int:
        """Images between two validations."""
        ...

    def __call__(self, model: Denoiser) -> Mapping[str, Any]:
        """Numbers by name, a function of the weights alone."""
        ...


class Selection(NamedTuple):
    """The examples that are trained on, and what is measured on those that are held out."""

    trained: Source
    validation: Validation | None = None
