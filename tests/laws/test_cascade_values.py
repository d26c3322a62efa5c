"""A cascade's arithmetic by hand: the inputs of both stages, and every option away from its default."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.cascade import Cascade, cascaded, forced
from ornstein.errors import ConfigError, UsageError
from ornstein.networks.stages import Stages
from ornstein.parameterizations import EDM, NoisePrediction
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise

NOISE = Noise.of(8, range(3), dtype=torch.float64)
X, CLEAN, WHITE = (NOISE.normal(key, (2, 4, 5)) for key in ("x", "clean", "white"))
BACK, G = NOISE.normal("back", (2, 4, 5)), NOISE.normal("gate", (1, 4, 5))
T = 0.37


def ratio(options: dict[str, Any]) -> Tensor:
    """The weight r under these options."""
    g = G.mean((2, 3), keepdim=True) if options.get("gate") == "scalar" else G
    r = g if options.get("squash") == "none" else 1.0 / (1.0 + (-g).exp())
    return r if options.get("forced") is None else torch.full_like(r, options["forced"])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip": None},
    {"clip": 0.4, "gate": "scalar"},
    {"clip": None, "squash": "none", "residual": True},
    {"clip": 2.0, "gate": "scalar", "squash": "none", "see_state": True},
    {"clip": 0.7, "residual": True, "see_state": True, "forced": 0.3},
    {"forced": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("front", [NoisePrediction(), EDM(sigma_data=0.7)], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("path", [VE(), Flow()], ids=["ve", "flow"])
def test_the_whole_output_in_closed_form(options: dict[str, Any], front: Any, path: Any) -> None:
    reading = Cascade(front=front, **options)
    clip = options.get("clip", 1.0)
    calls: list[tuple[str, Tensor]] = []
    answer = torch.cat([BACK, G], 1)

    def net(fed: Tensor, *, stage: str) -> Tensor:
        calls.append((stage, fed))
        return WHITE if stage == "front" else answer

    raw = reading.ask(net, path, X, T)
    assert torch.equal(raw, torch.cat([WHITE, BACK, G], 1))
    own = front.to_estimate(path, X, T, WHITE)
    start = own.clean if clip is None else own.clean.clamp(-clip, clip)
    fed = front.precondition(path, X, T)
    hint = torch.cat([start, fed], 1) if options.get("see_state") else start
    assert [stage for stage, _ in calls] == ["front", "back"]
    torch.testing.assert_close(calls[0][1], fed, rtol=0, atol=0)
    torch.testing.assert_close(calls[1][1], hint, rtol=1e-12, atol=1e-12)
    r, back = ratio(options), BACK + start if options.get("residual") else BACK
    blend = r * back + (1.0 - r) * start
    estimate = reading.to_estimate(path, X, T, raw)
    wanted = blend if clip is None else blend.clamp(-clip, clip)
    torch.testing.assert_close(estimate.clean, wanted, rtol=1e-12, atol=1e-12)
    assert (estimate.x is X, estimate.t, estimate.path) == (True, T, path)
    assert estimate.extras.keys() == {"front", "back", "gate"}
    for key, value in (("front", start), ("back", back), ("gate", r)):
        torch.testing.assert_close(estimate.extras[key], value, rtol=1e-12, atol=1e-12)
    heads = reading.heads(own, start, answer)
    torch.testing.assert_close(heads.blend(), blend, rtol=1e-12, atol=1e-12)
    assert heads.front is own
    target = reading.target(path, CLEAN, WHITE, X, T)
    truth = front.target(path, CLEAN, WHITE, X, T)
    best = front.to_estimate(path, X, T, truth).clean
    best = best if clip is None else best.clamp(-clip, clip)
    refined = CLEAN - best if options.get("residual") else CLEAN
    torch.testing.assert_close(target, torch.cat([truth, refined, 0.0 * G], 1), rtol=1e-12, atol=1e-12)


def test_a_gate_of_zero_evaluates_the_front_alone() -> None:
    calls: list[str] = []
    double = NOISE.normal("double", (4, 4, 5))

    def net(fed: Tensor, *, stage: str) -> Tensor:
        calls.append(stage)
        return double

    reading = Cascade(front=NoisePrediction(), forced=0.0, clip=0.1)
    raw = reading.ask(net, VP(), X, T)
    assert calls == ["front"]
    assert raw is double
    front = NoisePrediction()
    for own in (double, double[:, :2]):  # with a learned variance, and without; alone or before a back's output
        for whole in (own, torch.cat([own, BACK, G], 1)):
            estimate = reading.to_estimate(VP(), X, T, whole)
            assert torch.equal(estimate.clean, front.to_estimate(VP(), X, T, own).clean)
            assert ("variance" in estimate.extras) == (own.shape[1] == 4)
            assert "gate" not in estimate.extras
    other = Cascade(front=NoisePrediction()).to_estimate(VP(), X, T, torch.cat([double, BACK, G], 1))
    assert torch.equal(other.extras["variance"], double[:, 2:])


def test_a_back_with_other_channels_is_refused() -> None:
    reading = Cascade()
    for channels in (1, 2, 4):
        wrong = NOISE.normal("wrong", (channels, 4, 5))
        with pytest.raises(UsageError, match=f"returns {channels} channels, not the 3 of an image and a gate"):
            reading.ask(lambda fed, stage, w=wrong: WHITE if stage == "front" else w, VP(), X, T)  # type: ignore[misc]
        with pytest.raises(UsageError, match=f"returns {channels} channels, not the 3 of an image and a gate"):
            reading.heads(orn.Estimate(X, T, VP(), clean=CLEAN), CLEAN, wrong)


class Affine(nn.Module):
    """out = gain·(its last channels of x) + the conditions that it was given."""

    def __init__(self, channels: int, gain: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), gain, dtype=dtype))
        self.channels, self.seen = channels, list[tuple[torch.dtype, tuple[int, ...], set[str]]]()

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        self.seen.append((x.dtype, tuple(x.shape), set(cond)))
        out = (self.gain * x)[:, -1:].expand(-1, self.channels, -1, -1)
        for value in cond.values():
            out = out + value.reshape(-1, 1, 1, 1).to(out.dtype)
        return out + 0.001 * time.reshape(-1, 1, 1, 1).to(out.dtype)


def test_cascaded_passes_every_option_on() -> None:
    for options in OPTIONS:
        given = {key: value for key, value in options.items() if key != "forced"}
        front = orn.Denoiser(Affine(2, 0.5), VE(), EDM(), shape=(2, 4, 5), cond={"label": torch.ones(1)})
        made = cascaded(front, Affine(3, 2.0), **given)
        assert made.parameterization == Cascade(front=EDM(), **given)
        assert (made.path, made.shape, set(made.cond)) == (VE(), (2, 4, 5), {"label"})
        assert forced(made, 0.25).parameterization == Cascade(front=EDM(), **given, forced=0.25)
    with pytest.raises(ConfigError, match=r"must be an ornstein\.Denoiser, got Affine"):
        cascaded(Affine(2, 0.5), Affine(3, 2.0))  # type: ignore[arg-type]
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="clip must be positive"):
            Cascade(clip=bad)
    with pytest.raises(ConfigError, match="cascade itself"):
        Cascade(front=Cascade())
    with pytest.raises(UsageError, match="only a cascade has a gate, and this is a NoisePrediction"):
        forced(orn.Denoiser(Affine(2, 0.5), VP()), 0.0)


@pytest.mark.parametrize(("told", "known"), [(None, {"label", "other"}), (("label",), {"label"}), ((), set())])
def test_the_back_has_its_own_conditions_and_precision(told: Any, known: set[str]) -> None:
    front, back = Affine(2, 0.5), Affine(3, 2.0, torch.float32)
    label = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    plain = orn.Denoiser(front, VE(), "clean", cond={"label": label, "other": torch.ones(1, dtype=torch.float64)})
    made = cascaded(plain, back, back_conditions=told, clip=None, see_state=True)
    extras = made(X, T).extras
    assert [(d, s) for d, s, _ in front.seen + back.seen] == [
        (torch.float64, (3, 2, 4, 5)),
        (torch.float32, (3, 4, 4, 5)),
    ]
    assert (front.seen[0][2], back.seen[0][2]) == ({"label", "other"}, known)
    # Conditions of the back are detached: its output does not depend on the label through them.
    part = (extras["back"] - 2.0 * X[:, -1:]).sum()
    assert part.requires_grad
    (gradient,) = torch.autograd.grad(extras["back"].sum(), label, allow_unused=True, retain_graph=True)
    assert gradient is None or float(gradient.abs().sum()) == 0.0
    (gradient,) = torch.autograd.grad(extras["front"].sum(), label)
    assert float(gradient.abs().sum()) > 0.0


def test_freezing_is_of_the_front_alone_and_can_be_left_out() -> None:
    for freeze in (True, False):
        front, back = Affine(2, 0.5), Affine(3, 2.0)
        net = cascaded(orn.Denoiser(front, VP()), back, freeze=freeze).net
        assert isinstance(net, Stages)
        assert net.train() is net
        assert (front.gain.requires_grad, front.training) == (not freeze, not freeze)
        assert (back.gain.requires_grad, back.training) == (True, True)
        net.eval()
        assert (front.training, back.training) == (False, False)
    assert cascaded(orn.Denoiser(Affine(2, 0.5), VP()), Affine(3, 2.0)).net.frozen  # type: ignore[union-attr]
    function = cascaded(orn.Denoiser(lambda x, time: 0.5 * x, VP()), Affine(3, 2.0))
    function.net.train()  # type: ignore[union-attr]
    assert function(X, T).clean.shape == X.shape
