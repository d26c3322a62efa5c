"""What a trained model is, apart from its weights: enough to build it and use it as a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from ..denoisers import Denoiser
from ..errors import ConfigError, UsageError
from ..estimates import Estimate
from ..networks import DiTConfig, TextConfig, TextEncoder, UNetConfig, build
from ..options import Option
from ..parameterizations import EDM, SPELLINGS, Net, Parameterization, parameterization
from ..paths import VE, VP, Flow
from ..paths.base import AffinePath, Path
from ..randomness import mix
from ..scalars import Time

PathName = Literal["vp-linear", "vp-cosine", "vp-scaled-linear", "vp-table", "ve", "flow"]
Prediction = Annotated[Literal["noise", "clean", "v", "velocity", "edm"], Option(spellings=SPELLINGS)]

PATHS: dict[str, Callable[[], AffinePath]] = {
    "vp-linear": VP,
    "vp-cosine": VP.cosine,
    "vp-scaled-linear": VP.scaled_linear,
    "vp-table": VP.table,
    "ve": VE,
    "flow": Flow,
}


MAX_SIZE = 1 << 28
"""Most values of one sample: a picture of 9,000 × 9,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Anything that is trained, without its weights: how to build it from the shape (C, H, W) of its data.

    A subclass writes ``build`` and ``denoiser``. ``retired`` names the keys that older files have and it has no more.
    """

    retired: ClassVar[tuple[str, ...]] = ()

    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or math.prod(self.shape) > MAX_SIZE:
            raise ConfigError(f"shape={self.shape} must be three positive numbers of at most {MAX_SIZE} values in all")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that it is conditioned on; empty if there are none."""
        return getattr(self, "classes", ())

    @property
    def encoder(self) -> TextConfig | None:
        """The encoder of the captions that it is conditioned on, if there is one."""
        return getattr(self, "text", None)

    def build(self, seed: int = 0) -> Conditioned:
        """The network with fresh weights, a pure function of the seed."""
        raise NotImplementedError

    def denoiser(self, net: Net) -> Denoiser:
        """``net`` as what the objective evaluates; one that makes no pictures refuses to be sampled."""
        raise NotImplementedError

    def conditions(self, labels: Tensor, captions: list[str]) -> Mapping[str, Tensor]:
        """The condition of examples with these labels (B,) and captions, as tensors of B rows."""
        if self.labels:
            return {"label": labels}
        return {} if self.encoder is None else {"words": self.encoder.encode(captions)}

    def with_sampling_config(self, found: object) -> ModelSpec:
        """The model with the sampling configuration found after training, from sampling.json; here unchanged."""
        del found
        return self

    def parts(self, model: Conditioned) -> list[list[nn.Parameter]]:
        """The weights in groups whose gradients have nothing in common, and are clipped apart. Here: one group."""
        return [list(model.parameters())]


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserSpec(ModelSpec):
    """A denoiser without its weights. ``classes`` are the names of its labels, empty if it takes none; ``data_std`` is
    the standard deviation of its data, which training measures, and None in older files.
    """

    kind: ClassVar[str] = "spec"

    path: PathName
    predicts: Prediction
    sigma_data: float = 0.5
    network: UNetConfig | DiTConfig
    text: TextConfig | None = None
    classes: tuple[str, ...] = ()
    data_std: float | None = None

    def __post_init__(self) -> None:
        ModelSpec.__post_init__(self)
        object.__setattr__(self, "predicts", SPELLINGS.get(self.predicts, self.predicts))
        if any(side % self.network.factor for side in self.shape[1:]):
            raise ConfigError(f"shape={self.shape} does not divide by {self.network.factor}, as the network needs")
        for name, value in (("sigma_data", self.sigma_data), ("data_std", self.data_std)):
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigError(f"{name}={value} must be a positive number")

    @property
    def parameterization(self) -> Parameterization:
        """The parameterization."""
        return EDM(sigma_data=self.sigma_data) if self.predicts == "edm" else parameterization(self.predicts)

    def build(self, seed: int = 0) -> Conditioned:
        """The network with fresh weights, a pure function of the seed."""
        if self.network.channels != self.shape[0]:
            raise ConfigError(f"shape={self.shape} has {self.shape[0]} channels, the network {self.network.channels}")
        encoder = None if self.text is None else TextEncoder(self.text, mix(seed, "text"))
        return Conditioned(build(self.network, seed), encoder)

    def denoiser(self, net: Net) -> Denoiser:
        """``net`` as a denoiser of this model's path and parameterization."""
        return Denoiser(
            net,
            PATHS[self.path](),
            self.parameterization,
            shape=self.shape,
            learned_variance=self.network.outputs == 2 * self.network.channels,
            data_std=self.data_std,
        )


@dataclass(frozen=True, slots=True)
class NoPictures:
    """The parameterization of a model that makes no pictures of its own: sampling it is refused, with ``why``."""

    why: str

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """Refused."""
        del path, x, t
        raise UsageError(self.why)

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """Refused."""
        del path, x, t, raw
        raise UsageError(self.why)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """Refused."""
        del path, clean, noise, x, t
        raise UsageError(self.why)


@runtime_checkable
class Shows(Protocol):
    """A `ModelSpec` whose grids of samples are made of pictures of the data."""

    def show(self, model: Conditioned, images: Tensor) -> Tensor:
        """Pictures (M, 3, H, W) for the eye, of pictures of the data (N, 3, H, W) in [−1, 1]."""
        ...


class Conditioned(nn.Module):
    """A network and, if it takes captions, the text encoder trained with it, as one module."""

    def __init__(self, net: nn.Module, text: TextEncoder | None) -> None:
        super().__init__()
        self.net, self.text = net, text

    def forward(
        self, x: Tensor, time: Tensor, *, label: Tensor | None = None, words: Tensor | None = None, **more: Any
    ) -> Tensor:
        """(B, C, H, W) and time (B,), with label (B,) or words (B, L) of ids where the model has them.

        Further keywords are passed on, such as the stage of a cascade.
        """
        if label is not None:
            return self.net(x, time, label=label, **more)
        if words is not None and self.text is not None:
            text, mask = self.text(words)
            return self.net(x, time, text=text, text_mask=mask, **more)
        return self.net(x, time, **more)
