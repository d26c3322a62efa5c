"""Gradient checkpointing of any network from outside: its blocks are recomputed instead of remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch import nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The outermost modules that stand in a list or sequence of modules: what a network repeats."""
    found: list[nn.Module] = []

    def walk(module: nn.Module, listed: bool) -> None:
        for child in module.children():
            container = isinstance(child, _CONTAINERS)
            if listed and not container and next(child.parameters(), None) is not None:
                found.append(child)
            else:
                walk(child, listed or container)

    walk(net, isinstance(net, _CONTAINERS))
    return found


@contextmanager
def checkpointed(net: nn.Module | None) -> Iterator[None]:
    """Within the block, the blocks of ``net`` keep only their inputs for the backward pass, and run again in it.

    Values and gradients are the same; the cost is one more forward pass. Modulations bound at the time of the forward
    pass also hold in the second one. Networks that draw random numbers inside (dropout) redraw the same ones. The
    network is changed for that long: no other thread may run it meanwhile.
    """
    blocks = [] if net is None else [block for block in blocks_of(net) if "forward" not in block.__dict__]
    for block in blocks:
        block.__dict__["forward"] = _recomputing(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint

    def run(*args: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **keywords)
        context = copy_context()  # the backward pass may run in another thread
        return checkpoint(lambda *a: context.run(forward, *a, **keywords), *args, use_reentrant=False)

    return run


__all__ = ["blocks_of", "checkpointed"]
