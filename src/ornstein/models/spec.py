"""What a trained model is, apart from its weights: enough to build it and use it as a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from ..denoisers import Denoiser
from ..networks import DiTConfig, TextConfig, TextEncoder, UNetConfig, build
from ..parameterizations import EDM, Net, Parameterization, parameterization
from ..paths import VE, VP, Flow
from ..paths.base import AffinePath
from ..randomness import mix

PathName = Literal["vp-linear", "vp-cosine", "vp-scaled-linear", "vp-table", "ve", "flow"]
Prediction = Literal["noise", "clean", "v", "velocity", "edm"]

PATHS: dict[str, Callable[[], AffinePath]] = {
    "vp-linear": VP,
    "vp-cosine": VP.cosine,
    "vp-scaled-linear": VP.scaled_linear,
    "vp-table": VP.table,
    "ve": VE,
    "flow": Flow,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model without its weights. ``classes`` are the names of its labels, empty if it takes none."""

    kind: ClassVar[str] = "spec"

    shape: tuple[int, int, int]
    path: PathName
    predicts: Prediction
    sigma_data: float = 0.5
    network: UNetConfig | DiTConfig
    text: TextConfig | None = None
    classes: tuple[str, ...] = ()

    @property
    def parameterization(self) -> Parameterization:
        """The parameterization."""
        return EDM(sigma_data=self.sigma_data) if self.predicts == "edm" else parameterization(self.predicts)

    def build(self, seed: int = 0) -> Conditioned:
        """The network with fresh weights, a pure function of the seed."""
        encoder = None if self.text is None else TextEncoder(self.text, mix(seed, "text"))
        return Conditioned(build(self.network, seed), encoder)

    def denoiser(self, net: Net) -> Denoiser:
        """``net`` as a denoiser of this model's path and parameterization."""
        return Denoiser(net, PATHS[self.path](), self.parameterization, shape=self.shape)

    def told(self, labels: Tensor, captions: list[str]) -> Mapping[str, Tensor]:
        """The condition of examples with these labels (B,) and captions, as tensors of B rows."""
        if self.classes:
            return {"label": labels}
        return {} if self.text is None else {"words": self.text.encode(captions)}

    def with_sampling_config(self, found: object) -> ModelSpec:
        """The model with the sampling configuration found after training, from sampling.json; here unchanged."""
        del found
        return self

    def parts(self, model: Conditioned) -> list[list[nn.Parameter]]:
        """The weights in groups whose gradients have nothing in common, and are clipped apart. Here: one group."""
        return [list(model.parameters())]


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
