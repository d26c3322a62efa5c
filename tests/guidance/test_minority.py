"""Minority guidance and its successors: exact laws (H1, H5, H7, H9), finite differences, and what changes nothing."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import grids, guidance
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError, GridError, UsageError
from ornstein.lab.targets import MixtureTarget
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise
from ornstein.samplers import plan

Q = 1.6448536269514722  # P(|x| > Q) = 0.1


def log_ndtr(x: Tensor) -> Tensor:
    return torch.special.log_ndtr(x)


@dataclass
class Tails:
    """log p(|x_0| > Q | x) and of its opposite for x_0 ~ N(0, 1), coordinate by coordinate; class 1 is the rare one."""

    labels: tuple[str, ...] = ()

    def number(self, target: int) -> int:
        return target % 2

    def log_likelihood(self, state: Tensor, log_snr: Tensor, target: int, label: Tensor | None = None) -> Tensor:
        a = torch.sigmoid(log_snr)[:, None]
        m, s = a.sqrt() * state, (1.0 - a).sqrt()
        rare = torch.logaddexp(log_ndtr((-Q - m) / s), log_ndtr((m - Q) / s))
        if target == 0:
            rare = torch.log(-torch.expm1(rare))
        self.levels.extend(log_snr[:1].tolist())
        return rare.sum(1)

    def __post_init__(self) -> None:
        self.levels: list[float] = []


def normal(path, v: float = 1.0) -> Denoiser:
    """The exact denoiser of independent coordinates N(0, v)."""

    @dataclass(frozen=True)
    class Exact:
        def precondition(self, path, x, t):
            return x

        def to_estimate(self, path, x, t, raw):
            a, s = path.alpha(t), path.sigma(t)
            return orn.Estimate(x, t, path, clean=a * v / (a * a * v + s * s) * x)

        def target(self, path, clean, noise, x, t):
            return clean

    return Denoiser(lambda x, time: x, path, Exact())


def drawn(model, n: int = 8, wide: int = 1000, **more) -> Tensor:
    return orn.sample(model, n, shape=(wide,), dtype=torch.float64, **more)


@pytest.mark.parametrize(
    ("path", "sampler", "steps", "inside"),
    [(VP(), "ddim", 200, 1.0), (VE(), "ddim", 150, 1.0), (Flow(), "ddim", 200, 1.0), (VP(), "ancestral", 250, 0.9)],
    ids=["VP", "VE", "Flow", "ancestral"],
)
def test_weight_one_samples_the_truncated_gaussian(path, sampler, steps, inside):
    """H5: all |x| > q, E|x| = 2.063, variance 4.393; one classifier serves every path and sampler."""
    model = guidance.Minority(Tails(), -1, 1.0)(normal(path))
    grid = grids.log_snr(steps) if isinstance(path, VP) else grids.default(path, steps)
    x = drawn(model, 2, sampler=sampler, grid=grid).flatten()
    assert float((x.abs() > Q).double().mean()) >= inside
    assert float(x.abs().mean()) == pytest.approx(2.063, abs=0.03)
    assert float(x.var()) == pytest.approx(4.393, abs=0.13)
    assert abs(float(x.mean())) < 0.11


def test_the_common_class_and_overshooting():
    plain, grid = normal(VP()), grids.log_snr(100)
    means = []
    for target, weight in ((0, 1.0), (-1, 2.0), (-1, 5.0)):
        x = drawn(guidance.Minority(Tails(), target, weight)(plain), 2, sampler="ddim", grid=grid)
        means.append(float(x.abs().mean()))
        assert target or float((x.abs() < Q + 0.02).double().mean()) > 0.999
    assert means == pytest.approx([0.657, 2.57, 3.66], abs=0.06)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ancestral", "dpmpp-2m"])
def test_weight_zero_is_no_guidance(sampler):
    """H1."""
    plain = normal(VP())
    for rule in (guidance.Minority(Tails(), -1, 0.0), guidance.SelfMinority(scale=0.0, distance="squared")):
        ours, theirs = (drawn(m, 2, 5, sampler=sampler, steps=6) for m in (rule(plain), plain))
        assert torch.equal(ours, theirs)


def test_the_classifier_is_told_the_noise_of_the_grid():
    """H7: log-SNRs of the path at the sampler's own times, whatever the number of steps."""
    tails, path = Tails(), VP()
    model = guidance.Minority(tails, -1, 1.0)(normal(path))
    times = grids.uniform(7)(path)
    drawn(model, 1, 3, sampler="ddim", grid=times)
    assert tails.levels == pytest.approx([path.log_snr(t) for t in plan(orn.samplers.DDIM(), path, times)])


@dataclass
class Components:
    """log p(component | x) of a mixture on the line, exact."""

    target: MixtureTarget
    labels: tuple[str, ...] = ()

    def number(self, target: int) -> int:
        return target

    def log_likelihood(self, state: Tensor, log_snr: Tensor, target: int, label: Tensor | None = None) -> Tensor:
        a = torch.sigmoid(log_snr)[:, None]
        means, variances = a.sqrt() * self.target.means[:, 0], a * self.target.variances[:, 0] + 1.0 - a
        joint = self.target.weights.log() - 0.5 * ((state - means) ** 2 / variances + variances.log())
        return torch.log_softmax(joint, 1)[:, target]


@pytest.mark.parametrize(("which", "part"), [(1, 1.0), (0, 0.0)])
def test_control_is_complete_with_the_exact_posterior(which, part):
    """H9."""
    target = MixtureTarget.of([0.9, 0.1], [[-2.0], [2.5]], stds=[0.4, 0.3])
    model = guidance.Minority(Components(target), which, 1.0)(target.denoiser(VP()))
    x = drawn(model, 200, 1, sampler="ddim", grid=grids.log_snr(60))
    assert float((x > 0.25).double().mean()) == part
    kept = target.means[which]
    assert float(x.mean()) == pytest.approx(float(kept), abs=0.1)


# --------------------------------------------------------------------------------------------------- without classifier


MIX = MixtureTarget.of([0.6, 0.4], [[-1.0, 0.3], [1.5, -0.5]], stds=[0.5, 0.8])
X = Noise.of(0, range(3), dtype=torch.float64).normal("x", (2,))


@pytest.mark.parametrize("path", [VP(), VE()], ids=lambda p: type(p).__name__)
def test_self_guidance_is_the_gradient_of_the_distance(path):
    """By finite differences; the second reconstruction is held fixed."""
    t = path.time_of(-0.5)
    x = path.diffuse(MIX.sample(Noise.of(1, range(3), dtype=torch.float64)), t, X)
    model = MIX.denoiser(path)
    seen = []

    def squared(a: Tensor, b: Tensor) -> Tensor:
        seen.append(b)
        return (a - b).square().sum(1)

    rule = guidance.SelfMinority(scale=0.7, log_snr=-1.0, distance=squared, normalise=False, draws=2)
    shift = rule(model)(x, t).clean - model(x, t).clean
    assert len(seen) == 2
    assert not torch.equal(*seen)

    def far(x: Tensor) -> Tensor:
        clean = model(x, t).clean
        return torch.stack([(clean - other).square().sum(1) for other in seen]).mean(0)

    for axis in range(2):
        h = torch.zeros(2, dtype=torch.float64)
        h[axis] = 1e-5
        slope = (far(x + h) - far(x - h)) / 2e-5
        torch.testing.assert_close(
            shift[:, axis], 0.7 * path.sigma(t) ** 2 / path.alpha(t) * slope, rtol=1e-5, atol=1e-8
        )
    unit = replace(rule, normalise=True)(model)(x, t).clean - model(x, t).clean
    largest = shift.abs().amax(1, keepdim=True) / (0.7 * path.sigma(t) ** 2 / path.alpha(t))
    torch.testing.assert_close(unit, shift / largest)


def test_self_guidance_does_not_depend_on_the_batch_and_stacks():
    path = VP()
    model, rule = MIX.denoiser(path), guidance.SelfMinority(distance="squared")
    whole = rule(model)(X, 0.5).clean
    torch.testing.assert_close(rule(model)(X[1:2], 0.5).clean, whole[1:2], rtol=1e-12, atol=1e-12)
    side = guidance.add(rule, guidance.SelfMinority(distance="absolute"))(model)(X, 0.5).clean
    other = guidance.SelfMinority(distance="absolute")(model)(X, 0.5).clean
    torch.testing.assert_close(side, whole + other - model(X, 0.5).clean)


def test_self_guidance_acts_at_every_so_manieth_time():
    path = VP()
    grid = grids.log_snr(10)
    rule = guidance.SelfMinority(distance="squared", every=5, grid=grid)
    model = MIX.denoiser(path)
    acts = [not torch.equal(rule(model)(X, t).clean, model(X, t).clean) for t in grid(path)[:-1]]
    assert acts == [True, *[False] * 4, True, *[False] * 4]
    with pytest.raises(ConfigError, match="give the sampler's"):
        guidance.SelfMinority(distance="squared", every=2)


def test_self_guidance_sees_pictures_by_a_named_distance():
    model = Denoiser(lambda x, time: torch.tanh(x), VP(), "clean", shape=(3, 16, 16))
    x = Noise.of(0, range(2)).normal("x", (3, 16, 16))
    shift = guidance.SelfMinority()(model)(x, 0.5).clean - model(x, 0.5).clean
    assert float(shift.flatten(1).abs().amax(1).min()) > 0.0


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("v", [1.0, 100.0])
def test_the_variance_law_of_boost_and_skip(path, v):
    """κ²(γσ)² + v·σ²/(α²v + σ²) with the exact reverse kernel."""
    model, t = normal(path, v), path.time_of(-7.0)
    x = drawn(model, 8, 1000, sampler=Exactly(v), grid=(path.t_range[1], t, 0.0), prior_scale=4.0, skip_steps=1)
    assert float(x.var()) == pytest.approx(predicted(path, t, v), rel=0.06)


def test_the_published_numbers_of_boost_and_skip():
    """v = 100, γ = 4, 100 of 1000 steps skipped: 139.0, and 139.3 measured there with ancestral sampling."""
    path, v = VP.table("linear"), 100.0
    steps = [k / 1000 for k in range(1000, -1, -1)]
    assert predicted(path, steps[100], v) == pytest.approx(139.0, abs=0.05)
    assert predicted(path, steps[100], 1.0) == pytest.approx(1.0, abs=0.005)
    x = drawn(normal(path, v), 4, 1000, sampler="ancestral", grid=steps, prior_scale=4.0, skip_steps=100)
    assert float(x.var()) == pytest.approx(139.3, rel=0.06)  # 4,000 values: a standard error of 2.2 %


def predicted(path, t: float, v: float, gamma: float = 4.0) -> float:
    a, s = path.alpha(t), path.sigma(t)
    kappa = a * v / (a * a * v + s * s)
    return (kappa * gamma * s) ** 2 + v * s * s / (a * a * v + s * s)


@dataclass(frozen=True)
class Exactly:
    """One step to the clean end by the exact reverse kernel of N(0, v)."""

    v: float
    order = 1
    needs = orn.AffinePath

    def step(self, path, x, step, noise, memory):
        estimate = yield orn.samplers.Query(x, step.t)
        a, s = path.alpha(step.t), path.sigma(step.t)
        spread = math.sqrt(self.v * s * s / (a * a * self.v + s * s))
        return estimate.clean + spread * noise.normal("end", x.shape[1:])


def test_no_boost_is_no_change_and_skips_are_steps_of_the_grid():
    model = normal(VP())
    plain = drawn(model, 2, 5, sampler="ancestral", steps=6)
    assert torch.equal(drawn(model, 2, 5, sampler="ancestral", steps=6, prior_scale=1.0, skip_steps=0), plain)
    times = grids.default(VP(), 6)(VP())
    assert grids.skip(grids.default(VP(), 6), 2)(VP()) == times[2:]
    ours = drawn(model, 2, 5, sampler="ddim", steps=6, prior_scale=3.0, skip_steps=2)
    torch.testing.assert_close(ours, 3.0 * drawn(model, 2, 5, sampler="ddim", grid=times[2:]))
    last = list(
        orn.stream(model, 2, shape=(5,), dtype=torch.float64, sampler="ddim", steps=6, prior_scale=3.0, skip_steps=2)
    )[-1]
    assert torch.equal(last.x, ours)
    with pytest.raises(GridError, match="6 of 6 steps"):
        drawn(model, 1, 2, steps=6, skip_steps=6)
    with pytest.raises(ConfigError, match="positive"):
        drawn(model, 1, 2, steps=6, prior_scale=0.0)


# --------------------------------------------------------------------------------------------------------- the prompt


W = Noise.of(9, [0], dtype=torch.float64).normal("weights", (4, 2))[0]


def texty(x: Tensor, time: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
    """Each row attends to its tokens."""
    assert text is not None
    weight = torch.ones(text.shape[:2], dtype=x.dtype) if text_mask is None else text_mask.to(x.dtype)
    scores = (text @ W * x[:, None]).sum(2).masked_fill(weight == 0, -torch.inf)
    read = (torch.softmax(scores, 1)[..., None] * text).sum(1) @ W
    return torch.tanh(x + read)


TEXT = {
    "text": Noise.of(3, range(3), dtype=torch.float64).normal("text", (5, 4)),
    "text_mask": torch.tensor([[True] * 5, [True, True, False, False, False], [True] * 3 + [False] * 2]),
}


def prompted(cond=None) -> Denoiser:
    return Denoiser(texty, VP(), "clean", shape=(2,)).with_condition(TEXT if cond is None else cond)


def test_no_step_is_no_token_and_rows_are_apart():
    model, t = prompted(), 0.9
    assert torch.equal(guidance.MinorityPrompt(steps=0)(model)(X, t).clean, model(X, t).clean)
    rule = guidance.MinorityPrompt(steps=3)
    whole = rule(model)(X, t).clean
    assert not torch.allclose(whole, model(X, t).clean)
    alone = rule(prompted({key: value[1:2] for key, value in TEXT.items()}))(X[1:2], t).clean
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-9, atol=1e-9)
    bare = guidance.MinorityPrompt(steps=3)(prompted({"text": TEXT["text"][:1]}))(X, t)
    assert bare.clean.isfinite().all(), "one row for all, and no mask"
    with pytest.raises(UsageError, match="needs text embeddings"):
        rule(Denoiser(lambda x, time: x, VP(), "clean"))(X, t)
    assert torch.is_grad_enabled()


def test_a_prompt_works_in_a_window_under_a_guidance_and_in_a_sampler():
    null = {"text": TEXT["text"][:1] * 0.0, "text_mask": torch.tensor([[True] * 5])}
    rule = guidance.compose(
        guidance.CFG(weight=2.0, null=null),
        guidance.interval(guidance.MinorityPrompt(steps=2), log_snr=(-math.inf, -4.23)),
    )
    model, cfg = prompted(), guidance.CFG(weight=2.0, null=null)(prompted())
    low, high = VP().time_of(-6.0), VP().time_of(0.0)
    assert torch.equal(rule(model)(X, high).clean, cfg(X, high).clean)
    assert not torch.allclose(rule(model)(X, low).clean, cfg(X, low).clean)
    x = orn.sample(rule(model), 3, sampler="ddim", steps=4, dtype=torch.float64)
    assert x.isfinite().all()


def test_a_text_model_of_ours_takes_a_token():
    """Through the text embeddings of a caption encoder and the cross-attention of a U-Net."""
    from ornstein.models.spec import DenoiserSpec
    from ornstein.networks import TextConfig, UNetConfig

    spec = DenoiserSpec(
        shape=(3, 16, 16),
        path="vp-cosine",
        predicts="clean",
        network=UNetConfig(width=16, multipliers=(1,), blocks=1, attention=(0,), head_width=16, patch=4, text_width=32),
        text=TextConfig(vocabulary=("green", "critter"), width=32, heads=1),
    )
    model = spec.build()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # what begins at zero would hide everything behind it
            if weight.ndim > 1 and not weight.any():
                weight.copy_(0.3 * Noise.of(1, [0]).normal(name, weight.shape)[0])
        assert model.text is not None
        text, mask = model.text(["green critter", ""])
    denoiser, cond = spec.denoiser(model.net), {"text": text, "text_mask": mask}
    rule = guidance.MinorityPrompt(steps=2, rate=0.1)
    plain, rare = (orn.sample(m, 2, steps=2, cond=cond) for m in (denoiser, rule(denoiser)))
    assert rare.isfinite().all()
    assert not torch.allclose(plain, rare, atol=1e-6)
