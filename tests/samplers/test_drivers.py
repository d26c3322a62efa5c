"""Laws of the loop: every way to drive a sampler gives the same state, and the dry run tells the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError, GridError, PathError
from ornstein.estimates import Estimate
from ornstein.lab.targets import M1
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath, ShiftedPath
from ornstein.randomness import Noise
from ornstein.samplers import (
    DDIM,
    SAMPLERS,
    Ancestral,
    DPMSolver,
    Heun,
    Problem,
    Sampler,
    UniPC,
    plan,
    run,
    sampler,
    solve,
    steps_for,
    stream,
)

PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}


class Recorder:
    """A nonlinear denoiser with a variance head that notes every time it is asked.

    Its arithmetic is rounded correctly by IEEE 754, so that a row has the same bits in every batch on every processor;
    a sine or tangent need not.
    """

    def __init__(self, path: AffinePath) -> None:
        self.path, self.asked = path, list[float]()

    def __call__(self, x: Tensor, t: float) -> Estimate:
        self.asked.append(t)
        scale = 1.0 / (self.path.alpha(t) + self.path.sigma(t))
        u = 1.3 * scale * x
        return Estimate(x, t, self.path, clean=u / (1.0 + u.abs()), extras={"variance": x / (1.0 + x * x)})


def begin(path: AffinePath, rows: int = 4) -> tuple[Tensor, Noise]:
    noise = Noise.of(3, range(rows), dtype=torch.float64)
    return path.prior(noise, (2, 3)), noise


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_driver_gives_the_same_bits(name: str, path: AffinePath) -> None:
    times = grids.churn(grids.log_snr(7), total=3.0)(path)
    x, noise = begin(path)
    model = Recorder(path)
    ran = run(solve(sampler(name), path, x, times, noise), model)
    asked = list(model.asked)

    events = list(stream(solve(sampler(name), path, x, times, noise), model))
    assert events[-1].final
    assert [event.evaluation for event in events[:-1]] == list(range(1, len(asked) + 1))
    assert [event.t for event in events[:-1]] == asked

    steps, result = solve(sampler(name), path, x, times, noise), None
    query = next(steps)
    while result is None:
        try:
            query = steps.send(model(query.x, query.t))
        except StopIteration as stop:
            result = stop.value

    assert bool(ran.isfinite().all())
    assert torch.equal(ran, events[-1].x)
    assert torch.equal(ran, result)
    assert plan(sampler(name), path, times, seed=3) == asked


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_split_batch_sees_the_same_bits(name: str) -> None:
    path, times = VP(), grids.karras(5)(VP())
    x, noise = begin(path)
    whole = run(solve(sampler(name), path, x, times, noise), Recorder(path))
    part = Noise.of(3, range(2, 4), dtype=torch.float64)
    split = run(solve(sampler(name), path, x[2:], times, part), Recorder(path))
    # A learned variance is an exponential of the network's answer, which SIMD may round by its place.
    torch.testing.assert_close(split, whole[2:], rtol=0.0, atol=1e-12 if name == "ancestral-learned" else 0.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_states_stay_half(name: str) -> None:
    path, times = VP(), grids.karras(4)(VP())
    noise = Noise.of(0, range(2), dtype=torch.bfloat16)
    out = run(solve(sampler(name), path, noise.normal("prior", (2, 3)), times, noise), Recorder(path))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("evaluations", [1, 7, 10])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_for_is_the_longest_grid_within_the_budget(name: str, evaluations: int) -> None:
    tested, path = sampler(name), VP()
    grid = steps_for(tested, path, evaluations)
    steps = len(grid(path)) - 1
    assert len(plan(tested, path, grid(path))) <= evaluations
    assert len(plan(tested, path, grids.default(path, steps + 1)(path))) > evaluations


def test_steps_for_counts_the_last_step_of_heun_once() -> None:
    assert len(steps_for(Heun(), VE(), 19)(VE())) == 11
    assert len(steps_for(Heun(), VE(), 20)(VE())) == 11
    assert len(steps_for(Heun(), VE(), 9)(VE())) == 7  # two of its steps, from strong noise and wide, cost one
    assert len(steps_for(DDIM(), VE(), 10, lambda _, n: grids.uniform(n))(VE())) == 11


def test_steps_for_refuses_a_budget_below_the_shortest_grid() -> None:
    with pytest.raises(GridError, match="at least 3 evaluations"):
        steps_for(Ancestral(), PyramidPath(), 2)


AFFINE_ONLY = ["euler", "heun", "dpmpp-1", "dpmpp-2m", "dpmpp-2s", "dpmpp-3m", "dpmpp-2m-sde", "unipc"]


@pytest.mark.parametrize("name", AFFINE_ONLY)
@pytest.mark.parametrize(
    "path", [PyramidPath(), ShiftedPath(shift=lambda clean, cond, t: clean)], ids=["pyramid", "shift"]
)
def test_a_sampler_on_the_wrong_path_is_refused_at_construction(name: str, path: PyramidPath | ShiftedPath) -> None:
    with pytest.raises(PathError, match=r"alpha\(t\).*log_snr\(t\)"):
        solve(sampler(name), path, torch.zeros(1, 3, 8, 8), (1.0, 0.0), Noise.of(0, range(1)))


@pytest.mark.parametrize("name", ["ddim", "ddim-eta1", "ancestral-large", "ancestral-learned"])
def test_a_location_sampler_is_refused_on_a_pyramid(name: str) -> None:
    with pytest.raises(PathError, match=r"mean\(x_0, t\)"):
        solve(sampler(name), PyramidPath(), torch.zeros(1, 3, 8, 8), (1.0, 0.0), Noise.of(0, range(1)))


@pytest.mark.parametrize("times", [(1.5, 0.0), (1.0, -0.1)])
def test_a_grid_outside_the_span_is_refused_at_construction(times: tuple[float, ...]) -> None:
    with pytest.raises(GridError, match=r"outside the span \[0, 1\]"):
        Problem(DDIM(), VP(), times)


@pytest.mark.parametrize(("times", "message"), [((1.0,), "at least two"), ((0.5, 0.5), "at least two")])
def test_a_grid_without_length_is_refused(times: tuple[float, ...], message: str) -> None:
    with pytest.raises(GridError, match=message):
        solve(DDIM(), VP(), torch.zeros(1, 2), times, Noise.of(0, range(1)))


def test_names_lead_to_samplers_and_unknown_ones_to_the_closest() -> None:
    assert sampler("dpmpp-2m") == DPMSolver()
    mine = UniPC(p=3)
    assert sampler(mine) is mine
    with pytest.raises(ConfigError, match=r"unknown sampler 'dpmp-2m': choose one of dpmpp-2m, .*unipc-3"):
        sampler("dpmp-2m")
    for name in SAMPLERS:
        tested: Sampler = sampler(name)
        assert tested == sampler(name)
        assert 1 <= tested.order <= 4


@pytest.mark.parametrize("bad", [lambda: DPMSolver(points=4), lambda: UniPC(p=0), lambda: DDIM(1.2)])  # type: ignore[arg-type]
def test_values_out_of_range_are_refused(bad: object) -> None:
    with pytest.raises(ConfigError):
        bad()  # type: ignore[operator]


def test_a_denoiser_of_tensors_and_an_exact_one_agree_on_the_protocol() -> None:
    path = VP()
    model = Denoiser(lambda x, time: 0.1 * x, path=path, predicts="noise")
    x, noise = begin(path)
    for denoiser in (model, M1().denoiser(path)):
        state = x if denoiser is model else x[:, :1, 0]
        assert run(solve(UniPC(), path, state, grids.karras(3)(path), noise), denoiser).shape == state.shape
