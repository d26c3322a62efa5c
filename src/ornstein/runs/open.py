"""Load a trained model from a run, one of its checkpoints, or an exported folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..interop.opened import Condition, OpenedModel, check_condition, label_numbers
from ..storage.configs import to_dict
from ..storage.files import write_json
from ..storage.weights import build_like, fill, write_tensors
from ..typed import check_type
from .codecs import open_codec, save_codec
from .places import CARD, CODEC, RunFiles, read_run, shipped

if TYPE_CHECKING:
    from ..latents import Codec
    from ..models.spec import Conditioned, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TrainedModel(OpenedModel):
    """A model that ``ornstein train`` made. ``details`` is its config.json: how it was made, and from which data."""

    model: Conditioned
    spec: ModelSpec

    @property
    def name(self) -> str:
        """Its folder."""
        return f"the model in {self.folder}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if the model takes none."""
        return self.spec.labels

    @property
    def condition(self) -> Condition:
        """The kind of condition that the network takes."""
        return "label" if self.classes else "none" if self.spec.encoder is None else "text"

    @property
    def parameters(self) -> int:
        """Number of weights, those of a text encoder included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def cond(
        self, captions: Sequence[str] | None = None, *, labels: Sequence[int | str] | None = None
    ) -> dict[str, Tensor]:
        """The condition for `Denoiser.with_condition`: labels by number or name (−1 or "" for none), or captions (""
        for none).

        Raises `UsageError` for a condition that the model does not take, or an unknown label.
        """
        check_condition(self, captions, labels)
        if labels is not None:
            numbers = label_numbers(labels, self.classes, len(self.classes), empty=True)
            return {"label": torch.tensor(numbers, dtype=torch.int64, device=self.device)}
        assert self.model.text is not None
        assert captions is not None
        with torch.no_grad():
            text, mask = self.model.text(list(captions))
        return {"text": text, "text_mask": mask}

    def null(self, rows: int = 1, *, negative: str | None = None) -> dict[str, Tensor]:
        """The empty condition, as classifier-free guidance needs it; or a ``negative`` caption."""
        if self.condition == "none":
            return {}
        return self.cond(labels=[-1] * rows) if self.classes else self.cond([negative or ""] * rows)


def open_own(where: str | Path, *, ema: bool | float = True, device: str | torch.device = "cpu") -> TrainedModel:
    """`ornstein.runs.open_run` for models made by ``ornstein train`` only."""

    found = read_run(where, ema=ema)
    model = build_like(found.spec.build, found.weights)
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
    config = found.details.get("train")
    if not isinstance(config, dict) or not config.get("codec"):
        return None
    if not (found.home / CODEC).is_dir():
        raise CheckpointError(f"the run in {found.home} has lost its codec: {found.home / CODEC} is missing")
    return open_codec(found.home / CODEC, device=device)


def export(run: OpenedModel, to: str | Path, *, half: bool = True) -> Path:
    """Write a card, config.json and ema.safetensors alone, in half precision by default; returns the folder.

    A run trained on latents takes its folder ``codec`` along, or the name of a codec that comes with the library.
    """
    if not isinstance(run, TrainedModel):
        raise UsageError(f"{run.name} is no run of ours: share its own folder")
    import shutil

    from ..latents import KLCodec

    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {name: value.to("cpu", dtype).contiguous() for name, value in run.model.state_dict().items()}
    if run.codec is not None:
        if isinstance(run.codec, KLCodec) and run.codec.about.get("where") in shipped():
            save_codec(run.codec, to / CODEC, named=True)
        else:
            shutil.copytree(run.folder / CODEC, to / CODEC, dirs_exist_ok=True)
    # Weights first: a folder with a config.json is a whole card.
    write_tensors(to / CARD, tensors, {"images": str(run.images)})
    write_json(to / "config.json", {**run.details, "model": to_dict(run.spec), "images": run.images}, indent=1)
    return to


def usable_device(device: str | torch.device) -> torch.device:
    """The device; `UsageError` if this machine has none of the kind."""
    check_type("device", device, str | torch.device, UsageError)
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from None
    return found
