"""Denoisers: rows of conditions, the validity of a cached estimate, and attributes of a wrapped denoiser."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ornstein import grids
from ornstein.denoisers import CachedDenoiser, Denoiser, DenoiserInfo, info_of, predict_times
from ornstein.errors import ConfigError, UsageError
from ornstein.estimates import Estimate
from ornstein.modulation import Site, modulated
from ornstein.parameterizations import EDM, Clean
from ornstein.paths import VE, VP, Flow, ShiftedPath
from ornstein.randomness import Noise

X = Noise.of(0, range(3), dtype=torch.float64).normal("x", (2, 4))
TIMES = torch.tensor([0.1, 0.45, 0.8], dtype=torch.float64)


def weigh(x: Tensor, time: Tensor, label: Tensor, bias: Tensor | None = None) -> Tensor:
    """A pure function of every row, its time and its conditions."""
    out = x * label.reshape(-1, 1, 1) + time.to(x.dtype).reshape(-1, 1, 1) / 100.0
    return out if bias is None else out + bias[:, None]


def model(path: Any = None, predicts: Any = "noise", **options: Any) -> Denoiser:
    return Denoiser(weigh, path or VP(), predicts, **options)


def test_an_estimate_is_the_networks_output_read_at_its_time() -> None:
    label = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    for path, predicts in ((VE(), EDM(sigma_data=0.7)), (Flow(), "velocity"), (VP(), "v")):
        denoiser = model(path, predicts).with_condition({"label": label})
        for t in (0.37, TIMES):
            fed = denoiser.parameterization.precondition(path, X, t)
            time = torch.as_tensor(path.timestep_of(t)).to(torch.float32).expand(3)
            wanted = weigh(fed, time, label)
            torch.testing.assert_close(denoiser.raw(X, t), wanted, rtol=1e-12, atol=1e-12)
            read = denoiser.parameterization.to_estimate(path, X, t, wanted)
            torch.testing.assert_close(denoiser(X, t).clean, read.clean, rtol=1e-12, atol=1e-12)
            # A condition for one call stands in for the bound one; keywords reach the network.
            other = weigh(fed, time, 3.0 * label)
            torch.testing.assert_close(denoiser.raw(X, t, {"label": 3.0 * label}), other, rtol=1e-12, atol=1e-12)
            bias = torch.arange(4.0, dtype=torch.float64).expand(3, 4)
            bound = denoiser.bound(X, t)(0.5 * fed, bias=bias)
            torch.testing.assert_close(bound, weigh(0.5 * fed, time, label, bias), rtol=1e-12, atol=1e-12)
            other_bound = denoiser.bound(X, t, {"label": 3.0 * label})(0.5 * fed)
            torch.testing.assert_close(other_bound, weigh(0.5 * fed, time, 3.0 * label), rtol=1e-12, atol=1e-12)


def test_defaults_and_refusals() -> None:
    plain = Denoiser(weigh, VP())
    assert (plain.parameterization, plain.shape, plain.timestep_of, plain.cond) == (
        model().parameterization,
        None,
        None,
        {},
    )
    assert (plain.grid, plain.codec) == (None, None)
    assert isinstance(Denoiser(weigh, VP(), Clean()).predicts, Clean)
    assert "codec" not in repr(model(codec=SimpleNamespace(decode=abs)))
    with pytest.raises(TypeError, match="positional"):
        Denoiser(weigh, VP(), "noise", None)  # type: ignore[misc] - the rest goes by name
    with pytest.raises(ConfigError, match="path must be a forward path"):
        Denoiser(weigh, "vp")  # type: ignore[arg-type]
    wrong = Denoiser(lambda x, time: SimpleNamespace(sample=None), VP())  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match="must return a tensor"):
        wrong(X, 0.5)


def test_one_row_is_repeated_and_other_numbers_are_refused() -> None:
    rows = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    one = model().with_condition({"label": rows[:1]})(X, 0.5).noise
    assert torch.equal(one, model().with_condition({"label": rows[:1].repeat(3)})(X, 0.5).noise)
    single = model().with_condition({"label": rows[1:2]})(X[1:2], 0.5).noise
    assert torch.equal(single, model().with_condition({"label": rows})(X, 0.5).noise[1:2])
    for bad in (rows[:2], rows[0], torch.ones(4)):
        with pytest.raises(UsageError, match=r"'label' of shape .* needs 3 rows, or one"):
            model().with_condition({"label": bad})(X, 0.5)
    given = {"label": rows}
    bound = model(cond=given)
    given["label"] = 2.0 * rows  # the caller's mapping is not ours
    assert torch.equal(bound(X, 0.5).noise, model().with_condition({"label": rows})(X, 0.5).noise)


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5, dtype=torch.float64), TIMES], ids=["float", "one", "rows"])
def test_many_and_at_times_are_calls_of_their_own(t: Any) -> None:
    bias = torch.arange(4.0, dtype=torch.float64)
    conds = [
        {"label": torch.tensor([a, 2.0, b], dtype=torch.float64), "bias": a * bias.expand(1, 4)}
        for a, b in ((1.0, -3.0), (0.4, 7.0))
    ]
    path = ShiftedPath(shift=lambda clean, cond, t: cond["label"].reshape(-1, 1, 1) + 0.0 * clean)
    # A time a row: exponentials of three and of six numbers may round otherwise.
    slack = {"rtol": 1e-13, "atol": 1e-13} if t is TIMES else {"rtol": 0.0, "atol": 0.0}
    for denoiser in (model(), model(VE(), "edm"), model(path, "clean")):
        for found, cond in zip(denoiser.predict_conditions(X, t, conds), conds, strict=True):
            wanted = denoiser.with_condition(cond)(X, t)
            torch.testing.assert_close(found.clean, wanted.clean, **slack)
            assert found.x is X
            assert found.t is t
            if isinstance(path, type(found.path)):
                assert torch.equal(found.path.cond["label"], cond["label"])  # type: ignore[attr-defined]
        (alone,) = denoiser.predict_conditions(X, t, conds[1:])
        assert torch.equal(alone.clean, denoiser.with_condition(conds[1])(X, t).clean)
    states = torch.stack([X, 2.0 * X])
    bound = model(VE(), "edm").with_condition({"label": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)})
    for found, part, time in zip(bound.predict_times(states, (7.0, 0.3)), states, (7.0, 0.3), strict=True):
        assert torch.equal(found.clean, bound(part, time).clean)
        assert (found.t, found.path) == (time, VE())
    for wrong in ((7.0,), (7.0, 0.3, 0.1)):
        with pytest.raises(UsageError, match=f"and {len(wrong)} times"):
            bound.predict_times(states, wrong)


class Half(nn.Module):
    """Weights in one precision, a table of integers before them, and one site."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.site = Site("only")
        if dtype is not None:
            self.gain = nn.Parameter(torch.ones(1, dtype=dtype), requires_grad=False)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.seen.append(x.dtype)
        return self.site(0.5 * x, time)


def test_a_network_without_weights_or_with_integers_gets_the_state_as_it_is() -> None:
    for dtype, wanted in ((None, torch.float64), (torch.int64, torch.float64), (torch.float16, torch.float16)):
        net = Half(dtype)
        assert Denoiser(net, VP())(X, 0.5).noise.dtype == torch.float64
        assert net.seen == [wanted]
        assert Denoiser(net, VP()).device == torch.device("cpu")
    assert Denoiser(Half(torch.float32).to("meta"), VP()).device == torch.device("meta")
    assert Denoiser(weigh, VP()).device == torch.device("cpu")


def test_a_memo_is_invalid_after_whatever_could_change_the_estimate() -> None:
    net = Half(None)
    memo = CachedDenoiser(Denoiser(net, VP()))
    assert memo.path == VP()
    first = memo(X, 0.5)
    assert memo(X, 0.5) is first
    with modulated(net, {"only": lambda feature, site, t: 3.0 * feature}):
        inside = memo(X, 0.5)
        torch.testing.assert_close(inside.noise, 3.0 * first.noise)
        assert memo(X, 0.5) is inside
    outside = memo(X, 0.5)
    assert torch.equal(outside.noise, first.noise)
    with torch.no_grad():
        quiet = memo(X, 0.5)
    assert quiet is not outside
    assert memo(X, 0.5) is not quiet
    count = len(net.seen)
    times = torch.full((3,), 0.5, dtype=torch.float64)
    for t in (times, times.clone(), 0.5, times):  # tensors are compared by identity, floats by value
        memo(X, t)
    assert len(net.seen) == count + 4
    memo(X, times)
    memo(X, times)
    assert len(net.seen) == count + 4
    assert memo(X, float("0.25")) is memo(X, 0.25)


class Outer:
    """A wrapper like a guidance, which passes on what it wraps."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.path = inner, inner.path

    @property
    def info(self) -> DenoiserInfo:
        return replace(info_of(self.inner), times_together=False)

    def __call__(self, x: Tensor, t: Any) -> Estimate:
        return self.inner(x, t)


def test_what_a_denoiser_knows_is_known_to_what_wraps_it() -> None:
    codec = SimpleNamespace(decode=lambda latents: latents)
    family = lambda count: grids.karras(count or 3)  # noqa: E731
    inner = model(codec=codec, grid=family, shape=(2, 4, 4))
    for wrapped in (inner, CachedDenoiser(inner), Outer(CachedDenoiser(inner)), CachedDenoiser(CachedDenoiser(inner))):
        info = info_of(wrapped)
        assert (info.codec, info.grid, info.shape) == (codec, family, (2, 4, 4))
        assert (info.device, info.network) == (torch.device("cpu"), inner.net)
    for bare in (None, object()):  # a stranger's denoiser without info
        info = info_of(bare)
        assert (info.codec, info.grid, info.shape, info.cond, info.network) == (None,) * 5
    together = [info_of(d).times_together for d in (inner, CachedDenoiser(inner), Outer(inner), object())]
    assert together == [True, True, False, False]


def test_at_times_of_a_wrapper_is_one_call_after_the_other() -> None:
    bound = model(VE(), "edm").with_condition({"label": torch.ones(1, dtype=torch.float64)})
    states = torch.stack([X, 2.0 * X])
    for denoiser in (bound, CachedDenoiser(bound), Outer(bound)):
        for found, part, time in zip(predict_times(denoiser, states, (7.0, 0.3)), states, (7.0, 0.3), strict=True):  # type: ignore[arg-type]
            assert torch.equal(found.clean, bound(part, time).clean)
        for wrong in ((), (7.0,)):
            with pytest.raises(UsageError, match="at N times are needed"):
                predict_times(denoiser, states, wrong)  # type: ignore[arg-type]
