"""The front door: one table of model formats. Each says what it recognises and how that is opened.

A format of your own takes a function each way, in a package of yours or in this table:

```python
from ornstein.runs import ModelFormat, register_format

register_format(ModelFormat(name="toy", summary="one number in a file", recognise=is_toy, open=open_toy))
model = orn.load("number.toy")
```
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..errors import ConfigError, UsageError
from ..interop.opened import OpenedModel
from ..interop.vae import class_of
from ..models.card import CONFIG, STATE
from ..typed import typed
from .open import open_own, usable_device
from .places import CARD, exists, resolve_model_path, shipped

Device = str | torch.device | None


class Opens(Protocol):
    """How a format is opened."""

    def __call__(self, what: Any, /, *, ema: bool | float, device: Device) -> OpenedModel:
        """The model in ``what``, a place or an object. ``device`` None is the CPU, or where a loaded object is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFormat:
    """A format of models.

    Attributes:
        name: unique.
        summary: one line.
        recognise: whether something (a name, a path or an object) is of this format; cheap, and never raising. What it
            takes may still be damaged.
        open: makes a model of it, or raises a `UsageError` of one line. Files are read and never run.
        averages: whether it keeps averages of its weights, which ``ema`` chooses from.
        local: whether what it recognises lies on this machine.
    """

    name: str
    summary: str
    recognise: Callable[[Any], bool]
    open: Opens
    averages: bool = False
    local: bool = True


def formats() -> tuple[ModelFormat, ...]:
    """All formats, in the order in which they are tried."""
    return tuple(_FORMATS)


def register_format(new: ModelFormat) -> None:
    """Add a format; it is tried before the others. `ConfigError` for a name that is taken."""
    if any(known.name == new.name for known in _FORMATS):
        raise ConfigError(f"there is a model format {new.name!r} already: choose another name")
    _FORMATS.insert(0, new)


def unregister_format(name: str) -> None:
    """Take a format out again."""
    _FORMATS[:] = [known for known in _FORMATS if known.name != name]


def format_of(what: Any) -> ModelFormat | None:
    """The format of a name, path or object; None if there is none."""
    return next((known for known in _FORMATS if known.recognise(what)), None)


def is_run(where: str | Path) -> bool:
    """Whether `open_run` would find a model there on this machine (it may still be damaged)."""
    found = format_of(where)
    return found is not None and found.local


@typed(UsageError)
def open_run(where: Any, *, ema: bool | float = True, device: Device = None) -> OpenedModel:
    """A model of any format in the table: `formats`.

    Args:
        where: a run's folder (its newest checkpoint), a checkpoint's folder, an exported model, a shipped model by its
            name, a diffusers pipeline by folder, hub name or object, a published checkpoint of UDPM.
        ema: False takes the weights themselves instead of their average, and a number the further average of that name
            (``--ema.also``). Half-precision weights are read as float32.
        device: by default the CPU; a loaded pipeline stays where it is.

    Raises:
        CheckpointError: there is nothing of the kind, or it is damaged.
        UsageError: it cannot be used here, or has no such average.
    """
    found = format_of(where)
    if found is None and not isinstance(where, str | Path):
        raise UsageError(
            f"a {type(where).__name__} is no model: give a folder, a name or a diffusers pipeline, or wrap a network "
            "in ornstein.Denoiser(net, path=…, predicts=…)"
        )
    if found is None:
        return open_own(where, ema=ema, device=device or "cpu")
    if not found.averages and not isinstance(ema, bool):
        raise UsageError(f"{where} is a {found.name}, which has no average {ema}: leave it out")
    return found.open(where, ema=ema, device=device if device is None else usable_device(device))


@typed(UsageError)
def load(where: Any, *, ema: bool | float = True, device: Device = None) -> OpenedModel:
    """`open_run`: a model of any format, which goes wherever a denoiser goes and encodes its own conditions.

    >>> import ornstein as orn
    >>> model = orn.load("critters")
    >>> model.condition, model.shape
    ('none', (3, 64, 64))
    """
    return open_run(where, ema=ema, device=device)


def _folder(what: Any) -> Path | None:
    return resolve_model_path(Path(what).expanduser()) if isinstance(what, str | Path) else None


def _holds(what: Any, name: str, *, without: str = "") -> bool:
    folder = _folder(what)
    if folder is None or not exists(folder / name, file=True):
        return False
    return not (without and exists(folder / without, file=True))


def _is_part(what: Any) -> bool:
    return _holds(what, CONFIG) and class_of(Path(str(_folder(what)))) is not None


def _is_pipeline_object(what: Any) -> bool:
    return any(
        kind.__name__ == "DiffusionPipeline" and kind.__module__.startswith("diffusers.") for kind in type(what).__mro__
    )


def _is_udpm(what: Any) -> bool:
    named = isinstance(what, str | Path) and str(what).endswith((".pt", ".pth"))
    return named and exists(Path(what).expanduser(), file=True)


def _is_hub_name(what: Any) -> bool:
    """owner/name, where no such file or folder is here."""
    shaped = isinstance(what, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", what) is not None
    return shaped and not exists(Path(what)) and importlib.util.find_spec("diffusers") is not None


def _own(what: Any, /, *, ema: bool | float, device: Device) -> OpenedModel:
    return open_own(what, ema=ema, device=device or "cpu")


def _pipeline(what: Any, /, *, ema: bool | float, device: Device) -> OpenedModel:
    from ..interop.diffusers import from_pipeline

    del ema
    return from_pipeline(what, device=device)


def _is_single_file(what: Any) -> bool:
    from ..interop.loading import SINGLE_FILES

    named = isinstance(what, str | Path) and str(what).endswith(SINGLE_FILES)
    return named and exists(Path(what).expanduser(), file=True)


def _part(what: Any, /, *, ema: bool | float, device: Device) -> OpenedModel:
    del ema, device
    folder = Path(str(_folder(what))).resolve()
    remedy = "wrap it in ornstein.Denoiser(net, path=…, predicts=…)"
    if (folder.parent / "model_index.json").is_file():
        remedy = f"give the folder of the pipeline, {folder.parent}"
    raise UsageError(f"{what} is a {class_of(folder)} alone, which does not say what it predicts: {remedy}")


def _udpm(what: Any, /, *, ema: bool | float, device: Device) -> OpenedModel:
    from ..interop import udpm

    del ema
    return udpm.open_checkpoint(what, device=device or "cpu")


_FORMATS: list[ModelFormat] = [
    ModelFormat(
        name="shipped model",
        summary="a model that comes with the library, by its name",
        recognise=lambda what: isinstance(what, str) and what in shipped() and not exists(Path(what)),
        open=_own,
        averages=True,
    ),
    ModelFormat(
        name="diffusers pipeline",
        summary="the folder of a pipeline, with model_index.json",
        recognise=lambda what: _holds(what, "model_index.json"),
        open=_pipeline,
    ),
    ModelFormat(
        name="part of a diffusers pipeline",
        summary="a network of diffusers alone; refused, for it does not say what it predicts",
        recognise=_is_part,
        open=_part,
    ),
    ModelFormat(
        name="checkpoint",
        summary="the folder of a checkpoint in a run",
        recognise=lambda what: _holds(what, STATE, without=CONFIG),
        open=_own,
        averages=True,
    ),
    ModelFormat(
        name="exported model",
        summary="a folder with config.json and ema.safetensors",
        recognise=lambda what: _holds(what, CARD),
        open=_own,
        averages=True,
    ),
    ModelFormat(
        name="run",
        summary="the folder of ornstein train; its newest checkpoint",
        recognise=lambda what: _holds(what, CONFIG),
        open=_own,
        averages=True,
    ),
    ModelFormat(
        name="loaded diffusers pipeline",
        summary="a DiffusionPipeline in memory, whose modules are shared",
        recognise=_is_pipeline_object,
        open=_pipeline,
    ),
    ModelFormat(
        name="UDPM checkpoint",
        summary="model_ema_state_….pt or model_state_….pt of the authors of UDPM",
        recognise=_is_udpm,
        open=_udpm,
    ),
    ModelFormat(
        name="SDXL in one file",
        summary="a .safetensors or .ckpt of SDXL's base, refiner or inpainting model, original names",
        recognise=_is_single_file,
        open=_pipeline,
    ),
    ModelFormat(
        name="hub name",
        summary="owner/name of a diffusers pipeline on the Hugging Face Hub",
        recognise=_is_hub_name,
        open=_pipeline,
        local=False,
    ),
]

__all__ = [
    "ModelFormat",
    "format_of",
    "formats",
    "is_run",
    "load",
    "open_run",
    "register_format",
    "unregister_format",
]
