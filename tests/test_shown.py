"""What is shown: values in one line, pictures in a notebook, and the progress of a call."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ornstein as orn
from ornstein import grids, interpolation
from ornstein import guidance as guide
from ornstein.errors import UsageError
from ornstein.guidance.base import Rule
from ornstein.interop.opened import PlainModel
from ornstein.paths import VE, VP, Flow, LocationPath, PyramidPath, ShiftedPath
from ornstein.paths.vp import Table
from ornstein.samplers import SAMPLERS, sampler
from ornstein.samplers.base import Problem

SHAPE = (3, 4, 4)


def network(x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
    return 0.4 * x


def model(path: Any = None, **options: Any) -> orn.Denoiser:
    return orn.Denoiser(network, VP() if path is None else path, "clean", shape=SHAPE, **options)


# ----------------------------------------------------------------------------------------------------------------- repr

numbers = st.floats(0.001, 0.999)
rows = st.integers(1, 3000)
tensors = st.integers(1, 40).map(lambda side: torch.ones(2, 3, side, side))
conds = st.dictionaries(st.sampled_from(["label", "text", "a long name " * 9, "two\nlines"]), tensors)
schedules = st.builds(lambda beta, n: Table(betas=(beta,) * n), numbers, rows)
some_paths = st.one_of(
    st.sampled_from([VP(), VP.cosine(), VP.scaled_linear(), VE(), Flow()]),
    schedules.map(VP),
    st.integers(1, 300).map(lambda n: PyramidPath(alphas=(0.5,) * n, sigmas=(0.1,) * n, factors=(1,) * n)),
    st.just(ShiftedPath(base=VP(), shift=nn.Sequential(*[nn.Linear(3, 3)] * 9))),
)
some_grids = st.one_of(
    rows.map(lambda n: grids.default(VP(), n)),
    st.builds(lambda level, n: grids.multistep(*(level,) * n), numbers, rows),
    st.integers(1, 60).map(lambda n: grids.resample(grids.churn(grids.karras(n), total=40.0), 9)),
)
targets = tensors.map(lambda x: x[:1])
guidances: Any = st.deferred(
    lambda: st.one_of(
        conds.map(lambda null: guide.CFG(weight=2.0, null=null)),
        conds.map(lambda null: guide.APG(weight=2.0, null=null)),
        some_paths.map(lambda path: guide.Autoguidance(weight=1.5, worse=model(path))),
        targets.map(lambda x: guide.Universal(energies=[guide.Palette(colours=x.flatten(0, 2))], strength=0.1)),
        targets.map(lambda x: guide.Universal(energies=guide.Edges.like(x), strength=math.sin)),
        st.lists(guidances, min_size=1, max_size=20).map(lambda many: guide.compose(*many)),
        st.lists(guidances, min_size=1, max_size=20).map(lambda many: guide.add(*many)),
        guidances.map(lambda one: guide.interval(one, sigma=(0.0, 1.0))),
    )
)
denoisers: Any = st.deferred(
    lambda: st.one_of(
        st.builds(lambda path, cond: model(path, cond=cond), some_paths.filter(lambda p: hasattr(p, "alpha")), conds),
        denoisers.map(orn.CachedDenoiser),
        st.builds(lambda guidance, inner: guidance(inner), guidances, denoisers),
        rows.map(lambda n: "models/" * n).map(
            lambda name: PlainModel(denoiser=model(), folder=Path(name), weights=Path(name))
        ),
    )
)


estimates = st.builds(
    lambda x, path, form, extras: orn.Estimate(x, 0.5, path, **{form: x}, extras=extras),
    tensors,
    some_paths,
    st.sampled_from(["clean", "noise", "velocity"]),
    conds,
)
events = st.builds(
    lambda x, estimate: orn.samplers.Event(3, x, 0.5, estimate), tensors, st.one_of(estimates, st.none())
)
noises = rows.map(lambda n: orn.Noise.of(3, range(n)).fork("dropout"))
mixtures = rows.map(
    lambda n: interpolation.Mixed(
        first=orn.Noise.of(0, range(n)), second=orn.Noise.of(1, range(n)), shares=((1.0, 0.0),) * n
    )
)


@settings(max_examples=80, deadline=None)
@given(st.one_of(schedules, some_paths, some_grids, guidances, denoisers, estimates, events, noises, mixtures))
def test_a_value_is_shown_in_one_line(value: Any) -> None:
    text = repr(value)
    assert "\n" not in text
    assert len(text) <= 200
    assert type(value).__name__ in text or "around" in text
    assert "tensor(" not in text


def every_subclass(kind: type) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from every_subclass(one)


@pytest.mark.parametrize("kind", [Rule, LocationPath])
def test_no_guidance_or_path_writes_itself_out(kind: type) -> None:
    """A dataclass that derives from these must not bring the repr of dataclasses, which is as long as its fields."""
    for one in every_subclass(kind):
        if one.__module__.startswith("ornstein.") and is_dataclass(one) and fields(one):
            assert one.__repr__.__module__.startswith("ornstein."), one


def test_samplers_and_plans_are_shown_in_one_line() -> None:
    for name in SAMPLERS:
        rule = sampler(name)
        path = VP.table()
        assert len(repr(rule)) <= 200
        if isinstance(path, rule.needs):
            assert len(repr(Problem(rule, path, tuple(grids.default(path, 500)(path))))) <= 200
    assert repr(VE()) == "VE(sigma_min=0.002, sigma_max=80.0)"


# ------------------------------------------------------------------------------------------------------------- progress


def test_progress_is_a_bar_on_stderr_and_silence_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = orn.sample(model(), 4, steps=5, batch=2)
    assert capsys.readouterr() == ("", "")
    loud = orn.sample(model(), 4, steps=5, batch=2, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "sampling" in shown.err
    assert "10/10" in shown.err
    assert torch.equal(loud, quiet)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_function_sees_every_evaluation_of_all(name: str) -> None:
    """The number of all is known beforehand, for each sampler, climbing grids included."""
    if name == "ancestral-learned":
        return
    path = VP()
    for n, size, grid in ((3, 2, grids.default(path, 4)), (2, None, grids.resample(grids.default(path, 3), 2))):
        counts: list[int] = []
        told: list[tuple[int, int]] = []

        def net(x: Tensor, time: Tensor, counts: list[int] = counts) -> Tensor:
            counts.append(len(x))
            return 0.4 * x

        denoiser = orn.Denoiser(net, path, "clean", shape=SHAPE)
        orn.sample(
            denoiser, n, sampler=name, grid=grid, batch=size, seed=3, progress=lambda *pair, t=told: t.append(pair)
        )
        done, whole = zip(*told, strict=True)
        assert done == tuple(range(1, len(told) + 1))
        assert set(whole) == {len(told)}
        assert len(counts) <= len(told) * (4 if name == "picard" else 1)


def test_a_bar_ends_where_a_call_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def net(x: Tensor, time: Tensor) -> Tensor:
        return x / 0.0

    for _ in range(2):
        with pytest.raises(UsageError, match="evaluation 1"):
            orn.sample(orn.Denoiser(net, VP(), "clean", shape=SHAPE), 1, steps=3, progress=True)
    assert "0/3" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, 1, "yes", 0.5, int, VP])
def test_progress_is_true_false_or_a_function(value: Any) -> None:
    with pytest.raises(UsageError, match="progress"):
        orn.sample(model(), 1, steps=2, progress=value)


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns"), [(1, None), (5, 2), (6, None), (3, 9)])
def test_a_notebook_shows_the_grid_of_the_images(
    tmp_path: Path, count: int, columns: int | None, channels: int
) -> None:
    from io import BytesIO

    from PIL import Image

    images = orn.Noise.of(0, range(count)).normal("x", (channels, 5, 7))
    shown = orn.show(images, columns)
    with Image.open(BytesIO(shown._repr_png_())) as picture:
        assert picture.format == "PNG"
        found = torch.tensor(list(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        across = columns if columns is not None and columns < count else count if columns else math.ceil(count**0.5)
        rows_ = math.ceil(count / across)
        assert picture.size == (across * 9 + 2, rows_ * 7 + 2)
        page = found.reshape(rows_ * 7 + 2, across * 9 + 2, 3).permute(2, 0, 1)
    expected = ((images.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    for i, image in enumerate(expected):
        top, left = 2 + (i // across) * 7, 2 + (i % across) * 9
        assert torch.equal(page[:, top : top + 5, left : left + 7], image)
    assert shown.save(tmp_path / "page.png").read_bytes() == shown._repr_png_()
    assert f"{count} image" in repr(shown)
    assert len(repr(shown)) <= 200


def test_one_image_and_what_is_none() -> None:
    assert orn.show(torch.zeros(3, 4, 4))._repr_png_() == orn.show(torch.zeros(1, 3, 4, 4))._repr_png_()
    for wrong in (torch.zeros(2, 4, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(8, 8), [1.0], None, "a.png", Tensor):
        with pytest.raises(UsageError) as caught:
            orn.show(wrong)  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(caught.value)
    for columns in (0, 1.5, "2"):
        with pytest.raises(UsageError):
            orn.show(torch.zeros(1, 3, 4, 4), columns)  # pyright: ignore[reportArgumentType]
