"""What `ornstein.reproduce.slct` says of outliers: in the latents, and what a distance makes of the largest errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ...guidance import network_of
from ...networks.blocks import Norm
from ...objectives import ConsistencyLoss
from ...objectives.distances import DistanceName, distance, square
from ...objectives.levels import grid
from ...randomness import Noise
from ...runs import TrainedModel
from ...training import TrainConfig
from ..arms import SAMPLE_SEED, pictures
from . import world as slct_world

GAUSSIAN = math.erfc(4.0 / math.sqrt(2.0))
"""Share of a Gaussian beyond four standard deviations, 6.3·10⁻⁵."""
LEVELS = (0.05, 0.3, 2.0, 20.0)
TOP = 0.01
"""Which part of the samples, or elements, are the largest."""


def heaviness(values: Tensor) -> dict[str, float]:
    """How heavy the tails of vectors (N, …) are, each element brought to mean 0 and deviation 1 over the N.

    ``kurtosis``: in excess of a Gaussian's, over all elements; ``median kurtosis``: the median over elements of their
    own; ``largest`` |z|; ``beyond 4`` and ``beyond 6``: the shares of |z| above. Constant elements are left out.
    """
    x = values.flatten(1).double()
    deviation = x.std(0, correction=0)
    varies = deviation > 1e-9 * deviation.max()
    z = (x[:, varies] - x[:, varies].mean(0)) / deviation[varies]
    fourth, size = z.pow(4).mean(0) - 3.0, z.abs()
    return {
        "kurtosis": float(fourth.mean()),
        "median kurtosis": float(fourth.median()),
        "largest": float(size.max()),
        "beyond 4": float((size > 4.0).double().mean()),
        "beyond 6": float((size > 6.0).double().mean()),
    }


def tails(*, world: Mapping[str, Any], count: int, files: Path) -> Mapping[str, Mapping[str, float]]:
    """`heaviness` of the data's latents, of the same pictures' pixels, and of as many Gaussian numbers."""
    here = slct_world.World(**world)
    latents = slct_world.clean(here, files / f"none-{here.key}", count)
    data = slct_world.data_of(here.data, here.size)
    pixels = torch.stack(pictures(data, 0, min(count, len(latents), 1024)))
    normal = Noise.of(0, range(len(latents))).normal("tails", latents.shape[1:])
    return {"latents": heaviness(latents), "pixels": heaviness(pixels), "gaussian": heaviness(normal)}


@torch.no_grad()
def shares(run: TrainedModel, config: TrainConfig, clean: Tensor) -> Mapping[str, Any]:
    """How much of a loss is carried by its largest errors, on a trained consistency model.

    At each of `LEVELS` the model is asked about ``clean`` (N, c, h, w) at the interval of the last stage there; all
    distances are computed from the same errors, with the scale c of the run's own last stage. Means over the levels of

    * ``loss``, ``gradient``: the share in Σρ(r) and in Σ‖∂ρ/∂f‖ of the 1 % of samples with the largest r;
    * ``elements``: the share in Σ(∂ρ/∂f)² of the 1 % of elements with the largest |difference|;

    and ``kurtosis``, that of the differences over samples and elements, in excess of a Gaussian's.
    """
    loss = config.objective
    assert isinstance(loss, ConsistencyLoss)
    spec: Any = run.spec
    nodes = grid(loss.end, spec.sigma_min, spec.sigma_max, loss.rho)
    c = loss.scale_at(loss.end, clean[0].numel())
    noise = Noise.of(SAMPLE_SEED, range(len(clean))).normal("shares", clean.shape[1:])
    names: tuple[DistanceName, ...] = get_args(DistanceName)
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    heavy: list[float] = []
    for wanted in LEVELS:
        place = min(range(len(nodes) - 1), key=lambda i: abs(math.log(nodes[i] / wanted)))
        upper, lower = nodes[place], nodes[place + 1]
        gap = torch.cat([_gap(run, x, z, upper, lower) for x, z in zip(clean.split(64), noise.split(64), strict=True)])
        heavy.append(float(gap.pow(4).mean() / gap.pow(2).mean().square().clamp_min(1e-30)) - 3.0)
        for name in names:
            parts[name].append(carried(name, gap, c))
    found = {name: {what: fmean(part[what] for part in rows) for what in rows[0]} for name, rows in parts.items()}
    return {"distances": found, "kurtosis": fmean(heavy), "c": c}


@torch.no_grad()
def activations(run: TrainedModel, clean: Tensor) -> float:
    """Fourth moment over squared second one of what a trained network's norms give, in the mean over norms and
    `LEVELS`; a Gaussian has 3. All values of a sample are taken together, so that an outlying channel counts.
    """
    network = network_of(run.denoiser)
    assert network is not None
    found: list[float] = []

    def look(module: nn.Module, inputs: object, out: Tensor) -> None:
        del module, inputs
        x = out.flatten(1).double()
        x = x - x.mean(1, keepdim=True)
        found.append(float((x.pow(4).mean(1) / x.square().mean(1).square().clamp_min(1e-30)).mean()))

    hooks = [module.register_forward_hook(look) for module in network.modules() if isinstance(module, Norm)]
    try:
        few = clean[:64]
        noise = Noise.of(SAMPLE_SEED, range(len(few))).normal("activations", few.shape[1:])
        for level in LEVELS:
            run.denoiser(few + level * noise, level)
    finally:
        for hook in hooks:
            hook.remove()
    return fmean(found)


def carried(name: DistanceName, gap: Tensor, c: float) -> dict[str, float]:
    """The shares of the largest errors in one distance of the differences (N, …); see `shares`."""
    r = square(gap).double().requires_grad_()
    with torch.enable_grad():
        values = distance(name, r, c)
        (slope,) = torch.autograd.grad(values.sum(), r)
    r, values = r.detach(), values.detach()
    steep = slope[:, None] * gap.flatten(1).double()  # ∂ρ/∂f up to a factor that all have in common
    return {
        "loss": _share(values, r),
        "gradient": _share(steep.square().sum(1).sqrt(), r),
        "elements": _share(steep.square().flatten(), gap.abs().flatten().double()),
    }


def _share(values: Tensor, by: Tensor) -> float:
    """The part in Σ values of those that are largest in ``by``."""
    top = by.topk(max(round(TOP * len(by)), 1)).indices
    return float(values[top].sum() / values.sum().clamp_min(1e-300))


def _gap(run: TrainedModel, clean: Tensor, noise: Tensor, upper: float, lower: float) -> Tensor:
    """f(x_t, t) − f(x_t', t') of samples and their noise."""
    model = run.denoiser
    return model(clean + upper * noise, upper).clean - model(clean + lower * noise, lower).clean
