"""A trained run as something to ask: from its folder, one of its checkpoints, or a card with weights alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .denoisers import Denoiser
from .errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from .training.spec import Conditioned, Spec

CARD = "ema.safetensors"
_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A trained model and what is known about it.

    ``denoiser`` is in evaluation mode and knows its ``shape``. ``images`` is how many it was trained on. ``details`` is
    its config.json: how it was made, and from which data.
    """

    folder: Path
    weights: Path
    denoiser: Denoiser
    model: Conditioned
    spec: Spec
    images: int
    details: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if the model takes none."""
        return self.spec.classes

    @property
    def condition(self) -> str:
        """none, label or text."""
        return "label" if self.classes else "none" if self.spec.text is None else "text"

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def cond(
        self, *, labels: Sequence[int | str] | None = None, captions: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The condition for `Denoiser.given`: labels by number or name (−1 or "" for none), or captions ("" for none).

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


def shipped() -> tuple[str, ...]:
    """Names of the models that come with the library."""
    return tuple(sorted(card.parent.name for card in _WEIGHTS.glob(f"*/{CARD}")))


def _place(where: str | Path) -> Path:
    """A folder of that name, or else the shipped model of that name."""
    folder = Path(where)
    return folder if folder.exists() or str(where) not in shipped() else _WEIGHTS / str(where)


def is_run(where: str | Path) -> bool:
    """Whether `open_run` would find a run, a checkpoint or a card there (it may still be damaged)."""
    folder = _place(where)
    return (folder / "config.json").is_file() or (folder / CARD).is_file()


def open_run(where: str | Path, *, ema: bool = True, device: str | torch.device = "cpu") -> Run:
    """Open a run's folder (its newest checkpoint), a checkpoint's folder, a card or a shipped model by its name.

    A card is a folder with config.json and ema.safetensors alone.

    ``ema=False`` takes the weights themselves instead of their average. Half-precision weights are read as float32.

    Raises `CheckpointError` if there is nothing of the kind, or it is damaged.
    """
    from .training import checkpoint
    from .training.folder import CONFIG, read_document, read_spec

    folder = _place(where)
    if (folder / checkpoint.STATE).is_file() and not (folder / CONFIG).is_file():
        home, weights = folder.parent.parent, folder
        if not (home / CONFIG).is_file():
            raise CheckpointError(f"checkpoint {folder} has lost its run: {home / CONFIG} is missing")
    elif (folder / CONFIG).is_file():
        home, weights = folder, _weights(folder, checkpoint.complete(folder))
    else:
        what = "is no run, checkpoint or model card" if folder.is_dir() else "does not exist"
        names = f", or a shipped model ({', '.join(shipped())})" if shipped() else ""
        raise CheckpointError(f"{folder} {what}: give a folder made by `ornstein train`{names}")
    details = read_document(home / CONFIG)
    spec = read_spec(details, home / CONFIG)
    path = weights / ("ema.safetensors" if ema else "model.safetensors")
    model = spec.build()
    checkpoint.fill(model, checkpoint.read_tensors(path), path)
    model.to(usable_device(device)).eval().requires_grad_(False)
    return Run(
        folder=home,
        weights=path,
        denoiser=spec.denoiser(model.net),
        model=model,
        spec=spec,
        images=_images(path),
        details=details,
    )


def load(where: str | Path, *, ema: bool = True, device: str | torch.device = "cpu") -> Denoiser:
    """The denoiser of `open_run`."""
    return open_run(where, ema=ema, device=device).denoiser


def export(run: Run, to: str | Path, *, half: bool = True) -> Path:
    """Write a card, config.json and ema.safetensors alone, in half precision unless told otherwise; returns it."""
    from safetensors.torch import save_file

    from .data.cache import atomic

    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {name: value.to("cpu", dtype).contiguous() for name, value in run.model.state_dict().items()}
    # Weights first: a folder with a config.json is a whole card.
    temporary = to / f".{CARD}"
    save_file(tensors, temporary, {"images": str(run.images)})
    temporary.replace(to / CARD)
    details = json.dumps({**run.details, "images": run.images}, indent=1)
    with atomic(to / "config.json") as file:
        file.write(details.encode())
    return to


def _weights(folder: Path, checkpoints: list[Path]) -> Path:
    if checkpoints:
        return checkpoints[-1]
    if (folder / CARD).is_file():
        return folder
    raise CheckpointError(f"the run in {folder} has no checkpoint yet: let it train for longer")


def _images(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        images = (file.metadata() or {}).get("images", "0")
    return int(images) if images.isdecimal() else 0


def usable_device(device: str | torch.device) -> torch.device:
    """The device; `UsageError` if this machine has none of the kind."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from None
    return found
