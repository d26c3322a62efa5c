"""`Relay`: a hand-over at a noise level is a stop and a new beginning, for every sampler, grid and kind of path."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein import grids
from ornstein.denoisers import info_of
from ornstein.errors import ConfigError, GridError, UsageError
from ornstein.guidance import CFG
from ornstein.lab.targets import MixtureTarget
from ornstein.relay import Relay, join_conditions, through
from ornstein.samplers import SAMPLERS, plan, run, solve, stream
from ornstein.scalars import StepTime

PATHS = {"table": orn.VP.table(), "vp": orn.VP(), "flow": orn.Flow(), "ve": orn.VE()}
ALONE = ["ancestral", "ddim", "ddim-eta1", "euler", "heun", "dpmpp-1", "dpmpp-2s", "accelerated-sde", "sde-midpoint"]
SHAPE = (2, 4)


class Small(nn.Module):
    """A network that is not linear in anything."""

    def __init__(self, seed=0):
        super().__init__()
        self.layer = nn.Linear(4, 4, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.layer.parameters():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))

    def forward(self, x, time):
        return torch.tanh(self.layer(x) + torch.sin(time.double())[:, None, None])


def model(path, seed=0):
    return orn.Denoiser(Small(seed), path=path, predicts="clean", shape=SHAPE)


class Seen:
    """A denoiser that notes the times at which it is evaluated."""

    def __init__(self, inner):
        self.inner, self.times, self.path, self.info = inner, [], inner.path, inner.info

    def __call__(self, x, t):
        self.times.append(float(t))
        return self.inner(x, t)

    def with_condition(self, cond):
        return self

    def predict_conditions(self, x, t, conds):
        return [self(x, t) for _ in conds]


class Later:
    """The noise of steps that are counted from ``first``."""

    def __init__(self, noise, first):
        self.noise, self.first = noise, first

    def _key(self, key):
        if isinstance(key, int):
            return key + self.first
        return tuple(part + self.first if isinstance(part, int) else part for part in key)

    def __getattr__(self, name):
        draw = getattr(self.noise, name)
        return lambda key, *rest: draw(self._key(key) if not isinstance(key, str) else key, *rest)


def level(path, share=0.55):
    """The log-SNR in the middle of a path's range of noise levels."""
    return path.log_snr(grids.log_snr(20)(path)[int(20 * share)])


# ------------------------------------------------------------------------------------------------------ equal networks


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("name", ALONE)
def test_equal_networks_make_the_plain_run_to_the_bit(name, path) -> None:
    """A sampler that remembers nothing does not see a hand-over between equal networks at all."""
    plain = model(path)
    relay = Relay(plain, copy.deepcopy(plain), below=level(path))
    times = through(grids.log_snr, 10, relay.info.handovers)(path)
    for dtype in (torch.float32, torch.float64):
        one, two = (orn.sample(m, 2, sampler=name, grid=times, dtype=dtype, seed=3) for m in (plain, relay))
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_same_denoiser_twice_is_no_hand_over(name) -> None:
    path = orn.VP.table()
    plain = orn.Denoiser(
        lambda x, time: torch.cat([torch.tanh(x), 0 * x], dim=1),
        path=path,
        predicts="clean",
        shape=SHAPE,
        learned_variance=True,
    )
    relay = Relay(plain, plain, below=level(path))
    assert relay.info.handovers == ()
    assert torch.equal(*(orn.sample(m, 2, sampler=name, steps=7, seed=1) for m in (plain, relay)))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ancestral-learned"}))
def test_a_hand_over_is_a_stop_and_a_new_beginning(name) -> None:
    """Whatever the sampler: the result is that of one run down to the level, and of another from there."""
    path, rule = orn.VP.table(), SAMPLERS[name]()
    relay = Relay(model(path, 0), model(path, 1), below=level(path))
    times = through(grids.log_snr, 9, relay.info.handovers)(path)
    cut = times.index(relay.level)
    noise = orn.Noise.of(5, range(3), dtype=torch.float64)
    x = path.prior(noise, SHAPE, times[0])
    whole = run(solve(rule, path, x, times, noise, relay.info.handovers), relay)
    upper = run(solve(rule, path, x, times[: cut + 1], noise), relay.first)
    if name not in {"randomized-midpoint", "staggered-midpoint", "unipc", "unipc-1", "unipc-2", "unipc-3"}:
        # (these four take their last step otherwise, and a step that ends at a hand-over is not the last)
        lower = run(solve(rule, path, upper, times[cut:], Later(noise, cut)), relay.second)
        torch.testing.assert_close(whole, lower, rtol=1e-12, atol=1e-12)
    assert not torch.equal(whole, run(solve(rule, path, x, times, noise), relay.first))


# ------------------------------------------------------------------------------------------------- who evaluates where


@pytest.mark.parametrize("steps", [2, 5, 12])
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ancestral-learned"}))
def test_each_network_evaluates_its_own_part_and_all_evaluations_add_up(name, steps) -> None:
    path = orn.VP.table()
    first, second = Seen(model(path, 0)), Seen(model(path, 1))
    relay = Relay(first, second, below=path.log_snr(0.2))
    assert relay.level == pytest.approx(0.2)
    orn.sample(relay, 1, sampler=name, steps=steps)
    assert min(first.times) >= relay.level * (1 - 1e-9)
    assert max(second.times) <= relay.level * (1 + 1e-9)  # 0.2 is the table's time 199: never 200 or above
    family = through(lambda few: grids.default(path, few), steps, relay.info.handovers)
    planned = plan(SAMPLERS[name](), path, family(path), handovers=relay.info.handovers)
    assert len(first.times) + len(second.times) == len(planned)


def test_heun_crosses_with_two_evaluations_a_step_and_one_at_the_end() -> None:
    path = orn.Flow()
    first, second = Seen(model(path, 0)), Seen(model(path, 1))
    orn.sample(Relay(first, second, below=0.0), 1, sampler="heun", grid=[1.0, 0.75, 0.5, 0.25, 0.0])
    # (Flow begins at α = 0, where Heun's first step is Euler's)
    assert (first.times, second.times) == ([1.0, 0.75, 0.5], [0.5, 0.25, 0.25])


def test_on_a_grid_of_ones_own_a_step_belongs_to_where_it_begins() -> None:
    """The grid is not touched, and Heun's second evaluation below the level is still the first network's."""
    path = orn.Flow()
    for name, ends in (("heun", [0.75, 0.6, 0.6, 0.3]), ("ddim", [0.75, 0.6])):
        first, second = Seen(model(path, 0)), Seen(model(path, 1))
        orn.sample(Relay(first, second, below=0.0), 1, sampler=name, grid=[0.75, 0.6, 0.3, 0.0])
        assert (first.times, second.times) == (ends, [0.3])


@pytest.mark.parametrize("family", [grids.karras, grids.uniform, grids.log_snr])
@pytest.mark.parametrize("steps", [2, 7, 30])
def test_the_hand_over_is_a_level_whatever_the_grid(family, steps) -> None:
    path = orn.VP.table()
    first, second = Seen(model(path, 0)), Seen(model(path, 1))
    relay = Relay(first, second, below=path.log_snr(0.2))
    grid = through(family, steps, relay.info.handovers)
    orn.sample(relay, 1, sampler="ddim", grid=grid)
    assert second.times[0] == relay.level
    assert len(first.times) + len(second.times) == steps


def test_the_number_of_evaluations_asked_for_is_kept() -> None:
    path = orn.VP.table()
    for name, asked in itertools.product(["ddim", "heun", "dpmpp-2m", "auto"], [2, 3, 8, 13, 20]):
        relay = Relay(Seen(model(path, 0)), Seen(model(path, 1)), below=path.log_snr(0.2))
        orn.sample(relay, 1, sampler=name, evaluations=asked)
        assert asked - (name == "heun") <= len(relay.first.times) + len(relay.second.times) <= asked
        assert relay.second.times


def test_a_start_below_the_level_needs_the_second_alone() -> None:
    path = orn.Flow()
    first, second = Seen(model(path, 0)), Seen(model(path, 1))
    relay = Relay(first, second, below=0.0)
    orn.sample(relay, 1, steps=3, start=torch.zeros(SHAPE), strength=0.3)
    assert (first.times, len(second.times)) == ([], 3)
    orn.sample(relay, 1, steps=4, start=torch.zeros(SHAPE), strength=0.8)
    assert len(first.times) + len(second.times) == 3 + 4
    assert second.times[3] == relay.level
    mask = torch.zeros(SHAPE)
    mask[0] = 1.0
    kept = orn.sample(relay, 1, steps=4, start=torch.full(SHAPE, 0.25), mask=mask)
    assert torch.equal(kept[0, 1], torch.full(SHAPE[1:], 0.25))


def test_stream_and_several_experts() -> None:
    path = orn.Flow()
    seen = [Seen(model(path, k)) for k in range(3)]
    relay = Relay(Relay(seen[0], seen[1], below=-1.0), seen[2], below=1.5)
    assert info_of(relay).handovers == tuple(sorted((relay.level, relay.first.level), reverse=True))
    events = list(orn.stream(relay, 1, sampler="dpmpp-2m", steps=9))
    assert [len(one.times) > 0 for one in seen] == [True] * 3
    assert sum(len(one.times) for one in seen) == 9 == events[-1].evaluation
    ends = [(max(one.times), min(one.times)) for one in seen]
    assert ends[0][1] > relay.first.level >= ends[1][0]
    assert ends[1][1] > relay.level >= ends[2][0]
    seen = [Seen(model(path, k)) for k in range(3)]
    with pytest.raises(GridError, match=r"2 steps cannot end at every hand-over: give 3 or more"):
        orn.sample(Relay(Relay(seen[0], seen[1], below=-1.0), seen[2], below=1.5), 1, steps=2)


# --------------------------------------------------------------------------------------------------------------- order


def exact_end(path, x, times, cut, one, two):
    """The end of the two exact flows of centred Gaussians one after the other: x/√(α²s² + σ²) stays."""

    def spread(std, t):
        return math.sqrt(path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2)

    there = x * spread(one, times[cut]) / spread(one, times[0])
    return there * spread(two, times[-1]) / spread(two, times[cut])


@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("heun", 2), ("dpmpp-2m", 2), ("dpmpp-2s", 2), ("unipc-2", 2), ("deis-2", 2), ("angle-adams", 2)],
)
def test_every_order_is_kept_over_a_hand_over(name, order) -> None:
    """Two Gaussians of other widths, so that the denoisers jump: an extrapolation over the jump would be of order 1."""
    path, (one, two) = orn.VE(sigma_min=0.01, sigma_max=20.0), (0.5, 1.5)
    targets = [MixtureTarget.of([1.0], [[0.0]], stds=[std]).denoiser(path) for std in (one, two)]
    relay = Relay(*targets, below=path.log_snr(1.0))
    ends, errors = (8.0, 0.1), []
    for steps in (64, 128):
        ratio = [math.log(ends[0]), 0.0, math.log(ends[1])]
        upper = [math.exp(ratio[0] * (1 - k / steps)) for k in range(steps)]
        lower = [math.exp(ratio[2] * k / steps) for k in range(steps + 1)]
        times = [*upper, *lower]
        x = torch.ones(1, 1, dtype=torch.float64)
        noise = orn.Noise.of(0, range(1), dtype=torch.float64)
        found = run(solve(SAMPLERS[name](), path, x, times, noise, relay.info.handovers), relay)
        errors.append(float((found - exact_end(path, x, times, steps, one, two)).abs()))
    assert math.log2(errors[0] / errors[1]) > order - 0.15


# ----------------------------------------------------------------------------------------- conditions, guidance, words


def told(path, seed):
    def net(x, time, *, label):
        return torch.tanh((1 + seed) * x + label[:, None, None])

    return orn.Denoiser(net, path=path, predicts="clean", shape=SHAPE)


def test_conditions_of_both_and_guidance_inside_and_outside_agree() -> None:
    path = orn.Flow()
    one, two, null = ({"label": torch.tensor([value])} for value in (1.0, 2.0, 0.0))
    inner = [CFG(weight=3.0, null=null)(told(path, seed)) for seed in (0, 1)]
    inside = Relay(inner[0].with_condition(one), inner[1].with_condition(two), below=0.0)
    bare = Relay(told(path, 0), told(path, 1), below=0.0)
    outside = CFG(weight=3.0, null=null)(bare)
    cond = join_conditions(one, two)
    assert sorted(cond) == ["first.label", "second.label"]
    assert join_conditions(one, one) == one
    found = [
        orn.sample(inside, 2, steps=6, seed=1),
        orn.sample(outside, 2, steps=6, seed=1, cond=cond),
        orn.sample(Relay(*inner, below=0.0), 2, steps=6, seed=1, cond=cond),
    ]
    torch.testing.assert_close(found[0], found[1])
    assert torch.equal(found[0], found[2])
    both = info_of(bare.with_condition(cond)).cond
    assert {name: float(value) for name, value in both.items()} == {"first.label": 1.0, "second.label": 2.0}
    assert orn.sample(bare, 2, steps=3, cond=one).shape == (2, *SHAPE)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    path = orn.Flow()
    plain = model(path)
    wrong = [
        ((plain, Small(), 0.0), "second must be a denoiser, such as ornstein.Denoiser, got"),
        ((plain, model(orn.VP()), 0.0), "a Relay have the paths Flow.* and .*: give equal ones"),
        ((model(orn.VP.table()), model(orn.VP.from_betas([1e-4] * 1000)), 0.0), "have other noise levels: at t = "),
        ((plain, orn.Denoiser(Small(), path, "clean", shape=(9,)), 0.0), r"the shapes \(2, 4\) and \(9,\)"),
        ((plain, plain, 1e9), r"below must be a log-SNR inside the path's range, .* got 1e\+09"),
        ((plain, plain, math.nan), "below must be"),
    ]
    for (first, second, below), said in wrong:
        with pytest.raises(ConfigError, match=said) as found:
            Relay(first, second, below=below)
        assert "\n" not in str(found.value)
    relay = Relay(plain, model(path, 1), below=0.0)
    with pytest.raises(UsageError, match="evaluates one time for the whole batch"):
        relay(torch.zeros(2, *SHAPE), torch.tensor([0.1, 0.9]))
    assert len(repr(relay)) <= 200
    assert orn.Relay is Relay


def test_a_time_of_a_step_is_the_same_number() -> None:
    time = StepTime(0.25, 0.5)
    copied = copy.deepcopy(time)
    assert (time, time.began, copied, copied.began, repr(time)) == (0.25, 0.5, 0.25, 0.5, "0.25")
    steps = solve(SAMPLERS["ddim"](), orn.Flow(), torch.zeros(1, *SHAPE), [1.0, 0.0], orn.Noise.of(0, range(1)))
    assert [event.t for event in stream(steps, model(orn.Flow()))] == [1.0, 1.0]
