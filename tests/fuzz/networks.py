"""Random networks that misbehave, in random right calls: refused in one line, or as if they behaved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from isolation import WrongError
from torch import Tensor

import ornstein as orn
from ornstein import guidance
from ornstein.errors import OrnsteinError
from ornstein.samplers import SAMPLERS

SHAPES = ((3,), (1, 5), (3, 4, 4), (2, 1, 1), (1, 2, 2, 2))
PATHS: Mapping[str, Callable[[], Any]] = {
    "VP": orn.VP,
    "cosine": orn.VP.cosine,
    "table": orn.VP.table,
    "VE": orn.VE,
    "Flow": orn.Flow,
}


class OwnError(Exception):
    """What a user's network raises; it must reach the user as it is."""


def right(x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
    """A network that behaves."""
    shift = 0.0 if label is None else 0.01 * label.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
    return 0.3 * torch.tanh(x) + shift


def _spoils_input(x: Tensor, out: Tensor) -> Tensor:
    x.zero_()
    return out


_BUFFERS: dict[tuple[Any, ...], Tensor] = {}


def _reused(x: Tensor, out: Tensor) -> Tensor:
    return _BUFFERS.setdefault((out.shape, out.dtype), torch.empty_like(out)).copy_(out)


class _Answer:
    def __init__(self, sample: Any) -> None:
        self.sample = sample


HARMLESS: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "input in place": _spoils_input,
    "one buffer": _reused,
    "an object with a sample": lambda x, out: _Answer(out),
    "another memory format": lambda x, out: out.transpose(0, -1).contiguous().transpose(0, -1),
    "a graph": lambda x, out: out * torch.ones((), dtype=out.dtype, requires_grad=True),
    "a wider dtype": lambda x, out: out.double(),
    "an expanded view": lambda x, out: out.unsqueeze(0).expand(3, *out.shape)[1],
}
WRONG: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "a row more": lambda x, out: torch.cat([out, out[:1]]),
    "no row": lambda x, out: out[:0],
    "a number": lambda x, out: out.mean(),
    "rows alone": lambda x, out: out.flatten(1).mean(1),
    "a dimension more": lambda x, out: out.unsqueeze(-1),
    "a dimension in front": lambda x, out: out.unsqueeze(0),
    "more channels": lambda x, out: torch.cat([out, out, out], 1),
    "twice the channels": lambda x, out: torch.cat([out, out], 1),
    "nothing": lambda x, out: None,
    "a tuple": lambda x, out: (out,),
    "a list": lambda x, out: [out],
    "a dictionary": lambda x, out: {"sample": out},
    "an array": lambda x, out: out.detach().numpy(),
    "a float": lambda x, out: 0.0,
    "its own class": lambda x, out: _Answer(None),
    "whole numbers": lambda x, out: out.long(),
    "truth values": lambda x, out: out > 0.0,
    "complex numbers": lambda x, out: out.to(torch.complex64),
    "a sparse tensor": lambda x, out: out.to_sparse(),
    "another device": lambda x, out: out.to("meta"),
    "nan": lambda x, out: out * math.nan,
    "inf": lambda x, out: out + math.inf,
    "one nan": lambda x, out: out.index_fill(0, torch.tensor([0]), math.nan),
    "an error": lambda x, out: _raise(),
}
"""What must be refused, by what the network makes of its input and its right output."""


def _raise() -> None:
    raise OwnError


class Misbehaved:
    """`right`, which misbehaves from one of its evaluations on."""

    def __init__(self, how: Callable[[Tensor, Tensor], Any], begin: int) -> None:
        self.how, self.begin, self.count = how, begin, 0

    def __call__(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Any:
        self.count += 1
        out = right(x.clone(), time, label)
        return self.how(x, out) if self.count > self.begin else out


def cases(random: Random, places: object = None) -> tuple[str, Callable[[], object]]:
    """One random network and call."""
    del places
    kind, shape = random.choice([*PATHS]), random.choice(SHAPES)
    predicts = random.choice(["clean", "v", "velocity"] + ["noise"] * (kind != "Flow"))
    harmless = random.random() < 0.4
    name = random.choice([*(HARMLESS if harmless else WRONG)])
    begin = random.choice([0, 0, 1, 2])
    rule = random.choice([one for one in SAMPLERS if one != "ancestral-learned"] + ["auto"] * 4)
    options = {"sampler": rule, "steps": random.choice([4, 5, 8]), "seed": random.randrange(100)}
    dtype = random.choice([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
    way = random.choice(["sample", "sample", "stream", "batch", "guided"])

    def drawn(net: Callable[..., Any]) -> Tensor:
        model: Any = orn.Denoiser(net, PATHS[kind](), predicts, shape=shape)
        if way == "guided":
            model = guidance.CFG(weight=1.5, null={"label": torch.zeros(1)})(model)
        asked = options | {"dtype": dtype} | ({"cond": {"label": torch.ones(1)}} if way == "guided" else {})
        if way == "stream":
            return list(orn.stream(model, 3, **asked))[-1].x
        return orn.sample(model, 3, **asked, **({"batch": 2} if way == "batch" else {}))

    def case() -> None:
        if harmless:
            wanted = drawn(right)
            found = drawn(Misbehaved(HARMLESS[name], 0))
            if found.requires_grad or found.dtype != wanted.dtype or not torch.equal(found, wanted):
                raise WrongError(f"{name}: other samples than without, by {(found - wanted).abs().max():.3g}")
            return
        net = Misbehaved(WRONG[name], begin)
        try:
            found = drawn(net)
        except OrnsteinError:
            if name == "an error":
                raise WrongError("the network's own error is hidden") from None
            raise
        except OwnError:
            return
        if net.count > begin:
            raise WrongError(f"{name}: nothing says so, and {tuple(found.shape)} samples are returned")

    return f"{name} from {begin}: {way} {rule} {kind} {predicts} {shape} {dtype} {options['steps']} steps", case
