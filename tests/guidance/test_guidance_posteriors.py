"""More laws of universal guidance: the numbers known for a Gaussian, a mixture, re-noising, and what backward costs."""

import itertools

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import guidance as guide
from ornstein.denoisers import Denoiser
from ornstein.guidance import Backward, Universal
from ornstein.lab.meters import propagate
from ornstein.lab.targets import GaussianTarget, MixtureTarget
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, Ancestral

MU, V, Y, STD = 0.7, 1.5, 2.0, 0.5
TARGET = GaussianTarget([MU], [V])
SEEN = guide.Measured(operator=lambda x: x, target=torch.tensor([[Y]], dtype=torch.float64), std=STD)


def moments(guidance, sampler, grid):
    path = VP.table()
    times = orn.grids.times_of(grid, path)
    root = torch.full((1, 1), path.std(times[0]), dtype=torch.float64)
    found = propagate(sampler, guidance(TARGET.denoiser(path)), times, torch.zeros(1, dtype=torch.float64), root)
    return float(found.mean), float(found.variance)


@pytest.mark.parametrize(
    ("sampler", "strength", "mean", "variance"),
    [
        (DDIM(), "corrected", 1.809, 0.213),
        (DDIM(), "paper", 2.334, 0.004),
        pytest.param(Ancestral(), "corrected", 1.816, 0.211, marks=pytest.mark.slow),
        pytest.param(Ancestral(), "paper", 1.998, 0.122, marks=pytest.mark.slow),
    ],
)
def test_a_thousand_steps_of_the_linear_table(sampler, strength: str, mean: float, variance: float) -> None:
    """H3: the target is 1.814 and 0.214; the corrected strength reaches it, strength 1 is far too narrow."""
    w = guide.corrected(STD, variance=V) if strength == "corrected" else 1.0
    found = moments(Universal(energies=SEEN, strength=w), sampler, orn.grids.uniform(1000))
    assert found == (pytest.approx(mean, abs=0.005), pytest.approx(variance, abs=0.003))


@pytest.mark.parametrize("k", [1, 3])
def test_recurrence_without_guidance_keeps_the_marginal_of_a_deterministic_sampler(k: int) -> None:
    """H7, where all the noise is the recurrence's."""
    grid = orn.grids.resample(orn.grids.log_snr(200), k)
    mean, variance = moments(Universal(energies=SEEN, strength=0.0), DDIM(), grid)
    assert mean == pytest.approx(MU, abs=0.01)
    assert variance == pytest.approx(V, rel=0.05)


@pytest.mark.parametrize("path", [VP.table(), VP(), VE(), Flow()], ids=["table", "VP", "VE", "Flow"])
@pytest.mark.parametrize("steps", [3, 50])
def test_going_back_up_gives_the_law_of_the_level(path, steps: int) -> None:
    """H9: from an exact x_s, the variance at t is α_t²·var(x_0) + σ_t², for coarse grids too."""
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    grid = orn.grids.resample(orn.grids.log_snr(steps), 2)
    climbs = [(s, t) for s, t in itertools.pairwise(orn.grids.times_of(grid, path)) if t > s]
    assert len(climbs) == steps
    for s, t in climbs:
        gain, fresh = float(path.renoise(one, s, t, none)), float(path.renoise(none, s, t, one))
        variance = gain**2 * (path.alpha(s) ** 2 * V + path.sigma(s) ** 2) + fresh**2
        assert variance == pytest.approx(path.alpha(t) ** 2 * V + path.sigma(t) ** 2, rel=1e-9)


def test_on_a_mixture_the_direction_is_nearly_that_of_the_likelihood() -> None:
    """H2: parallel at low noise, ever less so as noise grows, and ever more too long."""
    target = MixtureTarget.of([0.3, 0.4, 0.3], [[-1.0, 0.5], [0.8, 1.0], [0.3, -1.2]], stds=[0.4, 0.3, 0.5])
    row, y, std, path = torch.tensor([[1.0, 0.5]], dtype=torch.float64), 0.6, 0.4, VP()
    seen = guide.Measured(operator=lambda x: x @ row.T, target=torch.full((1, 1), y, dtype=torch.float64), std=std)
    noise = Noise.of(0, range(300), dtype=torch.float64)
    clean, model = target.sample(noise), target.denoiser(path)
    cosines, ratios = [], []
    for level in (0.99, 0.9, 0.7, 0.5, 0.2):  # ᾱ
        t = path.time_of(float(torch.logit(torch.tensor(level, dtype=torch.float64))))
        x = path.diffuse(clean, t, noise.normal("z", (2,)))
        plain, guided = model(x, t), Universal(energies=seen)(model)(x, t)
        exact = _likelihood_score(target, path, t, x, row, y, std)
        shift = guided.score - plain.score
        cosines.append(float(torch.cosine_similarity(shift, exact).mean()))
        ratios.append(float((shift.norm(dim=1) / exact.norm(dim=1)).median()))
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] > 0.999
    assert cosines[-1] > 0.6
    assert ratios == sorted(ratios)
    assert ratios[0] > 1.0
    assert ratios[-1] > 2.0


def _likelihood_score(target, path, t: float, x: Tensor, row: Tensor, y: float, std: float) -> Tensor:
    """∇_x log p(y | x_t): in (x_t, y) jointly a mixture with known means and covariances."""
    leaf = x.clone().requires_grad_()
    a, s2 = path.alpha(t), path.sigma(t) ** 2
    logs, evidence = [], []
    for w, m, v in zip(target.weights, target.means, target.variances, strict=True):
        c = a * a * v + s2
        log_joint = w.log() - 0.5 * ((leaf - a * m).square() / c + c.log()).sum(1)
        mean = (m + a * v / c * (leaf - a * m)) @ row[0]
        left = (row[0].square() * (v * s2 / c)).sum() + std**2
        logs.append(log_joint)
        evidence.append(log_joint - 0.5 * ((y - mean).square() / left + left.log()))
    joint, prior = torch.logsumexp(torch.stack(evidence), 0), torch.logsumexp(torch.stack(logs), 0)
    return torch.autograd.grad((joint - prior).sum(), leaf)[0]


def test_backward_guidance_needs_no_graph_of_the_network() -> None:
    """H6: one call, made without gradients, however many steps of descent."""
    calls: list[bool] = []

    def net(x: Tensor, time: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled() and x.requires_grad)
        with torch.no_grad():
            return 0.5 * x

    model = Denoiser(net, VP(), "clean", shape=(1,))
    guided = Universal(energies=SEEN, strength=0.0, backward=Backward(steps=9, rate=0.1))(model)
    x = torch.ones(3, 1, dtype=torch.float64)
    assert bool(((guided(x, 0.5).clean - Y).abs() < (model(x, 0.5).clean - Y).abs()).all())
    assert calls == [False, False]
