"""The acid test of the core: one Ancestral sampler reproduces the exact law on affine, shifted and pyramid paths.

The denoiser answers with a draw of p(x_0|x_t), so the path's posterior must integrate to the exact reverse transition;
everything is propagated as coefficients of unit normals, and the law agrees to rounding in a handful of steps.
"""

import itertools

import pytest
import torch

from ornstein import grids
from ornstein.estimates import Estimate
from ornstein.lab.fields import Drawing, smooth_field
from ornstein.lab.meters import NoiseBasis, gaussian_law, propagate
from ornstein.lab.targets import GaussianTarget
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.samplers.ancestral import Ancestral
from ornstein.samplers.base import run, solve
from ornstein.samplers.ddim import DDIM


def _ratio(clean, cond, t):
    return 0.8 * clean


def _blur(clean, cond, t):
    return 0.6 * clean.roll(1, -1) - 0.3 * clean.flip(-2)


def _moved(sampler, target, path, times):
    """Output moments of ``sampler`` under a denoiser that draws from the same noise basis."""
    basis = NoiseBasis(dense=True)
    mean, _ = target.law(path, times[0])
    root = target.root(path, times[0])
    drawing = Drawing(target, path, basis)
    run(solve(sampler, path, mean[None], times, basis), drawing)
    second = basis.recorded(1 + len(root))
    x = torch.cat((mean[None], root, mean.new_zeros(second.total - 1 - len(root), *mean.shape)))
    rows = _Rows(Drawing(target, path, second))
    x = run(solve(sampler, path, x, times, second), rows)
    return x[0], x[1:].flatten(1).T @ x[1:].flatten(1)


class _Rows:
    """An affine drawing denoiser on rows: only row 0 sees the offset."""

    def __init__(self, inner):
        self.inner, self.path = inner, inner.path

    def __call__(self, x, t):
        mean, _ = self.inner.target.posterior(self.path, torch.zeros_like(x[:1]), t)
        clean = self.inner(x, t).clean
        return Estimate(x, t, self.path, clean=torch.cat((clean[:1], clean[1:] - mean)))


PYRAMID = PyramidPath(alphas=(0.9, 0.5, 0.8, 0.4), sigmas=(0.1, 0.3, 0.4, 0.5), factors=(1, 2, 1, 2))


@pytest.mark.parametrize(
    ("path", "times"),
    [
        (VP(), (0.9, 0.5, 0.2, 0.01)),
        (VE(), (20.0, 3.0, 0.5, 0.1)),
        (Flow(), (0.95, 0.5, 0.1)),
        (ShiftedPath(shift=_ratio), (0.9, 0.5, 0.2, 0.01)),
        (ShiftedPath(shift=_blur, bend="prior"), (0.9, 0.6, 0.1)),
        (ShiftedPath(base=Flow(), shift=_blur, bend="data"), (0.9, 0.5, 0.1)),
        (PYRAMID, (4.0, 3.0, 2.0, 1.0)),
        (PYRAMID, (4.0, 2.0, 1.0)),
        (PyramidPath(), (2.0, 1.0)),
    ],
)
def test_exact_law(path, times):
    target = smooth_field()
    mean, covariance = _moved(Ancestral(), target, path, times)
    true_mean, true_covariance = target.law(path, times[-1])
    torch.testing.assert_close(mean, true_mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(covariance, true_covariance, rtol=0, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("path", [VP(), ShiftedPath(shift=_blur)])
def test_exact_law_of_every_eta(path, eta):
    """x_0 drawn from p(x_0|x_t), then any of DDIM's bridges, has the law at s: eta only chooses the coupling."""
    target, times = smooth_field(), (0.9, 0.5, 0.2)
    mean, covariance = _moved(DDIM(eta), target, path, times)
    torch.testing.assert_close(mean, target.law(path, 0.2)[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(covariance, target.law(path, 0.2)[1], rtol=0, atol=1e-11)


def test_climb_keeps_the_law():
    """Re-noising is part of the grid and keeps the law as well."""
    target = smooth_field()
    path = PyramidPath(alphas=(0.9, 0.5, 0.8), sigmas=(0.1, 0.3, 0.4), factors=(1, 2, 1))
    low = target.law(path, 2.0)[0]
    # One transition up from the exact law at 2 is the exact law at 3.
    moved = propagate(Ancestral(), target.denoiser(path), (2.0, 3.0), low, target.root(path, 2.0), dense=True)
    mean, covariance = target.law(path, 3.0)
    torch.testing.assert_close(moved.mean, mean)
    torch.testing.assert_close(moved.covariance, covariance, rtol=0, atol=1e-12)


def test_published_pyramid_rule_is_not_exact():
    """The published scalar posterior misses the law: the test above can fail."""
    target = smooth_field()
    path = PyramidPath(alphas=(0.9, 0.5), sigmas=(0.3, 0.4), factors=(2, 2), rule="published")
    covariance = _moved(Ancestral(), target, path, (2.0, 1.0))[1]
    assert (covariance - target.law(path, 1.0)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Ancestral()])
def test_conditional_mean_on_a_shifted_path(sampler):
    """x_0 ~ N(0, 1.7), r = 0.8·x_0: with the plain conditional mean the variance returns to 1.7 as the steps shrink."""
    target, path = GaussianTarget([0.0], [1.7]), ShiftedPath(shift=_ratio)
    gaps = []
    for steps in (50, 100, 200):
        times = [1.0 + (1e-4 - 1.0) * i / steps for i in range(steps + 1)]
        found = gaussian_law(sampler, target, path, times)
        gaps.append(float((found.variance - target.law(path, times[-1]).variance).abs()))
    assert gaps[-1] < 0.1
    assert all(1.5 < a / b < 2.5 for a, b in itertools.pairwise(gaps))


def test_thin_pyramid_with_conditional_mean():
    """Thin levels, and a shrink where noise hides the detail: the conditional mean suffices, error O(1/levels)."""
    gaps = []
    for n in (40, 80, 160):
        beta = 8.0 / n
        alphas = tuple([(1.0 - beta) ** 0.5] * n)
        path = PyramidPath(
            alphas=alphas, sigmas=tuple([beta**0.5] * n), factors=tuple(2 if i == (3 * n) // 4 else 1 for i in range(n))
        )
        target = smooth_field(2)
        times = grids.pyramid_levels()(path)[:-1]
        mean, _ = target.law(path, times[0])
        found = propagate(Ancestral(), target.denoiser(path), times, mean, target.root(path, times[0]), dense=True)
        gaps.append(float((found.covariance - target.law(path, 1.0)[1]).abs().max()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.1
