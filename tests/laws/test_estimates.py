"""An estimate's conversions agree, are made once, and cannot be changed; mixtures are exact where nothing is mixed."""

import copy
import gc
import pickle
import weakref
from dataclasses import dataclass

import pytest
import torch

from ornstein.errors import PathError
from ornstein.estimates import Estimate, Gaussian
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath
from ornstein.randomness import Noise

NOISE = Noise.of(1, range(4), dtype=torch.float64)
CLEAN, WHITE = NOISE.normal("clean", (2, 3)), NOISE.normal("white", (2, 3))
TIMES = [0.3, torch.tensor([0.2, 0.4, 0.5, 0.7], dtype=torch.float64)]


@pytest.mark.parametrize("path", [VP(), VP.cosine(), VP.table(), VE(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
def test_the_three_predictions_say_the_same(path: AffinePath, t: float | torch.Tensor) -> None:
    x = path.diffuse(CLEAN, t, WHITE)
    truth = Estimate(x, t, path, clean=CLEAN)
    d_alpha, d_sigma = path.rates(t)
    shape = (-1, 1, 1) if isinstance(t, torch.Tensor) else ()
    velocity = (
        torch.as_tensor(d_alpha, dtype=torch.float64).reshape(shape) * CLEAN
        + torch.as_tensor(d_sigma, dtype=torch.float64).reshape(shape) * WHITE
    )
    for estimate in (truth, Estimate(x, t, path, noise=WHITE), Estimate(x, t, path, velocity=velocity)):
        for found, expected in ((estimate.clean, CLEAN), (estimate.noise, WHITE), (estimate.velocity, velocity)):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        std = torch.as_tensor(path.std(t), dtype=torch.float64).reshape(shape)
        torch.testing.assert_close(estimate.score, -estimate.noise / std, rtol=1e-15, atol=0)


@dataclass(frozen=True)
class Counting(VP):
    """Counts how often a conversion asks for coefficients."""

    calls: list[str] = None  # type: ignore[assignment]

    def clean_from_noise(self, x, noise, t):
        self.calls.append("clean")
        return super().clean_from_noise(x, noise, t)

    def mean_of(self, estimate, t):
        self.calls.append("noise")
        return super().mean_of(estimate, t)

    def rates(self, t):
        self.calls.append("rates")
        return super().rates(t)

    def from_velocity(self, x, velocity, t):
        self.calls.append("both")
        return super().from_velocity(x, velocity, t)


@pytest.mark.parametrize(
    ("given", "expected"), [("clean", ["noise", "rates"]), ("noise", ["clean", "rates"]), ("velocity", ["both"])]
)
def test_no_conversion_is_made_twice_or_unasked(given: str, expected: list[str]) -> None:
    calls: list[str] = []
    estimate = Estimate(WHITE, 0.5, Counting(calls=calls), **{given: CLEAN})
    assert calls == []
    first = (estimate.clean, estimate.noise, estimate.velocity)
    again = (estimate.clean, estimate.noise, estimate.velocity)
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert getattr(estimate, given) is CLEAN
    assert sorted(calls) == sorted(expected)


def test_exactly_one_prediction() -> None:
    with pytest.raises(TypeError, match="exactly one"):
        Estimate(WHITE, 0.5, VP())
    with pytest.raises(TypeError, match="exactly one"):
        Estimate(WHITE, 0.5, VP(), clean=CLEAN, noise=WHITE)


def test_an_estimate_is_immutable_and_travels() -> None:
    extras = {"variance": WHITE}
    estimate = Estimate(WHITE, 0.5, VP(), noise=CLEAN, extras=extras)
    extras["more"] = CLEAN
    assert estimate.extras.keys() == {"variance"}
    for name in ("x", "t", "path", "extras", "clean", "_clean", "other"):
        with pytest.raises(AttributeError):
            setattr(estimate, name, WHITE)
    clean = estimate.clean
    for twin in (copy.deepcopy(estimate), pickle.loads(pickle.dumps(estimate))):
        assert torch.equal(twin.clean, clean)
        assert torch.equal(twin.extras["variance"], WHITE)


def test_replace_speaks_of_the_same_question() -> None:
    estimate = Estimate(WHITE, 0.5, VP(), noise=CLEAN, extras={"front": CLEAN})
    other = estimate.replace(clean=CLEAN)
    assert (other.x, other.t, other.path) == (estimate.x, 0.5, estimate.path)
    assert other.clean is CLEAN
    assert other.extras["front"] is CLEAN
    torch.testing.assert_close(other.noise, (WHITE - VP().alpha(0.5) * CLEAN) / VP().sigma(0.5))


def test_mixtures() -> None:
    a, b = Estimate(WHITE, 0.5, VP(), noise=CLEAN), Estimate(WHITE, 0.5, VP(), clean=CLEAN)
    assert Estimate.mix((1.0, a)) is a
    assert Estimate.mix((1.0, a), (0.0, b)) is a
    assert Estimate.mix((0.0, a), (1.0, b)) is b
    torch.testing.assert_close(Estimate.mix((3.0, a), (-2.0, b)).clean, 3 * a.clean - 2 * b.clean)
    for terms in ([], [(0.5, a)], [(0.5, a), (0.6, b)], [(float("nan"), a)], [(float("inf"), a), (float("-inf"), b)]):
        with pytest.raises(ValueError, match="sum to 1"):
            Estimate.mix(*terms)


def test_a_chain_of_estimates_keeps_no_history() -> None:
    estimate = Estimate(WHITE, 0.5, VP(), clean=CLEAN.clone())
    first = weakref.ref(estimate.clean)
    for _ in range(3):
        estimate = Estimate.mix((2.0, estimate.replace(clean=estimate.clean * 0.5)), (-1.0, estimate))
    gc.collect()
    assert first() is None


def test_what_a_pyramid_cannot_say_is_named() -> None:
    estimate = Estimate(torch.zeros(1, 3, 4, 4), 1.0, PyramidPath(), clean=torch.zeros(1, 3, 8, 8))
    for name in ("noise", "velocity", "score"):
        with pytest.raises(PathError, match="PyramidPath"):
            getattr(estimate, name)


def test_gaussian_roots() -> None:
    mean, noise = CLEAN, WHITE
    torch.testing.assert_close(Gaussian(mean=mean, root=2.0).sample(noise), mean + 2 * noise)
    rows = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(Gaussian(mean=mean, root=rows).sample(noise)[3], mean[3] + 4 * noise[3])
    torch.testing.assert_close(Gaussian(mean=mean, root=lambda z: -z).sample(noise), mean - noise)
