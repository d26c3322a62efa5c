"""Guidance against its formulas at points where nothing is symmetric: every path, floats and tensors of times alike."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ornstein import guidance as guide
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError, UsageError
from ornstein.guidance import Backward, Universal
from ornstein.modulation import Site
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise

F64 = torch.float64
PATHS = [VP(), VE(), Flow()]
X = Noise.of(0, range(3), dtype=F64).normal("x", (2, 2, 4))
TIMES = {"VP": (0.2, 0.5, 0.8), "VE": (0.3, 1.4, 5.0), "Flow": (0.1, 0.45, 0.8)}
TOLD = {"label": torch.tensor([1.0, -0.4, 0.3], dtype=F64)}
NULL = {"label": torch.tensor([0.2], dtype=F64)}
GOAL = Noise.of(1, range(3), dtype=F64).normal("goal", (2, 2, 4))


def net(x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
    told = 0.0 if label is None else label[:, None, None, None]
    return torch.tanh(0.8 * x + told) + 0.3 * x.roll(1, -1)


def model(path, cond=TOLD) -> Denoiser:
    return Denoiser(net, path, "clean", cond={} if cond is None else cond, shape=(2, 2, 4))


def energy(clean: Tensor) -> Tensor:
    """Not quadratic, so that its slope differs from place to place."""
    return (clean - GOAL[: len(clean)]).pow(4).flatten(1).sum(1) / 4.0


def slope_of(clean: Tensor) -> Tensor:
    return (clean - GOAL[: len(clean)]) ** 3


def pulled(path, t, x: Tensor, cotangent_of, cond=TOLD) -> Tensor:
    """Jᵀ·cotangent of the clean estimate, by torch alone."""
    leaf = x.clone().requires_grad_()
    clean = net(leaf, torch.zeros(len(x)), **({} if cond is None else cond))
    (gradient,) = torch.autograd.grad(clean, leaf, cotangent_of(clean.detach()))
    return gradient


def over_times(path):
    """(t for the guidance, t as a column, σ²/α and its kin as columns) of each float, and of all in one tensor."""
    times = TIMES[type(path).__name__]
    for t in times:
        yield t, path.alpha(t), path.sigma(t)
    row = torch.tensor(times, dtype=F64)
    column = row[:, None, None, None]
    yield row, path.alpha(column), path.sigma(column)


# ---------------------------------------------------------------------------------------------------- one model's slope


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_forward_guidance_through_the_network_and_through_the_estimate(path):
    """−w·(σ²/α)·Jᵀ∇ℓ, and −w·σ²/(α² + σ²)·∇ℓ, where α² + σ² is not always one."""
    plain = net(X, torch.zeros(3), **TOLD)
    for t, alpha, sigma in over_times(path):
        for through, wanted in (
            ("network", plain - 0.7 * sigma**2 / alpha * pulled(path, t, X, slope_of)),
            ("estimate", plain - 0.7 * sigma**2 / (alpha**2 + sigma**2) * slope_of(plain)),
        ):
            found = Universal(energies=energy, strength=0.7, differentiate_through=through)(model(path))(X, t).clean
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_a_strength_may_follow_the_noise_and_an_energy_may_be_weighed():
    path, t = VE(), 1.4
    plain, level = net(X, torch.zeros(3), **TOLD), -2.0 * math.log(1.4)
    guided = Universal(energies=[(0.5, energy), (-2.0, lambda c: c.flatten(1).sum(1))], strength=lambda s: 3.0 + s)
    wanted = plain - (3.0 + level) * 1.96 * pulled(path, t, X, lambda c: 0.5 * slope_of(c) - 2.0)
    torch.testing.assert_close(guided(model(path))(X, t).clean, wanted, rtol=1e-11, atol=1e-11)
    # With ``at`` the slope is that of the other condition, the estimate one's own.
    apart = Universal(energies=energy, at=NULL)(model(path))(X, t).clean
    null = {"label": NULL["label"].expand(3)}
    torch.testing.assert_close(apart, plain - 1.96 * pulled(path, t, X, slope_of, null), rtol=1e-11, atol=1e-11)
    apart = Universal(energies=energy, at=NULL, differentiate_through="estimate")(model(path))(X, t).clean
    other = net(X, torch.zeros(3), **null)
    torch.testing.assert_close(apart, plain - 1.96 / 2.96 * slope_of(other), rtol=1e-11, atol=1e-11)


def test_a_decoder_stands_between_the_estimate_and_the_energy():
    """∇ℓ(decode(x̂_0)) by the chain rule, forward and backward, in clean space and in that of images."""
    decode, encode = (lambda z: z**3 + z), (lambda p: 0.5 * p)
    path, t, rate = VE(), 0.3, 0.01
    plain = net(X, torch.zeros(3), **TOLD)
    chain = lambda c: slope_of(decode(c)) * (3.0 * c**2 + 1.0)  # noqa: E731
    options = {"energies": energy, "decode": decode, "encode": encode}
    forward = Universal(**options)(model(path))(X, t).clean
    wanted = plain - 0.09 * pulled(path, t, X, chain)
    torch.testing.assert_close(forward, wanted, rtol=1e-10, atol=1e-10)
    down = Universal(**options, strength=0.0, backward=Backward(steps=1, rate=rate))(model(path))(X, t).clean
    torch.testing.assert_close(down, plain - rate * chain(plain), rtol=1e-10, atol=1e-10)
    both = Universal(**options, backward=Backward(steps=1, rate=rate))(model(path))(X, t).clean
    torch.testing.assert_close(both, wanted - rate * chain(wanted), rtol=1e-10, atol=1e-10)
    image = Backward(steps=1, rate=rate, space="image")
    found = Universal(**options, strength=0.0, backward=image)(model(path))(X, t).clean
    torch.testing.assert_close(found, encode(decode(plain) - rate * slope_of(decode(plain))), rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match="or neither"):
        Universal(energies=energy, encode=encode, backward=image)
    assert Universal(energies=energy, encode=encode, backward=Backward(steps=1, rate=rate)).encode is encode


def test_the_codec_of_a_model_is_its_decoder():
    """Both ways of it, unless the guidance has its own."""

    class Codec:
        factor, channels = 1, 2

        def decode(self, z: Tensor) -> Tensor:
            return z**3 + z

        def encode(self, p: Tensor) -> Tensor:
            return 0.5 * p

    codec, plain = Codec(), model(VE())
    latent = Denoiser(net, VE(), "clean", cond=TOLD, codec=codec)  # type: ignore[arg-type]
    for options in ({}, {"backward": Backward(steps=1, rate=0.01, space="image")}):
        told = Universal(energies=energy, decode=codec.decode, encode=codec.encode, **options)(plain)(X, 0.3).clean
        assert torch.equal(Universal(energies=energy, **options)(latent)(X, 0.3).clean, told)
        own = Universal(energies=energy, decode=lambda z: z, encode=lambda z: z, **options)
        assert torch.equal(own(latent)(X, 0.3).clean, own(plain)(X, 0.3).clean)


def test_a_shift_is_limited_row_by_row():
    path, t = VE(), 1.4
    plain = net(X, torch.zeros(3), **TOLD)
    shift = Universal(energies=energy)(model(path))(X, t).clean - plain
    sizes = shift.square().mean((1, 2, 3)).sqrt()
    limit = float(sizes.sort().values[1]) * 0.9  # one row stays as it is
    short = Universal(energies=energy, limit=limit)(model(path))(X, t).clean - plain
    factor = (limit / sizes).clamp(max=1.0)[:, None, None, None]
    assert factor.flatten().tolist().count(1.0) == 1
    torch.testing.assert_close(short, shift * factor, rtol=1e-11, atol=1e-11)


def test_backward_guidance_step_by_step():
    """Clamped before each step and after the last; samples below the cutoff rest; other energies than the forward's."""
    start = net(X, torch.zeros(3), **TOLD)
    other = lambda c: (2.0 * c - GOAL[: len(c)]).square().flatten(1).sum(1)  # noqa: E731
    bound, rate = 0.4, 0.2
    clean = start
    values = []
    for _ in range(3):
        clean = clean.clamp(-bound, 0.9)
        values.append(other(clean))
        clean = clean - rate * 4.0 * (2.0 * clean - GOAL)
    wanted = clean.clamp(-bound, 0.9)
    backward = Backward(steps=3, rate=rate, clamp=(-bound, 0.9), energies=other)
    found = Universal(energies=energy, strength=0.0, backward=backward)(model(VE()))(X, 0.3).clean
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    cutoff = float(values[0].sort().values[1])  # the row of the least energy rests; one exactly at the cutoff does not
    rest = Backward(steps=1, rate=rate, energies=[(1.0, other)], cutoff=cutoff, clamp=(-bound, 0.9))
    found = Universal(energies=energy, strength=0.0, backward=rest)(model(VE()))(X, 0.3).clean
    first = start.clamp(-bound, 0.9)
    moved = (first - rate * 4.0 * (2.0 * first - GOAL)).clamp(-bound, 0.9)
    torch.testing.assert_close(found, torch.where((values[0] < cutoff)[:, None, None, None], first, moved))
    assert int((values[0] < cutoff).sum()) == 1


@pytest.mark.parametrize("steps", [1, 4])
def test_the_adam_of_backward_guidance_is_torchs(steps):
    start = net(X, torch.zeros(3), **TOLD)
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        energy(leaf).sum().backward()
        optimizer.step()
    backward = Backward(steps=steps, rate=0.05, descent="adam")
    found = Universal(energies=energy, strength=0.0, backward=backward)(model(VE()))(X, 0.3).clean
    torch.testing.assert_close(found, leaf.detach(), rtol=1e-10, atol=1e-10)


def test_what_a_network_answers_beside_is_kept_without_its_graph():
    """The learned variance of a guided estimate is that of the model; times of a chunk are its own."""

    rows: list[int] = []

    def wide(x: Tensor, time: Tensor) -> Tensor:
        rows.append(len(x))
        return torch.cat([torch.tanh(x), 5.0 + x], 1)

    path, times = VE(), torch.tensor(TIMES["VE"], dtype=F64)
    for chunk in (None, 1, 2, 3):
        rows.clear()
        model = Denoiser(wide, path, "clean", learned_variance=True)
        found = Universal(energies=energy_of_rows(), chunk=chunk)(model)(X, times)
        assert rows == {None: [3], 1: [1, 1, 1], 2: [2, 1], 3: [3]}[chunk]
        torch.testing.assert_close(found.extras["variance"], 5.0 + X)
        assert not found.clean.requires_grad
        assert not found.extras["variance"].requires_grad
        assert (found.x is X, found.t is times) == (True, True)
        plain = torch.tanh(X)
        wanted = plain - times[:, None, None, None] ** 2 * (1.0 - plain**2) * (plain - GOAL)
        torch.testing.assert_close(found.clean, wanted, rtol=1e-11, atol=1e-11)


def energy_of_rows() -> guide.Measured:
    return guide.Measured(operator=lambda v: v, target=GOAL)


def test_chunks_cut_conditions_targets_and_backward_energies_alike():
    path = VE()
    rows = {"label": TOLD["label"]}
    one = {"label": torch.tensor([0.7], dtype=F64)}
    for cond, at in ((rows, None), (one, None), (rows, NULL), (rows, {"label": TOLD["label"].flip(0)})):
        backward = Backward(steps=2, rate=0.1, energies=guide.Measured(operator=lambda v: v, target=GOAL.flip(0)))
        whole, parts = (
            Universal(energies=energy_of_rows(), at=at, backward=backward, chunk=chunk)(model(path, cond))(X, 1.4).clean
            for chunk in (None, 2)
        )
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- two models


def test_mixing_guidances_have_their_formulas():
    for path in PATHS:
        c, u = net(X, torch.zeros(3), **TOLD), net(X, torch.zeros(3), label=NULL["label"].expand(3))
        flat = lambda v: v.flatten(1)  # noqa: E731
        for t, alpha, sigma in over_times(path):
            level = 2.0 * (torch.as_tensor(alpha, dtype=F64).log() - torch.as_tensor(sigma, dtype=F64).log())
            w = 1.5 + 0.1 * level
            by_level = lambda s: 1.5 + 0.1 * s  # noqa: E731
            mixed = u + w * (c - u)
            found = guide.CFG(weight=by_level, null=NULL)(model(path))(X, t).clean
            torch.testing.assert_close(found, mixed, rtol=1e-11, atol=1e-11)
            spread = (flat(c).std(1) / flat(mixed).std(1))[:, None, None, None]
            found = guide.CFG(weight=by_level, null=NULL, rescale=0.3)(model(path))(X, t).clean
            torch.testing.assert_close(found, mixed * (0.3 * spread + 0.7), rtol=1e-11, atol=1e-11)
            d = c - u
            size = flat(d).norm(dim=1)
            limit = float(size.sort().values[1])  # one row is shortened, one lies just at the limit
            d = d * (limit / size).clamp(max=1.0)[:, None, None, None]
            part = ((flat(d) * flat(c)).sum(1) / flat(c).square().sum(1))[:, None, None, None] * c
            found = guide.APG(weight=by_level, null=NULL, parallel=0.3, norm=limit)(model(path))(X, t).clean
            torch.testing.assert_close(found, c + (w - 1.0) * (d - part + 0.3 * part), rtol=1e-11, atol=1e-11)
            worse = Denoiser(lambda x, time, label=None: 0.4 * x, path, "clean")
            found = guide.Autoguidance(weight=by_level, worse=worse)(model(path))(X, t).clean
            torch.testing.assert_close(found, 0.4 * X + w * (c - 0.4 * X), rtol=1e-11, atol=1e-11)


def test_weight_zero_is_the_other_model_and_is_rescaled_where_asked():
    path = VP()
    c, u = net(X, torch.zeros(3), **TOLD), net(X, torch.zeros(3), label=NULL["label"].expand(3))
    ratio = (c.flatten(1).std(1) / u.flatten(1).std(1))[:, None, None, None]
    found = guide.CFG(weight=0.0, null=NULL, rescale=1.0)(model(path))(X, 0.5).clean
    torch.testing.assert_close(found, u * ratio, rtol=1e-12, atol=1e-12)
    worse = model(path, {"label": torch.full((3,), 2.0, dtype=F64)})
    for conditional, label in ((True, TOLD["label"]), (False, torch.full((3,), 2.0, dtype=F64))):
        found = guide.Autoguidance(weight=0.0, worse=worse, conditional=conditional)(model(path))(X, 0.5).clean
        assert torch.equal(found, net(X, torch.zeros(3), label=label))
    free = guide.Autoguidance(weight=0.0, worse=worse)(model(path, None))(X, 0.5).clean
    assert torch.equal(free, net(X, torch.zeros(3), label=torch.full((3,), 2.0, dtype=F64)))


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (1,)])
def test_conditions_of_other_widths_are_two_calls(shape):
    calls = []

    def wide(x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        calls.append(len(x))
        return x * text.reshape(len(x), -1).mean(1)[:, None, None, None]

    inner = Denoiser(wide, VP(), "clean", cond={"text": torch.full((3, 2), 2.0, dtype=F64)})
    found = guide.CFG(weight=3.0, null={"text": torch.zeros(shape, dtype=F64)})(inner)(X, 0.5).clean
    torch.testing.assert_close(found, 6.0 * X)
    assert calls == ([6] if shape == (1, 2) else [3, 3])


def test_the_step_of_cfgpp_off_its_grid():
    """s is the next time below t; below the last the clean end, where w = λ."""
    path, grid = Flow(), [1.0, 0.7, 0.2]
    c, u = net(X, torch.zeros(3), **TOLD), net(X, torch.zeros(3), label=NULL["label"].expand(3))
    bar = lambda t: t / (1.0 - t)  # noqa: E731
    for t, s in ((0.9, 0.7), (0.7, 0.2), (0.5, 0.2), (0.2, 0.0), (0.1, 0.0)):
        w = 0.6 / (1.0 - bar(s) / bar(t))
        found = guide.CFGpp(scale=0.6, null=NULL, grid=grid)(model(path))(X, t).clean
        torch.testing.assert_close(found, u + w * (c - u), rtol=1e-11, atol=1e-11)
    for rule in (
        guide.CFGpp(scale=0.6, null=NULL, grid=grid),
        guide.DPS(misfit=energy, scale=0.1, grid=grid),
    ):
        with pytest.raises(ConfigError, match="belongs to the steps"):
            rule(model(path))(X, torch.full((3,), 0.5, dtype=F64))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_weight_of_dps_is_that_of_the_clean_sample_in_the_step(path, eta):
    """k = α_s − √(σ_s² − η²·bridge²)/σ_t·α_t; α of the clean end in the last step."""
    low, middle, high = TIMES[type(path).__name__]
    plain = net(X, torch.zeros(3), **TOLD)
    misfit = guide.misfit_of(energy_of_rows())
    size = (plain - GOAL).flatten(1).norm(dim=1)[:, None, None, None]
    for t, s in ((high, middle), (middle, low), (low, path.t_range[0])):
        a, b, at, bt = path.alpha(s), path.sigma(s), path.alpha(t), path.sigma(t)
        gain = at / a
        bridge = 0.0 if b == 0.0 else b * math.sqrt(bt**2 - (gain * b) ** 2) / bt
        k = a - math.sqrt(b**2 - (eta * bridge) ** 2) / bt * at
        gradient = pulled(path, t, X, lambda clean: (clean - GOAL) / size)
        rule = guide.DPS(misfit=misfit, scale=0.3, grid=[high, middle, low], eta=eta)
        torch.testing.assert_close(rule(model(path))(X, t).clean, plain - 0.3 / k * gradient, rtol=1e-9, atol=1e-9)
    assert misfit(GOAL).tolist() == [0.0] * 3
    torch.testing.assert_close(misfit(plain), size.flatten())


def test_a_linear_posterior_is_weighed_and_every_row_is_solved_by_itself():
    """C = (σ²/α)·J of a network whose Jacobian is known; two measurements of each row; floats and tensors of times."""
    scale = torch.tensor([0.5, 0.9, 0.2, 0.7], dtype=F64)
    x, y = X.flatten(1)[:, :4], GOAL.flatten(1)[:, :2]
    operator, std = (lambda v: torch.stack([v[:, 0] + v[:, 1], 2.0 * v[:, 3]], 1)), 0.4
    rows = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]], dtype=F64)
    inner = Denoiser(lambda x, time: scale * x, VE(), "clean")
    measured = guide.Measured(operator=operator, target=y, std=std)
    for t in (1.4, torch.tensor([0.3, 1.4, 5.0], dtype=F64)):
        found = guide.LinearPosterior(measured=measured, iterations=2, weight=0.8)(inner)(x, t).clean
        for i, level in enumerate(torch.as_tensor(t, dtype=F64).expand(3).tolist()):
            c = level**2 * torch.diag(scale)
            gain = c @ rows.T @ (std**2 * torch.eye(2, dtype=F64) + rows @ c @ rows.T).inverse()
            wanted = scale * x[i] + 0.8 * gain @ (y[i] - rows @ (scale * x[i]))
            torch.testing.assert_close(found[i], wanted, rtol=1e-10, atol=1e-10)


def test_a_linear_posterior_leaves_a_row_that_fits_where_it_is():
    """No residual, no direction: nothing is divided by zero, beside a row that has one."""
    inner = Denoiser(lambda x, time: 0.5 * x, VE(), "clean")
    x = X.flatten(1)[:, :2]
    goal = torch.stack([0.5 * x[0], x[1], x[2] + 1.0])
    measured = guide.Measured(operator=lambda v: v, target=goal, std=0.5)
    found = guide.LinearPosterior(measured=measured, iterations=4)(inner)(x, 1.0).clean
    assert torch.equal(found[0], 0.5 * x[0])
    torch.testing.assert_close(found[1:], 0.5 * x[1:] + 0.5 / 0.75 * (goal - 0.5 * x)[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("feeds", ["unit", "state"])
def test_a_noisy_classifier_has_the_slope_of_its_own_labels(path, feeds):
    """x̂_0 + w·(σ²/α)·∇_x log softmax(logits)_y, a label for each row, at floats and at tensors of times."""
    weights = Noise.of(2, range(1), dtype=F64).normal("w", (16, 5))[0]
    labels = torch.tensor([4, 0, 2])

    def logits(state: Tensor, log_snr: Tensor) -> Tensor:
        return (state.flatten(1) @ weights + 0.1 * state.flatten(1).square() @ weights) * (1.0 + 0.1 * log_snr[:, None])

    plain = net(X, torch.zeros(3), **TOLD)
    for t, alpha, sigma in over_times(path):
        alpha, sigma = (torch.as_tensor(v, dtype=F64).reshape(-1, 1, 1, 1).expand(3, 1, 1, 1) for v in (alpha, sigma))
        level = (2.0 * (alpha.log() - sigma.log())).flatten()
        leaf = X.clone().requires_grad_()
        fed = leaf / (alpha**2 + sigma**2).sqrt() if feeds == "unit" else leaf
        scores = torch.log_softmax(logits(fed, level), 1)[torch.arange(3), labels]
        (gradient,) = torch.autograd.grad(scores.sum(), leaf)
        rule = guide.NoisyClassifier(classifier=logits, label=labels, weight=1.7, feeds=feeds)
        found = rule(model(path))(X, t).clean
        torch.testing.assert_close(found, plain + 1.7 * sigma**2 / alpha * gradient, rtol=1e-10, atol=1e-10)
    one = guide.NoisyClassifier(classifier=logits, label=2)(model(path))(X, 0.5).clean
    each = guide.NoisyClassifier(classifier=logits, label=torch.tensor([2, 2, 2]))(model(path))(X, 0.5).clean
    assert torch.equal(one, each)
    for label in (torch.tensor([0, 1]), torch.tensor([0, 1, 2, 3])):
        with pytest.raises(UsageError, match="labels"):
            guide.NoisyClassifier(classifier=logits, label=label)(model(path))(X, 0.5)
    with pytest.raises(UsageError, match="logits"):
        guide.NoisyClassifier(classifier=lambda x, s: logits(x, s)[:2], label=1)(model(path))(X, 0.5)


def test_a_classifier_is_silent_at_both_ends():
    asked = []

    def spy(x: Tensor, log_snr: Tensor) -> Tensor:
        asked.append(1)
        return x.flatten(1).sum(1)

    rule = guide.NoisyClassifier(classifier=spy)
    inner = Denoiser(lambda x, time: torch.tanh(x), Flow(), "clean")
    for t in (0.0, 1.0):
        assert torch.equal(rule(inner)(X, t).clean, torch.tanh(X))
    assert not asked
    rule(inner)(X, 0.5)
    assert asked == [1]


def test_a_classifier_whose_slope_is_not_finite_leaves_that_row():
    def broken(x: Tensor, log_snr: Tensor) -> Tensor:
        rows = torch.tensor([1.0, math.nan, 1.0], dtype=F64)
        return (rows * x.flatten(1).square().sum(1)).nan_to_num() + rows * x.flatten(1).sum(1)

    plain = torch.tanh(X)
    found = guide.NoisyClassifier(classifier=broken)(Denoiser(lambda x, time: torch.tanh(x), VE(), "clean"))(X, 1.0)
    assert torch.equal(found.clean[1], plain[1])
    assert bool((found.clean[[0, 2]] != plain[[0, 2]]).any(1).any(1).any(1).all())


# -------------------------------------------------------------------------------------------------- windows and bundles


def test_the_edges_of_a_window():
    """a ≤ log-SNR < b, low < σ ≤ high; log-SNR 0 is σ = 1 exactly; the same row by row."""
    plain, moved = model(VE()), guide.CFG(weight=3.0, null=NULL)
    ones = torch.ones(3, dtype=F64)
    for window, inside in (
        ({"log_snr": (0.0, 1.0)}, True),
        ({"log_snr": (-1.0, 0.0)}, False),
        ({"sigma": (0.5, 1.0)}, True),
        ({"sigma": (1.0, 2.0)}, False),
    ):
        wanted = (moved(plain) if inside else plain)(X, 1.0).clean
        for t in (1.0, ones):
            torch.testing.assert_close(
                guide.interval(moved, **window)(plain)(X, t).clean, wanted, rtol=1e-13, atol=1e-13
            )


def test_a_bundle_differentiates_if_one_of_it_does():
    mild, steep = guide.Threshold(), Universal(energies=energy)
    assert not Universal(energies=energy, differentiate_through="estimate").differentiates
    assert (mild.differentiates, steep.differentiates) == (False, True)
    for bundle in (guide.compose, guide.add):
        assert [bundle(*each).differentiates for each in ((mild, mild), (mild, steep), (steep,), ())] == [
            False,
            True,
            True,
            False,
        ]
    assert guide.interval(steep, sigma=(0.0, 1.0)).differentiates
    assert not guide.interval(mild, sigma=(0.0, 1.0)).differentiates
    assert not guide.interval(lambda inner: inner, sigma=(0.0, 1.0)).differentiates
    for rule in (guide.DPS(misfit=energy, scale=0.1, grid=[1.0, 0.0]), guide.SelfMinority(distance="squared")):
        assert rule.differentiates
    assert guide.LinearPosterior(measured=energy_of_rows()).differentiates
    assert not guide.MinorityPrompt().differentiates


def test_three_shifts_add_to_the_plain_estimate():
    inner, path = model(VE()), VE()
    parts = [
        guide.CFG(weight=2.0, null=NULL),
        guide.NoisyClassifier(classifier=lambda x, s: -x.flatten(1).square().sum(1)),
        Universal(energies=energy, strength=0.2),
    ]
    plain = inner(X, 1.4).clean
    shifts = sum(part(inner)(X, 1.4).clean - plain for part in parts)
    for order in itertools.permutations(parts):
        found = guide.add(*order)(inner)(X, 1.4).clean
        torch.testing.assert_close(found, plain + shifts, rtol=1e-11, atol=1e-11)
    del path


def test_measurements_of_pictures_are_solved_row_by_row_too():
    """The posterior mean of white pictures: of any number of axes, x̂_0 + c/(std² + c)·(y − x̂_0), c = σ²·½."""
    inner = Denoiser(lambda x, time: 0.5 * x, VE(), "clean")
    found = guide.LinearPosterior(measured=guide.Measured(operator=lambda v: v, target=GOAL, std=0.4))(inner)(X, 1.4)
    c = 0.5 * 1.96
    torch.testing.assert_close(found.clean, 0.5 * X + c / (0.16 + c) * (GOAL - 0.5 * X), rtol=1e-11, atol=1e-11)


def test_a_network_that_does_not_look_at_its_state_is_left_alone():
    """Its answer has a graph, of weights, but no slope in the state: the shift is zero, not an error."""
    weight = torch.nn.Parameter(torch.full((2, 2, 4), 0.3, dtype=F64))
    inner = Denoiser(lambda x, time: weight.expand_as(x), VE(), "clean")
    found = Universal(energies=energy)(inner)(X, 1.4).clean
    assert torch.equal(found, weight.detach().expand_as(X))


def test_layers_are_skipped_in_the_order_of_the_pass_alone():
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Site("first"), Site("second")

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.second(2.0 * self.first(x, time), time)

    inner = Denoiser(Two(), VE(), "clean")
    found = guide.SkipLayer(layers=(("first", "second"),), scale=0.5)(inner)(X, 1.4).clean
    torch.testing.assert_close(found, 2.0 * X + 0.5 * (2.0 * X - X))
    with pytest.raises(
        UsageError, match=r"site 'first' needs a feature of shape \(3, 2, 2, 4\), got nothing from before"
    ):
        guide.SkipLayer(layers=(("second", "first"),))(inner)(X, 1.4)
