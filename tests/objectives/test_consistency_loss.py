"""The consistency objective: its boundary, its fixed points, its stops, and iCT as its special case."""

import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.networks import UNetConfig, build
from ornstein.objectives import ConsistencyLoss, ConsistencyTraining, TrainBatch, levels
from ornstein.parameterizations import EDM, Anchored, Consistency, parameterization
from ornstein.randomness import Noise

B = 16
PLAIN = ConsistencyLoss(distance="l2", coupling="none", diffusion=0.0, stratified=False)


def batch(clean: torch.Tensor, cond=None) -> TrainBatch:
    return TrainBatch(clean=clean, cond=cond or {}, positions=tuple(range(len(clean))))


def noise(seed: int = 0, rows: int = B) -> Noise:
    return Noise.of(seed, range(rows))


def model(net, path=None, reading=None) -> orn.Denoiser:
    return orn.Denoiser(net, path=path or orn.VE(), predicts=reading or Consistency())


class Reads:
    """A parameterization with the boundary whose network speaks of the clean sample itself."""

    def __new__(cls, answer, low=0.002):
        def net(x, time):
            return answer(x, (4.0 * time.double()).exp().to(x.dtype).reshape(-1, 1, 1, 1))

        # A width so small that the anchor is felt at the boundary alone.
        return orn.Denoiser(net, path=orn.VE(), predicts=Anchored(inner=parameterization("clean"), width=1e-9))


def data(rows: int = B, channels: int = 3, seed: int = 5) -> torch.Tensor:
    return 0.5 * torch.randn(rows, channels, 4, 4, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ boundary


@pytest.mark.parametrize("reading", [Consistency(), Anchored(inner=EDM()), Anchored(inner=parameterization("noise"))])
def test_the_boundary_is_the_identity_bit_for_bit(reading):
    x = torch.randn(8, 3, 4, 4)
    for t in (0.002, torch.full((8,), 0.002, dtype=torch.float64)):
        found = orn.Denoiser(lambda x, time: 37.0 * x + 5.0, path=orn.VE(), predicts=reading)(x, t).clean
        assert torch.equal(found, x)


@pytest.mark.parametrize("t", [0.002, 0.3, 5.0, 80.0])
def test_the_network_is_fed_unit_variance(t):
    """c_in²·(t² + s²) = 1 for data of deviation s."""
    one = torch.ones(1, 1, dtype=torch.float64)
    assert Consistency().precondition(orn.VE(), one, t).item() ** 2 * (t**2 + 0.25) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("path", [orn.VE(), orn.VP.cosine(), orn.Flow()])
def test_an_anchor_leaves_the_rest_as_it_is(path):
    inner = EDM()
    plain = orn.Denoiser(lambda x, time: x.sin(), path=path, predicts=inner)
    held = orn.Denoiser(lambda x, time: x.sin(), path=path, predicts=Anchored(inner=inner, width=1e-3))
    x, t = torch.randn(2, 3, 4, 4), path.time_of(-2.0 * math.log(5.0))
    assert torch.allclose(held(x, t).clean, plain(x, t).clean, atol=1e-5)
    t = path.t_range[1]  # pure noise on a flow
    assert held(x, t).clean.isfinite().all()
    clean, noise = data(2), torch.randn(2, 3, 4, 4)
    times = torch.full((2,), path.time_of(-2.0 * math.log(0.3)), dtype=torch.float64)
    state = path.diffuse(clean.double(), times, noise.double())
    raw = Anchored(inner=inner).target(path, clean.double(), noise.double(), state, times)
    assert torch.allclose(Anchored(inner=inner).to_estimate(path, state, times, raw).clean, clean.double(), atol=1e-10)


def test_a_denoiser_without_the_boundary_is_refused():
    with pytest.raises(UsageError, match="reads EDM"):
        ConsistencyTraining()(model(lambda x, time: x, reading=EDM()), batch(data()), noise(), 0.0)


# --------------------------------------------------------------------------------------------------------- fixed points


def test_one_image_answered_by_itself_costs_nothing():
    star = data(1)[0]
    exact = Reads(lambda x, t: star.expand_as(x))
    objective = ConsistencyTraining(loss=ConsistencyLoss(low_noise_fraction=0.0))
    for progress in (0.0, 0.5, 1.0):
        losses = objective(exact, batch(star.expand(B, -1, -1, -1)), noise(), progress)
        # The interval that ends at σ_min is compared with the state there, which is the image and a little noise.
        inner = losses.times > 0.0021
        lowest = levels.grid(int(losses.schedule["intervals"]), 0.002, 80.0, 7.0)[-2]
        inner = losses.times > lowest * 1.001
        assert inner.sum() > B // 3
        assert (losses.terms["consistency"][inner] == 0).all()
        assert (losses.terms["diffusion"] == 0).all()


def gaussian(s: float = 0.5, low: float = 0.002):
    """The consistency function of data N(0, s²): x·√((s² + σ_min²)/(s² + t²))."""
    return Reads(lambda x, t: x * torch.sqrt((s**2 + low**2) / (s**2 + t**2)))


def test_the_exact_function_of_a_gaussian_is_a_fixed_point():
    """Squared differences fall as Δt²: what is left is that one sample's noise is no step of the ODE."""
    clean = 0.5 * torch.randn(512, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    jumps = []
    for count in (40, 80, 160, 320):
        loss = ConsistencyLoss(
            distance="l2", coupling="none", diffusion=0.0, curriculum="constant", end=count, weight="none"
        )
        found = ConsistencyTraining(loss=loss)(
            gaussian(), batch(clean), Noise.of(0, range(512), dtype=torch.float64), 0.0
        )
        assert "diffusion" not in found.terms
        jumps.append(found.terms["consistency"].mean().item())
    slopes = np.diff(np.log2(jumps))
    assert slopes == pytest.approx([-2.0] * 3, abs=0.15)


def test_its_gradient_vanishes_faster_than_its_loss():
    """A factor a on the exact function: the gradient at a = 1, with the target stopped, is O(Δt²) a pair, too."""
    rows = 4096
    clean = 0.5 * torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    source = Noise.of(0, range(rows), dtype=torch.float64)
    found = []
    for count in (20, 80):
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        exact = Reads(lambda x, t, a=factor: a * x * torch.sqrt((0.25 + 4e-6) / (0.25 + t**2)))
        loss = ConsistencyLoss(
            distance="l2", coupling="none", diffusion=0.0, curriculum="constant", end=count, weight="none"
        )
        ConsistencyTraining(loss=loss)(exact, batch(clean), source, 0.0).total.backward()
        found.append(abs(factor.grad.item()))
    assert found[1] < found[0] / 8.0


@pytest.mark.parametrize(("count", "error"), [(10, 2e-2), (40, 5.8e-4), (160, 3.1e-5), (640, 1.8e-6)])
def test_the_exact_function_along_an_euler_step(count, error):
    """Down the probability-flow ODE by one Euler step near t = 2.5: the answer changes by S⁻² of the state."""
    grid, s, low = levels.grid(count, 0.002, 80.0, 7.0), 0.5, 0.002
    i = min(range(count), key=lambda k: abs(math.log(grid[k] / 2.515)))
    t, lower = grid[i], grid[i + 1]
    step = 1.0 + (lower - t) * t / (s**2 + t**2)
    answers = [x * math.sqrt((s**2 + low**2) / (s**2 + at**2)) for x, at in ((1.0, t), (step, lower))]
    assert abs(answers[1] / answers[0] - 1.0) == pytest.approx(error, rel=1.5)


# ------------------------------------------------------------------------------------------------------------- the pair


@pytest.mark.parametrize("path", [orn.VE(), orn.VP.cosine(), orn.Flow()])
def test_both_states_are_of_one_sample_and_one_noise(path):
    clean = data(256).double()
    low = max(0.002, path.sigma_bar(path.t_min))
    f = model(lambda x, time: x, path, Consistency(sigma_min=low))
    objective = ConsistencyTraining(loss=ConsistencyLoss(coupling="none"))
    pair = objective.make_noisy_batch(f, batch(clean), Noise.of(0, range(256), dtype=torch.float64), 40)
    u, u_next = ((x / path.alpha(t).reshape(-1, 1, 1, 1)) for x, t in ((pair.x, pair.t), (pair.x_next, pair.t_next)))
    upper, lower = (v.reshape(-1, 1, 1, 1) for v in (pair.upper, pair.lower))
    assert torch.allclose(u, clean + upper * pair.noise, rtol=1e-9)
    euler = u + (u - clean) / upper * (lower - upper)
    assert torch.allclose(u_next, euler, rtol=1e-5)
    assert (pair.upper > pair.lower).all()


def test_pairing_moves_noise_and_keeps_samples():
    clean = data(32)
    objective = ConsistencyTraining(loss=ConsistencyLoss())
    f, source = model(lambda x, time: 0 * x), noise(rows=32)
    paired = objective.make_noisy_batch(f, batch(clean), source, 10)
    plain = ConsistencyTraining(loss=ConsistencyLoss(coupling="none")).make_noisy_batch(f, batch(clean), source, 10)
    assert sorted(map(tuple, paired.noise.flatten(1).tolist())) == sorted(map(tuple, plain.noise.flatten(1).tolist()))
    assert (clean - paired.noise).square().sum() < (clean - plain.noise).square().sum()
    assert torch.equal(paired.upper, plain.upper)


def test_conditions_are_the_same_on_both_sides_and_keep_their_noise_apart():
    seen = []

    def net(x, time, label):
        seen.append(label)
        return 0.0 * x

    labels = torch.arange(32) % 2
    objective = ConsistencyTraining(loss=ConsistencyLoss(label_dropout=0.5))
    f = model(net)
    objective(f, batch(data(32), {"label": labels}), noise(rows=32), 0.0)
    assert torch.equal(*seen)
    assert 4 < (seen[0] == -1).sum() < 28
    pair = objective.make_noisy_batch(f, batch(data(32), {"label": labels}), noise(rows=32), 10)
    z = noise(rows=32).normal("noise", (3, 4, 4))
    places = [int((z == row).flatten(1).all(1).nonzero()) for row in pair.noise]
    assert torch.equal(pair.cond["label"][places], pair.cond["label"])
    words = torch.randint(1, 9, (32, 5))
    pair = objective.make_noisy_batch(f, batch(data(32), {"words": words}), noise(rows=32), 10)
    told = pair.cond["words"].any(1)
    assert torch.equal(pair.noise[told], z[told])
    assert not torch.equal(pair.noise, z)


# --------------------------------------------------------------------------------------------------- stops and dropout


NETWORK = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), patch=1, norm="nonscaling", dropout=0.3)


def test_the_target_has_no_gradient_and_the_answer_reaches_every_weight():
    net = build(NETWORK, 0)
    nn.init.normal_(net.head.weight, std=0.1)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    f = model(net)
    objective = ConsistencyTraining()
    pair = objective.make_noisy_batch(f, batch(data()), noise(), 10)
    assert not objective.target(f, data(), pair).requires_grad
    objective(f, batch(data()), noise(), 0.5).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_both_answers_are_under_one_mask_of_dropout():
    net = build(NETWORK, 0).train()
    masks: list[torch.Tensor] = []
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, x, y: masks.append((y == 0) & (x[0] != 0)))
    objective = ConsistencyTraining()
    before = torch.get_rng_state()
    objective(model(net), batch(data()), noise(), 0.0)
    half = len(masks) // 2
    assert half > 2
    assert all(torch.equal(a, b) for a, b in zip(masks[:half], masks[half:], strict=True))
    assert any(mask.any() for mask in masks)
    assert torch.equal(torch.get_rng_state(), before)
    first, masks[:] = masks[:], []
    objective(model(net), batch(data()), noise(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(first, masks, strict=True))  # a function of the noise alone
    masks.clear()
    objective(model(net), batch(data()), noise(1), 0.0)
    assert not torch.equal(first[0], masks[0])


def test_no_low_noise_in_a_batch_costs_nothing_and_breaks_nothing():
    net = build(NETWORK, 0).eval()
    nn.init.normal_(net.head.weight, std=0.1)
    objective = ConsistencyTraining(loss=ConsistencyLoss(low_noise_fraction=1.0, coupling="none"))
    losses = objective(model(net), batch(data()), noise(), 0.0)
    assert (losses.terms["diffusion"] == 0).all()
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_the_denoising_loss_is_the_mean_over_low_noise():
    f = model(lambda x, time: x.sin())
    objective = ConsistencyTraining(loss=ConsistencyLoss(coupling="none"))
    clean = data(64)
    losses = objective(f, batch(clean), noise(rows=64), 1.0)
    pair = objective.make_noisy_batch(f, batch(clean), noise(rows=64), 640)
    low = pair.upper <= 0.1698
    assert torch.equal(low, pair.quiet)
    error = (f(pair.x, pair.t).clean - clean).square().flatten(1).mean(1)
    expected = 5.0 * ((1 / pair.upper**2 + 4.0) * error)[low].mean()
    assert losses.terms["diffusion"].mean().item() == pytest.approx(expected.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------- iCT, independently


def ict(net, clean, noise, us, count, c, sums):
    """Improved consistency training, written down from the paper with numpy and torch alone."""
    i = np.arange(count + 1)
    t = (80.0 ** (1 / 7) + i / count * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    edges = erf((np.log(t) + 1.1) / (np.sqrt(2) * 2.0))
    weights = edges[:-1] - edges[1:]
    place = np.minimum(np.searchsorted(np.cumsum(weights / weights.sum()), us, side="right"), count - 1)

    def f(x, at):
        at = torch.tensor(at).float().reshape(-1, 1, 1, 1)
        skip, out = 0.25 / ((at - 0.002) ** 2 + 0.25), 0.5 * (at - 0.002) / (at**2 + 0.25).sqrt()
        return skip * x + out * net(x / (at**2 + 0.25).sqrt(), 0.25 * at.flatten().log())

    upper, lower = t[place], t[place + 1]
    states = [clean + torch.tensor(at).float().reshape(-1, 1, 1, 1) * noise for at in (upper, lower)]
    with torch.no_grad():
        target = f(states[1], lower)
    r = (f(states[0], upper) - target).square().flatten(1)
    r = r.sum(1) if sums else r.mean(1)
    return ((torch.sqrt(r + c**2) - c) / torch.tensor(upper - lower)).mean()


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("progress", [0.0, 0.45, 1.0])
def test_with_its_parts_off_it_is_ict(reduce, progress):
    net = build(UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), patch=1), 3)
    nn.init.normal_(net.head.weight, std=0.2)
    loss = ConsistencyLoss(
        distance="pseudo-huber", scale="constant", coupling="none", diffusion=0.0, reduce=reduce, stratified=False
    )
    clean, source = data(), noise(7)
    ours = ConsistencyTraining(loss=loss, steps=700, of=700.0)(model(net), batch(clean), source, progress)
    count = min(10 * 2 ** (round(progress * 700) // 100), 640)
    assert ours.schedule == {"intervals": count, "c": pytest.approx(0.00054 * math.sqrt(48))}
    us, z = source.uniform_per_sample("time").numpy(), source.normal("noise", (3, 4, 4))
    theirs = ict(net, clean, z, us, count, 0.00054 * math.sqrt(48), reduce == "sum")
    assert ours.total.item() == pytest.approx(theirs.item(), rel=2e-4)
    ours.total.backward()
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    theirs.backward()
    wanted = [p.grad for p in net.parameters() if p.grad is not None]
    scale = max(g.abs().max() for g in wanted)
    assert all(torch.allclose(a, b, atol=2e-3 * scale) for a, b in zip(found, wanted, strict=True))


def test_each_switch_is_one_part():
    """From iCT to sLCT, one option at a time: every one of them changes the loss, and nothing but its own part."""
    net = build(UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), patch=1), 3)
    nn.init.normal_(net.head.weight, std=0.2)
    plain = {"distance": "pseudo-huber", "scale": "constant", "coupling": "none", "diffusion": 0.0}
    full = ConsistencyLoss()
    totals, options = [], dict(plain)
    for name in ("distance", "diffusion", "coupling", "scale"):
        options[name] = getattr(full, name)
        losses = ConsistencyTraining(loss=ConsistencyLoss(**options))(model(net), batch(data()), noise(), 0.9)
        totals.append(losses.total.item())
    assert len(set(totals)) == 4
    assert ConsistencyLoss(**options) == full


def test_a_diffusion_model_is_where_the_ratio_begins():
    """ECT at σ_min = 0: small levels are paired with the clean image itself."""
    loss = ConsistencyLoss(
        spacing="ratio", start=2, end=256, coupling="none", diffusion=0.0, distance="l2", weight="none"
    )
    f = model(lambda x, time: torch.nan_to_num(x.sin()), reading=Consistency(sigma_min=0.0))
    objective, clean = ConsistencyTraining(loss=loss), data(64)
    pair = objective.make_noisy_batch(f, batch(clean), noise(rows=64), 2)
    denoised = pair.lower == 0.0
    assert 20 < denoised.sum() < 64
    losses = objective(f, batch(clean), noise(rows=64), 0.0)
    error = (f(pair.x, pair.t).clean - clean).square().flatten(1).mean(1)
    assert torch.allclose(losses.terms["consistency"][denoised], error[denoised], rtol=1e-5)
    assert losses.total.isfinite()
