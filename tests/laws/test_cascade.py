"""The laws of a cascade: its algebra, who learns from what, and that its front stays what it is."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.cascade import Cascade, cascaded, forced
from ornstein.errors import ConfigError, UsageError
from ornstein.networks import UNetConfig, build
from ornstein.networks.stages import Stages
from ornstein.objectives import CascadeLoss, Cascading, Denoising, TrainBatch
from ornstein.objectives.cascading import posterior_weight
from ornstein.parameterizations import EDM, Clean, NoisePrediction, V, Velocity
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise
from ornstein.samplers import SAMPLERS

TABLE = VP.table()
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
BAR = torch.cat([torch.ones(1, dtype=torch.float64), (1 - BETAS).cumprod(0)])  # ᾱ_0 … ᾱ_1000
ALL = torch.arange(1, 1001)
PATHS = [(VP(), NoisePrediction()), (TABLE, V()), (VE(), EDM()), (Flow(), Velocity()), (VP.cosine(), Clean())]


def white(key: str, shape=(3, 8, 8), n: int = 4) -> torch.Tensor:
    return Noise.of(3, range(n), dtype=torch.float64).normal(key, shape)


def networks(*, front_out: int = 3, see_state: bool = False) -> Stages:
    small = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "head_width": 8}
    front = UNetConfig(out_channels=front_out, **small)
    back = UNetConfig(channels=6 if see_state else 3, out_channels=4, **small)
    stages = Stages(build(front, 1), build(back, 2))
    with torch.no_grad():  # their last layers begin at zero, which would hide what follows
        for net, seed in ((stages.front, 3), (stages.back, 4)):
            weight = Noise.of(seed, [0]).normal("head", net.head.weight.shape)[0]
            net.head.weight.copy_(0.05 * weight)
    return stages


def model(path=TABLE, front=None, net: nn.Module | None = None, **options) -> orn.Denoiser:
    reading = Cascade(front=front or NoisePrediction(), **options)
    net = net or networks(see_state=reading.see_state)
    wide = net.front.head.weight.shape[0] == 6
    return orn.Denoiser(net, path, reading, shape=(3, 8, 8), learned_variance=wide)


def examples(n: int = 4) -> tuple[TrainBatch, Noise]:
    clean = white("clean", n=n).float().mul(0.5).clamp(-1, 1)
    return TrainBatch(clean=clean, cond={}, positions=tuple(range(n))), Noise.of(1, range(n))


# ------------------------------------------------------------------------------------------------------------- algebra


def test_constants_of_the_linear_table():
    k = [posterior_weight(TABLE, t / 1000) for t in (1, 2, 11, 101, 501, 1000)]
    assert k == pytest.approx([1.0, 0.545, 0.136, 0.0189, 3.06e-3, 1.28e-4], rel=5e-3)
    assert TABLE.sigma_bar(1.0) == pytest.approx(157, abs=0.5)
    expected = BAR[:-1].sqrt() * BETAS / (1 - BAR[1:])
    torch.testing.assert_close(posterior_weight(TABLE, ALL.double() / 1000), expected, rtol=1e-9, atol=0)
    h = (1 - BETAS).sqrt() * (1 - BAR[:-1]) / (1 - BAR[1:])
    assert expected[0] == pytest.approx(1.0, abs=1e-12)
    assert h[0] == 0.0
    torch.testing.assert_close(expected + h * BAR[1:].sqrt(), BAR[:-1].sqrt(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", [VP(), VP.cosine(), Flow(), VE()], ids=lambda p: type(p).__name__)
def test_the_gates_weight_is_the_slope_of_the_posterior(path):
    low, high = path.t_range
    for t in (0.3 * high, 0.9 * high):
        s, x = t - (high - low) / 1000, torch.zeros(1, 1, dtype=torch.float64)
        means = [
            path.posterior(x, orn.Estimate(x, t, path, clean=torch.full_like(x, c)), t, s).mean.item() for c in (0, 1)
        ]
        assert posterior_weight(path, t) == pytest.approx(means[1] - means[0], rel=1e-9)
    assert posterior_weight(path, path.t_min) == path.alpha(low)
    times = torch.tensor([path.t_min, 0.5 * high], dtype=torch.float64)
    expected = [posterior_weight(path, t.item()) for t in times]
    assert posterior_weight(path, times).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_mean_of_the_noise_is_the_mean_of_its_clean_image():
    x, z = white("x", n=1), white("z", n=1)
    for t in ALL.tolist():
        beta, bar, before = BETAS[t - 1], BAR[t], BAR[t - 1]
        mean = (x - beta / (1 - bar).sqrt() * z) / (1 - beta).sqrt()
        clean = Cascade(clip=None).start(orn.Estimate(x, t / 1000, TABLE, noise=z))
        k, h = before.sqrt() * beta / (1 - bar), (1 - beta).sqrt() * (1 - before) / (1 - bar)
        torch.testing.assert_close(k * clean + h * x, mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [1, 2, 50, 500, 1000])
def test_blending_images_is_blending_means(t):
    x, z, refined, g = white("x"), white("z"), white("refined"), white("gate", (1, 8, 8))
    raw = torch.cat([z, refined, g], 1)
    estimate = Cascade(clip=None).to_estimate(TABLE, x, t / 1000, raw)
    one, two = (
        TABLE.posterior(x, e, t / 1000, (t - 1) / 1000).mean
        for e in (
            orn.Estimate(x, t / 1000, TABLE, clean=refined),
            orn.Estimate(x, t / 1000, TABLE, noise=z),
        )
    )
    r = torch.sigmoid(g)
    mixed = TABLE.posterior(x, estimate, t / 1000, (t - 1) / 1000).mean
    torch.testing.assert_close(r * one + (1 - r) * two, mixed, rtol=1e-10, atol=1e-10)


def test_the_gates_loss_is_that_of_the_means():
    x, z, clean = white("x"), white("z"), white("clean")
    refined, g = white("refined"), white("gate", (1, 8, 8))
    reading = Cascade(clip=None)
    for t in (1, 30, 700):
        front = orn.Estimate(x, t / 1000, TABLE, noise=z)
        heads = reading.heads(front, reading.start(front), torch.cat([refined, g], 1))
        k = BAR[t - 1].sqrt() * BETAS[t - 1] / (1 - BAR[t])
        h = (1 - BETAS[t - 1]).sqrt() * (1 - BAR[t - 1]) / (1 - BAR[t])
        true, one, two = (k * c + h * x for c in (clean, refined, heads.start))
        expected = (true - (heads.gate * one + (1 - heads.gate) * two)).square().flatten(1).mean(1)
        times = torch.full((4,), t / 1000, dtype=torch.float64)
        got = Cascading(loss=CascadeLoss(metric="none")).gate(heads, TABLE, clean, times)
        torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-12)
        plain = Cascading(loss=CascadeLoss(metric="none", gate="clean")).gate(heads, TABLE, clean, times)
        torch.testing.assert_close(plain * k.float() ** 2, got)


@pytest.mark.parametrize(("path", "front"), PATHS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("residual", [False, True])
def test_the_right_answer_reads_as_the_clean_image(path, front, residual):
    clean, z = white("clean").clamp(-1, 1), white("z")
    reading = Cascade(front=front, residual=residual)
    for t in (0.2 * path.t_range[1], torch.linspace(0.1, 0.7, 4, dtype=torch.float64)):
        x = path.diffuse(clean, t, z)
        estimate = reading.to_estimate(path, x, t, reading.target(path, clean, z, x, t))
        torch.testing.assert_close(estimate.clean, clean, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_gate_of_zero_is_the_front_bit_for_bit(name):
    stages = networks(front_out=6 if "learned" in name else 3)
    learned = "learned" in name
    plain = orn.Denoiser(stages.front, TABLE, "noise", shape=(3, 8, 8), learned_variance=learned)
    options = {"n": 2, "sampler": name, "steps": 4, "seed": 5}
    expected = orn.sample(plain, **options)
    assert torch.equal(orn.sample(forced(model(net=stages), 0.0), **options), expected)
    assert not torch.equal(orn.sample(model(net=stages), **options), expected)


def test_several_times_in_one_call_are_several_calls():
    cascade, x = model(), white("x").float()
    with torch.no_grad():
        for together, t in zip(cascade.predict_times(torch.stack([x, 2 * x]), [0.3, 0.6]), (0.3, 0.6), strict=True):
            assert torch.equal(together.clean, cascade(x if t == 0.3 else 2 * x, t).clean)


@pytest.mark.parametrize(("path", "front"), PATHS, ids=lambda v: type(v).__name__)
def test_every_kind_of_front_works_and_is_itself_at_zero(path, front):
    stages = networks()
    plain = orn.Denoiser(stages.front, path, front, shape=(3, 8, 8))
    refined = cascaded(plain, stages.back, freeze=False)
    for sampler in ("ddpm", "heun"):
        ours, theirs = (orn.sample(m, 2, sampler=sampler, steps=3) for m in (forced(refined, 0.0), plain))
        assert torch.equal(ours, theirs)
        assert bool(orn.sample(refined, 2, sampler=sampler, steps=3).isfinite().all())


def test_a_front_in_half_precision_and_a_back_in_single():
    class Front(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, time):
            return self.conv(x)

    plain = orn.Denoiser(Front().bfloat16(), TABLE, "noise", shape=(3, 8, 8))
    refined, x = cascaded(plain, networks().back), white("x").float()
    assert refined(x, 0.5).clean.dtype == torch.float32
    OBJECTIVE(refined, *examples(), 0.0).total.backward()
    assert torch.equal(forced(refined, 0.0)(x, 0.5).clean, plain(x, 0.5).clean)


def test_the_variance_of_a_front_is_kept():
    stages = networks(front_out=6)
    plain = orn.Denoiser(stages.front, TABLE, "noise", shape=(3, 8, 8), learned_variance=True)
    x = white("x").float()
    refined = model(net=stages)
    torch.testing.assert_close(refined(x, 0.5).extras["variance"], plain(x, 0.5).extras["variance"])
    assert refined.raw(x, 0.5).shape == (4, 6 + 3 + 1, 8, 8)
    assert torch.equal(forced(refined, 0.0)(x, 0.5).noise, plain(x, 0.5).noise)


def test_forced_gates():
    x, cascade = white("x").float(), model(clip=None)
    heads = cascade(x, 0.4).extras
    torch.testing.assert_close(forced(cascade, 1.0)(x, 0.4).clean, heads["back"])
    half = forced(cascade, 0.5)(x, 0.4)
    torch.testing.assert_close(half.clean, 0.5 * heads["back"] + 0.5 * heads["front"])
    assert torch.equal(forced(half_again := forced(cascade, 0.5), None)(x, 0.4).clean, cascade(x, 0.4).clean)
    assert half_again.parameterization.forced == 0.5
    with pytest.raises(UsageError, match="only a cascade has a gate"):
        forced(orn.Denoiser(lambda x, time: x, TABLE), 0.0)
    with pytest.raises(ConfigError, match="cascade itself"):
        cascaded(cascade, nn.Identity())


def test_shapes_of_the_gate():
    x = white("x").float()
    pixel, scalar = (model(net=networks(), gate=gate)(x, 0.4).extras["gate"] for gate in ("map", "scalar"))
    assert pixel.shape == (4, 1, 8, 8)
    assert scalar.shape == (4, 1, 1, 1)
    assert bool(((pixel > 0) & (pixel < 1)).all())
    # The scalar is the spatial mean, in the gate's own space; of a constant map it is the map.
    torch.testing.assert_close(torch.logit(scalar), torch.logit(pixel).mean((2, 3), keepdim=True))
    back = networks().back
    free = model(net=Stages(networks().front, back), squash="none")(x, 0.4).extras["gate"]
    torch.testing.assert_close(free, torch.logit(pixel), rtol=1e-3, atol=1e-4)
    assert model(see_state=True)(x, 0.4).clean.shape == x.shape


def test_the_clip_bounds_both_images():
    with torch.no_grad():
        estimate, free = (model(clip=clip)(white("x").float(), 1.0) for clip in (1.0, None))
    assert estimate.extras["front"].abs().max().item() == 1.0
    assert estimate.clean.abs().max().item() <= 1.0
    assert free.extras["front"].abs().max().item() > 10.0


def test_guidance_and_conditions_pass_through():
    seen = []

    class Conditioning(nn.Module):
        def forward(self, x, time, label):
            seen.append((x.shape[0], label.tolist()))
            return torch.cat([x, x[:, :1]], 1) if len(seen) % 2 == 0 else x

    front = Conditioning()
    denoiser = orn.Denoiser(Stages(front, front), TABLE, Cascade(), shape=(3, 8, 8))
    one, two = denoiser.predict_conditions(
        white("x", n=2).float(), 0.5, [{"label": torch.tensor([1])}, {"label": torch.tensor([2])}]
    )
    assert seen == [(4, [1, 1, 2, 2])] * 2
    assert one.clean.shape == two.clean.shape == (2, 3, 8, 8)
    # A back that knows no labels is told none.
    lone = Stages(front, networks().back, back_conditions=())
    seen.clear()
    assert orn.Denoiser(lone, TABLE, Cascade()).with_condition({"label": torch.tensor([1])})(white("x").float(), 0.5)


# ------------------------------------------------------------------------------------------------------------ learning


def toy_metric(a, b):
    return (a - b).abs().flatten(1).mean(1)


OBJECTIVE = Cascading(loss=CascadeLoss(metric="none"), metrics={"metric": (1.0, toy_metric)})


@pytest.mark.parametrize("term", ["denoising", "clean", "metric", "gate"])
def test_who_learns_from_what(term):
    cascade = model()
    net = cascade.net
    loss = OBJECTIVE(cascade, *examples(), 0.0).terms[term].mean()
    front, back = (
        torch.autograd.grad(loss, list(part.parameters()), allow_unused=True, retain_graph=True)
        for part in (net.front, net.back)
    )
    if term == "denoising":
        assert all(g is None for g in back)
        assert any(bool(g.abs().sum() > 0) for g in front)
        return
    assert all(g is None for g in front)
    assert any(g is not None and bool(g.abs().sum() > 0) for g in back)
    (head,) = torch.autograd.grad(loss, net.back.head.weight)
    image, gate = head[:3].abs().sum(), head[3:].abs().sum()
    assert float(gate) > 0.0 if term == "gate" else float(gate) == 0.0
    assert float(image) == 0.0 if term == "gate" else float(image) > 0.0


def test_the_metric_takes_no_gradient_and_the_gate_is_watched():
    from ornstein.metrics import perceptual

    distance = perceptual.matching(nn.Conv2d(3, 4, 3), name="toy", side=8)
    objective = Cascading(loss=CascadeLoss(metric="none"), metrics={"metric": (2.0, distance)})
    losses = objective(model(), *examples(), 0.0)
    losses.total.backward()
    assert all(p.grad is None for p in distance.parameters())
    assert list(losses.terms) == ["denoising", "clean", "gate", "metric"]
    assert losses.watched["gate_mean"].shape == (4,)


def test_the_front_learns_as_if_it_were_alone():
    """The first term is the loss of the front by itself, bit for bit, and so is its gradient."""
    cascade, alone = model(), orn.Denoiser(networks().front, TABLE, "noise")
    losses = OBJECTIVE(cascade, *examples(), 0.0)
    plain = Denoising()(alone, *examples(), 0.0)
    assert torch.equal(losses.terms["denoising"], plain.terms["denoising"])
    losses.total.backward()
    plain.total.backward()
    for ours, theirs in zip(cascade.net.front.parameters(), alone.net.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_frozen_front_has_no_loss_and_stays_in_evaluation_mode():
    stages = networks()
    front = orn.Denoiser(stages.front, TABLE, "noise", shape=(3, 8, 8))
    refined = cascaded(front, stages.back)
    refined.net.train()
    assert not refined.net.front.training
    assert refined.net.back.training
    losses = OBJECTIVE(refined, *examples(), 0.0)
    assert "denoising" not in losses.terms
    losses.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in stages.front.parameters())


def test_gradients_of_guidance_pass_through_both_stages():
    """Stopping belongs to the objective: a guidance sees how the whole cascade depends on the state."""
    x = white("x", n=1).float().requires_grad_()
    cascade = forced(model(clip=None), 1.0)
    (gradient,) = torch.autograd.grad(cascade(x, 0.3).clean.sum(), x)
    assert float(gradient.abs().sum()) > 0.0


def test_oracle_heads():
    """A perfect front gives the true posterior mean; the gate finds the better image, and the best blend in between."""
    clean, z = white("clean").clamp(-1, 1), white("z")
    t, s = 0.4, 0.399
    x = TABLE.diffuse(clean, t, z)
    reading = Cascade()
    raw = torch.cat([z, white("wrong"), torch.full_like(clean[:, :1], -60.0)], 1)
    mean = TABLE.posterior(x, reading.to_estimate(TABLE, x, t, raw), t, s).mean
    truth = TABLE.posterior(x, orn.Estimate(x, t, TABLE, clean=clean), t, s).mean
    torch.testing.assert_close(mean, truth, rtol=1e-9, atol=1e-9)

    wrong_front, wrong_back = clean + 0.5 * white("a"), clean + 0.7 * white("b")
    free = Cascade(clip=None, squash="none")
    best = ((clean - wrong_front) * (wrong_back - wrong_front)).sum(1, keepdim=True)
    best = best / (wrong_back - wrong_front).square().sum(1, keepdim=True)
    for start, back, expected in (
        (wrong_front, clean, torch.ones_like(best)),
        (clean, wrong_back, torch.zeros_like(best)),
        (wrong_front, wrong_back, best),
    ):
        g = torch.zeros_like(best, requires_grad=True)
        optimizer = torch.optim.LBFGS([g], max_iter=200, tolerance_grad=1e-16, tolerance_change=1e-18, history_size=50)

        def closure(start=start, back=back, g=g, optimizer=optimizer):
            optimizer.zero_grad()
            front = orn.Estimate(x, t, TABLE, clean=start)
            loss = (free.heads(front, start, torch.cat([back, g], 1)).blend() - clean).square().sum()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        torch.testing.assert_close(g.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", [TABLE, VP.cosine(), VP()], ids=["table", "cosine", "linear"])
def test_no_overflow_at_pure_noise(dtype, path):
    """x̂* reaches thousands there: it is made in float32 and clipped, whatever precision the networks run in."""
    high = path.t_range[1]

    class AtTheEnd(CascadeLoss):
        def draw(self, path, positions, noise):
            return torch.full((len(positions),), high, dtype=torch.float64)

    objective = Cascading(loss=AtTheEnd(metric="none"), metrics={"metric": (1.0, toy_metric)})
    cascade = model(path=path)
    with torch.autocast("cpu", dtype=dtype):
        losses = objective(cascade, *examples(), 0.0)
        clean = cascade(white("x").float(), high).clean
    losses.total.backward()
    assert all(bool(term.isfinite().all()) and term.dtype == torch.float32 for term in losses.terms.values())
    assert bool(clean.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in cascade.net.parameters())


def test_fading_weighs_the_metric_by_the_signal():
    batch = examples()
    plain = OBJECTIVE(model(), *batch, 0.0)
    faded = replace(OBJECTIVE, loss=CascadeLoss(metric="none", metric_schedule="signal"))(model(), *batch, 0.0)
    signal = TABLE.alpha(plain.times) ** 2  # α² + σ² = 1
    torch.testing.assert_close(faded.terms["metric"], plain.terms["metric"] * signal.float())
    assert torch.equal(faded.terms["clean"], plain.terms["clean"])


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="needs one"):
        OBJECTIVE(orn.Denoiser(lambda x, time: x, TABLE), *examples(), 0.0)
    with pytest.raises(UsageError, match="not the 4 of an image and a gate"):
        model(net=Stages(networks().front, networks().front))(white("x").float(), 0.5)
    for bad in ({"metric_weight": -1.0}, {"metric": ""}, {"label_dropout": 2.0}, {"metric_weight": math.nan}):
        with pytest.raises(ConfigError):
            CascadeLoss(**bad)
    with pytest.raises(ConfigError, match="clip"):
        Cascade(clip=-1.0)
