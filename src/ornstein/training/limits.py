"""Limits of options."""

from __future__ import annotations

from ..errors import ConfigError


def at_least(low: float, **values: float) -> None:
    """Raise `ConfigError` for the first option, named with __ for a dot, below its least value."""
    for name, value in values.items():
        if not value >= low:
            raise ConfigError(f"{name.replace('__', '.')} must be at least {low:g}, got {value}")
