"""What turns pictures into latents and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import ConfigError, UsageError
from .tiles import Tiles


@runtime_checkable
class Codec(Protocol):
    """Pictures (B, 3, H, W) in [−1, 1] to latents (B, c, H/f, W/f) of about unit size, and back."""

    @property
    def factor(self) -> int:
        """f: a latent pixel stands for f × f pixels."""
        ...

    @property
    def channels(self) -> int:
        """c."""
        ...

    @property
    def fingerprint(self) -> str:
        """Digest of the weights and of the normalisation: what cached latents are valid for."""
        ...

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latent; of a codec that is a distribution, its mean, or with ``noise`` ~ N(0, 1) a draw from it."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """The picture, differentiable with respect to the latent."""
        ...


class Moments(NamedTuple):
    """A diagonal Gaussian over latents, (B, c, h, w) each."""

    mean: Tensor
    logvar: Tensor

    def draw(self, noise: Tensor | None) -> Tensor:
        """mean + e^{logvar/2}·noise, or the mean."""
        return self.mean if noise is None else self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean)


@runtime_checkable
class KLNetwork(Protocol):
    """A module that encodes to a Gaussian: ``moments(image)`` → (mean, logvar) and ``decode(latent)``, unnormalised."""

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar), (B, c, h, w) each."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Pictures are their own latents."""

    factor: int = 1
    channels: int = 3
    fingerprint: str = "identity"

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The image."""
        del noise
        return image

    def decode(self, latent: Tensor) -> Tensor:
        """The image."""
        return latent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normalisation:
    """z ↦ (z − shift)·scale, with tensors of shape (1 or c, 1 or h, 1 or w).

    A scaling factor is ``scale`` alone; statistics of a channel have shape (c, 1, 1), of an element (c, h, w).
    """

    shift: Tensor = field(default_factory=lambda: torch.zeros(1, 1, 1))
    scale: Tensor = field(default_factory=lambda: torch.ones(1, 1, 1))

    def __post_init__(self) -> None:
        for name, value in (("shift", self.shift), ("scale", self.scale)):
            if value.ndim != 3 or not bool(value.isfinite().all()):
                raise ConfigError(f"the {name} of latents must be finite and of shape (c, h, w) or (c, 1, 1)")
        if not bool((self.scale > 0).all()):
            raise ConfigError("the scale of latents must be positive everywhere")

    @classmethod
    def of(cls, *, shift: float | Sequence[float] = 0.0, scale: float | Sequence[float] = 1.0) -> Normalisation:
        """From numbers, one or one a channel."""
        return cls(
            shift=torch.tensor(shift, dtype=torch.float32).reshape(-1, 1, 1),
            scale=torch.tensor(scale, dtype=torch.float32).reshape(-1, 1, 1),
        )

    @property
    def by_element(self) -> bool:
        """Whether it is bound to one size of latents."""
        return max(*self.shift.shape[1:], *self.scale.shape[1:]) > 1

    def apply(self, z: Tensor) -> Tensor:
        """(z − shift)·scale, (B, c, h, w)."""
        shift, scale = self._fitting(z)
        return (z - shift) * scale

    def undo(self, z: Tensor) -> Tensor:
        """z/scale + shift."""
        shift, scale = self._fitting(z)
        return z / scale + shift

    def log_scale(self, z: Tensor) -> Tensor:
        """2·log scale: what is added to a log-variance."""
        return 2.0 * self._fitting(z)[1].log()

    def _fitting(self, z: Tensor) -> tuple[Tensor, Tensor]:
        for value in (self.shift, self.scale):
            if any(own not in (1, given) for own, given in zip(value.shape, z.shape[1:], strict=True)):
                raise UsageError(
                    f"these latents are normalised for shape {tuple(value.shape)}, got {tuple(z.shape[1:])}: "
                    "statistics by element fit one size only; measure them by channel"
                )
        return self.shift.to(z), self.scale.to(z)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KLCodec:
    """A variational autoencoder as a codec: z ~ N(mean, e^{logvar}), latent = (z − shift)·scale.

    The network is frozen and in evaluation mode; it runs in the precision of its weights, whatever autocast is set to,
    and answers in that of its input. ``tiles`` cuts large images (see `Tiles`). ``about`` is where it came from.

    Raises `UsageError` for images that do not divide by ``factor`` or have another number of channels.
    """

    net: Any  # a KLNetwork that is an nn.Module
    factor: int
    channels: int
    normalisation: Normalisation = field(default_factory=Normalisation)
    tiles: Tiles | None = None
    about: dict[str, Any] = field(default_factory=dict)
    weights: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.net, KLNetwork):
            raise ConfigError(f"a codec's network has moments() and decode(), got {type(self.net).__name__}")
        if isinstance(self.net, nn.Module):
            self.net.eval().requires_grad_(False)
        if not self.weights:
            object.__setattr__(self, "weights", weights_digest(self.net))

    @property
    def fingerprint(self) -> str:
        """Digest of the weights and of the normalisation."""
        return _digest(self.weights, self.normalisation.shift, self.normalisation.scale)

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        parameter = self._parameter()
        return torch.float32 if parameter is None else parameter.dtype

    @property
    def device(self) -> torch.device:
        """Of the network."""
        parameter = self._parameter()
        return torch.device("cpu") if parameter is None else parameter.device

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(c, H/f, W/f) of a picture (3, H, W)."""
        return self.channels, shape[-2] // self.factor, shape[-1] // self.factor

    def moments(self, image: Tensor) -> Moments:
        """The normalised posterior of pictures (B, 3, H, W)."""
        if image.ndim != 4 or image.shape[1] != 3 or any(side % self.factor for side in image.shape[-2:]):
            raise UsageError(
                f"the codec takes pictures (B, 3, H, W) whose sides divide by {self.factor}, got {tuple(image.shape)}"
            )

        def both(part: Tensor) -> Tensor:
            return torch.cat(self.net.moments(part), dim=1)

        with torch.autocast(image.device.type, enabled=False):
            fed = image.to(self.dtype)
            raw = both(fed) if self.tiles is None else self.tiles.run(both, fed, self.factor, 1)
        mean, logvar = raw.to(image.dtype).chunk(2, dim=1)
        return Moments(self.normalisation.apply(mean), logvar + self.normalisation.log_scale(mean))

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean of the posterior, or with ``noise`` (B, c, h, w) a draw from it."""
        return self.moments(image).draw(noise)

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures (B, 3, f·h, f·w) of latents (B, c, h, w), about in [−1, 1]; not clipped."""
        if latent.ndim != 4 or latent.shape[1] != self.channels:
            raise UsageError(f"the codec decodes latents (B, {self.channels}, h, w), got {tuple(latent.shape)}")
        with torch.autocast(latent.device.type, enabled=False):
            fed = self.normalisation.undo(latent).to(self.dtype)
            out = self.net.decode(fed) if self.tiles is None else self.tiles.run(self.net.decode, fed, 1, self.factor)
        return out.to(latent.dtype)

    def normalised(self, by: Normalisation) -> KLCodec:
        """The same network with another normalisation, in place of the present one."""
        return replace(self, normalisation=by)

    def tiled(self, side: int = 64, overlap: int = 16) -> KLCodec:
        """The same, in tiles of ``side`` latent pixels."""
        return replace(self, tiles=Tiles(side=side, overlap=overlap))

    def to(self, device: torch.device | str) -> KLCodec:
        """The same codec with its network moved to a device."""
        self.net.to(device)
        return self

    def _parameter(self) -> Tensor | None:
        return next(self.net.parameters(), None) if isinstance(self.net, nn.Module) else None


class Running:
    """Mean and standard deviation of latents, element by element, in float64 whatever the blocks (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def update(self, mean: Tensor, logvar: Tensor | None = None) -> None:
        """Latents (B, c, h, w); with ``logvar``, of draws from these posteriors, whose variance is added."""
        block = mean.detach().to("cpu", torch.float64)
        count, centre = len(block), block.mean(0)
        squares = (block - centre).square().sum(0)
        if logvar is not None:
            squares = squares + logvar.detach().to("cpu", torch.float64).exp().sum(0)
        if not self.count:
            self.count, self.mean, self.squares = count, centre, squares
            return
        total, gap = self.count + count, centre - self.mean
        self.mean = self.mean + gap * (count / total)
        self.squares = self.squares + squares + gap.square() * (self.count * count / total)
        self.count = total


By = Literal["none", "channel", "element"]


def normalisation(seen: Running, by: By, *, std: float = 0.5, before: Normalisation | None = None) -> Normalisation:
    """What brings latents of these statistics to mean 0 and standard deviation ``std``, by channel or by element.

    ``before`` is the normalisation that the latents had when they were seen; the result takes its place.

    Raises `UsageError` if nothing was seen.
    """
    old = before or Normalisation()
    if by == "none":
        return old
    if seen.count < 1:
        raise UsageError("statistics of latents need at least one image")
    mean, variance = seen.mean, seen.squares / seen.count
    if by == "channel":
        centre = mean.mean((1, 2), keepdim=True)
        variance = (variance + (mean - centre).square()).mean((1, 2), keepdim=True)
        mean = centre
    # An element that never changes (a constant background) is left at the scale of the others.
    sigma = variance.sqrt()
    sigma = sigma.clamp_min(1e-3 * float(sigma.max()) or 1.0)
    scale, shift = old.scale.double(), old.shift.double()
    return Normalisation(shift=(shift + mean / scale).float(), scale=(scale * std / sigma).float())


def weights_digest(module: object) -> str:
    """Digest of a module's weights: names, kinds and bytes."""
    state: Iterable[tuple[str, Tensor]] = sorted(module.state_dict().items()) if isinstance(module, nn.Module) else ()
    found = hashlib.blake2b(type(module).__name__.encode(), digest_size=16)
    for name, value in state:
        found.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest(text: str, *tensors: Tensor) -> str:
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for value in tensors:
        found.update(str(tuple(value.shape)).encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
