"""What `ornstein.reproduce.universal` measures on a trained model: the shipped critters network, 64 pixels.

Every target is taken from a picture that the network has not seen, one a sample: then exact posterior samples, over all
targets together, have the law of the data, and the kernel distance to the data measures realism without favouring any
target. All methods see the same targets and the same noise of a seed.

A task is an entry of `TASKS`; cells name their task, so one more changes none of the others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ... import grids, sampling
from ... import guidance as guide
from ...denoisers import Denoiser, DenoiserLike, DenoiserWrapper
from ...estimates import Estimate
from ...guidance.energies import Measured
from ...paths.base import Cond
from ...randomness import Noise, generator
from ...samplers import DDIM
from ...scalars import Time
from .cells import recurring

MODEL, SIZE = "critters", 64
TRAINED, HELD_OUT = 4096, 1024  # the network has seen the first 4096 drawings; targets come from those behind them
REFERENCE, BATCH = 1024, 32
DESCENT = 5  # steps m of backward guidance

# The codes of the twelve body colours, in label order.
_BODIES = (
    "7dd3fc", "a5b4fc", "c4b5fd", "f0abfc", "fda4af", "fca5a5", "fdba74", "fcd34d", "bef264", "6ee7b9", "5eead4",
    "e2e8f0",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the samples of a batch are asked for.

    ``energy`` clean → (B,); ``misfit`` clean → (B,), what is reported; ``rate`` and ``descent`` of backward guidance;
    ``label`` for a noisy classifier; ``hidden`` clean → (B,), the error where nothing was asked.
    """

    energy: Callable[[Tensor], Tensor]
    misfit: Callable[[Tensor], Tensor]
    rate: float
    descent: str = "gradient"
    label: Tensor | None = None
    hidden: Callable[[Tensor], Tensor] | None = None


def colour(pictures: Tensor, labels: Tensor) -> Goal:
    """The mean colour of a drawing, known up to 0.05 (images in [−1, 1])."""
    del labels
    energy = Measured(operator=lambda x: x.mean((2, 3)), target=pictures.mean((2, 3)), std=0.05)
    # Curvature 1/(pixels·std²): half of it is taken back at each step.
    return Goal(energy=energy, misfit=_rms(energy), rate=0.5 * SIZE**2 * energy.std**2)


def _rms(energy: Measured) -> Callable[[Tensor], Tensor]:
    """The root mean square residual, (B,)."""
    return lambda x: energy.residual(x).square().flatten(1).mean(1).sqrt()


def inpainting(pictures: Tensor, labels: Tensor) -> Goal:
    """The left half of a drawing, known up to 0.1; ``hidden`` is the error on the right half."""
    del labels
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1.0
    energy = guide.inpainting(pictures, mask, std=0.1)
    right = (1.0 - mask).expand_as(pictures[:1]).bool()[0]
    return Goal(
        energy=energy,
        misfit=lambda x: (x - pictures)[:, ~right].square().mean(1).sqrt(),
        rate=0.5 * energy.std**2,
        hidden=lambda x: (x - pictures)[:, right].square().mean(1).sqrt(),
    )


def body(pictures: Tensor, labels: Tensor) -> Goal:
    """The colour of the body, one of twelve classes, told by a classifier of clean images; judged by its pixels."""
    del pictures
    net = classifier(noisy=False)

    def energy(clean: Tensor) -> Tensor:
        return functional.cross_entropy(net(clean, torch.full((len(clean),), _CLEAN)), labels, reduction="none")

    def misfit(clean: Tensor) -> Tensor:
        return (judged(clean) != labels).to(clean.dtype)

    return Goal(energy=energy, misfit=misfit, rate=0.02, descent="adam", label=labels)


TASKS: Mapping[str, Callable[[Tensor, Tensor], Goal]] = {"colour": colour, "inpainting": inpainting, "class": body}


def drawn(
    *, task: str, method: str, steps: int, recur: int, strength: float, seed: int, images: int
) -> Mapping[str, Any]:
    """Draw ``images`` under a guidance and measure them.

    ``{"misfit", "hidden", "kid", "evaluations", "gradients", "seconds"}``; evaluations and passes of a gradient
    through the network are counted for one image, seconds are those of a core.
    """
    from ...data import to_uint8
    from ...metrics.kernel import mmd2

    goal = TASKS[task](*targets(seed, images))
    run = _unguided if method == "plain" else partial(_drawn, goal, method, strength)
    clean, evaluations, gradients, seconds = run(steps, recur, seed, images)
    return {
        "misfit": float(goal.misfit(clean).mean()),
        "hidden": None if goal.hidden is None else float(goal.hidden(clean).mean()),
        "kid": mmd2(features(to_uint8(clean)), reference()),
        "evaluations": evaluations,
        "gradients": gradients,
        "seconds": round(seconds / images, 4),
    }


def _drawn(
    goal: Goal | None, method: str, strength: float, steps: int, recur: int, seed: int, images: int
) -> tuple[Tensor, int, int, float]:
    """(images in [−1, 1], evaluations, gradients, seconds)."""
    counted = Counted(network())
    grid = grids.default(counted.path, steps)
    model = counted if goal is None else guided(method, goal, strength, grid)(counted)
    since = time.process_time()
    clean = sampling.sample(model, images, sampler=DDIM(), grid=recurring(grid, recur), seed=1000 + seed)
    return clean.clamp(-1.0, 1.0), counted.evaluations, counted.gradients, time.process_time() - since


_unguided = lru_cache(maxsize=2)(partial(_drawn, None, "plain", 0.0))  # the same for every task


def guided(method: str, goal: Goal, strength: float, grid: grids.Grid) -> Callable[[DenoiserLike], DenoiserLike]:
    """The guidance that a name means.

    forward, backward, both (the code's order), paper (both shifts from the unguided estimate), estimate (no
    gradient through the network), dps, posterior (`LinearPosterior`), noisy (a noisy classifier).
    """
    steps = guide.Backward(steps=DESCENT, rate=goal.rate, descent=goal.descent)  # pyright: ignore[reportArgumentType]
    paper = guide.Backward(steps=DESCENT, rate=goal.rate, descent=goal.descent, centre="plain")  # pyright: ignore[reportArgumentType]
    universal = guide.Universal
    if method in {"forward", "estimate"}:
        through = "network" if method == "forward" else "estimate"
        return universal(energies=goal.energy, strength=strength, differentiate_through=through)  # pyright: ignore[reportArgumentType]
    if method == "backward":
        return universal(energies=goal.energy, strength=0.0, backward=steps)
    if method in {"both", "paper"}:
        return universal(energies=goal.energy, strength=strength, backward=steps if method == "both" else paper)
    if method == "noisy":
        return guide.NoisyClassifier(classifier=classifier(noisy=True), label=goal.label, weight=strength)
    assert isinstance(goal.energy, Measured)
    if method == "dps":
        return guide.DPS(misfit=guide.misfit_of(goal.energy), scale=strength, grid=grid, eta=0.0)
    return guide.LinearPosterior(measured=goal.energy, iterations=3, weight=strength)


@dataclass(slots=True)
class Counted(DenoiserWrapper):
    """A denoiser that counts its evaluations and the gradients that pass through it."""

    inner: DenoiserLike
    evaluations: int = 0
    gradients: int = 0

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The inner answer."""
        self.evaluations += 1
        estimate = self.inner(x, t)
        if estimate.clean.requires_grad:
            estimate.clean.register_hook(self._passed)
        return estimate

    def _passed(self, gradient: Tensor) -> None:
        del gradient
        self.gradients += 1

    def with_condition(self, cond: Cond) -> DenoiserLike:
        """Bound, and counted no longer."""
        return self.inner.with_condition(cond)


# ---------------------------------------------------------------------------------------- what all cells look at


@lru_cache(maxsize=1)
def network() -> Denoiser:
    """The shipped network, frozen."""
    from ...runs import open_run

    denoiser = open_run(MODEL).denoiser
    net = guide.network_of(denoiser)
    assert net is not None
    net.requires_grad_(False)
    return denoiser


@lru_cache(maxsize=1)
def source() -> Any:
    """Drawings, those of the training first."""
    from ...data import open_source

    return open_source(f"{MODEL}:{TRAINED + HELD_OUT}", size=SIZE)


@lru_cache(maxsize=8)
def targets(seed: int, images: int) -> tuple[Tensor, Tensor]:
    """Pictures (images, 3, 64, 64) in [−1, 1] that the network has not seen, and the classes of their bodies."""
    chosen = [source()[TRAINED + (seed * images + i) % HELD_OUT] for i in range(images)]
    pictures = torch.stack([example.image for example in chosen]).float() / 127.5 - 1.0
    return pictures, torch.tensor([example.label for example in chosen])


@lru_cache(maxsize=1)
def _features() -> Any:
    from ...metrics import features as named

    return named("lite0")


def features(images: Tensor) -> np.ndarray[Any, Any]:
    """Features of uint8 images, (B, 1280)."""
    return torch.cat([_features()(part) for part in images.split(BATCH)]).numpy()


@lru_cache(maxsize=1)
def reference() -> np.ndarray[Any, Any]:
    """Features of the data."""
    return features(torch.stack([source()[i].image for i in range(REFERENCE)]))


def judged(images: Tensor) -> Tensor:
    """The class whose exact body colour the most pixels show (within about 12 of 255), (B,)."""
    codes = [[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _BODIES]
    bodies = torch.tensor(codes, dtype=images.dtype)[None, :, :, None, None]
    far = ((images[:, None] + 1.0) * 127.5 - bodies).abs().amax(2)  # (B, 12, H, W)
    return torch.exp(-0.5 * (far / 8.0).square()).sum((2, 3)).argmax(1)


# ------------------------------------------------------------------------------------------------------ classifiers

_CLEAN = 10.0  # the log-SNR that stands for a clean image


class Classifier(nn.Module):
    """Halved images through three convolutions of stride 2: (B, 3, 64, 64) and log-SNR (B,) to logits (B, 12)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 32, 64, 96)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.last = nn.Linear(widths[-1], len(_BODIES))

    def forward(self, images: Tensor, log_snr: Tensor) -> Tensor:
        """Logits."""
        small = functional.avg_pool2d(images, 2)
        level = (log_snr.to(images.dtype) / 10.0)[:, None, None, None].expand(-1, 1, *small.shape[2:])
        h = torch.cat((small, level), 1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = functional.silu(norm(layer(h)))
        return self.last(h.mean((2, 3)))


@lru_cache(maxsize=2)
def classifier(*, noisy: bool, batches: int = 250) -> Classifier:
    """A classifier of bodies, trained on noisy or on clean pictures of the training set, with the same batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier()
    path, drawings = network().path, source()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=batches)
    draw = generator("reproduce", "universal-guidance", "classifier")
    for batch in range(batches):
        chosen = [drawings[int(i)] for i in draw.integers(0, TRAINED, 32)]
        images = torch.stack([example.image for example in chosen]).float() / 127.5 - 1.0
        labels = torch.tensor([example.label for example in chosen])
        log_snr = torch.full((32,), _CLEAN)
        if noisy:
            noise = Noise.of(batch, range(32)).normal("classifier", images.shape[1:])
            log_snr = torch.from_numpy(draw.uniform(-8.0, _CLEAN, 32)).float()
            t = torch.tensor([path.time_of(float(value)) for value in log_snr])  # pyright: ignore[reportAttributeAccessIssue]
            # The guidance feeds x/√(α² + σ²), which is x itself on this path.
            images = path.diffuse(images, t, noise)
        loss = functional.cross_entropy(net(images, log_snr), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)
