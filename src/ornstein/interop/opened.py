"""What every opened model offers, whatever file or library it came from; and how labels are read."""

from __future__ import annotations

import difflib
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import checks, grids
from ..denoisers import Denoiser, DenoiserInfo
from ..errors import UsageError
from ..estimates import Estimate
from ..latents.codec import Codec
from ..parameterizations import Parameterization
from ..paths.base import Cond
from ..paths.base import Path as ForwardPath
from ..scalars import Time

Condition = Literal["none", "label", "text"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class OpenedModel(ABC):
    """A model as `ornstein.load` returns it: a denoiser that encodes its own conditions.

    It goes wherever a denoiser goes: into `ornstein.sample`, into a guidance, into `ornstein.run`. ``cond`` encodes
    labels or captions for ``ornstein.sample(model, cond=…)``, ``null`` is the empty condition for classifier-free
    guidance. A format of one's own derives from this class and gives `cond` and `null`, or takes `PlainModel`.

    Attributes:
        denoiser: in evaluation mode; it knows its ``shape`` and its codec.
        folder: where it lies, or its name.
        weights: the file or folder of its weights.
        images: how many images it was trained on; 0 where nobody knows.
        details: how it was made, as its files say.
    """

    denoiser: Denoiser
    folder: Path
    weights: Path
    images: int = 0
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @abstractmethod
    def cond(
        self, captions: Sequence[str] | None = None, *, labels: Sequence[int | str] | None = None
    ) -> dict[str, Tensor]:
        """The condition for `Denoiser.with_condition`, a row a sample."""

    @abstractmethod
    def null(self, rows: int = 1, *, negative: str | None = None) -> dict[str, Tensor]:
        """The empty condition, as classifier-free guidance needs it; or a ``negative`` caption."""

    def __repr__(self) -> str:
        """One line."""
        about = f"{self.name}: {self.condition}" if self.condition != "none" else self.name
        return checks.cut(f"<{type(self).__name__} {about}, {self.shape}, {self.parameters:,} parameters>")

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.folder)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if the model takes none, or knows only their numbers."""
        return ()

    @property
    def condition(self) -> Condition:
        """The kind of condition that the network takes."""
        return "label" if self.classes else "none"

    @property
    def picture(self) -> tuple[int, int, int]:
        """(3, H, W) of what is decoded."""
        channels, height, width = self.denoiser.shape or (3, 0, 0)
        if self.codec is None:
            return channels, height, width
        return 3, height * self.codec.factor, width * self.codec.factor

    @property
    def parameters(self) -> int:
        """Number of weights of the denoising network."""
        net = self.denoiser.net
        return sum(parameter.numel() for parameter in net.parameters()) if isinstance(net, nn.Module) else 0

    def grid(self, steps: int | None = None) -> grids.Grid:
        """Times for so many steps: of a few-step model its own, by their evaluations, else those usual on its path."""
        own = self.denoiser.grid
        return grids.default(self.path, 20 if steps is None else steps) if own is None else own(steps)

    # ---- a denoiser like any other

    @property
    def info(self) -> DenoiserInfo:
        """What the denoiser knows about itself."""
        return self.denoiser.info

    @property
    def net(self) -> Any:
        """The denoiser's network, for `ornstein.modulation.modulated`."""
        return self.denoiser.net

    @property
    def parameterization(self) -> Parameterization:
        """What the network predicts."""
        return self.denoiser.parameterization

    @property
    def path(self) -> ForwardPath:
        """The denoiser's path."""
        return self.denoiser.path

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one clean state: latents, if the model has a codec."""
        return self.denoiser.shape

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.denoiser.device

    @property
    def codec(self) -> Codec | None:
        """What decodes its samples, if they are latents."""
        return self.denoiser.codec

    def with_condition(self, cond: Cond) -> Denoiser:
        """The denoiser under a condition."""
        return self.denoiser.with_condition(cond)

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and time t."""
        return self.denoiser(x, t)

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Estimates of one state under several conditions."""
        return self.denoiser.predict_conditions(x, t, conds)

    def predict_times(self, x: Tensor, times: Sequence[float]) -> list[Estimate]:
        """Estimates of states at different times."""
        return self.denoiser.predict_times(x, times)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PlainModel(OpenedModel):
    """An opened model with no condition, or with ``labels`` numbered labels, −1 being the empty one."""

    labels: int = 0

    @property
    def condition(self) -> Condition:
        """Label, or none."""
        return "label" if self.labels else "none"

    def cond(
        self, captions: Sequence[str] | None = None, *, labels: Sequence[int | str] | None = None
    ) -> dict[str, Tensor]:
        """The labels, (B,) int64; −1 or "" for none. `UsageError` where the model does not take them."""
        check_condition(self, captions, labels)
        assert labels is not None
        numbers = label_numbers(labels, self.classes, self.labels, empty=True)
        return {"label": torch.tensor(numbers, dtype=torch.int64, device=self.device)}

    def null(self, rows: int = 1, *, negative: str | None = None) -> dict[str, Tensor]:
        """No label."""
        del negative
        return self.cond(labels=[-1] * rows) if self.labels else {}


def check_condition(model: OpenedModel, captions: object, labels: object) -> None:
    """Refuse a condition that is given twice or not at all, that the model does not take, or that is no list."""
    if (captions is None) == (labels is None):
        raise UsageError("give either captions or labels")
    kind, given = ("captions", captions) if labels is None else ("labels", labels)
    if model.condition != ("text" if labels is None else "label"):
        raise UsageError(f"{model.name} takes no {kind} (its condition is {model.condition})")
    if isinstance(given, str) or not hasattr(given, "__len__"):
        raise UsageError(f"{kind} are a list, one a sample: write [{given!r}]")
    if len(given) == 0:  # type: ignore[arg-type]
        raise UsageError(f"at least one {kind.removesuffix('s')} is needed")


def label_numbers(labels: Sequence[Any], classes: Sequence[str], count: int, *, empty: bool) -> list[int]:
    """Labels by number or name as numbers from 0 to ``count`` − 1; with ``empty`` also −1, or "", for no label.

    Raises:
        UsageError: a label that is none of these, such as 2.7, True, or a number out of range.
    """
    return [_number(label, classes, count, empty) for label in labels]


def _number(label: Any, classes: Sequence[str], count: int, empty: bool) -> int:
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if label == "" and empty:
        return -1
    try:
        number = int(label) if isinstance(label, str) else operator.index(label)
    except (ValueError, TypeError):
        number = None
    if number is not None and not isinstance(label, bool) and (-1 if empty else 0) <= number < count:
        return number
    near = difflib.get_close_matches(str(label), classes, n=1)
    known = f"choose 0 … {count - 1}" + (" or a name" if classes else "")
    raise UsageError(f"unknown label {label!r} of {count} classes: {f'did you mean {near[0]!r}?' if near else known}")
