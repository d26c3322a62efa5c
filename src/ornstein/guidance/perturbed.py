"""Guidance by a damaged copy of the model: the network itself, with some of its named features spoilt.

    x̂_0 = D + s·(D − D̃),   D̃ being the same network under modulations

The features are `ornstein.modulation.Site`s: nothing is patched, and no second set of weights is needed. `sites` lists
what a network has.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..denoisers import DenoiserLike
from ..errors import ConfigError, UsageError
from ..estimates import Estimate
from ..networks.sites import Modulation, modulated
from ..scalars import Time
from ..typed import typed
from .base import Rule, Strength, network_of, strength_at
from .cfg import mixed


class _Damage(Rule):
    """D + s·(D − D̃), whatever the damage."""

    __slots__ = ()

    scale: Strength
    net: nn.Module | None

    @abstractmethod
    def modulations(self) -> Mapping[str, Modulation]:
        """What to bind for one pass of the network; fresh every time, for it may remember within the pass."""

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """D + s·(D − D̃): one evaluation more."""
        scale = strength_at(self.scale, inner.path, t)
        if not isinstance(scale, Tensor) and scale == 0.0:
            return inner(x, t)
        net = network_of(inner) if self.net is None else self.net
        if net is None:
            raise UsageError(f"{type(self).__name__} finds no network with sites in {type(inner).__name__}: pass net=…")
        strong = inner(x, t)
        with modulated(net, self.modulations()):
            weak = inner(x, t)
        return mixed(1.0 + scale, strong, weak)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Perturbed(_Damage):
    """Guidance away from the network under any modulations:  x̂_0 = D + s·(D − D̃), one evaluation more.

    ``by`` maps patterns of site names to functions of a feature, as `ornstein.modulation.modulated` takes them.
    ``scale`` 0 is no guidance, bit for bit. ``net`` is found in the denoiser unless it is given. To add it to
    classifier-free guidance of the undamaged model, put the two `add`.

    >>> import ornstein as orn
    >>> from ornstein.modulation import Site
    >>> net = torch.nn.Sequential(Site("a"))
    >>> net.forward = lambda x, time: net[0](x, time)
    >>> guided = Perturbed(scale=2.0, by={"a": lambda feature, site, t: 0.5 * feature})(
    ...     orn.Denoiser(net, orn.VE(), predicts="clean")
    ... )
    >>> guided(torch.ones(1, 1), 1.0).clean.item()
    2.0
    """

    scale: Strength
    by: Mapping[str, Modulation]
    net: nn.Module | None = field(default=None, repr=False)

    def modulations(self) -> Mapping[str, Modulation]:
        """``by``."""
        return self.by


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PAG(_Damage):
    """Perturbed-attention guidance (Ahn et al. 2024, eq. 15):  x̂_0 = D + s·(D − D̃).

    In D̃ the self-attention maps of the blocks ``at`` (a pattern; the middle by default) are the identity: each pixel
    reads its own value alone. ``scale`` s is 3 in the paper; 0 is no guidance, bit for bit.
    """

    scale: Strength
    at: str = "mid.*"
    net: nn.Module | None = field(default=None, repr=False)

    def modulations(self) -> Mapping[str, Modulation]:
        """The result of the attention is replaced by its values."""
        carry = _Carry()
        return {f"{self.at}.value": carry.keep, f"{self.at}.attended": carry.put}


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SEG(_Damage):
    """Smoothed-energy guidance (Hong 2024, section 4):  x̂_0 = D + s·(D − D̃).

    In D̃ the queries of the self-attention ``at`` are blurred over the pixels by a Gaussian of standard deviation
    ``blur`` (in pixels of the feature; infinite: their mean). In the paper the scale s stays at 3 and the blur sets the
    strength. Near the rim the Gaussian is cut off and normalised. ``scale`` 0 is no guidance, bit for bit.
    """

    scale: Strength = 3.0
    blur: float = math.inf
    at: str = "mid.*"
    net: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.blur > 0.0:
            raise ConfigError(f"blur must be positive (math.inf for the mean), got {self.blur}")

    def modulations(self) -> Mapping[str, Modulation]:
        """The queries, blurred."""

        def blur(feature: Tensor, site: str, t: float | Tensor) -> Tensor:
            del site, t
            return blurred(feature, self.blur)

        return {f"{self.at}.query": blur}


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SkipLayer(_Damage):
    """Skip-layer guidance (Stability AI 2024):  x̂_0 = D + s·(D − D̃), with layers left out in D̃.

    ``layers`` are pairs (before, after) of sites with features of the same shape: in D̃ the feature at ``after`` is
    replaced by that at ``before``, as if what lies between were skipped. ``SkipLayer.blocks(7, 8, 9)`` names blocks of
    the transformer. It is meant for a window of noise levels (`interval`). ``scale`` 0 is no guidance, bit for bit.
    """

    layers: tuple[tuple[str, str], ...]
    scale: Strength = 2.8
    net: nn.Module | None = field(default=None, repr=False)

    @classmethod
    def blocks(cls, *blocks: int, scale: Strength = 2.8) -> SkipLayer:
        """Skip these blocks of a transformer with sites ``block.i.hidden``; the first block cannot be skipped.

        >>> SkipLayer.blocks(2, 3).layers
        (('block.1.hidden', 'block.2.hidden'), ('block.2.hidden', 'block.3.hidden'))
        """
        if not blocks or min(blocks) < 1:
            raise ConfigError(f"blocks from 1 up can be skipped (before block 0 there is no site), got {blocks}")
        return cls(layers=tuple((f"block.{i - 1}.hidden", f"block.{i}.hidden") for i in sorted(blocks)), scale=scale)

    def modulations(self) -> Mapping[str, Modulation]:
        """``after`` gets what was seen at ``before``."""
        carries = {after: (before, _Carry()) for before, after in self.layers}
        names = {name for pair in self.layers for name in pair}

        def act(name: str) -> Modulation:
            def both(feature: Tensor, site: str, t: float | Tensor) -> Tensor:
                if name in carries:
                    feature = carries[name][1].put(feature, site, t)
                for before, carry in carries.values():
                    if before == name:
                        carry.keep(feature, site, t)
                return feature

            return both

        return {name: act(name) for name in names}


class _Carry:
    """Carries a feature from one site to a later one of the same pass."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def keep(self, feature: Tensor, site: str, t: float | Tensor) -> Tensor:
        """Remember it."""
        del site, t
        self.kept = feature
        return feature

    def put(self, feature: Tensor, site: str, t: float | Tensor) -> Tensor:
        """What was kept, in place of the feature."""
        del t
        if self.kept is None or self.kept.shape != feature.shape:
            kept = "nothing" if self.kept is None else str(tuple(self.kept.shape))
            raise UsageError(f"site {site!r} needs a feature of shape {tuple(feature.shape)}, got {kept} from before")
        return self.kept


def blurred(feature: Tensor, blur: float) -> Tensor:
    """A feature (B, C, H, W) under a Gaussian of standard deviation ``blur`` pixels, normalised at the rim."""
    if math.isinf(blur):
        return feature.mean((2, 3), keepdim=True).expand_as(feature)

    def weights(size: int) -> Tensor:
        at = torch.arange(size, dtype=torch.float32)
        kernel = torch.exp(-0.5 * ((at[:, None] - at) / blur).square())
        return (kernel / kernel.sum(1, keepdim=True)).to(feature.device, feature.dtype)

    rows, columns = weights(feature.shape[2]), weights(feature.shape[3])
    return torch.einsum("ij,bcjk,lk->bcil", rows, feature, columns)


__all__ = ["PAG", "SEG", "Perturbed", "SkipLayer", "blurred"]
