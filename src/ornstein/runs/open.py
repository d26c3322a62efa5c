"""Load a trained model from a run, one of its checkpoints, or an exported folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import CheckpointError, UsageError
from ..storage.weights import fill
from .codecs import open_codec, save_codec
from .places import CARD, CODEC, RunFiles, place, read_run, shipped

if TYPE_CHECKING:
    from ..interop.diffusers import DiffusersModel
    from ..latents import Codec
    from ..models.spec import Conditioned, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A trained model and what is known about it.

    ``denoiser`` is in evaluation mode and knows its ``shape``. ``images`` is how many it was trained on. ``details`` is
    its config.json: how it was made, and from which data.
    """

    folder: Path
    weights: Path
    denoiser: Denoiser
    model: Conditioned
    spec: ModelSpec
    images: int
    details: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if the model takes none."""
        return self.spec.labels

    @property
    def condition(self) -> str:
        """none, label or text."""
        return "label" if self.classes else "none" if self.spec.encoder is None else "text"

    @property
    def codec(self) -> Codec | None:
        """What decodes its samples, if they are latents."""
        return self.denoiser.codec

    @property
    def picture(self) -> tuple[int, int, int]:
        """(3, H, W) of what is decoded."""
        channels, height, width = self.spec.shape
        return (
            (channels, height, width)
            if self.codec is None
            else (3, height * self.codec.factor, width * self.codec.factor)
        )

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def cond(
        self, *, labels: Sequence[int | str] | None = None, captions: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The condition for `Denoiser.with_condition`: labels by number or name (−1 or "" for none), or captions (""
        for none).

        Raises `UsageError` for a condition that the model does not take, or an unknown label.
        """
        if (labels is None) == (captions is None):
            raise UsageError("give either labels or captions")
        if labels is not None:
            if not self.classes:
                raise UsageError(f"the model in {self.folder} takes no labels (its condition is {self.condition})")
            numbers = [self._label(label) for label in labels]
            return {"label": torch.tensor(numbers, dtype=torch.int64, device=self.denoiser.device)}
        if self.model.text is None:
            raise UsageError(f"the model in {self.folder} takes no captions (its condition is {self.condition})")
        with torch.no_grad():
            text, mask = self.model.text(list(captions or ()))
        return {"text": text, "text_mask": mask}

    def null(self, rows: int = 1) -> dict[str, Tensor]:
        """The empty condition, as classifier-free guidance needs it."""
        if self.condition == "none":
            return {}
        return self.cond(labels=[-1] * rows) if self.classes else self.cond(captions=[""] * rows)

    def _label(self, label: int | str) -> int:
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if label == "":
            return -1
        with contextlib.suppress(ValueError):
            if -1 <= int(label) < len(self.classes):
                return int(label)
        import difflib

        near = difflib.get_close_matches(str(label), self.classes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose 0 … {len(self.classes) - 1} or a name"
        raise UsageError(f"unknown label {label!r} of {len(self.classes)} classes: {hint}")


def open_run(
    where: str | Path, *, ema: bool | float = True, device: str | torch.device = "cpu"
) -> TrainedModel | DiffusersModel:
    """Open a run's folder (its newest checkpoint), a checkpoint's folder, a card or a shipped model by its name.

    A card is a folder with config.json and ema.safetensors alone. The folder of a diffusers pipeline is opened by
    `ornstein.interop.diffusers.from_pipeline`; what it gives offers the same.

    ``ema=False`` takes the weights themselves instead of their average, and a number the further average of that name
    (``--ema.also``). Half-precision weights are read as float32.

    Raises `CheckpointError` if there is nothing of the kind, or it is damaged.
    """
    if (place(where) / "model_index.json").is_file():
        from ..interop.diffusers import from_pipeline

        return from_pipeline(where, device=usable_device(device))
    return open_own(where, ema=ema, device=device)


def open_own(where: str | Path, *, ema: bool | float = True, device: str | torch.device = "cpu") -> TrainedModel:
    """`open_run` for models made by `ornstein train` only."""

    found = read_run(where, ema=ema)
    model = found.spec.build()
    fill(model, found.tensors, found.weights)
    model.to(usable_device(device)).eval().requires_grad_(False)
    denoiser = found.spec.denoiser(model.net)
    codec = _codec(found, device)
    return TrainedModel(
        folder=found.home,
        weights=found.weights,
        denoiser=denoiser if codec is None else replace(denoiser, codec=codec),
        model=model,
        spec=found.spec,
        images=found.images,
        details=found.details,
    )


def _codec(found: RunFiles, device: str | torch.device) -> Codec | None:
    """What decodes the samples of a run that was trained on latents."""
    told = found.details.get("train")
    if not isinstance(told, dict) or not told.get("codec"):
        return None
    if not (found.home / CODEC).is_dir():
        raise CheckpointError(f"the run in {found.home} has lost its codec: {found.home / CODEC} is missing")
    return open_codec(found.home / CODEC, device=device)


def load(where: str | Path, *, ema: bool | float = True, device: str | torch.device = "cpu") -> Denoiser:
    """The denoiser of `open_run`."""
    return open_run(where, ema=ema, device=device).denoiser


def export(run: TrainedModel | DiffusersModel, to: str | Path, *, half: bool = True) -> Path:
    """Write a card, config.json and ema.safetensors alone, in half precision by default; returns the folder.

    A run trained on latents takes its folder ``codec`` along, or the name of a codec that comes with the library.
    """
    if not isinstance(run, TrainedModel):
        raise UsageError(f"{run.name} is no run of ours: share its own folder")
    import shutil

    from safetensors.torch import save_file

    from ..storage.files import atomic

    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {name: value.to("cpu", dtype).contiguous() for name, value in run.model.state_dict().items()}
    if run.codec is not None:
        if getattr(run.codec, "about", {}).get("where") in shipped():
            save_codec(run.codec, to / CODEC, named=True)
        else:
            shutil.copytree(run.folder / CODEC, to / CODEC, dirs_exist_ok=True)
    # Weights first: a folder with a config.json is a whole card.
    temporary = to / f".{CARD}"
    save_file(tensors, temporary, {"images": str(run.images)})
    temporary.replace(to / CARD)
    from ..storage.configs import to_dict

    details = json.dumps({**run.details, "model": to_dict(run.spec), "images": run.images}, indent=1)
    with atomic(to / "config.json") as file:
        file.write(details.encode())
    return to


def usable_device(device: str | torch.device) -> torch.device:
    """The device; `UsageError` if this machine has none of the kind."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from None
    return found
