import pytest
import torch

from ornstein.errors import PathError, UsageError
from ornstein.lab import G8, M1, M2, M64, GaussianTarget, Gdeg, M1p, MixtureTarget, PointsTarget
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.randomness import Noise


@pytest.mark.parametrize("make", [G8, M1, M2, M64])
@pytest.mark.parametrize("path", [VP(), VE(), Flow(), ShiftedPath(shift=lambda c, cond, t: 0.8 * c)])
def test_score_is_the_gradient_of_the_law(make, path):
    target, t = make(), 0.4
    x = target.start(Noise.of(0, range(5)), path, t).requires_grad_()
    (gradient,) = torch.autograd.grad(target.law(path, t).log_density(x).sum(), x)
    torch.testing.assert_close(target.score(x.detach(), path, t), gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target.denoiser(path)(x.detach(), t).score, gradient, rtol=1e-9, atol=1e-9)


def test_one_component_is_a_gaussian():
    mixture = MixtureTarget.of([1.0], [[0.5, -1.0]], stds=[[0.3, 2.0]])
    gaussian = GaussianTarget([0.5, -1.0], [0.09, 4.0])
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.clean(x, 0.7, 0.6), gaussian.clean(x, 0.7, 0.6))


def test_covariances_and_frames_agree():
    target = M2()
    dense = torch.einsum("kij,kj,klj->kil", target.frames, target.variances, target.frames)
    other = MixtureTarget.of(target.weights, target.means, covariances=dense)
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.clean(x, 0.9, 0.2), other.clean(x, 0.9, 0.2))


def test_times_in_a_batch_agree_with_host_times():
    x = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for target in (M1(), GaussianTarget([0.5], [2.0]), PointsTarget([[0.0], [1.0]])):
        for path in (VP(), ShiftedPath(shift=lambda c, cond, t: 0.8 * c)):
            denoiser, times = target.denoiser(path), [0.1, 0.5, 0.9]
            whole = denoiser(x, torch.tensor(times, dtype=torch.float64)).clean
            for i, t in enumerate(times):
                torch.testing.assert_close(whole[i : i + 1], denoiser(x[i : i + 1], t).clean)


def test_samples_have_the_law():
    draws = M1().sample(Noise.of(3, range(4000)))[:, 0].sort()[0]
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert (M1().cdf(draws) - steps).abs().max() < 1.63 / 4000**0.5  # Kolmogorov, 1 %


def test_points_memorise():
    points = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = PointsTarget(points)
    torch.testing.assert_close(target.clean(points + 1e-4, 1.0, 1e-3), points)
    torch.testing.assert_close(target.clean(points + 1e-4, 1.0, 0.0), points)
    near = MixtureTarget.of(target.weights, points, stds=[1e-9] * 7)
    torch.testing.assert_close(target.clean(points + 0.3, 0.8, 0.5), near.clean(points + 0.3, 0.8, 0.5))


def test_degenerate_directions():
    target = Gdeg()
    assert target.dim == 10
    assert int((Gdeg(100).variance > 0).sum()) == 20
    x = target.start(Noise.of(0, range(3)), VE(), 0.0)
    torch.testing.assert_close(target.denoiser(VE())(x, 0.0).clean, x)
    assert torch.isfinite(M1p().denoiser(VP())(torch.zeros(1, 1), 0.01).clean).all()


def test_state_keeps_its_dtype_and_shape():
    out = G8().denoiser(VP())(torch.zeros(2, 2, 2, 2), 0.5).clean
    assert out.dtype == torch.float32
    assert out.shape == (2, 2, 2, 2)


def test_bad_input():
    with pytest.raises(UsageError, match="weights"):
        MixtureTarget.of([0.5, 0.0], [[0.0], [1.0]], stds=[1.0, 1.0])
    with pytest.raises(UsageError, match="either stds or covariances"):
        MixtureTarget.of([1.0], [[0.0]])
    with pytest.raises(UsageError, match="non-negative"):
        GaussianTarget([0.0], [-1.0])
    with pytest.raises(PathError, match="FieldTarget"):
        G8().denoiser(PyramidPath())(torch.zeros(1, 8), 1.0)
    with pytest.raises(PathError, match="no multiple"):
        G8().denoiser(ShiftedPath(shift=lambda c, cond, t: c**2))(torch.zeros(1, 8), 0.5)
