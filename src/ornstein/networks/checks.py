"""Checks that networks share: a bad configuration or input is refused in one clear line."""

from __future__ import annotations

from torch import Tensor

from ornstein.errors import ConfigError


def positive(**values: int) -> None:
    """Each value is at least one."""
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name}={value} is out of range: it must be at least 1")


def not_negative(**values: float) -> None:
    """Each value is at least zero."""
    for name, value in values.items():
        if value < 0:
            raise ConfigError(f"{name}={value} is out of range: it must be at least 0")


def multiple(of: int, why: str, **values: int) -> None:
    """Each value divides by ``of``."""
    for name, value in values.items():
        if value % of:
            raise ConfigError(f"{name}={value} does not divide by {of} ({why}): take {max(of, value - value % of)}")


def choice(options: tuple[str, ...], **values: str) -> None:
    """Each value is one of ``options``."""
    for name, value in values.items():
        if value not in options:
            raise ConfigError(f"{name}={value!r} is unknown: choose among {', '.join(options)}")


def dropout_rate(value: float) -> None:
    """A probability below one."""
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"dropout={value} is out of range: it must lie in [0, 1)")


def input_fits(x: Tensor, channels: int, factor: int) -> None:
    """The input is (B, ``channels``, H, W) with H and W multiples of ``factor``."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ConfigError(f"the network takes (batch, {channels}, height, width), not {tuple(x.shape)}")
    height, width = x.shape[2:]
    if height % factor or width % factor:
        raise ConfigError(
            f"an image of {height}×{width} does not divide by {factor}, as this network needs: resize or pad it"
        )


def text_fits(text: Tensor | None, text_width: int) -> None:
    """Text tokens (B, L, D) have the width the network was built for; None always fits."""
    if text is None:
        return
    if text_width == 0:
        raise ConfigError("the network was given text but built with text_width=0: set text_width, or leave text out")
    if text.ndim != 3 or text.shape[2] != text_width:
        raise ConfigError(f"text must be (batch, length, {text_width}), not {tuple(text.shape)}: check text_width")
