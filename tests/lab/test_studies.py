"""A wrong score, the dimension and single precision: against closed recursions and printed numbers."""

import itertools
import json
import math
from dataclasses import dataclass

import pytest
import torch

from ornstein.cli.rates import rates
from ornstein.cli.rates_args import RatesArgs
from ornstein.errors import ConfigError, UsageError
from ornstein.lab.dimension import dimension, low_rank_mixture, random_mixture
from ornstein.lab.meters import gaussian_law, kl
from ornstein.lab.perturbed import ScoreError
from ornstein.lab.rates import measuring_grid
from ornstein.lab.studies import precision, score_error
from ornstein.lab.targets import G8, M1
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import Query, sampler


@dataclass(frozen=True)
class PaperDDPM:
    """(x + β·s)/√α with noise of variance β/α, as the papers on convergence write it."""

    order, needs = 1, AffinePath

    def step(self, path, x, step, noise, memory):
        estimate = yield Query(x, step.t)
        ratio = (path.alpha(step.t) / path.alpha(step.s)) ** 2
        beta = 1.0 - ratio
        mean = (x + beta * estimate.score) / math.sqrt(ratio)
        return mean + math.sqrt(beta / ratio) * noise.normal(step.index, x.shape[1:])


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_the_score_is_wrong_by_what_was_said(path):
    x, exact = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None], M1().denoiser(path)
    wrong = ScoreError(scale=0.02, height=0.5, frequency=20.0)(exact)
    expected = 1.02 * exact(x, 0.4).score + 0.025 * torch.sin(20.0 * x)
    torch.testing.assert_close(wrong(x, 0.4).score, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(wrong.with_condition({})(x, 0.4).score, expected, rtol=1e-10, atol=1e-10)


def test_plateaus_of_a_score_one_percent_too_large():
    """G8: .149 for every solver of the flow; at 512 steps .028 for the accelerated SDE, .005 for the papers' DDPM."""
    error, names = ScoreError(scale=0.01), ["dpmpp-2m", "unipc", "accelerated-ode-memory", "staggered-midpoint"]
    found = score_error(error, names, ["G8"], counts=(128, 512))
    assert [one.changed[-1] for one in found.effects] == pytest.approx([0.149] * 4, abs=6e-4)
    assert all(one.converged for one in found.effects)
    times, law = measuring_grid("log-snr", 512)(VP()), G8().law(VP(), measuring_grid("log-snr", 512)(VP())[-1])
    for rule, value in ((sampler("accelerated-sde"), 0.028), (PaperDDPM(), 0.005)):
        moved = gaussian_law(rule, G8(), VP(), times, denoiser=error(G8().denoiser(VP())))
        assert math.sqrt(kl(moved, law)) == pytest.approx(value, abs=5e-4)


def test_a_wrong_score_in_ancestral_steps_by_hand():
    error, times, v = ScoreError(scale=0.01), measuring_grid("log-snr", 64)(VP()), G8().variance
    total = G8().law(VP(), times[0]).variance
    for t, s in itertools.pairwise(times):
        ratio = (VP().alpha(t) / VP().alpha(s)) ** 2
        beta, c = 1.0 - ratio, VP().alpha(t) ** 2 * v + VP().sigma(t) ** 2
        total = (1.0 - 1.01 * beta / c) ** 2 * total / ratio + beta * VP().sigma(s) ** 2 / VP().sigma(t) ** 2
    found = gaussian_law(sampler("ancestral"), G8(), VP(), times, denoiser=error(G8().denoiser(VP())))
    torch.testing.assert_close(found.variance, total, rtol=1e-11, atol=0)


def test_a_wave_is_felt_by_deterministic_samplers_only():
    """On the line: a score wrong by .015·sin(20x) costs the flow a total variation of .31 and the SDE nothing."""
    found = score_error(
        ScoreError(height=0.3, frequency=20.0), ["dpmpp-2m", "ancestral"], ["M1", "G8"], counts=(32, 64)
    )
    flow, sde = found.effects
    assert flow.changed[-1] == pytest.approx(0.31, abs=0.01)
    assert sde.changed[-1] == pytest.approx(sde.exact[-1], rel=0.02)
    assert {skip.target for skip in found.skipped} == {"G8"}


@pytest.mark.parametrize("text", ["", "scale", "scale=x", "size=1", "scale=0", "height=1,frequency=0"])
def test_bad_score_errors(text):
    with pytest.raises(ConfigError, match="score error"):
        ScoreError.parse(text)


def test_products_grow_like_the_root_and_random_mixtures_do_not():
    found = dimension(["ddim", "dpmpp-2m"], ["product", "mixture"], (4, 16, 64), targets=2, trajectories=32, steps=16)
    product, mixture = found.growths[:2], found.growths[2:]
    assert all(one.exponent == pytest.approx(0.5, abs=1e-6) and one.half_width < 1e-6 for one in product)
    assert all(one.exponent < 0.3 for one in mixture)
    assert [len(one.errors) for one in found.growths] == [1, 1, 2, 2]


def test_families():
    for dim in (4, 64):
        target = random_mixture(dim)
        spread = (target.weights[:, None] * (target.variances + target.means.square())).sum()
        assert float(spread) == pytest.approx(4.0, rel=0.5)
    assert int((low_rank_mixture(64).variances > 1e-3).sum(1).unique()) == 8
    x = random_mixture(16, 1).start(Noise.of(0, range(3)), VP(), 0.5)
    assert x.shape == (3, 16)
    for kw, text in (
        ({"samplers": ["ancestral"]}, "adds noise"),
        ({"dimensions": (4, 16)}, "three dimensions"),
        ({"families": ["cube"]}, "unknown family"),
        ({"path": "x"}, "unknown path"),
    ):
        with pytest.raises(ConfigError, match=text):
            dimension(**{"samplers": ["ddim"], "steps": 4, **kw})


def test_floors_of_single_precision():
    """M2: a few 1e-7 with a float32 state, 1e-8 where only the network's answers are in float32."""
    (found,) = precision(["dpmpp-2m"], counts=(64, 256), trajectories=64).effects
    assert 3e-8 < found.changed[0] < found.changed[1] < 5e-6
    assert all(1e-9 < e < 3e-8 for e in found.exact)
    with pytest.raises(ConfigError, match="unknown target"):
        precision(["ddim"], target="M3")


def test_command(capsys, tmp_path):
    """JSON alone on standard output, a table otherwise, plots in both; one question at a time."""
    base = {"samplers": "ddim", "quick": True, "plot": tmp_path}
    assert rates(RatesArgs(score_error="scale=0.01", targets="G8", json=True, **base)) == 0
    assert json.loads(capsys.readouterr().out)["change"] == "1.01·s"
    assert rates(RatesArgs(score_error="scale=0.01", targets="G8", **base)) == 0
    assert "wrong score" in capsys.readouterr().out
    assert rates(RatesArgs(precision=True, **base)) == 0
    assert "float32" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"score-error-ddim.png", "precision-ddim.png"}
    with pytest.raises(UsageError, match="one at a time"):
        rates(RatesArgs(dimension=True, precision=True))
    with pytest.raises(UsageError, match="no target"):
        rates(RatesArgs(score_error="scale=0.01", targets=""))


@pytest.mark.slow
def test_command_dimension(capsys, tmp_path):
    assert rates(RatesArgs(dimension=True, samplers="ddim", quick=True, json=True, plot=tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["growths"][0]["exponent"] == pytest.approx(0.5, abs=1e-6)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_plane_has_no_exact_law():
    """It is said, and the rest goes on."""
    found = score_error(ScoreError(scale=0.1), ["ddim"], ["M2"], counts=(4, 8))
    assert "in law" in found.skipped[0].reason
