"""The boundary to a user's own network and calls: what it may return and change, and what is refused in one line."""

import math
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import grids
from ornstein import guidance as guide
from ornstein.errors import OrnsteinError, UsageError
from ornstein.paths import VE, VP, Flow
from ornstein.samplers import SAMPLERS, Heun

SHAPE = (3, 4, 4)


def pure(x: Tensor, time: Tensor) -> Tensor:
    return 0.4 * x.relu() + time.to(x.dtype).reshape(-1, 1, 1, 1) / 4000.0


def model(net: Any = pure, path: Any = None, predicts: Any = "noise", **options: Any) -> orn.Denoiser:
    return orn.Denoiser(net, path or VP(), predicts, shape=SHAPE, **options)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(OrnsteinError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# ----------------------------------------------------------------------------------------------- what a network returns

WRONG = {
    "one channel": lambda x: x[:, :1],
    "one row": lambda x: x[:1],
    "a line": lambda x: x[0, 0, 0],
    "a number": lambda x: x.mean(),
    "a number a row": lambda x: x.flatten(1).mean(1),
    "three times the channels": lambda x: torch.cat([x, x, x], 1),
    "twice the channels": lambda x: torch.cat([x, x], 1),
    "another size": lambda x: x[..., :2],
    "whole numbers": lambda x: x.long(),
    "no tensor": lambda x: x.numpy(),
}


@pytest.mark.parametrize("predicts", ["noise", "clean", "v", "velocity", "edm", "consistency"])
@pytest.mark.parametrize("name", WRONG)
def test_an_output_of_another_shape_is_never_broadcast(name: str, predicts: str) -> None:
    denoiser = model(lambda x, time: WRONG[name](x), predicts=predicts)
    for call in (
        lambda: orn.sample(denoiser, 2, steps=2),
        lambda: list(orn.stream(denoiser, 2, steps=2)),
        lambda: orn.sample(guide.CFG(weight=2.0, null={})(denoiser.with_condition({})), 2, steps=2),
    ):
        text = refusal(call)
        if name not in ("whole numbers", "no tensor"):
            assert "(2, 3, 4, 4)" in text or "(4, 3, 4, 4)" in text  # of the input
            assert "returned (" in text  # of the output
    if name == "twice the channels":
        assert "learned_variance=True" in refusal(lambda: orn.sample(denoiser, 2, steps=2))
        declared = model(lambda x, time: WRONG[name](x), predicts=predicts, learned_variance=True)
        assert orn.sample(declared, 2, steps=2).shape == (2, *SHAPE)


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named_by_evaluation_and_noise_level(at: int, value: float) -> None:
    def network() -> Callable[..., Tensor]:
        calls = []

        def net(x: Tensor, time: Tensor) -> Tensor:
            calls.append(time)
            return pure(x, time) + (value if len(calls) == at else 0.0)

        return net

    times = (0.9, 0.7, 0.5, 0.3, 0.0)
    for call in (
        lambda: orn.sample(model(network()), 2, grid=times, sampler="ddim"),
        lambda: list(orn.stream(model(network()), 2, grid=times, sampler="ddim")),
    ):
        text = refusal(call)
        assert f"evaluation {at}, at t = {times[at - 1]:g}" in text
        assert f"σ/α = {VP().sigma_bar(times[at - 1]):.3g}" in text


# ---------------------------------------------------------------------------------------- what a network does to others


class Careless:
    """Networks that compute `pure`, each with another disregard for the memory of others."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(64, *SHAPE)

    def input_in_place(self, x: Tensor, time: Tensor) -> Tensor:
        return x.relu_().mul_(0.4).add_(time.to(x.dtype).reshape(-1, 1, 1, 1) / 4000.0)

    def input_by_data(self, x: Tensor, time: Tensor) -> Tensor:
        out = pure(x, time)
        x.data.zero_()
        return out

    def time_in_place(self, x: Tensor, time: Tensor) -> Tensor:
        out = pure(x, time)
        time.zero_()
        return out

    def one_buffer(self, x: Tensor, time: Tensor) -> Tensor:
        view = self.buffer[: len(x)]
        view.copy_(pure(x, time))
        return view

    def with_a_graph(self, x: Tensor, time: Tensor) -> Tensor:
        with torch.enable_grad():
            weight = torch.tensor(1.0, requires_grad=True)
            return weight * pure(x, time)


@pytest.mark.parametrize("name", [name for name in vars(Careless) if not name.startswith("_")])
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "dpmpp-3m", "unipc", "heun", "ddpm", "deis-3", "sa-solver"])
def test_samples_are_those_of_the_network_without_side_effects(name: str, sampler: str) -> None:
    for strict in (False, True):
        wanted = orn.sample(model(), 3, steps=5, sampler=sampler, strict=strict)
        found = orn.sample(model(getattr(Careless(), name)), 3, steps=5, sampler=sampler, strict=strict)
        assert torch.equal(found, wanted)
        assert not found.requires_grad
    with torch.inference_mode():
        assert torch.equal(
            orn.sample(model(getattr(Careless(), name)), 3, steps=5, sampler=sampler, strict=True), wanted
        )
    both = guide.compose(guide.Threshold(), guide.Autoguidance(weight=1.5, worse=model(lambda x, time: 0.1 * x)))
    wanted = orn.sample(both(model()), 3, steps=4, sampler=sampler)
    assert torch.equal(orn.sample(both(model(getattr(Careless(), name))), 3, steps=4, sampler=sampler), wanted)


def test_a_first_layer_that_works_in_place_and_a_network_that_returns_its_input() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 3, 3, padding=1)

    class Timed(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.ReLU(inplace=inplace), layers)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.layers(x)

    one, other = (orn.sample(model(Timed(inplace)), 2, steps=6) for inplace in (True, False))
    assert torch.equal(one, other)
    one, other = (orn.sample(model(net), 2, steps=6) for net in (lambda x, time: x, lambda x, time: x.clone()))
    assert torch.equal(one, other)


def test_a_condition_is_not_changed() -> None:
    def net(x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return 0.1 * x + label.mul_(0.5).reshape(-1, 1, 1, 1)

    text = refusal(lambda: orn.sample(model(net), 2, steps=3, cond={"label": torch.ones(2)}))
    assert "changes its condition (label) in place" in text


def test_training_mode_is_said_once_and_only_where_it_matters() -> None:
    class Dropped(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.drop = nn.Dropout(p)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.drop(0.1 * x)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        orn.sample(model(Dropped(0.5)), 2, steps=3)
        assert [str(one.message) for one in found] == [
            "the network is in training mode and has Dropout layers: call eval() before sampling"
        ]
        orn.sample(model(Dropped(0.5).eval()), 2, steps=3)
        orn.sample(model(Dropped(0.0)), 2, steps=3)
        assert len(found) == 1


# -------------------------------------------------------------------------------------------------- time and conditions


def test_a_time_of_another_name_and_of_whole_numbers() -> None:
    table = nn.Embedding(1000, 1)

    def embedded(x: Tensor, time: Tensor) -> Tensor:
        return 0.1 * x + table(time).detach().reshape(-1, 1, 1, 1)

    def named(x: Tensor, *, sigma: Tensor) -> Tensor:
        return pure(x, sigma)

    wanted = orn.sample(model(), 2, steps=3)
    assert torch.equal(orn.sample(model(named, time_name="sigma"), 2, steps=3), wanted)
    assert orn.sample(model(embedded, VP.table(), integer_time=True), 2, steps=3).isfinite().all()
    assert "time_name='sigma'" in refusal(lambda: orn.sample(model(named), 2, steps=3))
    assert "time_name" in refusal(lambda: model(time_name="not a name"))
    states = torch.ones(2, 2, *SHAPE)
    for one in (model(), model(named, time_name="sigma")):
        together = one.predict_times(states, [0.3, 0.6])
        assert torch.equal(together[1].clean, one(states[1], 0.6).clean)


def test_an_embedding_of_time_says_what_it_needs() -> None:
    table = nn.Embedding(1000, 1)

    def embedded(x: Tensor, time: Tensor) -> Tensor:
        return 0.1 * x + table(time).detach().reshape(-1, 1, 1, 1)

    def labelled(x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return 0.1 * x + table(label).detach().reshape(-1, 1, 1, 1)

    fractional = refusal(lambda: orn.sample(model(embedded, VP.table()), 2, steps=3))
    assert "integer_time=True" in fractional
    assert "time (2,) float32 = 999" in fractional
    beyond = refusal(lambda: orn.sample(model(embedded, VP(), integer_time=True), 2, steps=3))
    assert "time (2,) int64 = 1000" in beyond
    assert "VP.table()" in beyond
    label = {"label": torch.tensor([3, 1003])}
    assert "label (2,) int64 in 3 … 1003" in refusal(lambda: orn.sample(model(labelled), 2, steps=3, cond=label))


@pytest.mark.parametrize(
    "wrap", [lambda one: one, guide.Threshold(), orn.CachedDenoiser], ids=["plain", "rule", "cached"]
)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, ZeroDivisionError])
def test_an_error_of_the_network_is_passed_through_with_what_it_was_given(wrap: Any, kind: type[Exception]) -> None:
    def broken(x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        raise kind("of its own")

    with pytest.raises(kind, match="of its own") as found:
        orn.sample(wrap(model(broken)), 2, steps=3, cond={"label": torch.tensor([1])}, dtype=torch.float64)
    assert [entry.name for entry in found.traceback][-1] == "broken"
    [note] = found.value.__notes__
    size = ", ".join(map(str, SHAPE))
    assert (
        note == f"ornstein: the network was given x (2, {size}) float64, time (2,) float32 = 1000, label (2,) int64 = 1"
    )


def test_conditions_by_name() -> None:
    def net(x: Tensor, time: Tensor, label: Tensor, mask: Tensor | None = None) -> Tensor:
        return 0.1 * x + label.reshape(-1, 1, 1, 1)

    def anything(x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        return 0.1 * x

    one = {"label": torch.ones(1)}
    assert "does not know the condition 'lable': choose among label, mask" in refusal(
        lambda: orn.sample(model(net), steps=2, cond={"lable": torch.ones(1)})
    )
    assert "needs the condition 'label'" in refusal(lambda: orn.sample(model(net), steps=2))
    assert "it takes none" in refusal(lambda: orn.sample(model(), steps=2, cond=one))
    assert orn.sample(model(anything), steps=2, cond=one).isfinite().all()
    wrapped = orn.CachedDenoiser(guide.Threshold()(model(net)))
    assert "does not know the condition 'lable'" in refusal(
        lambda: orn.sample(wrapped, steps=2, cond={"lable": torch.ones(1)})
    )


# ---------------------------------------------------------------------------------------------------------- wrong calls

JUNK = [
    None,
    "4",
    b"4",
    1.5,
    True,
    math.nan,
    -3,
    10**30,
    [],
    {"a": 1},
    object(),
    int,
    VP,
    Heun,
    torch.ones(2, 2),
    np.ones(3),
]

ARGUMENTS: dict[str, tuple[Any, ...]] = {  # values that are right, or mean "by default"
    "n": (),
    "sampler": (None,),
    "steps": (None,),
    "evaluations": (None,),
    "grid": (None,),
    "seed": (-3,),
    "first": (),
    "noise": (None,),
    "batch": (None,),
    "cond": (None,),
    "shape": (None,),
    "dtype": (),
    "strict": (True,),
    "decode": (True,),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_wrong_argument_of_sample_is_one_line(name: str) -> None:
    for value in JUNK:
        if any(value is right or (type(value) is type(right) is int and value == right) for right in ARGUMENTS[name]):
            continue
        options = {"n": 1, "steps": 2, name: value}
        if name in ("evaluations", "grid"):
            del options["steps"]
        refusal(lambda options=options: orn.sample(model(), **options))
        if name not in ("noise", "batch", "strict", "decode"):
            refusal(lambda options=options: list(orn.stream(model(), **options)))


@pytest.mark.parametrize("value", [*JUNK, nn.Linear(2, 2), lambda x, time: x, orn.Denoiser, guide.CFG])
def test_what_is_no_denoiser_is_refused(value: Any) -> None:
    refusal(lambda: orn.sample(value, 1))
    refusal(lambda: orn.stream(value, 1))


@pytest.mark.parametrize(
    "name", ["net", "path", "predicts", "shape", "timestep_of", "time_name", "integer_time", "cond", "grid"]
)
def test_every_wrong_argument_of_a_denoiser_is_one_line(name: str) -> None:
    may_be_none = name in ("shape", "timestep_of", "time_name", "grid")
    for value in JUNK:
        if (value is None and may_be_none) or (value is True and name == "integer_time"):
            continue
        if name == "shape" and isinstance(value, list):  # one number a sample
            continue
        options: dict[str, Any] = {"net": pure, "path": VP(), "predicts": "noise", name: value}
        refusal(lambda options=options: orn.Denoiser(**options))


# ---------------------------------------------------------------------------------------------------- wrappers, threads


def test_every_wrapper_knows_what_its_denoiser_knows() -> None:
    family = lambda count: grids.karras(count or 3)  # noqa: E731
    inner = model(path=VE(), grid=family, cond={}).with_condition({})
    wrappers: list[Callable[[Any], Any]] = [
        orn.CachedDenoiser,
        lambda d: d.with_condition({}),
        guide.Threshold(),
        guide.CFG(weight=2.0, null={}),
        guide.APG(weight=2.0, null={}),
        guide.Autoguidance(weight=2.0, worse=model(path=VE())),
        guide.Universal(energies=guide.Smoothness(), strength=0.1),
        guide.interval(guide.Threshold(), sigma=(0.0, 1.0)),
        guide.compose(guide.Threshold(), guide.Threshold()),
        guide.add(guide.Threshold(), guide.Threshold()),
    ]
    generator = random.Random(0)
    for _ in range(30):
        outer: Any = inner
        for wrap in generator.choices(wrappers, k=3):
            outer = wrap(outer)
        info = outer.info
        assert (info.shape, info.grid, info.device, info.network) == (SHAPE, family, inner.device, pure)
        assert len(repr(outer)) < 1000
    assert torch.equal(orn.sample(orn.CachedDenoiser(model()), 2, steps=3), orn.sample(model(), 2, steps=3))


@pytest.mark.parametrize("before", [False, True])
def test_strict_calls_in_threads_leave_the_mode_as_it_was(before: bool) -> None:
    """Calls that begin and end in every order; none runs outside the mode."""
    seen: list[bool] = []
    starts = [threading.Event() for _ in range(6)]

    def work(number: int) -> None:
        def net(x: Tensor, time: Tensor) -> Tensor:
            starts[number].set()
            starts[(number + 1) % 6].wait(2.0)  # so that they overlap
            seen.append(torch.are_deterministic_algorithms_enabled())
            return 0.1 * x

        orn.sample(model(net), 1 + number % 3, steps=2, strict=True)

    torch.use_deterministic_algorithms(before)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.are_deterministic_algorithms_enabled() == before
        assert len(seen) >= 12
        assert all(seen)
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------------------------------- guidance


def test_rescaling_of_a_flat_picture_and_of_one_number_is_the_identity() -> None:
    def flat(x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(x) + label.reshape(-1, *(1,) * (x.ndim - 1))

    null = {"label": torch.tensor([0.1])}
    for shape in ((3, 4, 4), (7,), (1,)):
        plain = orn.Denoiser(flat, VP(), "clean", cond={"label": torch.tensor([0.6])})
        for share in (0.3, 0.7, 1.0):
            found = guide.CFG(weight=2.0, null=null, rescale=share)(plain)(torch.ones(2, *shape), 0.5).clean
            torch.testing.assert_close(found, torch.full_like(found, 1.1))


@pytest.mark.parametrize("shape", [(3, 8), (5,), (1, 3, 4, 4)])
def test_energies_of_images_say_that_they_need_images(shape: tuple[int, ...]) -> None:
    picture = torch.zeros(1, 3, 4, 4)
    energies: list[Any] = [
        guide.super_resolution(picture[..., :2, :2], 2),
        guide.Edges.like(picture),
        guide.Smoothness(),
        guide.Colour(target=torch.zeros(1, 3)),
        guide.Palette(colours=torch.zeros(2, 3)),
    ]
    for energy in energies:
        assert "needs images (C, H, W)" in refusal(lambda energy=energy: energy(torch.zeros(2, *shape)))
    for call in (
        lambda: guide.super_resolution(torch.zeros(1, *shape), 2),
        lambda: guide.Edges.like(torch.zeros(1, *shape)),
    ):
        assert "needs images (C, H, W)" in refusal(call)


# ----------------------------------------------------------------------------------------------------------------- repr


@pytest.mark.parametrize("path", [VP(), VP.table(), VP.cosine(), VE(), Flow()], ids=lambda p: type(p).__name__)
def test_a_denoiser_is_shown_in_one_line(path: Any) -> None:
    denoiser = orn.Denoiser(pure, path, "v", shape=SHAPE, cond={"label": torch.zeros(1, 4000)})
    for one in (denoiser, orn.CachedDenoiser(denoiser)):
        assert "\n" not in repr(one)
        assert len(repr(one)) <= 200
    assert "pure" in repr(denoiser)


def test_all_samplers_accept_a_network_that_works_in_place() -> None:
    for name in sorted(SAMPLERS):
        if name in ("ancestral-learned", "euler"):
            continue
        wanted = orn.sample(model(), 2, steps=3, sampler=name)
        assert torch.equal(orn.sample(model(Careless().input_in_place), 2, steps=3, sampler=name), wanted)
    with pytest.raises(UsageError, match="unknown sampler"):
        orn.sample(model(), sampler="heum")


def test_wrong_arguments_of_guidances_are_one_line() -> None:
    for value in ("4", True, math.inf, None, guide.CFG, torch.ones(2, 2)):
        refusal(lambda value=value: guide.CFG(weight=value, null={}))
        refusal(lambda value=value: guide.APG(weight=value, null={}))
        refusal(
            lambda value=value: guide.CFG(weight=1.0, null={}, rescale=value) if value is not True else guide.add(3)
        )
        refusal(lambda value=value: guide.CFG(weight=1.0, null=value))
    for value in (3, guide.CFG, "cfg", None):
        refusal(lambda value=value: guide.compose(value))
        refusal(lambda value=value: guide.add(guide.Threshold(), value))


def test_betas_are_numbers_in_one_dimension() -> None:
    for value in (torch.ones(3, 3), np.full((3, 3), 0.1), "linear", 3, [0.1, "a"], [0.1, None], VP):
        refusal(lambda value=value: VP.from_betas(value))
    assert VP.from_betas(torch.full((4,), 0.1)).sigma(1.0) > 0.5


# ----------------------------------------------------------------------------------------------- what is known of a net


def test_a_denoiser_knows_the_names_of_its_conditions() -> None:
    def net(x: Tensor, time: Tensor, label: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return 0.1 * x

    def anything(x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        return 0.1 * x

    def late(x: Tensor, mask: Tensor | None = None, *, sigma: Tensor) -> Tensor:
        return 0.1 * x

    assert model(net).info.conditions == ("label", "mask")
    assert guide.Threshold()(orn.CachedDenoiser(model(net))).info.conditions == ("label", "mask")
    assert model(late, time_name="sigma").info.conditions == ("mask",)
    assert model(pure).info.conditions == ()
    assert model(anything).info.conditions is None
    assert "label" in (orn.load("critters").info.conditions or ())


@pytest.mark.parametrize("around", ["none", "anchored", "bounded", "negated", "cascade"])
def test_noise_without_signal_is_refused_through_every_parameterization(around: str) -> None:
    from ornstein.cascade import Cascade
    from ornstein.interop.schedulers import Bounded, Negated
    from ornstein.parameterizations import Anchored, Clean, NoisePrediction, Parameterization

    kinds: dict[str, Callable[[Parameterization], Parameterization]] = {
        "none": lambda inner: inner,
        "anchored": lambda inner: Anchored(inner=inner),
        "bounded": lambda inner: Bounded(inner=Anchored(inner=inner)),
        "negated": lambda inner: Negated(inner=inner),
        "cascade": lambda inner: Cascade(front=inner),
    }
    assert "no signal (α = 0)" in refusal(lambda: model(path=Flow(), predicts=kinds[around](NoisePrediction())))
    model(path=Flow(), predicts=kinds[around](Clean()))
    model(path=VP(), predicts=kinds[around](NoisePrediction()))


def test_a_refiner_goes_behind_opened_models_and_not_behind_guidance() -> None:
    from ornstein.cascade import cascaded, forced

    opened = orn.load("critters")
    refined = cascaded(opened, nn.Identity())
    x = torch.ones(1, *(opened.shape or ()))
    wanted = opened.with_condition(opened.null())(x, 0.5).clean
    assert torch.equal(forced(refined, 0.0).with_condition(opened.null())(x, 0.5).clean, wanted)
    for call in (
        lambda: cascaded(guide.Threshold()(opened), nn.Identity()),  # pyright: ignore[reportArgumentType]
        lambda: forced(guide.Threshold()(refined), 0.0),  # pyright: ignore[reportArgumentType]
        lambda: forced(opened, 0.0),
    ):
        refusal(call)
