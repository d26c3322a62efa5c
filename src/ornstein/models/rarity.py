"""Rarity classifiers: what one is, and its probabilities for any path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..denoisers import Denoiser
from ..errors import UsageError
from ..networks import UNetConfig
from ..networks.building import initialise
from ..parameterizations import Net
from ..randomness import mix
from ..storage.weights import from_elsewhere
from .rarity_network import Encoder, Lite0Features, RarityNet, RunFeatures
from .spec import PATHS, Conditioned, DenoiserSpec, ModelSpec, NoPictures, PathName

Head = Literal["classes", "gaussian"]


LITE0 = "lite0"


_WHY = (
    "this run is a rarity classifier, which makes no images: sample from the run that was scored, with "
    "--guide rarity:CLASSIFIER:WEIGHT"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaritySpec(ModelSpec):
    """A rarity classifier without its weights. ``path`` is the law of its training noise; it serves every path.

    ``rarities`` is the number of classes L, ``head`` its output: L logits, or mean and log-deviation of the
    normal score. ``network`` is its encoder. ``seen`` names the frozen network that the encoder looks through: "" for
    none, "lite0", or "run", whose model is ``front`` and whose sites are ``sites``. ``classes`` are the labels that it
    is given.
    """

    kind: ClassVar[str] = "rarityspec"
    retired: ClassVar[tuple[str, ...]] = ("predicts", "sigma_data", "text")

    path: PathName
    network: UNetConfig
    classes: tuple[str, ...] = ()
    rarities: int
    head: Head = "classes"
    seen: str = ""
    front: DenoiserSpec | None = None
    sites: tuple[str, ...] = ()

    def build(self, seed: int = 0) -> Conditioned:
        """The network with fresh weights, a pure function of the seed."""
        features = self._features(seed)
        outputs = self.rarities if self.head == "classes" else 2
        with torch.random.fork_rng(devices=[]):
            encoder = Encoder(self.network, outputs)
        initialise(encoder, seed)
        return Conditioned(RarityNet(encoder, features), None)

    def _features(self, seed: int) -> nn.Module | None:
        if self.seen == LITE0:
            with from_elsewhere():
                return Lite0Features()
        if self.front is None:
            return None
        return RunFeatures(self.front, self.front.build(mix(seed, "features")).net, self.sites)

    def denoiser(self, net: Net) -> Denoiser:
        """The network with the path of its training."""
        return Denoiser(net, PATHS[self.path](), NoPictures(_WHY), shape=self.shape)

    def conditions(self, labels: Tensor, captions: list[str]) -> Mapping[str, Tensor]:
        """The rows of the table that the examples stand in (see `ScoredDataset`)."""
        del captions
        return {"row": labels}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RarityClassifier:
    """log p(class of rarity | state, log-SNR), by a network that was trained on noisy images.

    ``rarities`` classes, the last the rarest. ``labels`` are the names of the labels it takes, empty if none.
    """

    net: nn.Module = field(repr=False)
    spec: RaritySpec = field(repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def rarities(self) -> int:
        """L."""
        return self.spec.rarities

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels it takes."""
        return self.spec.classes

    def __call__(self, state: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        """The output of the network (B, L) or (B, 2) at states of unit variance (B, 3, H, W) and log-SNR (B,)."""
        cond = {"label": label} if self.labels and label is not None else {}
        return self.net(state.float(), log_snr.float(), **cond)

    def log_likelihood(self, state: Tensor, log_snr: Tensor, target: int, label: Tensor | None = None) -> Tensor:
        """log p(``target`` | state), (B,): of a class from the logits, or from N(y; μ, s) at its middle quantile y."""
        raw = self(state, log_snr, label)
        if self.spec.head == "classes":
            return torch.log_softmax(raw.float(), dim=1)[:, target]
        mean, log_std = raw.float().unbind(1)
        goal = NormalDist().inv_cdf((target + 0.5) / self.rarities)
        return -0.5 * ((goal - mean) * torch.exp(-log_std)).square() - log_std

    def number(self, target: int) -> int:
        """The class 0 … L − 1; negative numbers count from the rarest. Raises `UsageError` for one that is none."""
        if not -self.rarities <= target < self.rarities:
            raise UsageError(f"rarity class {target} is none of 0 … {self.rarities - 1} (−1 is the rarest)")
        return target % self.rarities
