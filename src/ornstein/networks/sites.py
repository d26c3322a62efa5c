"""Named places inside a network, and the context in which functions act on them.

A network passes each of its features through a `Site`, an identity module with a name. `modulated` binds functions to
sites by pattern for the length of a ``with`` block. The bindings live in a context variable, not on the modules: a
modulated network pickles, copies and saves as if nothing had happened, and another thread that runs the same network
at the same time does not see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Protocol

from torch import Tensor, nn

from ornstein.errors import ConfigError


class Modulation(Protocol):
    """A function of a feature: (B, C, H, W) to the same shape, at a named site, at the network's time number ``t``."""

    def __call__(self, feature: Tensor, site: str, t: float | Tensor) -> Tensor:
        """Return the changed feature; it must not be changed in place, for others may hold it (skip connections)."""
        ...


_Bindings = Mapping["Site", tuple[Modulation, ...]]
_BINDINGS: ContextVar[_Bindings | None] = ContextVar("ornstein_modulations", default=None)


class Site(nn.Module):
    """The identity, with a name: ``site(feature, time)`` returns ``feature`` itself unless a modulation is bound to it.

    It has no parameters, buffers or hooks. Without a modulation a visit costs a fraction of a microsecond.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, feature: Tensor, time: float | Tensor) -> Tensor:
        """Feature (B, C, H, W) in and out; ``time`` is the number, or the (B,) numbers, that the network was given."""
        bindings = _BINDINGS.get()
        if bindings is None:
            return feature
        for modulation in bindings.get(self, ()):
            feature = modulation(feature, self.name, time)
        return feature

    def extra_repr(self) -> str:
        """The name, for ``print(net)``."""
        return self.name


def sites(net: nn.Module) -> tuple[str, ...]:
    """The names of all sites of ``net``, in the order in which a forward pass visits them."""
    return tuple(module.name for module in net.modules() if isinstance(module, Site))


@contextmanager
def modulated(net: nn.Module, by: Mapping[str, Modulation]) -> Iterator[None]:
    """Within the block, every site of ``net`` whose name matches a key of ``by`` applies that modulation.

    Keys are shell patterns (``*``, ``?``, ``[…]``; ``*`` also crosses dots). A site that several keys match applies
    them in the order of ``by``. Blocks nest: the outer block's modulations come first. On exit, also by an exception,
    what held before the block holds again.

    Raises `ConfigError` for a pattern that matches no site.

    >>> net = nn.ModuleList([Site("up.0.0.skip"), Site("up.0.0.hidden")])
    >>> with modulated(net, {"up.*.skip": lambda feature, site, t: 0.9 * feature}):
    ...     net[0](1.0, 0.0), net[1](1.0, 0.0)
    (0.9, 1.0)
    """
    found = [module for module in net.modules() if isinstance(module, Site)]
    bindings = dict(_BINDINGS.get() or {})
    for pattern, modulation in by.items():
        matches = [site for site in found if fnmatchcase(site.name, pattern)]
        if not matches:
            raise ConfigError(_no_match(pattern, net, found))
        for site in matches:
            bindings[site] = (*bindings.get(site, ()), modulation)
    token = _BINDINGS.set(bindings)
    try:
        yield
    finally:
        _BINDINGS.reset(token)


def bindings() -> object:
    """What is bound to sites just now: one and the same object for as long as nothing changes, None without any."""
    return _BINDINGS.get()


def _no_match(pattern: str, net: nn.Module, found: list[Site]) -> str:
    if not found:
        inside = getattr(net, "net", net)  # a wrapper is called by the network in it
        return f"no site matches {pattern!r}: {type(inside).__name__} has no named sites, so it cannot be modulated"
    return f"no site matches {pattern!r}: choose among {', '.join(site.name for site in found)}"
