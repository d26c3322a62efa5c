"""The same network, grid and noise through diffusers' schedulers and through our samplers: the same image.

In float64, for over fifty steps the rounding of a float32 network and of float32 coefficients grows to 4e-5, as the
processor has it. What is left is the rounding of the schedulers' tables and, of some, of the state in every step.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.denoisers import Denoiser
from ornstein.lab.targets import M1, GaussianTarget
from ornstein.paths import VP
from ornstein.randomness import Key, Noise, NoiseSource
from ornstein.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler, UniPC, run, solve

# diffusers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
diffusers: Any = importlib.import_module("diffusers")  # untyped
SHAPE = (2, 3, 8, 8)
PLAIN = {"num_train_timesteps": 1000, "timestep_spacing": "leading"}


class Injected:
    """The numbers that a diffusers scheduler draws from a generator of this seed, in the same order."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(7), dtype

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        return torch.randn(SHAPE[0], *event, generator=self.generator, dtype=self.dtype).double()


def network(x: Tensor, time: Tensor, heads: int = 1) -> Tensor:
    """A smooth, nonlinear noise prediction that is close to x at high noise, as a trained one is."""
    u = (time.double() / 1000.0).reshape(-1, 1, 1, 1)  # whole numbers, which our float32 holds exactly
    alpha = torch.exp(-5.0 * u * u)
    clean = torch.tanh(1.7 * x + torch.sin(9.0 * u)) * 0.9 + 0.1 * torch.cos(3.0 * x.roll(1, -1))
    noise = (x - alpha * clean) / torch.sqrt(1.0 - alpha**2 + 1e-2)
    return noise if heads == 1 else torch.cat((noise, torch.sin(2.0 * x + u)), dim=1)


def path_of(scheduler: Any) -> VP:
    """The path with exactly the scheduler's α's: its products are float32, and so differ in the last digits."""
    products = np.concatenate([[1.0], scheduler.alphas_cumprod.double().numpy()])
    return VP.from_betas((1.0 - products[1:] / products[:-1]).tolist())


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def theirs(scheduler: Any, steps: int, heads: int = 1, **options: Any) -> Tensor:
    scheduler.set_timesteps(steps)
    for name in ("alphas_cumprod", "final_alpha_cumprod", "alphas", "betas", "one", "sigmas"):
        if isinstance(value := getattr(scheduler, name, None), Tensor):
            setattr(scheduler, name, value.double())
    x = start() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        raw = network(scheduler.scale_model_input(x, t), t.reshape(1), heads)
        x = scheduler.step(raw, t, x, **options).prev_sample
    return x


def ours(
    method: Sampler, scheduler: Any, noise: NoiseSource, times: Sequence[float] | None = None, heads: int = 1
) -> Tensor:
    path = path_of(scheduler)
    if times is None:
        asked = list(dict.fromkeys(int(t) for t in scheduler.timesteps))
        times = grids.timesteps(asked)(path)
    x = start()
    if scheduler.init_noise_sigma > 1.5:  # the scheduler works on x/α
        x = x * float(scheduler.init_noise_sigma) * path.alpha(times[0])
    model = Denoiser(
        lambda state, time: network(state, time, heads), path=path, predicts="noise", learned_variance=heads == 2
    )
    return run(solve(method, path, x, times, noise), model)


QUIET = Noise.of(0, range(SHAPE[0]))


def gap(one: Tensor, other: Tensor) -> float:
    assert one.dtype == other.dtype == torch.float64
    return float((one - other).abs().max())


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(eta: float, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **PLAIN)
    expected = theirs(scheduler, steps, eta=eta, generator=torch.Generator().manual_seed(7))
    assert gap(expected, ours(DDIM(eta), scheduler, Injected())) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize(
    ("variance", "method", "heads"),
    [
        ("fixed_small", Ancestral(), 1),
        ("fixed_large", Ancestral("large"), 1),
        ("learned_range", Ancestral("learned"), 2),
    ],
)
def test_ddpm(variance: str, method: Sampler, heads: int, steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type=variance, **PLAIN)
    expected = theirs(scheduler, steps, heads, generator=torch.Generator().manual_seed(7))
    assert gap(expected, ours(method, scheduler, Injected(), heads=heads)) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [10, 50])
def test_heun(steps: int) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, **PLAIN)
    assert gap(theirs(scheduler, steps), ours(Heun(), scheduler, QUIET)) < 1e-5


SOLVERS: list[tuple[dict[str, Any], Sampler]] = [
    ({"solver_order": 1}, DPMSolver(points=1)),
    ({"solver_order": 2}, DPMSolver(points=2)),
    ({"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, DPMSolver(points=1, stochastic=True)),
    ({"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, DPMSolver(points=2, stochastic=True)),
]


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize(("options", "method"), SOLVERS, ids=["1", "2m", "1-sde", "2m-sde"])
def test_dpm_solver(options: dict[str, Any], method: Sampler, steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**PLAIN, **options)
    expected = theirs(scheduler, steps, generator=torch.Generator().manual_seed(7))
    noise = Injected(torch.float32)  # as this scheduler draws it
    # Their state is rounded to float32 in every step, and each rounding grows to about 1e-6 until the end.
    assert gap(expected, ours(method, scheduler, noise)) < 1e-6 * steps  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc(p: Any, steps: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=p, **PLAIN)
    assert gap(theirs(scheduler, steps), ours(UniPC(p=p, start="plain"), scheduler, QUIET)) < 1e-5


def test_their_first_variant_of_unipc_ends_in_nan() -> None:
    """B(h) = h is infinite on the jump to σ = 0, where it should not matter."""
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=2, solver_type="bh1", **PLAIN)
    assert bool(theirs(scheduler, 10).isnan().any())
    assert bool(ours(UniPC(variant="bh1"), scheduler, QUIET).isfinite().all())


class Given:
    """A scheduler of the two multistep families on our own log-SNR grid, with an exact denoiser, in float64."""

    def __init__(self, scheduler: Any, steps: int, ends: tuple[float, float]) -> None:
        self.scheduler, self.path = scheduler, VP()
        self.times = grids.span_log_snr(steps, *ends)(self.path)
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.tensor([self.path.sigma_bar(t) for t in self.times], dtype=torch.float64)

    def run(self, x: Tensor) -> Tensor:
        model = M1().denoiser(self.path)
        for index, t in zip(self.scheduler.timesteps, self.times, strict=False):
            x = self.scheduler.step(model(x, t).clean, index, x).prev_sample
        return x


def measured(make: Any, method: Sampler, ends: tuple[float, float], counts: Sequence[int]) -> tuple[float, float]:
    """(their order, our order) by coupled trajectories of the mixture's exact denoiser."""
    path, model = VP(), M1().denoiser(VP())
    top = path.time_of(ends[0])
    x = torch.linspace(-2.2, 2.2, 31, dtype=torch.float64)[:, None] * math.hypot(path.alpha(top), path.sigma(top))

    def go(tested: Sampler, steps: int) -> Tensor:
        return run(solve(tested, path, x, grids.span_log_snr(steps, *ends)(path), QUIET), model)

    exact = go(UniPC(p=3), 600)
    found: list[float] = []
    for end in (lambda n: Given(make(), n, ends).run(x), lambda n: go(method, n)):
        errors = [float((end(n) - exact).abs().median()) for n in counts]
        found.append(-float(np.polyfit(np.log(counts), np.log(errors), 1)[0]))
    return found[0], found[1]


EXACT = {"prediction_type": "sample", "timestep_spacing": "leading", "final_sigmas_type": "sigma_min"}


def test_their_third_order_solver_is_of_order_two() -> None:
    """It halves the curvature term. From pure noise, so that the start-up plays no part."""

    def make() -> Any:
        return diffusers.DPMSolverMultistepScheduler(solver_order=3, lower_order_final=False, **EXACT)

    theirs_, ours_ = measured(make, DPMSolver(points=3), (-8.0, 6.0), (32, 64, 128))
    assert theirs_ < 2.3
    assert ours_ == pytest.approx(3.0, abs=0.15)


def test_their_lower_order_at_the_end_costs_unipc_an_order() -> None:
    """They lower the order of the last steps at any number of steps, even when the grid does not end at σ = 0."""

    def make() -> Any:
        return diffusers.UniPCMultistepScheduler(solver_order=2, **EXACT)

    theirs_, ours_ = measured(make, UniPC(), (-2.0, 4.0), (32, 64, 128))
    assert theirs_ < 2.3
    assert ours_ == pytest.approx(3.0, abs=0.15)


def on_our_grid(scheduler: Any, method: Sampler) -> float:
    given = Given(scheduler, 20, (-6.0, 5.0))
    x = torch.linspace(-2.0, 2.0, 21, dtype=torch.float64)[:, None]
    found = run(solve(method, given.path, x, given.times, QUIET), M1().denoiser(given.path))
    return float((given.run(x) - found).abs().max())


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_on_a_grid_of_our_own(p: Any, variant: Any) -> None:
    """Where both are right they agree on any grid, far from the 1000 integer steps."""
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=p, solver_type=variant, lower_order_final=False, **EXACT)
    assert on_our_grid(scheduler, UniPC(p=p, variant=variant, start="plain")) < 1e-11


def test_dpm_solver_on_a_grid_of_our_own() -> None:
    """Their state is rounded to float32 in every step."""
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=2, lower_order_final=False, **EXACT)
    assert on_our_grid(scheduler, DPMSolver()) < 1e-5


def test_their_ddim_steps_to_a_time_it_does_not_ask_at() -> None:
    """Unless n divides 1000, the next state stands at t − ⌊1000/n⌋ and is read at another time."""
    target, steps = GaussianTarget([0.0], [0.04]), 300
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample", timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    path = path_of(scheduler)
    model, asked = target.denoiser(path), [int(t) for t in scheduler.timesteps]
    x = state = torch.ones(1, 1, dtype=torch.float64)
    for index in asked:
        state = scheduler.step(model(state, (index + 1) / 1000.0).clean, index, state).prev_sample
    our = run(solve(DDIM(), path, x, grids.timesteps(asked)(path), QUIET), model)
    # The flow map of a centred Gaussian: x_0/x_1 is the ratio of the standard deviations.
    exact = 0.2 / math.sqrt(float(target.law(path, 1.0).variance))
    assert abs(float(our) - exact) < 0.03 * exact
    assert abs(float(state) - exact) > 5.0 * abs(float(our) - exact)


def test_their_ddpm_leaves_noise_on_the_image() -> None:
    """With variance β and a last time above zero ("trailing"), they add noise after the last network call."""
    scheduler = diffusers.DDPMScheduler(
        clip_sample=False, prediction_type="sample", variance_type="fixed_large", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    x = start()
    for t in scheduler.timesteps:  # data that are one point: every clean image is zero
        x = scheduler.step(torch.zeros_like(x), t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    path = path_of(scheduler)
    model = Denoiser(lambda state, time: 0.0 * state, path=path, predicts="clean")
    times = grids.timesteps([int(t) for t in scheduler.timesteps])(path)
    our = run(solve(Ancestral("large"), path, start(), times, QUIET), model)
    assert float(x.std()) > 0.05
    assert float(our.abs().max()) == 0.0
