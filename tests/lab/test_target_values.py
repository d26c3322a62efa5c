"""The exact targets against scipy and against integrals, and the numbers of the named ones."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ornstein.errors import PathError, UsageError
from ornstein.lab import G8, M1, M2, M64, GaussianTarget, Gdeg, Giso, M1p, M1s, MixtureTarget, PointsTarget
from ornstein.lab.dimension import low_rank_mixture, random_mixture
from ornstein.lab.fields import Drawing, FieldTarget, smooth_field
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.randomness import Noise

DOUBLE = torch.float64
NOISE = Noise.of(3, range(5), dtype=DOUBLE)


def test_numbers_of_the_named_targets():
    assert G8().mean.tolist() == [0.5, -0.3, 1.0, 0.2, -1.0, 0.0, 0.7, 2.0]
    assert G8().variance.tolist() == [1e-3, 1e-2, 0.05, 0.2, 0.7, 1.0, 3.0, 10.0]
    assert (Giso().mean.tolist(), Giso(3).variance.tolist()) == ([0.0], [1.0, 1.0, 1.0])
    for target, stds in ((M1(), [0.3, 0.5, 0.15]), (M1s(), [0.02, 0.05, 0.01]), (M1p(), [1e-9, 1e-9, 1e-9])):
        assert target.weights.tolist() == pytest.approx([0.3, 0.5, 0.2])
        assert target.means.flatten().tolist() == [-1.5, 0.4, 1.8]
        assert target.variances.sqrt().flatten().tolist() == pytest.approx(stds)
    plane = M2()
    assert plane.weights.tolist() == [0.25, 0.2, 0.25, 0.15, 0.15]
    assert plane.means.tolist() == [[-1.2, -0.6], [1.2, -0.5], [0.1, 1.3], [-0.4, 0.3], [0.6, 0.4]]
    assert plane.variances.sqrt().flatten().tolist() == pytest.approx(
        [0.3, 0.08, 0.25, 0.05, 0.35, 0.1, 0.15, 0.15, 0.2, 0.04]
    )
    turned = plane.frames[:, :, 0]  # the first axis of each ellipse
    assert torch.atan2(turned[:, 1], turned[:, 0]).tolist() == pytest.approx([0.3, 1.2, -0.5, 2.0, 0.9])
    assert torch.linalg.det(plane.frames).tolist() == pytest.approx([1.0] * 5)


def covariance(target, k):
    return torch.einsum("ij,j,kj->ik", target.frames[k], target.variances[k], target.frames[k])


def test_numbers_of_the_drawn_targets():
    """Golden values: the reports depend on them."""
    assert Gdeg().variance[:3].tolist() == pytest.approx([4.954631135811942, 9.125130851052955, 5.313672906880043])
    wide = Gdeg(60)
    assert wide.variance[:2].tolist() == pytest.approx([0.8376045325292081, 8.661299933017025])
    assert [int((Gdeg(d).variance > 0.0).sum()) for d in (4, 10, 60)] == [4, 10, 12]
    assert float(wide.mean.abs().max()) == 0.0
    big = M64()
    assert big.weights.tolist() == [0.125] * 8
    assert big.means.shape == (8, 64)
    assert big.means[1, :3].tolist() == pytest.approx([2.098152237212422, 1.7518933015919893, 0.46738149589442185])
    assert big.variances[1, :2].tolist() == pytest.approx([0.33563416059864376, 0.34116143707782337])
    assert big.variances[:, 8:].unique().tolist() == [1e-4]
    assert float(big.variances.sum()) == pytest.approx(20.59720542846371)
    assert covariance(big, 1)[0, :3].tolist() == pytest.approx(
        [0.02151447274221532, -0.003246357354835826, 0.02025628724624315], rel=1e-9
    )
    for target, mean, variance, means, variances in (
        (random_mixture(6), 0.5041292954797193, 0.6413315377664807, -2.607527825564195, 15.959249246388385),
        (random_mixture(6, 1), -0.07911713240313058, 1.2726469841416386, -4.064505630702023, 14.776768037265924),
        (random_mixture(6, 1, 3), -0.005657322203119895, 0.06555163486276969, -0.8548183309707231, 6.432755836511063),
        (low_rank_mixture(12), -1.7838560392355758, 1e-4, 1.720483297271958, 16.63239362706036),
        (low_rank_mixture(12, 1), 0.760252344490793, 0.081065989849056, -1.9389474077732953, 16.99054186612358),
        (low_rank_mixture(5, 2, 3), 0.08898347777220973, 0.47370950705047865, 1.6244518942730513, 4.112804053286318),
    ):
        assert float(target.means[-1, -1]) == pytest.approx(mean, rel=1e-10)
        assert float(target.variances[-1, -1]) == pytest.approx(variance, rel=1e-10)
        assert float(target.means.sum()) == pytest.approx(means, rel=1e-10)
        assert float(target.variances.sum()) == pytest.approx(variances, rel=1e-10)
        assert target.weights.tolist() == pytest.approx([1.0 / len(target.weights)] * len(target.weights))


def test_numbers_of_the_field():
    field = smooth_field(3, 2, length=1.5)
    expected = [math.sqrt(0.5) * math.sin(k) for k in range(18)]
    assert field.mean.flatten().tolist() == pytest.approx(expected)
    c = field.covariance
    assert float(c[0, 0]) == pytest.approx(1.05)
    assert float(c[0, 1]) == pytest.approx(math.exp(-1.0 / 4.5))
    assert float(c[0, 4]) == pytest.approx(math.exp(-2.0 / 4.5))
    assert float(c[9, 12]) == pytest.approx(1.3 * math.exp(-1.0 / 4.5))
    assert float(c[:9, 9:].abs().max()) == 0.0
    assert smooth_field().mean.shape == (1, 4, 4)
    with pytest.raises(UsageError, match="16×16"):
        FieldTarget(torch.zeros(1, 4, 4), torch.eye(4))


def test_weights_are_normalised_and_stds_are_read_by_shape():
    one = MixtureTarget.of([3.0, 5.0, 2.0], [[-1.5], [0.4], [1.8]], stds=[0.3, 0.5, 0.15])
    assert one.weights.tolist() == pytest.approx([0.3, 0.5, 0.2])
    x = torch.linspace(-2.0, 2.0, 7, dtype=DOUBLE)[:, None]
    torch.testing.assert_close(one.clean(x, 0.7, 0.4), M1().clean(x, 0.7, 0.4), rtol=1e-14, atol=1e-14)
    assert MixtureTarget.of([1.0, 1.0], [[0.0, 1.0], [2.0, 3.0]], stds=[0.5, 2.0]).variances.tolist() == [
        [0.25, 0.25],
        [4.0, 4.0],
    ]
    wide = MixtureTarget.of([1.0, 1.0], [[0.0, 1.0], [2.0, 3.0]], stds=[[0.5, 1.0], [2.0, 3.0]])
    assert wide.variances.tolist() == [[0.25, 1.0], [4.0, 9.0]]
    for weights, means in (([[1.0]], [[0.0]]), ([1.0], [0.0]), ([1.0, 1.0], [[0.0]])):
        with pytest.raises(UsageError, match="weights \\(K,\\) and means"):
            MixtureTarget.of(weights, means, stds=[1.0])
    with pytest.raises(UsageError, match="either stds or covariances"):
        MixtureTarget.of([1.0], [[0.0]], stds=[1.0], covariances=torch.ones(1, 1, 1))
    with pytest.raises(UsageError, match="positive"):
        MixtureTarget.of([1.0, -0.1], [[0.0], [1.0]], stds=[1.0, 1.0])
    for mean, variances in (([[0.0]], [1.0]), ([0.0, 1.0], [1.0])):
        with pytest.raises(UsageError, match="a Gaussian needs"):
            GaussianTarget(mean, variances)
    with pytest.raises(UsageError, match="flatten"):
        PointsTarget(torch.zeros(3))
    with pytest.raises(UsageError, match="n ≥ 1"):
        PointsTarget(torch.zeros(0, 2))


@pytest.mark.parametrize("make", [M2, lambda: M64(9)], ids=["M2", "M64"])
def test_densities_are_those_of_scipy(make):
    """And those of the law at a time: gain² times the covariance, and the noise."""
    target, path, t = make(), VP(), 0.3
    law = target.law(path, t)
    a, std = path.alpha(t), path.sigma(t)
    x = target.start(NOISE, path, t)
    for found, gain, noise in ((target, 1.0, 0.0), (law, a, std)):
        expected = sum(
            float(w) * stats.multivariate_normal.pdf(
                x.numpy(), gain * m.numpy(), gain**2 * covariance(target, k).numpy() + noise**2 * np.eye(target.dim)
            )
            for k, (w, m) in enumerate(zip(target.weights, target.means, strict=True))
        )  # fmt: skip
        assert found.log_density(x).exp().tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_the_distribution_function_is_that_of_scipy():
    x = [-2.0, -1.4, 0.1, 1.75]
    expected = [
        sum(w * stats.norm.cdf(v, m, s) for w, m, s in ((0.3, -1.5, 0.3), (0.5, 0.4, 0.5), (0.2, 1.8, 0.15))) for v in x
    ]
    assert M1().cdf(torch.tensor(x, dtype=DOUBLE)).tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(UsageError, match="this one has d = 2"):
        M2().cdf(torch.zeros(1))


@pytest.mark.parametrize(("gain", "std"), [(0.7, 0.5), (1.0, 2.0), (0.2, 0.9)])
def test_the_clean_estimate_is_the_conditional_mean(gain, std):
    """∫ x_0·p(x_0)·N(x; a·x_0, σ²) over the same without x_0."""
    target = M1()

    def mean(x):
        def joint(z):
            return math.exp(float(target.log_density(torch.tensor([[z]], dtype=DOUBLE)))) * stats.norm.pdf(
                x, gain * z, std
            )

        top = integrate.quad(lambda z: z * joint(z), -5.0, 5.0, points=[-1.5, 0.4, 1.8])[0]
        return top / integrate.quad(joint, -5.0, 5.0, points=[-1.5, 0.4, 1.8])[0]

    for x in (-1.1, 0.6):
        found = target.clean(torch.tensor([[x]], dtype=DOUBLE), gain, std)
        assert float(found) == pytest.approx(mean(x), rel=1e-7)


def test_a_full_gaussian_is_the_linear_estimator():
    """m + a·C·(a²·C + σ²)⁻¹·(x − a·m), on numbers and on one time a row; and a law of the same frame."""
    gen = torch.Generator().manual_seed(1)
    root = torch.randn(3, 3, generator=gen, dtype=DOUBLE)
    c, m = root @ root.T, torch.tensor([0.5, -1.0, 2.0], dtype=DOUBLE)
    target, x = GaussianTarget.full(m, c), torch.randn(4, 3, generator=gen, dtype=DOUBLE)
    gains, stds = torch.tensor([0.9, 0.5, 0.7, 0.2], dtype=DOUBLE), torch.tensor([0.3, 0.9, 0.4, 0.8], dtype=DOUBLE)
    rows = [
        m + a * c @ torch.linalg.solve(a**2 * c + s**2 * torch.eye(3, dtype=DOUBLE), y - a * m)
        for a, s, y in zip(gains, stds, x, strict=True)
    ]
    torch.testing.assert_close(target.clean(x, gains, stds), torch.stack(rows), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(target.clean(x[:1], 0.9, 0.3), rows[0][None], rtol=1e-10, atol=1e-10)
    law = target.law(VE(), 2.0)
    torch.testing.assert_close(covariance(law, 0), c + 4.0 * torch.eye(3, dtype=DOUBLE), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(law.mean, m)
    # The mixture of one component gives the same, by its own formula.
    plain = MixtureTarget(target.weights, target.means, target.variances, target.frames)
    torch.testing.assert_close(plain.clean(x, gains, stds), torch.stack(rows), rtol=1e-10, atol=1e-10)
    pair = MixtureTarget.of([1.0, 1.0], torch.stack((m, -m)), covariances=torch.stack((c, 2.0 * c)))
    torch.testing.assert_close(covariance(pair, 1), 2.0 * c, rtol=1e-10, atol=1e-10)


def test_points_are_weighted_by_their_distance():
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], dtype=DOUBLE)
    x, gains, stds = (
        torch.tensor([[0.3, 0.2], [1.0, -0.4]], dtype=DOUBLE),
        torch.tensor([0.8, 0.6], dtype=DOUBLE),
        torch.tensor([0.5, 1.1], dtype=DOUBLE),
    )
    rows = []
    for y, a, s in zip(x, gains, stds, strict=True):
        weights = torch.softmax(-((y - a * points) ** 2).sum(1) / (2.0 * s**2), 0)
        rows.append(weights @ points)
    target = PointsTarget(points)
    torch.testing.assert_close(target.clean(x, gains, stds), torch.stack(rows), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target.clean(x[1:], 0.6, 1.1), rows[1][None], rtol=1e-12, atol=1e-12)
    assert target.clean(x[:1], 1.0, 0.0).tolist() == [[0.5, 0.5]]


def test_draws_by_hand():
    """The component by a uniform number under its own key, then the frame times the scaled normals."""
    target = M2()
    number, noise = NOISE.uniform_per_sample(("target", "component")), NOISE.normal("target", (2,))
    edges = [0.25, 0.45, 0.70, 0.85]
    rows = []
    for u, z in zip(number.tolist(), noise, strict=True):
        k = sum(u >= edge for edge in edges)
        rows.append(target.means[k] + target.frames[k] @ (target.variances[k].sqrt() * z))
    torch.testing.assert_close(target.sample(NOISE), torch.stack(rows), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(target.start(NOISE, VE(), 2.0), target.law(VE(), 2.0).sample(NOISE, "start"))
    assert len({sum(u >= edge for edge in edges) for u in number.tolist()}) > 1


class Conditioning:
    """Numbers that the test chooses, and no normals."""

    def uniform_per_sample(self, key):
        return torch.tensor([0.0, 0.4999, 0.5, 0.75, 0.9999], dtype=DOUBLE)

    def normal(self, key, event):
        return torch.zeros(5, *event, dtype=DOUBLE)


def test_a_number_at_the_edge_belongs_to_the_next_component():
    target = MixtureTarget.of([2.0, 1.0, 1.0], [[-1.0], [0.5], [3.0]], stds=[1.0, 1.0, 1.0])
    assert target.sample(Conditioning()).flatten().tolist() == [-1.0, -1.0, 0.5, 3.0, 3.0]


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_scores_at_one_time_a_row(path):
    x, t = M2().start(NOISE, path, 0.4), torch.tensor([0.4, 0.2, 0.6, 0.3, 0.5], dtype=DOUBLE)
    whole = M2().score(x, path, t)
    for i, time in enumerate(t.tolist()):
        torch.testing.assert_close(whole[i : i + 1], M2().score(x[i : i + 1], path, time), rtol=1e-10, atol=1e-10)


def test_exact_denoisers_answer_conditions_and_any_shape():
    path = ShiftedPath(shift=lambda clean, cond, t: cond["k"].reshape(-1, *(1,) * (clean.ndim - 1)) * clean)
    denoiser, x = G8().denoiser(path), torch.ones(1, 2, 4, dtype=DOUBLE)
    conds = [{"k": torch.tensor([0.2], dtype=DOUBLE)}, {"k": torch.tensor([0.7], dtype=DOUBLE)}]
    for one, cond in zip(denoiser.predict_conditions(x, 0.4, conds), conds, strict=True):
        expected = G8().denoiser(path.with_condition(cond))(x, 0.4)
        assert torch.equal(one.clean, expected.clean)
        assert torch.equal(one.clean, denoiser.with_condition(cond)(x, 0.4).clean)
    assert not torch.equal(*(one.clean for one in denoiser.predict_conditions(x, 0.4, conds)))
    with pytest.raises(PathError, match="PyramidPath does not scale"):
        Giso().law(PyramidPath(), 1.0)


@pytest.mark.parametrize(
    "path", [VP(), PyramidPath(alphas=(0.9, 0.5), sigmas=(0.3, 0.4), factors=(1, 2))], ids=["vp", "pyramid"]
)
def test_fields_are_conditioned_by_dense_algebra(path):
    """Law and posterior from the joint covariance of (x_0, x_t), read off draws of the path with unit images."""
    field, t = smooth_field(4), 2.0 if isinstance(path, PyramidPath) else 0.6
    units = torch.eye(16, dtype=DOUBLE).reshape(16, 1, 4, 4)
    shape = path.state_shape((1, 4, 4), t)
    g = path.diffuse(units, t, torch.zeros(16, *shape, dtype=DOUBLE)).reshape(16, -1).T
    std = float(path.diffuse(0.0 * units[:1], t, torch.ones(1, *shape, dtype=DOUBLE)).flatten()[0])
    c, m = field.covariance, field.mean.flatten()
    total = g @ c @ g.T + std**2 * torch.eye(len(g), dtype=DOUBLE)
    mean, law = field.law(path, t)
    torch.testing.assert_close(mean.flatten(), g @ m, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(law, total, rtol=1e-11, atol=1e-12)
    root = field.root(path, t).flatten(1)
    torch.testing.assert_close(root.T @ root, total, rtol=1e-10, atol=1e-12)
    x = NOISE.normal("x", tuple(shape))
    gain = c @ g.T @ torch.linalg.inv(total)
    clean, left = field.posterior(path, x, t)
    torch.testing.assert_close(clean.flatten(1), m + (x.flatten(1) - g @ m) @ gain.T, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(left, c - gain @ g @ c, rtol=1e-9, atol=1e-10)
    denoiser = field.denoiser(path)
    for answer in (denoiser(x, t), denoiser.with_condition({})(x, t), *denoiser.predict_conditions(x, t, [{}])):
        torch.testing.assert_close(answer.clean, clean)
    drawing = Drawing(field, path, NOISE)
    for drawn in (drawing(x, t), drawing.with_condition({})(x, t), *drawing.predict_conditions(x, t, [{}])):
        values, frame = torch.linalg.eigh(left)
        noise = NOISE.normal(("x0", str(t)), (1, 4, 4)).flatten(1)
        # Eigenvectors of equal values are not unique: compare what does not depend on them, the distance to the mean.
        gap = (drawn.clean - clean).flatten(1)
        expected = ((noise @ (frame * values.clamp_min(0.0).sqrt()).T) ** 2).sum(1)
        torch.testing.assert_close(gap.square().sum(1), expected, rtol=1e-8, atol=1e-10)
