"""`orn.sample` and `orn.stream`: one seed, one image."""

import pytest
import torch

import ornstein as orn
from ornstein.errors import UsageError


def model(dtype: torch.dtype = torch.float32) -> orn.Denoiser:
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 3, 3, padding=1, dtype=dtype).requires_grad_(False)
    return orn.Denoiser(
        lambda x, time: torch.tanh(net(x) + time.to(dtype).reshape(-1, 1, 1, 1) / 500.0),
        orn.VP(),
        "noise",
        shape=(3, 8, 8),
    )


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m", "dpmpp-2m-sde"])
def test_batch_and_split_change_nothing(sampler: str) -> None:
    net = model()
    whole = orn.sample(net, 7, sampler=sampler, steps=6, strict=True)
    for batch in (1, 2, 3):
        assert torch.equal(orn.sample(net, 7, sampler=sampler, steps=6, batch=batch, strict=True), whole)
    parts = [orn.sample(net, n, sampler=sampler, steps=6, first=first, strict=True) for first, n in ((0, 3), (3, 4))]
    assert torch.equal(torch.cat(parts), whole)


def test_without_strict_only_rounding_depends_on_the_batch() -> None:
    net = model(torch.float64)
    whole, parts = (orn.sample(net, 7, steps=6, batch=batch, dtype=torch.float64) for batch in (7, 3))
    torch.testing.assert_close(parts, whole, rtol=0.0, atol=1e-11)


def test_stream_ends_with_the_sample() -> None:
    net = model()
    events = list(orn.stream(net, 3, sampler="heun", steps=12, seed=4))
    assert [event.evaluation for event in events] == [*range(1, 24), 23]
    assert [event.final for event in events] == [False] * 23 + [True]
    assert torch.equal(events[-1].x, orn.sample(net, 3, sampler="heun", steps=12, seed=4))


def test_seeds_differ_and_repeat() -> None:
    net = model()
    assert torch.equal(orn.sample(net, 2, seed=1, steps=3), orn.sample(net, 2, seed=1, steps=3))
    assert not torch.equal(orn.sample(net, 2, seed=1, steps=3), orn.sample(net, 2, seed=2, steps=3))


def test_evaluations_are_not_exceeded() -> None:
    for name, budget in (("heun", 10), ("dpmpp-2s", 9), ("unipc", 7), ("ddim", 5)):
        events = list(orn.stream(model(), 1, sampler=name, evaluations=budget))
        assert budget - 1 <= events[-1].evaluation <= budget


def test_conditions_follow_their_samples() -> None:
    net = orn.Denoiser(lambda x, time, shift: 0.0 * x + shift.reshape(-1, 1, 1, 1), orn.VE(), "clean", shape=(1, 2, 2))
    shift = torch.arange(5.0)
    out = orn.sample(net, 5, steps=3, batch=2, cond={"shift": shift})
    torch.testing.assert_close(out[:, 0, 0, 0], shift)
    assert torch.equal(orn.sample(net, 5, steps=3, cond={"shift": shift}, strict=True), out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"steps": 3, "evaluations": 3}, "one of steps, evaluations and grid"),
        ({"sampler": "dpmp"}, "unknown sampler"),
        ({"grid": [1.0, 2.0]}, "outside the span"),
        ({"cond": {"label": torch.zeros(3)}, "n": 2}, "rows"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        orn.sample(model(), **arguments)


def test_a_shape_is_needed() -> None:
    with pytest.raises(UsageError, match="pass shape="):
        orn.sample(orn.Denoiser(lambda x, time: x, orn.VP()), 1)
