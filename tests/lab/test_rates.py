import json
from dataclasses import dataclass

import pytest

from ornstein.cli.rates import rates
from ornstein.cli.rates_args import RatesArgs
from ornstein.errors import ConfigError, UsageError
from ornstein.lab.plots import write
from ornstein.lab.rates import measure
from ornstein.paths.base import AffinePath
from ornstein.samplers.base import Query
from ornstein.samplers.ddim import DDIM


@dataclass(frozen=True)
class Boastful(DDIM):
    """First order, declared as second."""

    @property
    def order(self):
        return 2


@dataclass(frozen=True)
class RandomTimes:
    """The estimate at a random time of the step, reached by DDIM: a sampler that draws its times."""

    order, needs = 1, AffinePath

    def step(self, path, x, step, noise, memory):
        u = noise.uniform(step.index)
        middle = path.time_of(path.log_snr(step.t) + u * (path.log_snr(step.s) - path.log_snr(step.t)))
        first = yield Query(x, step.t)
        inner = path.mean(first.clean, middle) + path.sigma(middle) * first.noise
        second = yield Query(inner, middle)
        ratio = path.sigma(step.s) / path.sigma(step.t)
        return ratio * x + (path.alpha(step.s) - ratio * path.alpha(step.t)) * second.clean


def test_declared_orders_are_measured():
    report = measure(["ddim", "dpmpp-2m"], counts=(16, 32, 64, 128), quick=True)
    assert report.passed
    assert [(s.sampler, s.target, s.measure) for s in report.series] == [
        (name, target, what)
        for name in ("ddim", "dpmpp-2m")
        for target, what in (("G8", "√KL"), ("G8", "W2"), ("M1", "TV"))
    ]
    assert all(abs(s.fit.last - s.declared) < 0.15 for s in report.series)
    assert all(s.evaluations == s.counts for s in report.series)


def test_a_false_claim_fails():
    report = measure(["x"], ["G8"], counts=(16, 32, 64, 128), known={"x": Boastful})
    assert not report.passed
    assert {s.verdict for s in report.series} == {"below"}


def test_random_times_are_averaged():
    report = measure(["x"], ["G8", "M1"], counts=(8, 16, 32), quick=True, known={"x": RandomTimes})
    given, law, line = report.series
    assert (given.measure, law.measure, line.measure) == ("√KL, times given", "√KL, law", "TV, times given")
    assert "exact" in given.note
    assert "8 draws" in line.note
    assert given.evaluations == (16, 32, 64)
    assert not report.skipped


def test_randomized_midpoint_shows_both_orders():
    report = measure(["randomized-midpoint"], ["G8"], counts=(64, 128, 256))
    found = {one.measure: one for one in report.series}
    assert [found[what].declared for what in ("√KL, times given", "√KL, law")] == [1.5, 2]
    assert found["√KL, times given"].fit.last == pytest.approx(1.5, abs=0.1)
    assert found["√KL, law"].fit.order == pytest.approx(2.0, abs=0.05)
    assert report.passed


def test_several_processes_give_the_same_numbers():
    names = ["ddim", "euler", "dpmpp-1", "dpmpp-2m", "unipc-1", "heun"]
    kw = {"samplers": names, "targets": ["G8", "M1"], "counts": (4, 8), "quick": True}
    one, two = measure(**kw), measure(**kw, jobs=2)
    assert one.series == two.series
    assert len(two.series) == 18


def test_aliases_are_measured_once():
    report = measure(["ancestral", "ddpm"], ["G8"], counts=(8, 16, 32))
    assert {s.sampler for s in report.series} == {"ancestral"}


@pytest.mark.parametrize(
    ("kw", "text"),
    [
        ({"samplers": ["dpm"]}, "unknown sampler 'dpm'"),
        ({"targets": ["G9"]}, "unknown target 'G9'"),
        ({"path": "vpp"}, "unknown path"),
        ({"grid": "cosine"}, "unknown grid"),
        ({"jobs": 0}, "jobs must be at least 1"),
    ],
)
def test_unknown_names(kw, text):
    with pytest.raises(ConfigError, match=text):
        measure(**kw)


def test_command_json_and_plot(capsys, tmp_path):
    code = rates(RatesArgs(samplers="ddim", targets="G8", quick=True, json=True, plot=tmp_path / "plots"))
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert code == 0
    assert document["passed"] is True
    assert document["series"][0]["fit"]["order"] == pytest.approx(1.0, abs=0.1)
    assert "measuring ddim on G8" in err
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["ddim.png"]


def test_command_table_and_exit_codes(capsys, monkeypatch):
    assert rates(RatesArgs(samplers="ddim", targets="G8", quick=True)) == 0
    assert "agrees" in capsys.readouterr().out
    monkeypatch.setattr(DDIM, "order", 2)
    assert rates(RatesArgs(samplers="ddim", targets="G8", quick=True)) == 1
    with pytest.raises(UsageError, match="unknown sampler 'nope'"):
        rates(RatesArgs(samplers="nope"))


def test_how_much_closer_is_reported(capsys):
    report = measure(["ancestral", "accelerated-sde"], ["M1"], counts=(32, 64), quick=True)
    (found,) = report.comparisons
    assert (found.sampler, found.against, found.evaluations) == ("accelerated-sde", "ancestral", (32, 64))
    assert all(2.1 < closer < 2.5 for closer in found.closer)
    assert report.to_json()["comparisons"][0]["measure"] == "TV"


def test_a_noisy_error_is_open_not_below():
    """A sampler with memory on a mixture: the noise is said, and what lies below it gives no verdict."""
    report = measure(["dpmpp-2m-sde"], ["M1"], counts=(8, 16), quick=True)
    assert report.passed
    assert "sampling noise" in report.series[0].note
    assert report.series[0].measure == "W1"


def test_plots_replace_files(tmp_path):
    report = measure(["ddim"], ["G8"], counts=(8, 16, 32))
    for _ in range(2):
        assert write(report, tmp_path) == [tmp_path / "ddim.png"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_every_sampler_has_its_declared_order():
    report = measure()
    assert report.passed, [s for s in report.series if not s.passed]
