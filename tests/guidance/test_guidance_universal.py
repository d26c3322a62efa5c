"""Universal guidance around networks: gradients, graphs, mixtures of guidances, and what must not change."""

import gc
import itertools
import weakref

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import guidance as guide
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError, PathError, UsageError
from ornstein.guidance import Backward, Universal
from ornstein.paths import VE, VP
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, Ancestral, run, solve

# -------------------------------------------------------------------------------- a network, and every kind of model


class Net(nn.Module):
    """A tiny network with blocks in a list, that counts its calls and the rows it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16)) for _ in range(4))
        self.last = nn.Linear(16, 4)
        self.calls: list[int] = []

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        h = self.first(x) + time.to(x.dtype)[:, None] / 1000
        h = h if label is None else h + label.to(x.dtype)[:, None]
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def network() -> Net:
    torch.manual_seed(0)
    return Net().double().requires_grad_(False)


X4 = Noise.of(3, range(4), dtype=torch.float64).normal("x", (4,))
TARGET4 = Noise.of(4, range(4), dtype=torch.float64).normal("y", (4,))
NEAR = guide.Measured(operator=lambda x: x, target=TARGET4[:1], std=1.0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    """H14."""
    model, path = Denoiser(network(), VP(), "v"), VP()
    t = path.time_of(-0.5)
    factor = path.sigma(t) ** 2 / path.alpha(t)
    guided = Universal(energies=NEAR)(model)(X4, t).clean
    shift, h = torch.zeros_like(X4), 1e-6
    for j in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[j] = h
        up, down = (NEAR(model(X4 + sign * step, t).clean) for sign in (1, -1))
        shift[:, j] = -factor * (up - down) / (2 * h)
    torch.testing.assert_close(guided - model(X4, t).clean, shift, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["noise", "v", "consistency"])
@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "latents"])
def test_the_same_guide_lowers_its_energy_on_pixels_latents_and_consistency_models(kind: str, latent: bool) -> None:
    mixing = torch.tensor([[1.0, 0.2, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, -0.2], [0.1, 0, 0, 1]], dtype=torch.float64)
    decode = (lambda z: z @ mixing) if latent else None
    model = Denoiser(network(), VE(), kind, shape=(4,))
    guidance = Universal(energies=NEAR, strength=0.5, backward=Backward(steps=5, rate=0.1), decode=decode)
    kwargs = {"n": 4, "sampler": "ddim", "grid": orn.grids.karras(4, start=3.0), "dtype": torch.float64}
    seen = (lambda z: z) if decode is None else decode
    plain, guided = (NEAR(seen(orn.sample(m, **kwargs))) for m in (model, guidance(model)))
    assert bool((guided < 0.7 * plain).all())


def test_zero_guidance_changes_no_bit_and_costs_nothing() -> None:
    """H1, through a whole sampler with recurrence."""
    net = network()
    model = Denoiser(net, VP(), "v", shape=(4,))
    kwargs = {"n": 3, "sampler": "ddpm", "grid": orn.grids.resample(orn.grids.log_snr(4), 2), "dtype": torch.float64}
    plain = orn.sample(model, **kwargs)
    cost = len(net.calls)
    for guidance in (
        Universal(energies=NEAR, strength=0.0),
        Universal(energies=NEAR, strength=lambda log_snr: 0.0),
        Universal(energies=NEAR, strength=0.0, backward=Backward(steps=0, rate=1.0)),
        Universal(energies=NEAR, strength=0.0, backward=Backward(steps=4, rate=0.0)),
        guide.LinearPosterior(measured=NEAR, weight=0.0),
        guide.DPS(misfit=guide.misfit_of(NEAR), scale=0.0, grid=[1.0, 0.0]),
    ):
        net.calls.clear()
        assert torch.equal(orn.sample(guidance(model), **kwargs), plain)
        assert len(net.calls) == cost


def test_a_descent_at_rate_zero_evaluates_no_energy_and_one_at_a_quarter_does() -> None:
    asked: list[int] = []

    def energy(clean: Tensor) -> Tensor:
        asked.append(len(clean))
        return clean.square().flatten(1).sum(1)

    model = Denoiser(network(), VP(), "v", shape=(4,))
    Universal(energies=[(1.0, energy)], strength=0.0, backward=Backward(steps=4, rate=0.0))(model)(X4, 0.5)
    assert asked == []
    Universal(energies=[(1.0, energy)], strength=0.0, backward=Backward(steps=2, rate=0.25))(model)(X4, 0.5)
    assert asked == [len(X4)] * 2


def test_each_sample_is_guided_by_itself() -> None:
    """H11, alone, in chunks with a target for each sample, and with conditions."""
    model = Denoiser(network(), VP(), "v", cond={"label": torch.tensor([0.1, 0.2, 0.3, 0.4])})
    energy = guide.Measured(operator=lambda x: x, target=TARGET4)
    backward = Backward(steps=2, rate=0.1, energies=[(2.0, energy)])
    whole = Universal(energies=energy, backward=backward)(model)(X4, 0.5).clean
    for chunk in (1, 3):
        part = Universal(energies=energy, backward=backward, chunk=chunk)(model)(X4, 0.5).clean
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)
    times = torch.full((4,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(Universal(energies=energy, backward=backward, chunk=3)(model)(X4, times).clean, whole)


def test_several_guidances_add_in_any_order_and_share_one_call() -> None:
    """H12."""
    net = network()
    model = Denoiser(net, VP(), "v")
    other = guide.Measured(operator=lambda x: x[:, :2], target=TARGET4[1:2, :2])
    one, two = Universal(energies=NEAR, strength=0.7), Universal(energies=other, strength=1.3)
    plain, a, b = (m(X4, 0.5).clean for m in (model, one(model), two(model)))
    net.calls.clear()
    both = [guide.add(*order)(model)(X4, 0.5).clean for order in ((one, two), (two, one))]
    assert net.calls == [4, 4]
    torch.testing.assert_close(both[0], a + b - plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both[0], both[1], rtol=1e-13, atol=1e-13)
    single = Universal(energies=[(0.7, NEAR), (1.3, other)])(model)(X4, 0.5).clean
    torch.testing.assert_close(single, both[0], rtol=1e-12, atol=1e-12)
    net.calls.clear()
    Universal(energies=NEAR, backward=Backward(steps=7, rate=0.1))(model)(X4, 0.5)
    assert net.calls == [4], "the descent asks the network for nothing"


def test_classifier_free_guidance_inside_and_outside() -> None:
    """H13: joint and separate placement, with their calls counted."""
    net = network()
    cond, null = {"label": torch.tensor([1.0])}, {"label": torch.tensor([0.0])}
    path = VP()
    t = path.time_of(0.0)
    model = Denoiser(net, path, "v").with_condition(cond)
    c, u = model(X4, t).clean, model.with_condition(null)(X4, t).clean
    universal = Universal(energies=NEAR)
    at_c = universal(model)(X4, t).clean - c
    at_u = universal(model.with_condition(null))(X4, t).clean - u
    cfg = guide.CFG(weight=3.0, null=null)
    apart = Universal(energies=NEAR, at=null)

    net.calls.clear()
    separate = guide.add(cfg, apart)(model)(X4, t).clean
    assert net.calls == [4, 4], "u with its gradient, and c"
    torch.testing.assert_close(separate, u + 3 * (c - u) + at_u, rtol=1e-12, atol=1e-12)

    net.calls.clear()
    joint = guide.compose(cfg, universal)(model)(X4, t).clean
    assert net.calls == [8]
    leaf = X4.clone().requires_grad_()
    mixed = model.with_condition(null)(leaf, t).clean
    mixed = mixed + 3 * (model(leaf, t).clean - mixed)
    (gradient,) = torch.autograd.grad(NEAR(mixed).sum(), leaf)
    factor = path.sigma(t) ** 2 / path.alpha(t)
    torch.testing.assert_close(joint, mixed.detach() - factor * gradient, rtol=1e-12, atol=1e-12)

    plain = guide.CFG(weight=1.0, null=null)
    for guidance, shift in ((guide.compose(plain, universal), at_c), (guide.add(plain, apart), at_u)):
        torch.testing.assert_close(guidance(model)(X4, t).clean, c + shift, rtol=1e-12, atol=1e-12)


class Numbered:
    """A noise source whose every answer is that of step ``index``."""

    def __init__(self, noise: Noise, index: int) -> None:
        self.noise, self.index = noise, index

    def normal(self, key, event) -> Tensor:
        return self.noise.normal(self.index, event)


def test_dps_on_its_samplers_is_the_published_step() -> None:
    net, path = network(), VP()
    model = Denoiser(net, path, "v", shape=(4,))
    grid = [0.9, 0.5, 0.2]
    zeta, misfit = 0.3, guide.misfit_of(NEAR)
    for sampler, eta in ((Ancestral(), 1.0), (DDIM(), 0.0), (DDIM(eta=0.5), 0.5)):
        noise = Noise.of(1, range(4), dtype=torch.float64)
        guided = guide.DPS(misfit=misfit, scale=zeta, grid=grid, eta=eta)(model)
        found = run(solve(sampler, path, X4, grid, noise), guided)
        x = X4
        for i, (t, s) in enumerate(itertools.pairwise(grid)):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(misfit(model(leaf, t).clean).sum(), leaf)
            x = run(solve(sampler, path, x, [t, s], Numbered(noise, i)), model) - zeta * gradient
        torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------------------------------- graphs and gradients


def test_checkpointing_changes_no_value_and_stores_less() -> None:
    def stored(checkpoint: bool) -> tuple[Tensor, int]:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        guidance = Universal(energies=NEAR, decode=torch.tanh, checkpoint=checkpoint)
        peak: list[int] = []
        energy = guidance.energies[0][1]

        def watched(clean: Tensor) -> Tensor | None:
            peak.append(sum(sizes))  # what the forward pass of the network has stored
            return energy(clean)

        guidance = Universal(energies=watched, decode=torch.tanh, checkpoint=checkpoint)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            clean = guidance(Denoiser(network(), VP(), "v"))(X4, 0.5).clean
        return clean, peak[0]

    plain, all_of_it = stored(False)
    again, less = stored(True)
    assert torch.equal(plain, again)
    assert less < 0.5 * all_of_it
    with torch.no_grad():
        assert torch.equal(
            Universal(energies=NEAR, decode=torch.tanh, checkpoint=True)(Denoiser(network(), VP(), "v"))(X4, 0.5).clean,
            plain,
        )


def test_no_graph_survives_a_question() -> None:
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) and o.requires_grad for o in gc.get_objects())

    model = Denoiser(network(), VP(), "v", shape=(4,))
    guidance = guide.add(
        Universal(energies=NEAR, backward=Backward(steps=2, rate=0.1)), guide.LinearPosterior(measured=NEAR)
    )
    dps = guide.DPS(misfit=guide.misfit_of(NEAR), scale=0.1, grid=[1.0, 0.0])
    for each in (guidance, dps, *guidance.guidances):  # also where gradients are on
        assert not each(model)(X4, 0.5).clean.requires_grad
    before = alive()
    for event in orn.stream(guidance(model), 2, steps=3, sampler="ddim", dtype=torch.float64):
        assert not event.x.requires_grad
        assert event.estimate is None or not event.estimate.clean.requires_grad
        assert alive() == before


def test_it_runs_under_no_grad_inference_mode_and_with_trainable_parameters() -> None:
    trainable = network().requires_grad_(True)
    guidance = Universal(energies=NEAR)
    plain = guidance(Denoiser(network(), VP(), "v"))(X4, 0.5).clean
    assert torch.equal(guidance(Denoiser(trainable, VP(), "v"))(X4, 0.5).clean, plain)
    assert all(p.grad is None for p in trainable.parameters())
    with torch.no_grad():
        assert torch.equal(guidance(Denoiser(network(), VP(), "v"))(X4, 0.5).clean, plain)
    net = network()
    with torch.inference_mode():
        assert torch.equal(guidance(Denoiser(net, VP(), "v"))(X4.clone(), 0.5).clean, plain)


def test_through_the_estimate_alone_needs_no_gradient_of_the_network() -> None:
    net = network()

    def frozen(x: Tensor, time: Tensor) -> Tensor:
        with torch.no_grad():
            return net(x, time)

    model, path = Denoiser(frozen, VP(), "v"), VP()
    t = path.time_of(0.4)
    plain = model(X4, t).clean
    guided = Universal(energies=NEAR, strength=0.3, differentiate_through="estimate")(model)(X4, t).clean
    torch.testing.assert_close(guided, plain - 0.3 * path.sigma(t) ** 2 * (plain - TARGET4[:1]), rtol=1e-12, atol=1e-12)
    with pytest.raises(UsageError, match="no gradient"):
        Universal(energies=NEAR)(Denoiser(frozen, VP(), "clean"))(X4, t)


def test_a_guide_that_finds_nothing_leaves_those_samples_unguided() -> None:
    model = Denoiser(network(), VP(), "v")
    plain, guided = model(X4, 0.5).clean, Universal(energies=NEAR)(model)(X4, 0.5).clean
    lost = torch.tensor([False, True, False, True])
    backward = Backward(steps=2, rate=0.1)

    def partly(clean: Tensor) -> Tensor:
        return torch.where(lost, torch.nan, 1.0) * NEAR(clean)

    with pytest.warns(guide.GuideWarning, match="partly found nothing"):
        found = Universal(energies=partly)(model)(X4, 0.5).clean
    assert torch.equal(found[lost], plain[lost])
    assert torch.equal(found[~lost], guided[~lost])
    with pytest.warns(guide.GuideWarning):
        assert torch.equal(Universal(energies=lambda clean: None, backward=backward)(model)(X4, 0.5).clean, plain)
    with pytest.warns(guide.GuideWarning):
        mixed = Universal(energies=[partly, NEAR])(model)(X4, 0.5).clean
    torch.testing.assert_close(mixed[lost], guided[lost], rtol=1e-12, atol=1e-12)

    def bad_gradient(clean: Tensor) -> Tensor:
        return (clean - clean.detach()).square().sum(1).sqrt() + NEAR(clean)  # √0 has no derivative

    assert torch.equal(Universal(energies=bad_gradient)(model)(X4, 0.5).clean, plain)


@pytest.mark.filterwarnings("ignore::ornstein.guidance.GuideWarning")
@pytest.mark.parametrize(
    "backward",
    [
        Backward(steps=2, rate=0.1, descent="adam", clamp=(-0.1, 0.1)),
        Backward(steps=2, rate=0.1, clamp=(-0.1, 0.1), cutoff=1e9),
        Backward(steps=2, rate=0.1, space="image"),
        Backward(steps=2, rate=0.1, clamp=(-0.1, 0.1), space="image"),
    ],
    ids=["clamped", "at rest", "decoded", "decoded and clamped"],
)
def test_where_nothing_is_found_backward_guidance_neither_clamps_nor_encodes(backward: Backward) -> None:
    model = Denoiser(network(), VP(), "v")
    plain = model(X4, 0.5).clean
    lost = torch.tensor([False, True, False, True])

    def partly(clean: Tensor) -> Tensor:
        return torch.where(lost, torch.nan, 1.0) * NEAR(clean)

    def lossy(picture: Tensor) -> Tensor:
        return torch.round(picture, decimals=1)

    found = Universal(energies=partly, backward=backward, strength=0.0, decode=lambda z: 1.0 * z, encode=lossy)
    guided = found(model)(X4, 0.5).clean
    assert torch.equal(guided[lost], plain[lost])
    assert not torch.isclose(guided[~lost], plain[~lost]).all(1).any()


@pytest.mark.parametrize("backward", [None, Backward(steps=2, rate=0.1, descent="adam", clamp=(-0.1, 0.1))])
def test_rows_of_nan_that_no_network_made_are_nothing_found(backward: Backward | None) -> None:
    """As of a detector of faces that sees none in the whole batch: there is nothing to differentiate."""
    model = Denoiser(network(), VP(), "v")

    def nobody(clean: Tensor) -> Tensor:
        return torch.full((len(clean),), torch.nan)

    with pytest.warns(guide.GuideWarning, match="nobody found nothing"):
        assert torch.equal(Universal(energies=nobody, backward=backward)(model)(X4, 0.5).clean, model(X4, 0.5).clean)


class Token:
    """Something that a graph holds on to."""


class Holding(torch.autograd.Function):
    """The identity, whose place in a graph keeps a token alive."""

    @staticmethod
    def forward(ctx, x: Tensor, token: Token) -> Tensor:
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None]:
        return slope, None


def test_chunks_bound_the_graphs_that_are_alive_under_other_guidances_too() -> None:
    net, graphs = network(), []

    def watched(x: Tensor, time: Tensor) -> Tensor:
        assert torch.is_grad_enabled() == x.requires_grad
        if not x.requires_grad:
            return net(x, time)
        gc.collect()
        assert not any(graph() is not None for graph in graphs), "the graph of an earlier chunk is kept"
        token = Token()
        graphs.append(weakref.ref(token))
        return Holding.apply(net(x, time), token)

    model = Denoiser(watched, VP(), "v")
    guidance = Universal(energies=NEAR, chunk=1)
    with torch.no_grad():
        alone = guidance(model)(X4, 0.5).clean
        assert torch.equal(guide.compose(guidance)(model)(X4, 0.5).clean, alone)
        assert torch.equal(guide.add(guidance)(model)(X4, 0.5).clean, alone)
    assert len(graphs) == 12


def test_it_says_so_once() -> None:
    import warnings

    model = Denoiser(network(), VP(), "v", shape=(4,))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        orn.sample(Universal(energies=lambda clean: None)(model), n=1, steps=4)
    assert len(said) == 1


def test_a_shift_can_be_limited() -> None:
    model = Denoiser(network(), VP(), "v")
    plain, guided, short = (
        m(X4, 0.5).clean
        for m in (model, *(Universal(energies=NEAR, strength=50.0, limit=limit)(model) for limit in (None, 0.01)))
    )
    assert bool(((guided - plain).square().mean(1).sqrt() > 0.01).all())
    torch.testing.assert_close((short - plain).square().mean(1).sqrt(), torch.full((4,), 0.01, dtype=torch.float64))
    torch.testing.assert_close(
        torch.cosine_similarity(short - plain, guided - plain), torch.ones(4, dtype=torch.float64)
    )


def test_wrong_energies_are_refused() -> None:
    model = Denoiser(network(), VP(), "v")
    with pytest.raises(UsageError, match=r"one number a sample, shape \(4,\)"):
        Universal(energies=lambda clean: clean.mean())(model)(X4, 0.5)
    with pytest.raises(UsageError, match="differentiable"):
        Universal(energies=lambda clean: clean.detach().mean(1))(model)(X4, 0.5)
    with pytest.raises(ConfigError, match="callables"):
        Universal(energies=[3.0])
    with pytest.raises(UsageError, match="one row"):
        Universal(energies=guide.Measured(operator=lambda x: x, target=TARGET4[:3]))(model)(X4, 0.5)
    shifted = orn.ShiftedPath(shift=lambda clean, c, t: 0.1 * clean)
    with pytest.raises(PathError, match="AffinePath"):
        Universal(energies=NEAR)(Denoiser(network(), shifted, "clean"))(X4, 0.5)
    moved = Universal(energies=NEAR, strength=0.0, backward=Backward(steps=1, rate=0.1))
    assert moved(Denoiser(network(), shifted, "clean"))(X4, 0.5).clean.shape == X4.shape
