"""What every argument of `orn.sample` does, each against the sampler called by hand, and what it must not touch."""

import math
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import grids
from ornstein.errors import GridError, UsageError
from ornstein.estimates import Estimate
from ornstein.guidance.boost import Boosted
from ornstein.interpolation import Between
from ornstein.parameterizations import LevelBelow
from ornstein.paths import VE, VP, PyramidPath, ShiftedPath
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, Ancestral, Heun, auto
from ornstein.sampling_plan import SamplingPlan, resolve, usual_steps

SHAPE = (2, 4, 4)  # 32 numbers fill the vectors of every processor: no row ends in a tail that may round differently


def net(x: Tensor, time: Tensor, shift: Tensor | None = None) -> Tensor:
    """A pure function of every row."""
    out = 1.3 * x + 0.2 * x.roll(1, -1) + time.to(x.dtype).reshape(-1, 1, 1, 1) / 700.0
    out = out / (1.0 + out.abs())  # correctly rounded everywhere, unlike a tanh
    return out if shift is None else out + shift.reshape(-1, 1, 1, 1).to(x.dtype)


def model(path: Any = None, **options: Any) -> orn.Denoiser:
    return orn.Denoiser(net, path or VP(), "clean", shape=SHAPE, **options)


def by_hand(
    denoiser: Any, sampler: Any, times: Sequence[float], numbers: range, seed: int = 0, boost: float = 1.0
) -> Tensor:
    noise: Any = Noise.of(seed, numbers)
    noise = noise if boost == 1.0 else Boosted(noise, boost)
    start = noise.normal("prior", SHAPE)
    return orn.run(orn.solve(sampler, denoiser.path, start, times, noise), denoiser)


def test_seed_first_boost_and_skip() -> None:
    times = grids.log_snr(6)(VP())
    for n, first, seed, prior_scale, skip in ((3, 5, 2, 1.0, 0), (2, 0, 1, 1.5, 2), (1, 4, 0, 0.5, 5)):
        wanted = by_hand(model(), Ancestral(), times[skip:], range(first, first + n), seed, prior_scale)
        how: dict[str, Any] = {"sampler": "ddpm", "steps": 6, "first": first, "seed": seed, "prior_scale": prior_scale}
        assert torch.equal(orn.sample(model(), n, skip_steps=skip, **how), wanted)
        assert torch.equal(orn.sample(model(), n, skip_steps=skip, batch=2, **how), wanted)
        assert torch.equal(list(orn.stream(model(), n, skip_steps=skip, **how))[-1].x, wanted)
    with pytest.raises(GridError, match="6 of 6 steps cannot be skipped"):
        orn.sample(model(), sampler="ddpm", steps=6, skip_steps=6)
    with pytest.raises(UsageError, match="n must be at least 1, got 0"):
        next(iter(orn.stream(model(), 0)))
    assert torch.equal(orn.sample(model(), steps=2), orn.sample(model(), 1, steps=2, seed=0, first=0))


def test_the_start_is_that_of_the_grids_first_time() -> None:
    """On an exploding path the size of the start is its time."""
    path, times = VE(), (7.0, 2.0, 0.0)
    noise = Noise.of(3, range(2))
    wanted = orn.run(orn.solve(Heun(), path, 7.0 * noise.normal("prior", SHAPE), times, noise), model(path))
    assert torch.equal(orn.sample(model(path), 2, sampler="heun", grid=times, seed=3), wanted)
    skipped = orn.sample(model(path), 2, sampler="heun", grid=(70.0, *times), seed=3, skip_steps=1)
    assert torch.equal(skipped, wanted)


def test_noise_of_ones_own_replaces_seed_and_number() -> None:
    between = Between(a=3, b=8, frames=4, seed=5)
    whole = orn.sample(model(), 4, steps=3, noise=between)
    for options in ({"seed": 9}, {"first": 2}, {"batch": 3}):
        assert torch.equal(orn.sample(model(), 4, steps=3, noise=between, **options), whole)  # type: ignore[arg-type]
    assert torch.equal(whole[:1], orn.sample(model(), 1, steps=3, first=3, seed=5))
    louder = orn.sample(model(), 4, steps=3, noise=between, prior_scale=2.0)
    assert torch.equal(louder[:1], orn.sample(model(), 1, steps=3, first=3, seed=5, prior_scale=2.0))
    assert not torch.equal(louder, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_state_has_the_dtype_of_the_argument(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def spy(x: Tensor, time: Tensor) -> Tensor:
        seen.append(x.dtype)
        return 0.5 * x

    denoiser = orn.Denoiser(spy, VP(), "clean", shape=SHAPE)
    assert orn.sample(denoiser, 2, steps=2, dtype=dtype).dtype == dtype
    assert list(orn.stream(denoiser, 2, steps=2, dtype=dtype))[-1].x.dtype == dtype
    assert set(seen) == {dtype}
    assert orn.sample(model(), 1, steps=2).dtype == torch.float32


def test_shape_and_conditions() -> None:
    bare = orn.Denoiser(net, VP(), "clean")
    assert torch.equal(orn.sample(bare, 2, steps=2, shape=SHAPE), orn.sample(model(), 2, steps=2))
    assert orn.sample(model(), 2, steps=2, shape=(1, 4, 8)).shape == (2, 1, 4, 8)  # the argument is stronger
    shift = torch.tensor([0.1, -0.4, 0.7, 0.2, 0.5])
    rows = [orn.sample(model(), 1, steps=2, first=i, cond={"shift": shift[i : i + 1]}) for i in range(5)]
    for batch in (None, 2, 3):
        assert torch.equal(orn.sample(model(), 5, steps=2, batch=batch, cond={"shift": shift}), torch.cat(rows))
    one = {"shift": shift[1:2]}
    for strict in (False, True):
        repeated = orn.sample(model(), 3, steps=2, batch=2, cond=one, strict=strict)
        assert torch.equal(repeated, orn.sample(model(), 3, steps=2, cond={"shift": shift[1:2].repeat(3)}))
    streamed = list(orn.stream(model(), 5, steps=2, cond={"shift": shift}))[-1].x
    assert torch.equal(streamed, torch.cat(rows))
    for count in (2, 4, 6):
        with pytest.raises(UsageError, match=f"has {count} rows: it needs 5, or one"):
            orn.sample(model(), 5, steps=2, cond={"shift": torch.zeros(count)})


def test_a_condition_bends_the_path_of_every_batch() -> None:
    path = ShiftedPath(base=VP(), shift=lambda clean, cond, t: cond["shift"].reshape(-1, 1, 1, 1) + 0.0 * clean)
    shift = torch.tensor([0.3, -0.6, 2.0])
    denoiser = model(path)
    rows = [orn.sample(denoiser, 1, steps=3, first=i, cond={"shift": shift[i : i + 1]}) for i in range(3)]
    for options in ({}, {"batch": 2}, {"strict": True}, {"strict": True, "batch": 2}):
        found = orn.sample(denoiser, 3, steps=3, cond={"shift": shift}, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.cat(rows), rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- resolving


def test_sampler_and_grid_by_every_combination_of_arguments() -> None:
    def resolved(
        sampler: Any = None, steps: Any = None, evaluations: Any = None, grid: Any = None, **o: Any
    ) -> SamplingPlan:
        return resolve(o.get("model", model()), sampler, steps, evaluations, grid, o.get("shape"))

    path, size = VP(), 32
    default = resolved()
    assert default.sampler == resolved("dpmpp-2m").sampler
    assert default.times == grids.log_snr(20)(path)
    assert (default.shape, default.device, default.dtype) == (SHAPE, torch.device("cpu"), torch.float32)
    assert resolved("heun", 7).times == grids.log_snr(7)(path)
    assert resolved("heun", None, 23).times == grids.log_snr(12)(path)  # 2·12 − 1 evaluations
    assert resolved("heun", None, None, grids.karras(3)).times == grids.karras(3)(path)
    assert resolved("heun", None, None, [1.0, 0.5]).times == (1.0, 0.5)
    assert resolved(Heun(), 2).sampler == Heun()
    for options in ({}, {"steps": 20}, {"evaluations": 20}):
        found, (rule, grid) = resolved("auto", **options), auto(path, 20, size)
        assert (found.sampler, found.times) == (rule, grid(path))
    found, (rule, grid) = resolved("auto", steps=2, shape=(3, 64, 64)), auto(path, 2, 3 * 64 * 64)
    assert (found.sampler, found.times) == (rule, grid(path))
    assert found.sampler != auto(path, 2, size)[0]
    assert resolved("auto", grid=grids.karras(7)).sampler == auto(path, 7)[0]
    for several in (
        {"steps": 3, "evaluations": 3},
        {"steps": 3, "grid": [1.0, 0.0]},
        {"evaluations": 3, "grid": [1.0]},
    ):
        with pytest.raises(UsageError, match="one of steps, evaluations and grid"):
            resolved("heun", **several)
    for short in ([], [1.0]):
        with pytest.raises(GridError, match="at least two times"):
            resolved("heun", grid=short)


def test_a_model_with_grids_of_its_own() -> None:
    counts: list[int | None] = []

    def family(count: int | None) -> grids.Grid:
        counts.append(count)
        return grids.multistep(*[0.5] * ((2 if count is None else count) - 1))

    own, climbed = model(grid=family), lambda n: grids.multistep(*[0.5] * (n - 1))(VP())
    for sampler in ("auto", "ddim"):
        for options, count in (({}, 2), ({"steps": 3}, 3), ({"evaluations": 4}, 4)):
            found = resolve(own, sampler, options.get("steps"), options.get("evaluations"), None, None)
            assert (found.sampler, found.times) == (DDIM(), climbed(count))
    assert counts[:5] == [None, 3, 4, None, 3]  # then a search for the longest grid of four evaluations
    listed = resolve(own, "auto", None, None, grids.log_snr(7), None)  # a grid that is given comes first
    assert (listed.sampler, listed.times) == (auto(VP(), 7)[0], grids.log_snr(7)(VP()))
    assert resolve(own, "ddim", None, None, grids.log_snr(7), None).times == grids.log_snr(7)(VP())
    assert torch.equal(orn.sample(own, 2), orn.sample(model(), 2, sampler="dpmpp-2m", grid=climbed(2)))


def test_steps_of_a_pyramid() -> None:
    path = PyramidPath(alphas=(0.5, 0.2), sigmas=(0.1, 0.2), factors=(2, 2))
    assert [usual_steps(path, steps) for steps in (None, 2)] == [2, 2]
    assert [usual_steps(VP(), steps) for steps in (None, 2, 7)] == [20, 2, 7]
    for steps in (1, 3):
        with pytest.raises(GridError, match=f"one step a level, 2 here, got {steps}"):
            usual_steps(path, steps)
    large = orn.Denoiser(
        lambda x, time: torch.nn.functional.interpolate(x, scale_factor=2.0), path, LevelBelow(), shape=(2, 4, 4)
    )
    assert orn.sample(large, 3, strict=True).shape == (3, 2, 4, 4)
    assert torch.equal(orn.sample(large, 3, strict=True), orn.sample(large, 3))


# ---------------------------------------------------------------------------------------------- strictness and codecs


class Crowded(torch.nn.Module):
    """A network whose output depends on the size of its batch, as rounding does, only more."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor, time: Tensor, shift: Tensor | None = None) -> Tensor:
        self.sizes.append(len(x))
        return net(x, time, shift) + 0.01 * len(x)


class Halves:
    """A codec that doubles, records the sizes of its batches, and adds a trace of them."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, bool]] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.sizes.append((len(latents), torch.is_grad_enabled()))
        return 2.0 * latents + 0.01 * (len(latents) - 1)


def test_strict_evaluates_and_decodes_one_by_one() -> None:
    crowded, codec = Crowded(), Halves()
    denoiser = orn.Denoiser(crowded, VP(), "clean", shape=SHAPE, codec=codec)  # type: ignore[arg-type]
    shift = torch.tensor([0.1, -0.4, 0.7])
    alone = [orn.sample(denoiser, 1, steps=2, first=i, cond={"shift": shift[i : i + 1]}) for i in range(3)]
    crowded.sizes.clear()
    codec.sizes.clear()
    for batch in (None, 2):
        strict = orn.sample(denoiser, 3, steps=2, batch=batch, cond={"shift": shift}, strict=True)
        assert torch.equal(strict, torch.cat(alone))
    assert set(crowded.sizes) == {1}
    assert codec.sizes == [(1, False)] * 6
    codec.sizes.clear()
    loose = orn.sample(denoiser, 3, steps=2, batch=2, cond={"shift": shift})
    assert [size for size, _ in codec.sizes] == [2, 1]
    assert not torch.equal(loose, strict)
    latents = orn.sample(denoiser, 3, steps=2, cond={"shift": shift}, strict=True, decode=False)
    assert torch.equal(2.0 * latents, strict)
    assert len(codec.sizes) == 2
    streamed = list(orn.stream(denoiser, 3, steps=2, cond={"shift": shift}))[-1].x
    assert torch.equal(streamed, orn.sample(denoiser, 3, steps=2, cond={"shift": shift}, decode=False))


def test_strict_keeps_extras_and_conditions_of_guidance() -> None:
    """Guidance and a learned variance give the same samples row by row."""

    def double(x: Tensor, time: Tensor, shift: Tensor) -> Tensor:
        return torch.cat([net(x, time, shift), torch.sin(x)], 1)

    wide = orn.Denoiser(double, VP.table(), "noise", shape=SHAPE, learned_variance=True)
    cond = {"shift": torch.tensor([0.1, -0.4, 0.7])}
    guided = orn.guidance.CFG(weight=3.0, null={"shift": torch.zeros(1)})(wide)
    for denoiser, sampler in ((wide, "ancestral-learned"), (guided, "ddim")):
        strict, loose = (orn.sample(denoiser, 3, sampler=sampler, steps=3, cond=cond, strict=s) for s in (True, False))
        torch.testing.assert_close(strict, loose, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("before", "warn_only"), [(False, False), (True, False), (True, True)])
def test_strict_leaves_the_process_as_it_was(before: bool, warn_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    within: list[tuple[bool, bool]] = []

    def modes() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def spy(x: Tensor, time: Tensor) -> Tensor:
        within.append(modes())
        if len(within) == 4:
            raise RuntimeError("broken")
        return 0.5 * x

    denoiser = orn.Denoiser(spy, VP(), "clean", shape=SHAPE)
    try:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        here = modes()
        orn.sample(denoiser, 1, steps=1)
        assert within == [here]
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        orn.sample(denoiser, 2, steps=1, strict=True)
        assert within[1:] == [(True, False)] * 2
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert modes() == here
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what the user has chosen stays
        with pytest.raises(RuntimeError, match="broken"):
            orn.sample(denoiser, 2, steps=1, strict=True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        assert modes() == here
    finally:
        torch.use_deterministic_algorithms(False)


class Weighted(torch.nn.Module):
    """A network with one weight, whose device is that of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.gain * x + 0.0 * time.reshape(-1, 1, 1, 1)


def test_samples_are_drawn_where_the_network_lives() -> None:
    """On the device without storage, which every machine has."""
    away = orn.Denoiser(Weighted().to("meta"), VP(), "clean", shape=SHAPE)
    assert resolve(away, "ddpm", 2, None, None, None).device == torch.device("meta")
    for noise in (None, Between(a=3, b=8, frames=2)):
        assert orn.sample(away, 2, sampler="ddpm", steps=2, noise=noise).device.type == "meta"
    assert list(orn.stream(away, 2, sampler="ddpm", steps=2))[-1].x.device.type == "meta"


class Plain:
    """A denoiser made by hand: a path and a call, without shape, device, grid or codec."""

    def __init__(self) -> None:
        self.path = VP()

    def __call__(self, x: Tensor, t: float) -> Estimate:  # type: ignore[override]
        return Estimate(x, t, self.path, clean=torch.tanh(x))


def test_a_denoiser_made_by_hand_is_sampled_on_the_host() -> None:
    with pytest.raises(UsageError, match="does not know the shape"):
        orn.sample(Plain(), 1)  # type: ignore[arg-type]
    plain: Any = Plain()
    wanted = by_hand(plain, DDIM(), (1.0, 0.5, 0.0), range(2))
    assert torch.equal(orn.sample(plain, 2, sampler="ddim", grid=(1.0, 0.5, 0.0), shape=SHAPE), wanted)
    strict = orn.sample(plain, 2, sampler="ddim", grid=(1.0, 0.5, 0.0), shape=SHAPE, strict=True)
    torch.testing.assert_close(strict, wanted, rtol=1e-5, atol=1e-5)  # row by row, which may round otherwise


WRONG_STATES: dict[str, Tensor] = {
    "whole numbers": torch.zeros(2, *SHAPE).long(),
    "truth values": torch.zeros(2, *SHAPE).bool(),
    "a number": torch.tensor(1.0),
    "without numbers": torch.zeros(2, *SHAPE, device="meta"),
    "sparse": torch.zeros(2, *SHAPE).to_sparse(),
    "nan": torch.full((2, *SHAPE), math.nan),
}


@pytest.mark.parametrize("which", WRONG_STATES)
def test_a_wrong_state_start_or_mask_is_refused_in_one_line(which: str) -> None:
    wrong, pictures = WRONG_STATES[which], torch.zeros(2, *SHAPE)
    for rule in () if wrong.is_meta else (DDIM(), Ancestral()):
        with pytest.raises(UsageError, match=r"^x (must|needs) [^\n]*$"):
            orn.run(orn.solve(rule, VP(), wrong, (1.0, 0.5, 0.0), orn.Noise.of(0, range(2))), model())
    if which in ("whole numbers", "truth values"):  # which pictures and masks may have
        return
    with pytest.raises(UsageError, match=r"^start [^\n]*$"):
        orn.sample(model(), 2, steps=3, start=wrong, strength=0.5)
    with pytest.raises(UsageError, match=r"^mask [^\n]*$"):
        orn.sample(model(), 2, steps=3, start=pictures, strength=0.5, mask=wrong)
