"""Laws of guidance that mixes predictions, and of how guidances combine."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import guidance as guide
from ornstein.denoisers import CachedDenoiser, Denoiser
from ornstein.errors import ConfigError, PathError, UsageError
from ornstein.lab.targets import GaussianTarget, MixtureTarget
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, run, solve

PATHS = [VP(), VE(), Flow()]
NAMES = [type(path).__name__ for path in PATHS]
X = Noise.of(0, range(3), dtype=torch.float64).normal("x", (2, 4, 4))
ONE, TWO = {"label": torch.tensor([1.0, 2.0, 3.0])}, {"label": torch.tensor([0.5])}


class Counted:
    """A pointwise network that is not linear in its condition, and counts the rows of each call."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        told = torch.zeros(len(x), dtype=x.dtype) if label is None else label.to(x.dtype)
        return torch.tanh(x + told[:, None, None, None]) + 1e-3 * time.to(x.dtype)[:, None, None, None]


def model(path=None) -> tuple[Denoiser, Counted]:
    net = Counted()
    return Denoiser(net, VP() if path is None else path, "clean", shape=(2, 4, 4)).with_condition(ONE), net


def vector(path, t: float, target: MixtureTarget, rows: int = 4) -> Tensor:
    noise = Noise.of(1, range(rows), dtype=torch.float64)
    return path.diffuse(target.sample(noise), t, noise.normal("z", (target.dim,)))


# ------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_guided_score_of_exact_models_is_the_mixture_of_their_scores(path, weight: float) -> None:
    """∇log p_u + w·(∇log p_c − ∇log p_u), from the densities themselves."""
    everything = MixtureTarget.of([0.4, 0.6], [[-1.0, 0.3], [1.5, -0.5]], stds=[0.5, 0.8])
    kind = GaussianTarget([1.5, -0.5], [0.64, 0.64])
    t = path.time_of(0.2)
    x = vector(path, t, everything)
    guidance = guide.Autoguidance(weight=weight, worse=everything.denoiser(path), conditional=False)
    found = guidance(kind.denoiser(path))(x, t).score
    of_c, of_u = kind.score(x, path, t), everything.score(x, path, t)
    torch.testing.assert_close(found, of_u + weight * (of_c - of_u), rtol=1e-9, atol=1e-9)


def test_guidance_of_a_gaussian_samples_the_sharpened_law_at_each_level() -> None:
    """N(m, v) against N(m', v'): the guided estimate is the exact denoiser of no law, but its fixed line is known."""
    path = VE()
    c, u = GaussianTarget([1.0], [0.25]), GaussianTarget([0.0], [1.0])
    t, w = 0.7, 3.0
    x = vector(path, t, u)
    found = guide.Autoguidance(weight=w, worse=u.denoiser(path), conditional=False)(c.denoiser(path))(x, t).clean
    at_c, at_u = 1.0 + 0.25 / (0.25 + t * t) * (x - 1.0), x / (1.0 + t * t)
    torch.testing.assert_close(found, at_u + w * (at_c - at_u), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfgpp_on_ddim_is_the_published_step(path, scale: float) -> None:
    """x_s = α_s·(u + λ(c − u)) + σ_s·ẑ_u, on a grid down to the clean end, and on pure noise."""
    denoiser, _ = model(path)
    grid = [*(path.time_of(level) for level in (-4.0, -1.0, 2.0)), path.t_range[0]]
    if isinstance(path, Flow):
        grid = [1.0, *grid]
    x = X
    for t, s in itertools.pairwise(grid):
        c, u = denoiser(x, t), denoiser.with_condition(TWO)(x, t)
        x = path.alpha(s) * (u.clean + scale * (c.clean - u.clean)) + path.sigma(s) * u.noise
    guidance = guide.CFGpp(scale=scale, null=TWO, grid=grid)
    found = run(solve(DDIM(), path, X, grid, Noise.of(0, range(3), dtype=torch.float64)), guidance(denoiser))
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


def test_apg_without_projection_is_cfg_and_its_parts_are_orthogonal() -> None:
    denoiser, _ = model()
    c, u = denoiser(X, 0.5).clean, denoiser.with_condition(TWO)(X, 0.5).clean
    cfg = guide.CFG(weight=5.0, null=TWO)(denoiser)(X, 0.5).clean
    same = guide.APG(weight=5.0, null=TWO, parallel=1.0)(denoiser)(X, 0.5).clean
    torch.testing.assert_close(same, cfg, rtol=1e-12, atol=1e-12)
    shift = guide.APG(weight=5.0, null=TWO)(denoiser)(X, 0.5).clean - c
    torch.testing.assert_close((shift * c).flatten(1).sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-11)
    alike = torch.cosine_similarity((cfg - c - shift).flatten(1), c.flatten(1))
    torch.testing.assert_close(alike.abs(), torch.ones(3, dtype=torch.float64))
    limited = guide.APG(weight=5.0, null=TWO, parallel=1.0, norm=0.1)(denoiser)(X, 0.5).clean - c
    lengths = torch.minimum((c - u).flatten(1).norm(dim=1), torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(limited.flatten(1).norm(dim=1), 4.0 * lengths)
    loose = guide.APG(weight=5.0, null=TWO, parallel=1.0, norm=1e9)(denoiser)(X, 0.5).clean
    torch.testing.assert_close(loose, same, rtol=1e-13, atol=1e-13)


def test_rescaling_restores_the_spread() -> None:
    denoiser, _ = model()
    c = denoiser(X, 0.5).clean
    plain, half, full = (
        guide.CFG(weight=6.0, null=TWO, rescale=share)(denoiser)(X, 0.5).clean for share in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(full.flatten(1).std(1), c.flatten(1).std(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(half, 0.5 * plain + 0.5 * full, rtol=1e-12, atol=1e-12)
    alike = torch.cosine_similarity(plain.flatten(1), full.flatten(1))
    torch.testing.assert_close(alike, torch.ones(3, dtype=torch.float64))


def test_thresholding_scales_into_the_range_and_leaves_what_is_inside() -> None:
    denoiser = Denoiser(lambda x, time: x, VE(), "clean")
    inside, outside = X.clamp(-1, 1), 3.0 * X
    for quantile in (0.9, 1.0, None):
        assert torch.equal(guide.Threshold(quantile=quantile)(denoiser)(inside, 1.0).clean, inside)
        assert float(guide.Threshold(quantile=quantile)(denoiser)(outside, 1.0).clean.abs().max()) <= 1.0
    whole = guide.Threshold(quantile=1.0)(denoiser)
    scale = outside.abs().flatten(1).amax(1)[:, None, None, None]
    torch.testing.assert_close(whole(outside, 1.0).clean, outside / scale, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(whole(7.0 * outside, 1.0).clean, whole(outside, 1.0).clean, rtol=1e-14, atol=1e-14)
    sizes = outside.abs().flatten(1)
    s = torch.quantile(sizes, 0.8, dim=1).clamp_min(1.0)[:, None, None, None]
    expected = torch.minimum(torch.maximum(outside, -s), s) / s
    torch.testing.assert_close(guide.Threshold(quantile=0.8)(denoiser)(outside, 1.0).clean, expected)
    torch.testing.assert_close(guide.Threshold(quantile=0.8, bound=0.5)(denoiser)(outside / 2, 1.0).clean, expected / 2)


# ------------------------------------------------------------------------------------------- nothing changes for free


def neutral(denoiser: Denoiser) -> dict[str, orn.Guidance]:
    """Guidances that must leave every bit alone."""
    classifier = guide.NoisyClassifier(classifier=lambda x, level: x.flatten(1), label=0, weight=0.0)
    return {
        "cfg": guide.CFG(weight=1.0, null=TWO, rescale=0.7),
        "cfg by level": guide.CFG(weight=lambda log_snr: 1.0, null=TWO),
        "apg": guide.APG(weight=1.0, null=TWO, norm=1.0),
        "auto": guide.Autoguidance(weight=1.0, worse=denoiser.with_condition(TWO)),
        "classifier": classifier,
        "perturbed": guide.Perturbed(scale=0.0, by={}),
        "pag": guide.PAG(scale=0.0),
        "window": guide.interval(guide.CFG(weight=9.0, null=TWO), log_snr=(50.0, 60.0)),
        "stack": guide.compose(guide.CFG(weight=1.0, null=TWO), classifier),
        "empty stack": guide.compose(),
        "together": guide.add(classifier, guide.APG(weight=1.0, null=TWO), guide.CFG(weight=1.0, null=TWO)),
    }


@pytest.mark.parametrize("name", neutral(model()[0]))
def test_weight_one_is_no_guidance_bit_for_bit_and_costs_nothing(name: str) -> None:
    denoiser, net = model()
    guided = neutral(denoiser)[name](denoiser)
    kwargs = {"n": 3, "sampler": "dpmpp-2m", "steps": 4, "dtype": torch.float64}
    plain = orn.sample(denoiser, **kwargs)
    cost = len(net.rows)
    assert torch.equal(orn.sample(guided, **kwargs), plain)
    assert net.rows[cost:] == net.rows[:cost]


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ddpm", "dpmpp-2m", "unipc"])
def test_a_window_is_in_noise_level_and_exact_outside(sampler: str) -> None:
    denoiser, net = model()
    path = denoiser.path
    guidance = guide.CFG(weight=4.0, null=TWO)
    guided = guide.interval(guidance, log_snr=(-1.0, 3.0))(denoiser)
    asked = [
        event
        for event in orn.stream(guided, 3, sampler=sampler, steps=8, dtype=torch.float64)
        if event.estimate is not None
    ]
    net.rows.clear()
    inside = [-1.0 <= path.log_snr(event.t) < 3.0 for event in asked]
    assert {True, False} == set(inside)
    for event, guided_here in zip(asked, inside, strict=True):
        expected = (guidance(denoiser) if guided_here else denoiser)(event.x, event.t)
        assert torch.equal(event.estimate.clean, expected.clean)
    assert [6 if here else 3 for here in inside] == net.rows


def test_a_window_in_sigma_is_the_same_window() -> None:
    path = VE()
    denoiser, _ = model(path)
    guidance = guide.CFG(weight=4.0, null=TWO)
    by_sigma = guide.interval(guidance, sigma=(0.5, 4.0))(denoiser)
    by_level = guide.interval(guidance, log_snr=(-2 * math.log(4.0), -2 * math.log(0.5)))(denoiser)
    for sigma, inside in ((0.3, False), (0.5, False), (0.7, True), (3.9, True), (4.0, True), (4.1, False)):
        answers = [d(X, sigma).clean for d in (by_sigma, by_level, guidance(denoiser) if inside else denoiser)]
        assert torch.equal(answers[0], answers[1])
        assert torch.equal(answers[0], answers[2]), sigma
    open_ended = guide.interval(guidance, sigma=(0.0, math.inf))(denoiser)
    assert torch.equal(open_ended(X, 60.0).clean, guidance(denoiser)(X, 60.0).clean)
    times = torch.tensor([0.3, 1.0, 9.0], dtype=torch.float64)
    rows = by_sigma(X, times).clean
    assert torch.equal(rows[[0, 2]], denoiser(X, times).clean[[0, 2]])
    torch.testing.assert_close(rows[1], guidance(denoiser)(X, times).clean[1], rtol=1e-14, atol=1e-14)
    for wrong in ({}, {"sigma": (1.0, 0.5)}, {"log_snr": (1.0, 1.0)}, {"log_snr": (0.0, 1.0), "sigma": (0.1, 1.0)}):
        with pytest.raises(ConfigError, match="window"):
            guide.interval(guidance, **wrong)


# --------------------------------------------------------------------------------------------- conditions and sharing


def test_cfg_is_one_batch_for_any_conditions_that_fit_and_two_calls_otherwise() -> None:
    denoiser, net = model()
    c, u = denoiser(X, 0.5).clean, denoiser.with_condition(TWO)(X, 0.5).clean
    net.rows.clear()
    guided = guide.CFG(weight=2.5, null=TWO)(denoiser)(X, 0.5).clean
    assert net.rows == [6]
    torch.testing.assert_close(guided, u + 2.5 * (c - u), rtol=1e-13, atol=1e-13)
    net.rows.clear()
    bare = denoiser.with_condition({})(X, 0.5).clean
    guided = guide.CFG(weight=2.5, null={})(denoiser)(X, 0.5).clean
    assert net.rows == [3, 3, 3]
    torch.testing.assert_close(guided, bare + 2.5 * (c - bare), rtol=1e-13, atol=1e-13)
    net.rows.clear()
    assert torch.equal(guide.CFG(weight=0.0, null=TWO)(denoiser)(X, 0.5).clean, u)
    assert net.rows == [3]
    with torch.no_grad():
        times = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        by_level = guide.CFG(weight=lambda log_snr: 1.0 + log_snr, null=TWO)(denoiser)(X, times).clean
        for i, t in enumerate(times.tolist()):
            one = denoiser.with_condition({"label": ONE["label"][i : i + 1]})
            row = guide.CFG(weight=lambda log_snr: 1.0 + log_snr, null=TWO)(one)(X[i : i + 1], t).clean
            torch.testing.assert_close(by_level[i : i + 1], row, rtol=1e-9, atol=1e-9)


def test_conditions_are_bound_through_every_guidance() -> None:
    denoiser, _ = model()
    free = denoiser.with_condition({"label": torch.tensor([7.0])})
    worse = Denoiser(lambda x, time, label: 0.5 * torch.tanh(x + label[:, None, None, None]), VP(), "clean")
    for guidance in (
        guide.CFG(weight=2.0, null=TWO),
        guide.APG(weight=2.0, null=TWO),
        guide.Autoguidance(weight=2.0, worse=worse),
        guide.interval(guide.CFG(weight=2.0, null=TWO), sigma=(0.0, 100.0)),
        guide.compose(guide.CFG(weight=2.0, null=TWO), guide.Threshold()),
        guide.add(guide.CFG(weight=2.0, null=TWO), guide.Autoguidance(weight=2.0, worse=worse)),
        lambda inner: CachedDenoiser(guide.CFG(weight=2.0, null=TWO)(CachedDenoiser(inner))),
    ):
        expected = guidance(denoiser)(X, 0.5).clean
        assert torch.equal(guidance(free).with_condition(ONE)(X, 0.5).clean, expected)
        assert torch.equal(guidance(free).predict_conditions(X, 0.5, [ONE, TWO])[0].clean, expected)
        whole = orn.sample(guidance(free), 3, steps=2, cond=ONE, dtype=torch.float64, shape=(2, 4, 4))
        split = orn.sample(guidance(free), 3, steps=2, cond=ONE, dtype=torch.float64, shape=(2, 4, 4), strict=True)
        torch.testing.assert_close(whole, split, rtol=1e-12, atol=1e-12)
    guided = guide.CFG(weight=2.0, null=TWO)(denoiser)
    assert guided.info.shape == (2, 4, 4)
    assert guided.info.device == torch.device("cpu")
    assert torch.equal(orn.sample(guided, 3, steps=2), orn.sample(guided, 3, steps=2, shape=(2, 4, 4)))


def test_guidances_that_need_the_same_estimate_share_the_call() -> None:
    denoiser, net = model()
    worse = Denoiser(lambda x, time, label: 0.5 * x, VP(), "clean")
    cfg, auto = guide.CFG(weight=2.0, null=TWO), guide.Autoguidance(weight=1.5, worse=worse)
    c, u, b = (
        denoiser(X, 0.5).clean,
        denoiser.with_condition(TWO)(X, 0.5).clean,
        worse.with_condition(ONE)(X, 0.5).clean,
    )
    classifier = guide.NoisyClassifier(classifier=lambda x, level: x.flatten(1), label=3)
    moved = classifier(denoiser)(X, 0.5).clean - c
    for order in itertools.permutations((cfg, auto, classifier)):
        net.rows.clear()
        found = guide.add(*order)(denoiser)(X, 0.5).clean
        assert sum(net.rows) == 6, "c and u, each once"
        torch.testing.assert_close(found, c + (c - u) + 0.5 * (c - b) + moved, rtol=1e-12, atol=1e-12)
    net.rows.clear()
    guide.add(guide.interval(cfg, sigma=(0.0, 1e9)), guide.APG(weight=3.0, null=TWO))(denoiser)(X, 0.5)
    guide.compose(cfg, guide.Threshold(), auto)(denoiser)(X, 0.5)
    assert net.rows == [6, 6]
    nested = guide.compose(guide.add(cfg, guide.compose(auto, classifier)), guide.Threshold(bound=100.0))
    net.rows.clear()
    nested(denoiser)(X, 0.5)
    assert sum(net.rows) == 6


def test_any_function_of_denoisers_is_a_guidance() -> None:
    denoiser, _ = model()

    def shy(inner):
        class Half:
            path = inner.path

            def __call__(self, x, t):
                answer = inner(x, t)
                return answer.replace(clean=0.5 * answer.clean)

            def with_condition(self, cond):
                return shy(inner.with_condition(cond))

            def predict_conditions(self, x, t, conds):
                return [self.with_condition(cond)(x, t) for cond in conds]

        return Half()

    found = guide.compose(guide.CFG(weight=2.0, null=TWO), shy)(denoiser)(X, 0.5).clean
    assert torch.equal(found, 0.5 * guide.CFG(weight=2.0, null=TWO)(denoiser)(X, 0.5).clean)
    torch.testing.assert_close(guide.CFG(weight=2.0, null=TWO)(shy(denoiser))(X, 0.5).clean, found)


@pytest.mark.parametrize("sampler", sorted(orn.samplers.SAMPLERS))
def test_guidance_runs_with_every_sampler(sampler: str) -> None:
    """Three of them, over a climbing grid: the samples of N(0, ½²) go where the energy is low."""
    path = VP()

    def net(x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        a, s = (c(time.double() / 1000.0).to(x.dtype)[:, None] for c in (path.alpha, path.sigma))
        clean = 0.25 * a * x / (0.25 * a**2 + s**2) + 0.0 * label[:, None].to(x.dtype)
        return torch.cat([clean, torch.zeros_like(clean)], 1)  # the second half: a learned variance

    denoiser = Denoiser(net, path, "clean", shape=(2,), learned_variance=True).with_condition(ONE)
    near = guide.Measured(operator=lambda x: x, target=torch.tensor([[0.5, -0.5]]), std=0.2)
    guidance = guide.compose(
        guide.interval(guide.CFG(weight=3.0, null=TWO), log_snr=(-3.0, 3.0)),
        guide.Universal(energies=near, strength=guide.corrected(0.2, variance=0.25)),
        guide.Threshold(quantile=None, bound=3.0),
    )
    grid = orn.grids.resample(orn.grids.log_snr(6), 2)
    guided, plain = (orn.sample(m, 3, sampler=sampler, grid=grid) for m in (guidance(denoiser), denoiser))
    assert bool(torch.isfinite(guided).all())
    assert float(near(guided).mean()) < 0.6 * float(near(plain).mean())


def test_mixing_works_on_every_path() -> None:
    shifted = ShiftedPath(shift=lambda clean, c, t: 0.3 * clean * c["label"].reshape(-1, 1, 1, 1))
    pyramid = PyramidPath()
    for path in (shifted, pyramid):
        denoiser, _ = model(path)
        guided = guide.compose(guide.CFG(weight=2.0, null=TWO), guide.APG(weight=1.0, null=TWO), guide.Threshold())
        assert torch.isfinite(guided(denoiser)(X, 1.0 if path is pyramid else 0.5).clean).all()
    with pytest.raises(PathError, match="PyramidPath"):
        guide.interval(guided, log_snr=(0.0, 1.0))(denoiser)(X, 1.0)
    with pytest.raises(PathError, match="AffinePath"):
        guide.CFGpp(scale=0.5, null=TWO, grid=[0.9, 0.1])(model(shifted)[0])(X, 0.5)


def test_wrong_numbers_are_refused() -> None:
    for wrong in (
        lambda: guide.CFG(weight=2.0, null=TWO, rescale=1.5),
        lambda: guide.APG(weight=2.0, null=TWO, norm=0.0),
        lambda: guide.CFGpp(scale=7.5, null=TWO, grid=[1.0, 0.0]),
        lambda: guide.Threshold(quantile=1.2),
        lambda: guide.Threshold(bound=0.0),
        lambda: guide.SEG(blur=0.0),
        lambda: guide.SkipLayer.blocks(0),
        lambda: guide.LinearPosterior(measured=None, iterations=0),  # type: ignore[arg-type]
        lambda: guide.Backward(steps=-1, rate=0.1),
        lambda: guide.Measured(operator=lambda x: x, target=X, std=0.0),
    ):
        with pytest.raises(ConfigError):
            wrong()


# ------------------------------------------------------------------------------------------------- noisy classifiers


def tail(x: Tensor, log_snr: Tensor) -> Tensor:
    """log P(|x_0| > q | x) of x_0 ~ N(0, 1), from the state at unit variance: x_0 | x ~ N(√ᾱ·x, 1 − ᾱ)."""
    mean = torch.sigmoid(log_snr).sqrt()[:, None] * x
    std = torch.sigmoid(-log_snr).sqrt()[:, None]
    both = torch.stack([torch.special.log_ndtr((mean - Q) / std), torch.special.log_ndtr((-mean - Q) / std)])
    return torch.logsumexp(both, 0)[:, 0]


Q = 1.6448536269514722


@pytest.mark.parametrize("path", [VP(), Flow()], ids=["VP", "Flow"])
def test_an_exact_classifier_gives_the_truncated_gaussian(path) -> None:
    """Weight 1, exact models: all |x| > q, E|x| = 2.063, E x² = 4.393, along a deterministic map of quantiles."""
    model = guide.NoisyClassifier(classifier=tail)(GaussianTarget([0.0], [1.0]).denoiser(path))
    levels = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    times = orn.grids.times_of(orn.grids.span_log_snr(300, -9.0, 9.0), path)
    x = path.std(times[0]) * torch.special.ndtri(levels)[:, None]
    out = run(solve(DDIM(), path, x, times, Noise.of(0, range(400))), model) / path.alpha(times[-1])
    assert float(out.abs().min()) > Q - 0.05
    assert float(out.abs().mean()) == pytest.approx(2.063, abs=0.015)
    assert float(out.square().mean()) == pytest.approx(4.393, rel=0.015)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_an_exact_classifier_turns_a_mixture_into_its_component(path) -> None:
    """score + ∇log p(k | x) = the component's score, with logits of the components' densities, on every path."""
    target = MixtureTarget.of([0.9, 0.1], [[-1.0], [1.5]], stds=[0.4, 0.7])
    kind = GaussianTarget([1.5], [0.49])
    t = path.time_of(0.5)
    x = vector(path, t, target)

    def logits(state: Tensor, log_snr: Tensor) -> Tensor:
        # Fed at unit variance: a VP state of the same log-SNR.
        a, s = torch.sigmoid(log_snr).sqrt()[:1], torch.sigmoid(-log_snr).sqrt()[:1]
        c = a**2 * target.variances[:, 0] + s**2
        return target.weights.log() - 0.5 * ((state - a * target.means[:, 0]) ** 2 / c + c.log())

    for label in (1, torch.tensor([1]), torch.tensor([1, 1, 1, 1])):
        guided = guide.NoisyClassifier(classifier=logits, label=label)(target.denoiser(path))(x, t)
        torch.testing.assert_close(guided.clean, kind.denoiser(path)(x, t).clean, rtol=1e-6, atol=1e-6)


def test_a_classifier_is_asked_about_each_sample_by_itself_and_told_what_it_wants() -> None:
    denoiser, _ = model(VE())
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(x: Tensor, log_snr: Tensor) -> Tensor:
        seen.append((x.detach(), log_snr))
        return x.flatten(1).square().sum(1)

    times = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    whole = guide.NoisyClassifier(classifier=spy, feeds="state")(denoiser)(X, times).clean
    assert torch.equal(seen[0][0], X)
    torch.testing.assert_close(seen[0][1], -2.0 * times.log())
    torch.testing.assert_close(whole, denoiser(X, times).clean + times[:, None, None, None] ** 2 * 2 * X)
    guide.NoisyClassifier(classifier=spy)(denoiser)(X, 2.0)
    torch.testing.assert_close(seen[1][0], X / math.sqrt(5.0))
    with pytest.raises(UsageError, match="logits"):
        guide.NoisyClassifier(classifier=spy, label=3)(denoiser)(X, 0.5)
    with pytest.raises(UsageError, match=r"shape \(3,\)"):
        guide.NoisyClassifier(classifier=lambda x, level: x.flatten(1))(denoiser)(X, 0.5)
