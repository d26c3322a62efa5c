"""`ornstein.sample` and `ornstein.stream` of a denoiser, or of anything that `ornstein.load` opens."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from .. import sampling
from ..denoisers import DenoiserLike
from .formats import open_run

P = ParamSpec("P")
R = TypeVar("R")


def opening(function: Callable[Concatenate[DenoiserLike, P], R]) -> Callable[Concatenate[Any, P], R]:
    """``function`` of a denoiser, for anything that the table of formats opens as well."""

    @wraps(function)
    def opened(model: Any, *args: P.args, **keywords: P.kwargs) -> R:
        known = not isinstance(model, str | Path) and callable(model) and hasattr(model, "path")
        return function(cast("DenoiserLike", model) if known else open_run(model), *args, **keywords)

    return opened


sample = opening(sampling.sample)
stream = opening(sampling.stream)
