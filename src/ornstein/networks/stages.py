"""Two networks as one module: a front and a back, called by the name of the stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

Stage = Literal["front", "back"]


class Stages(nn.Module):
    """``net(x, time, stage="front" or "back", **cond)``: one module, so that weights, averages and device stay as one.

    ``front`` may be any callable of the same kind; ``back_conditions`` are the names of the
    conditions that the back takes (None: all). The back's conditions are detached: its losses do not train a caption
    encoder of the front.
    """

    def __init__(
        self, front: nn.Module | Callable[..., Tensor], back: nn.Module, *, back_conditions: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.front, self.back = front, back
        self.back_conditions = None if back_conditions is None else tuple(back_conditions)
        self.frozen = False

    def freeze(self) -> Stages:
        """Keep the front as it is: no gradients, and evaluation mode whatever `train` says."""
        self.frozen = True
        if isinstance(self.front, nn.Module):
            self.front.requires_grad_(False).eval()
        return self

    def train(self, mode: bool = True) -> Stages:
        """As every module's, but a frozen front stays in evaluation mode."""
        super().train(mode)
        if self.frozen and isinstance(self.front, nn.Module):
            self.front.eval()
        return self

    def forward(self, x: Tensor, time: Tensor, *, stage: Stage, **cond: Tensor) -> Tensor:
        """The answer of one stage to x (B, C, H, W) and time (B,)."""
        if stage == "front":
            return self.front(x, time, **cond)
        names = cond if self.back_conditions is None else self.back_conditions
        own = {key: value.detach() for key, value in cond.items() if key in names}
        parameter = next(self.back.parameters(), None)
        # A denoiser feeds a network in the precision of its first weights, which are the front's.
        if parameter is not None and parameter.is_floating_point():
            x = x.to(parameter.dtype)
        return self.back(x, time, **own)
