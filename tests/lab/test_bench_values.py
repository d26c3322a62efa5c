"""What a bench measures, at which step counts, and the numbers themselves against the meters they are made of."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from ornstein.errors import ConfigError, PathError
from ornstein.lab.backward import blurred_w1
from ornstein.lab.bench import PATHS, TARGETS, Bench, Series, claimed, measuring_grid
from ornstein.lab.dimension import COMPARED, DIMENSIONS, FAMILIES, Product, dimension, random_mixture
from ornstein.lab.laws import deterministic_tv, stochastic_tv
from ornstein.lab.meters import gaussian_law, kl, w2
from ornstein.lab.over_times import over_times
from ornstein.lab.perturbed import ScoreError
from ornstein.lab.rates import Report, chosen, distinct, measure
from ornstein.lab.slopes import Fit, least_squares
from ornstein.lab.studies import precision, score_error
from ornstein.lab.targets import G8, M1, M2, Giso, M1s
from ornstein.lab.trajectories import coupled, distances, flow
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise, mix
from ornstein.samplers import (
    SAMPLERS,
    AcceleratedSDE,
    Ancestral,
    Euler,
    Heun,
    MidpointSDE,
    RandomizedMidpoint,
    UniPC,
    plan,
    run,
    sampler,
    solve,
)

PATH = VP()


def test_what_can_be_chosen():
    assert {name: type(make()) for name, make in PATHS.items()} == {"vp": VP, "ve": VE, "flow": Flow}
    assert list(TARGETS) == ["G8", "Giso", "Gdeg", "M1", "M1s", "M1p", "M2", "M64"]
    for name, make in TARGETS.items():
        assert make().dim == {"G8": 8, "Gdeg": 10, "M2": 2, "M64": 64}.get(name, 1)


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_measuring_grids(path):
    """From σ̄ = 80 to .02, equal in log σ̄ or in σ̄^{1/7}."""
    for name, level in (("log-snr", math.log), ("karras", lambda bar: bar ** (1.0 / 7.0))):
        times = measuring_grid(name, 5)(path)
        bars = [path.sigma(t) / path.alpha(t) for t in times]
        assert len(times) == 6
        assert (bars[0], bars[-1]) == pytest.approx((80.0, 0.02), rel=1e-9)
        places = [level(bar) for bar in bars]
        width = (places[-1] - places[0]) / 5
        assert places == pytest.approx([places[0] + i * width for i in range(6)], rel=1e-9)
    times = measuring_grid("karras", 3, 0.1, 9.0)(path)
    assert [path.sigma_bar(t) for t in (times[0], times[-1])] == pytest.approx([9.0, 0.1], rel=1e-9)
    with pytest.raises(ConfigError, match="choose log-snr or karras"):
        measuring_grid("cosine", 3)


def test_claims():
    """In general, where the score is linear, and in the law over all draws."""
    claims = [
        (rule.order, claimed(rule), claimed(rule, gaussian=True), claimed(rule, all_draws=True))
        for rule in (AcceleratedSDE(), MidpointSDE(), MidpointSDE("exponential"), RandomizedMidpoint(), Heun())
    ]
    assert claims == [(1, 1, 2, 1), (2, 2, 3, 2), (2, 2, 3, 2), (1.5, 1.5, 1.5, 2), (2, 2, 2, 2)]


def series_of(name, target, quick=True, **options):
    return Bench(name, sampler(name), target, PATH, quick=quick, **options).series()


def test_errors_on_gaussians():
    times = {n: measuring_grid("log-snr", n)(PATH) for n in (4, 8, 16)}
    kls, w2s = series_of("heun", "G8", asked=(4, 8, 16))
    for i, n in enumerate((4, 8, 16)):
        found, law = gaussian_law(Heun(), G8(), PATH, times[n]), G8().law(PATH, times[n][-1])
        assert kls.errors[i] == pytest.approx(math.sqrt(kl(found, law)), rel=1e-12)
        assert w2s.errors[i] == pytest.approx(w2(found, law), rel=1e-12)
    assert (kls.measure, w2s.measure, kls.counts, kls.evaluations) == (
        "√KL",
        "W2",
        (4, 8, 16),
        (5, 16, 32),
    )  # of four steps three are wide
    assert (kls.declared, kls.sampler, kls.target, kls.note) == (2, "heun", "G8", "")


COUNTS = [
    ("ddim", "Giso", True, [(32, 64, 128, 256)]),
    ("ddim", "Giso", False, [(32, 64, 128, 256, 512)]),
    ("unipc", "Giso", False, [(32, 64, 128, 256)]),
    ("accelerated-ode-history", "Giso", False, [(64, 128, 256, 512, 1024)]),
    ("accelerated-ode-memory", "Giso", False, [(32, 64, 128, 256, 512)]),
    ("sde-midpoint-exponential", "Giso", True, [(64, 128, 256, 512)]),
    ("ddim", "M1", True, [(16, 32, 64, 128)]),
    ("accelerated-ode-history", "M1", True, [(64, 128, 256, 512)]),
    ("unipc", "M1", True, [(32, 64, 128, 256)]),
    ("collocation-4", "M1", True, [(16, 32, 64, 128)]),  # a quick run spares what is dear
    ("ancestral", "M1", True, [(8, 16, 32, 64)]),
]


@pytest.mark.parametrize(("name", "target", "quick", "counts"), COUNTS)
def test_step_counts(name, target, quick, counts):
    assert [one.counts for one in series_of(name, target, quick)[:1]] == counts


def test_long_dry_runs_are_counted_from_short_ones():
    """Two runs of eleven and twelve steps tell a long one: for every sampler that is measured."""
    times = measuring_grid("log-snr", 32)(PATH)
    for name in ("ddim", "heun", "accelerated-ode", "dpmpp-3m", "collocation-3", "unipc-3", "sde-midpoint"):
        (found, _) = Bench(name, sampler(name), "Giso", PATH, asked=(32,)).series()
        assert found.evaluations == (len(plan(sampler(name), PATH, times)),), name


def test_errors_on_the_line():
    times = measuring_grid("log-snr", 8)(PATH)
    (found,) = series_of("heun", "M1", asked=(8,))
    assert found.errors == (pytest.approx(deterministic_tv(Heun(), M1(), PATH, times, points=1001), rel=1e-12),)
    assert found.measure == "TV"
    (fine,) = series_of("heun", "M1", quick=False, asked=(8,))
    assert fine.errors == (pytest.approx(deterministic_tv(Heun(), M1(), PATH, times, points=2001), rel=1e-12),)
    (found,) = series_of("ancestral", "M1", asked=(8,))
    exact = stochastic_tv(Ancestral(), M1(), PATH, times, points=1024, nodes=5)
    assert (found.measure, found.errors) == ("TV", (pytest.approx(exact, rel=1e-12),))


def test_the_nearly_singular_target_ends_lower():
    times = measuring_grid("log-snr", 16, 0.01)(PATH)
    (found,) = series_of("ddim", "M1s", asked=(16,))
    assert found.errors == (
        pytest.approx(deterministic_tv(sampler("ddim"), M1s(), PATH, times, points=1001), rel=1e-12),
    )
    assert Bench("ddim", sampler("ddim"), "M1s", PATH).times(1)[-1] == pytest.approx(times[-1], rel=1e-12)


def test_a_folded_map_has_no_number():
    (found,) = series_of("heun", "M1s", asked=(4, 8))
    assert found.errors == (None, None)
    assert found.verdict == "open"


def test_errors_with_memory_come_with_their_noise():
    rule, times = sampler("dpmpp-2m-sde"), measuring_grid("log-snr", 8)(PATH)
    (found,) = series_of("dpmpp-2m-sde", "M1", asked=(8,))
    exact = blurred_w1(rule, M1(), PATH, times, samples=8000)
    assert (found.measure, found.errors) == ("W1", (pytest.approx(exact.w1, rel=1e-12),))
    assert found.note == f"both laws blurred by 0.1; sampling noise {exact.noise:.0e}"


def test_errors_over_drawn_times():
    rule, times = RandomizedMidpoint(), measuring_grid("log-snr", 8)(PATH)
    given, law = series_of("randomized-midpoint", "G8", asked=(8,))
    exact = over_times(rule, G8(), PATH, times, nodes=5)
    assert given.errors == (pytest.approx(exact.conditional_root_kl, rel=1e-12),)
    assert law.errors == (pytest.approx(exact.root_kl, rel=1e-12),)
    assert (given.declared, law.declared) == (1.5, 2)
    assert (given.note, law.note) == (
        "root mean KL over all drawn times, exact",
        "of the law over all drawn times",
    )
    fine = Bench("x", rule, "G8", PATH, asked=(8,)).series()[1]
    assert fine.errors == (pytest.approx(over_times(rule, G8(), PATH, times, nodes=8).root_kl, rel=1e-12),)
    (line,) = series_of("randomized-midpoint", "M1", asked=(8,))
    values = [deterministic_tv(rule, M1(), PATH, times, points=801, seed=mix("lab", "times", i)) for i in range(8)]
    assert line.errors == (pytest.approx(sum(values) / 8, rel=1e-12),)
    assert (line.measure, line.note) == ("TV, times given", "given the drawn times, mean over 8 draws")


def test_errors_of_coupled_trajectories():
    """256 starts from the exact law at the top, median distance to 600 steps of the classical rule."""
    times, rows = measuring_grid("log-snr", 8)(PATH), range(256)
    x, denoiser = M2().start(Noise.of(0, rows), PATH, times[0]), M2().denoiser(PATH)
    fine = flow(denoiser, x, times[0], times[-1], 600)
    (found,) = series_of("heun", "M2", asked=(8,))
    exact = coupled(Heun(), denoiser, x, times, Noise.of(0, rows), fine).median
    assert (found.measure, found.errors) == ("median distance", (pytest.approx(exact, rel=1e-9),))
    (drawn,) = series_of("randomized-midpoint", "M2", asked=(8,))
    values = [
        coupled(RandomizedMidpoint(), denoiser, x, times, Noise.of(mix("lab", "times", i), rows), fine).median
        for i in range(8)
    ]
    assert drawn.errors == (pytest.approx(sum(values) / 8, rel=1e-9),)
    assert drawn.measure == "median distance, times given"
    with pytest.raises(PathError, match="exact on Gaussians and on the line only"):
        series_of("ancestral", "M2", asked=(8,))


# --------------------------------------------------------------------------------------------------------------- rates


FIT = Fit(order=2.0, half_width=0.1, last=2.0, local=(2.0, 2.0), counts=(8, 16, 32), used=3)
ONE = Series(sampler="a", target="G8", measure="√KL", declared=2.0, counts=(8, 16), evaluations=(8, 16),
             errors=(0.1, 0.02), fit=FIT, verdict="agrees")  # fmt: skip


def test_a_report_passes_while_none_is_below():
    for verdict, passed in (("agrees", True), ("higher", True), ("exact", True), ("open", True), ("below", False)):
        series = (ONE, replace(ONE, verdict=verdict))
        report = Report(path="vp", grid="karras", quick=True, seconds=1.0, series=series, skipped=())
        assert report.passed == passed
        assert report.to_json() == {**asdict(report), "passed": passed}
    assert Report(path="vp", grid="karras", quick=True, seconds=1.0, series=(), skipped=()).passed


def test_how_many_times_closer():
    """The ratio of errors at evaluations that both have, on the same target in the same measure."""
    report = measure(["accelerated-sde", "ancestral"], ["Giso", "M1"], counts=(8, 16), quick=True)
    assert [(one.target, one.measure) for one in report.comparisons] == [("Giso", "√KL"), ("Giso", "W2"), ("M1", "TV")]
    by = {(one.sampler, one.target, one.measure): one for one in report.series}
    for one in report.comparisons:
        ours, theirs = (by[name, one.target, one.measure].errors for name in (one.sampler, one.against))
        assert one.evaluations == (8, 16)
        assert one.closer == tuple(b / a for a, b in zip(ours, theirs, strict=True))
    assert measure(["accelerated-sde"], ["Giso"], counts=(8,)).comparisons == ()


def test_what_is_told_and_left_out():
    said = []
    report = measure(["ancestral"], ["M2", "Giso"], counts=(4, 8), path="flow", grid="karras", quick=True,
                     progress=said.append)  # fmt: skip
    assert said == ["ancestral on M2", "ancestral on Giso"]
    assert [(one.sampler, one.target) for one in report.skipped] == [("ancestral", "M2")]
    assert "on the line only" in report.skipped[0].reason
    assert (report.path, report.grid, report.quick) == ("flow", "karras", True)
    times = measuring_grid("karras", 4)(Flow())
    found, law = gaussian_law(Ancestral(), Giso(), Flow(), times), Giso().law(Flow(), times[-1])
    assert report.series[0].errors[0] == pytest.approx(math.sqrt(kl(found, law)), rel=1e-10)
    usual = measure(["ddim"], ["Giso"], counts=(4,))
    assert (usual.path, usual.grid, usual.quick) == ("vp", "log-snr", False)


def test_names_of_the_registry_and_of_others():
    rules = {"mine": Heun, "again": lambda: Heun(), "other": Euler}
    assert distinct(rules) == [("mine", Heun()), ("other", Euler())]
    assert [name for name, _ in distinct(SAMPLERS)].count("ddpm") == 0
    picked = chosen(["other", "ddim"], rules)
    assert [picked[name]() for name in ("other", "ddim")] == [Euler(), sampler("ddim")]
    with pytest.raises(ConfigError, match="unknown sampler 'none'"):
        chosen(["none"], rules)["none"]()


# ------------------------------------------------------------------------------------------------------------- studies


def test_the_effect_of_a_wrong_score_on_every_kind_of_sampler():
    """Each pair of errors is that of the meter with the exact denoiser and with the wrong one."""
    error = ScoreError(scale=0.05)
    names = ["heun", "randomized-midpoint", "ancestral", "dpmpp-2m-sde"]
    found = score_error(error, names, ["G8", "M1"], path="ve", grid="karras", counts=(6, 12))
    path = VE()
    by = {(one.sampler, one.target): one for one in found.effects}
    for i, n in enumerate((6, 12)):
        times = measuring_grid("karras", n)(path)
        law = G8().law(path, times[-1])
        for name in ("heun", "ancestral", "dpmpp-2m-sde"):
            one = by[name, "G8"]
            for value, model in ((one.exact, G8().denoiser(path)), (one.changed, error(G8().denoiser(path)))):
                exact = math.sqrt(kl(gaussian_law(sampler(name), G8(), path, times, denoiser=model), law))
                assert value[i] == pytest.approx(exact, rel=1e-10)
        drawn = by["randomized-midpoint", "G8"]
        assert drawn.exact[i] == pytest.approx(over_times(RandomizedMidpoint(), G8(), path, times).root_kl, rel=1e-10)
        wrong = over_times(RandomizedMidpoint(), G8(), path, times, through=error)
        assert drawn.changed[i] == pytest.approx(wrong.root_kl, rel=1e-10)
        for name, meter, options in (
            ("heun", deterministic_tv, {"points": 1001}),
            ("randomized-midpoint", deterministic_tv, {"points": 1001}),
            ("ancestral", stochastic_tv, {"points": 1024, "nodes": 5}),
        ):
            one = by[name, "M1"]
            for value, model in ((one.exact, M1().denoiser(path)), (one.changed, error(M1().denoiser(path)))):
                exact = meter(sampler(name), M1(), path, times, denoiser=model, **options)
                assert value[i] is None if math.isnan(exact) else value[i] == pytest.approx(exact, rel=1e-10)
    assert [by[name, "G8"].measure for name in names] == ["√KL", "√KL, law", "√KL", "√KL"]
    assert [by[name, "M1"].measure for name in names[:3]] == ["TV", "TV, times given", "TV"]
    assert [(one.sampler, one.target) for one in found.skipped] == [("dpmpp-2m-sde", "M1")]
    assert "with memory" in found.skipped[0].reason
    assert (found.study, found.change, found.path, found.grid, found.counts) == (
        *("score-error", "1.05·s", "ve", "karras"),
        (6, 12),
    )
    assert found.to_json() == asdict(found)


def test_a_plateau_is_a_last_step_of_five_percent():
    """Of the changed error; a single count shows none."""
    names = ["unipc", "dpmpp-2m", "ddim"]
    found = score_error(ScoreError(scale=0.01), names, ["G8"], counts=(16, 64, 128)).effects
    steps = [abs(one.changed[2] - one.changed[1]) / one.changed[2] for one in found]
    assert [one.converged for one in found] == [step <= 0.05 for step in steps] == [True, True, False]
    assert max(steps) < 0.5
    (alone,) = score_error(ScoreError(scale=0.01), ["dpmpp-2m"], ["Giso"], counts=(64,)).effects
    assert not alone.converged


def test_studies_refuse_and_tell():
    said = []
    found = score_error(ScoreError(height=0.1), ["ddim"], ["M1", "G8"], counts=(4,), progress=said.append)
    assert said == ["ddim on M1", "ddim on G8"]
    assert "not affine" in found.skipped[0].reason
    assert (found.path, found.grid) == ("vp", "log-snr")
    for bad in ({"path": "x"}, {"targets": ["G9"]}, {"grid": "x"}, {"samplers": ["x"]}):
        with pytest.raises(ConfigError, match="unknown"):
            score_error(ScoreError(scale=0.1), **{"samplers": ["ddim"], "counts": (4,), **bad})
    with pytest.raises(ConfigError, match="unknown path"):
        precision(["ddim"], path="x")


def test_single_precision_by_hand():
    """The median distance to the same run in float64: of a float32 state, and of rounded answers only."""
    said = []
    study = precision(["heun"], counts=(5, 9), trajectories=7, grid="karras", path="flow", progress=said.append)
    (found,) = study.effects
    path, rows = Flow(), range(7)
    double, single = (Noise.of(0, rows, dtype=dtype) for dtype in (torch.float64, torch.float32))
    model = M2().denoiser(path)

    class Rounded:
        def __init__(self):
            self.path = path

        def __call__(self, x, t):
            estimate = model(x, t)
            return type(estimate)(x, t, path, clean=estimate.clean.float().double())

    for i, n in enumerate((5, 9)):
        times = measuring_grid("karras", n)(path)
        x = M2().start(double, path, times[0]).float()
        fine = run(solve(Heun(), path, x.double(), times, double), model)
        rounded = run(solve(Heun(), path, x.double(), times, double), Rounded())
        assert found.exact[i] == pytest.approx(distances(rounded, fine).median, rel=1e-6)
        whole = run(solve(Heun(), path, x, times, single), model)
        assert found.changed[i] == pytest.approx(distances(whole.double(), fine).median, rel=1e-6)
    assert said == ["heun on M2"]
    assert (study.study, study.change, study.path, study.grid) == (
        "precision", "float32 in place of float64", "flow", "karras",
    )  # fmt: skip
    assert found.measure == "median distance"


# ----------------------------------------------------------------------------------------------------------- dimension


def test_growth_by_hand():
    """Errors against 400 steps of UniPC-3, a row a target; the exponent over all of them by least squares."""
    assert (DIMENSIONS, FAMILIES) == ((4, 16, 64, 256), ("product", "mixture", "low-rank"))
    assert COMPARED == ("randomized-midpoint", "staggered-midpoint", "ddim", "dpmpp-2m")
    said, dims = [], (2, 3, 5)
    report = dimension(
        ["heun"], ["mixture"], dims, "ve", "karras", steps=8, targets=2, trajectories=9, progress=said.append
    )
    (found,) = report.growths
    path = VE()
    times, fine = (measuring_grid("karras", n)(path) for n in (8, 400))
    for draw in (0, 1):
        for j, d in enumerate(dims):
            target = random_mixture(d, draw)
            x, denoiser = target.start(Noise.of(0, range(9)), path, times[0]), target.denoiser(path)
            ends = [
                run(solve(r, path, x, t, Noise.of(0, range(9))), denoiser)
                for r, t in ((Heun(), times), (UniPC(p=3), fine))
            ]
            assert found.errors[draw][j] == pytest.approx(distances(*ends).median, rel=1e-8)
    points = [(math.log(d), math.log(e)) for row in found.errors for d, e in zip(dims, row, strict=True)]
    assert (found.exponent, found.half_width) == pytest.approx(least_squares(*zip(*points, strict=True)))
    assert (found.sampler, found.family, found.measure) == ("heun", "mixture", "median distance")
    assert (found.steps, found.evaluations, found.dimensions) == (8, 16, dims)
    assert said[:4] == [*(f"mixture, d = {d}, target 1" for d in dims), "mixture, d = 2, target 2"]
    assert (report.path, report.grid) == ("ve", "karras")
    assert report.to_json() == {"study": "dimension", **asdict(report)}


def test_drawn_times_are_averaged_over_schedules():
    report = dimension(["randomized-midpoint"], ["product"], (1, 2, 4), steps=6, schedules=3, trajectories=5)
    (found,) = report.growths
    assert found.measure == "root mean square distance"
    path, line = VP(), M1().start(Noise.of(0, range(5)), VP(), measuring_grid("log-snr", 6)(VP())[0])
    times, fine = (measuring_grid("log-snr", n)(path) for n in (6, 400))
    denoiser = Product(M1(), path)
    end = run(solve(UniPC(p=3), path, line, fine, Noise.of(0, range(5))), denoiser)
    values = []
    for i in range(3):
        noise = Noise.of(mix("lab", "dimension", i), range(5))
        values.append(distances(run(solve(RandomizedMidpoint(), path, line, times, noise), denoiser), end).rms)
    assert found.errors[0][0] == pytest.approx(sum(values) / 3, rel=1e-8)
    assert found.errors[0][2] == pytest.approx(2.0 * found.errors[0][0], rel=1e-9)


def test_a_product_is_the_line_in_every_coordinate():
    x = torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=torch.float64)
    product = Product(M1(), PATH)
    for answer in (product(x, 0.4), product.with_condition({})(x, 0.4), *product.predict_conditions(x, 0.4, [{}])):
        for j in (0, 1):
            torch.testing.assert_close(answer.clean[:, j : j + 1], M1().denoiser(PATH)(x[:, j : j + 1], 0.4).clean)
    with pytest.raises(ConfigError, match="at least three dimensions, got"):
        dimension(["ddim"], dimensions=(4, 4, 16))
