"""What the cells that draw pictures ask for and report: guidances, goals, budgets and references, on toy networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import ornstein as orn
from ornstein import grids, metrics, sampling
from ornstein import guidance as guide
from ornstein.data import save_grid, to_uint8
from ornstein.data.base import Example
from ornstein.metrics import measure, statistics
from ornstein.paths import VP, PyramidPath
from ornstein.randomness import Noise
from ornstein.reproduce.accelerated import cells as accelerated
from ornstein.reproduce.arms import Pixels
from ornstein.reproduce.cas_dm import cells as cascade
from ornstein.reproduce.udpm import cells as pyramid
from ornstein.reproduce.universal import images
from ornstein.samplers import DDIM, run, solve


class Shrunk:
    """Images of 2 × 2 pixels in place of a network's features, in every head."""

    name, width, heads = "lite0", 12, ("pooled", "spatial", "classes")

    def outputs(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = functional.adaptive_avg_pool2d(pictures.float() / 255.0, 2).flatten(1)
        return {"pooled": flat, "spatial": 2.0 * flat, "classes": flat + 1.0}

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.outputs(pictures)["pooled"]


class Source:
    """Drawings that are a function of their number."""

    name, classes, fingerprint = "made", ("a",), "0"

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        noise = Noise.of(index, [0]).normal("drawing", (3, self.size, self.size))[0]
        return Example(image=to_uint8(0.4 * noise), label=index % 12, caption="", name=str(index))


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int | None]]]:
    """No network but toys, no drawing but made ones; what was opened."""
    opened: list[tuple[str, int, int | None]] = []

    def open_source(where: str, *, size: int, limit: int | None = None) -> Source:
        opened.append((where, size, limit))
        count = int(where.partition(":")[2] or 4096)
        return Source(count if limit is None else min(count, limit), size)

    monkeypatch.setattr("ornstein.data.open_source", open_source)
    monkeypatch.setattr(metrics, "features", lambda name: Shrunk())
    kept = (images.targets, images.network, images.reference, images.classifier, pyramid._data)
    for cached in kept:
        cached.cache_clear()
    yield opened
    for cached in kept:
        cached.cache_clear()


def model(size: int, path: Any = None) -> orn.Denoiser:
    """A denoiser of no weights that smooths, and darkens with the noise."""

    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(functional.avg_pool2d(x, 3, stride=1, padding=1)) / (1.0 + time.reshape(-1, 1, 1, 1) / 1000)

    return orn.Denoiser(net, path or VP(), "clean", shape=(3, size, size))


# ------------------------------------------------------------------------------------------------- universal guidance


def test_targets_are_drawings_behind_the_trained_ones(made: Any) -> None:
    shown, labels = images.targets(2, 300)
    numbers = [4096 + (600 + i) % 1024 for i in range(300)]
    assert labels.tolist() == [number % 12 for number in numbers]
    for i in (0, 299):
        assert torch.equal(to_uint8(shown[i]), Source(9999, 64)[numbers[i]].image)
    assert images.reference().shape == (1024, 12)
    assert made == [("critters:5120", 64, None)]


def test_goals_at_known_pictures() -> None:
    target = torch.zeros(2, 3, 64, 64)
    target[1] = 0.5
    clean = torch.full((2, 3, 64, 64), 0.25)
    clean[1, 0, :, :32] = 0.0  # the left half of one channel
    goal = images.TASKS["colour"](target, torch.zeros(2))
    off = torch.tensor([[0.25] * 3, [-0.375, -0.25, -0.25]])
    torch.testing.assert_close(goal.misfit(clean), off.square().mean(1).sqrt())
    torch.testing.assert_close(goal.energy(clean), off.square().sum(1) / (2 * 0.05**2))
    assert goal.rate == pytest.approx(0.5 * 64**2 * 0.05**2)
    assert (goal.descent, goal.label, goal.hidden) == ("gradient", None, None)
    goal = images.TASKS["inpainting"](target, torch.zeros(2))
    left = torch.tensor([0.25, math.sqrt((0.5**2 + 2 * 0.25**2) / 3)])
    torch.testing.assert_close(goal.misfit(clean), left)
    torch.testing.assert_close(goal.hidden(clean), torch.full((2,), 0.25))
    torch.testing.assert_close(goal.energy(clean), left.square() * 3 * 64 * 32 / (2 * 0.1**2))
    assert goal.rate == pytest.approx(0.005)


def test_the_class_is_asked_of_a_classifier_and_judged_by_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def net(clean: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        asked.append(log_snr)
        return functional.one_hot(torch.tensor([3, 5]), 12).float() + 0.0 * clean.mean()

    monkeypatch.setattr(images, "classifier", lambda *, noisy: net if not noisy else None)
    labels = torch.tensor([3, 4])
    goal = images.TASKS["class"](torch.zeros(2, 3, 64, 64), labels)
    shown = torch.zeros(2, 3, 64, 64)
    for i, code in enumerate(((0xF0, 0xAB, 0xFC), (0xFC, 0xA5, 0xA5))):
        shown[i] = torch.tensor(code).reshape(3, 1, 1) / 127.5 - 1.0
    assert images.judged(shown).tolist() == [3, 5]
    assert goal.misfit(shown).tolist() == [0.0, 1.0]
    total = math.log(11.0 + math.e)
    torch.testing.assert_close(goal.energy(shown), torch.tensor([total - 1.0, total]))
    assert torch.equal(asked[0], torch.full((2,), 10.0))
    assert (goal.rate, goal.descent) == (0.02, "adam")
    assert goal.label is labels


def test_the_guidance_that_a_name_means(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_noisy(state: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    monkeypatch.setattr(images, "classifier", lambda *, noisy: of_noisy if noisy else None)
    goal = images.colour(torch.zeros(2, 3, 64, 64), torch.zeros(2))
    grid = grids.log_snr(5)

    def named(method: str) -> Any:
        return images.guided(method, goal, 0.7, grid)

    for method, through, strength, centre in (
        ("forward", "network", 0.7, None),
        ("estimate", "estimate", 0.7, None),
        ("backward", "network", 0.0, "guided"),
        ("both", "network", 0.7, "guided"),
        ("paper", "network", 0.7, "plain"),
    ):
        found = named(method)
        assert isinstance(found, guide.Universal)
        assert (found.energies, found.differentiate_through, found.strength) == (
            ((1.0, goal.energy),),
            through,
            strength,
        ), method
        back = found.backward
        expected = None if centre is None else (5, goal.rate, "gradient", centre)
        assert (None if back is None else (back.steps, back.rate, back.descent, back.centre)) == expected
    noisy, dps, posterior = named("noisy"), named("dps"), named("posterior")
    assert (noisy.classifier, noisy.label, noisy.weight) == (of_noisy, None, 0.7)
    assert (dps.scale, dps.grid, dps.eta) == (0.7, grid, 0.0)
    assert (posterior.measured, posterior.iterations, posterior.weight) == (goal.energy, 3, 0.7)


@pytest.mark.parametrize(("method", "recur"), [("plain", 1), ("forward", 2), ("backward", 1)])
def test_a_cell_draws_measures_and_counts(monkeypatch: pytest.MonkeyPatch, method: str, recur: int) -> None:
    net = model(64)
    monkeypatch.setattr(images, "network", lambda: net)
    found = images.drawn(task="inpainting", method=method, steps=3, recur=recur, strength=0.1, seed=1, images=2)
    goal = images.inpainting(*images.targets(1, 2))
    grid = grids.default(net.path, 3)
    guided = net if method == "plain" else images.guided(method, goal, 0.1, grid)(net)
    a, b, c, end = grid(net.path)  # cells are stored: their step to the clean end is taken once
    times = (a, b, a, b, c, b, c, end) if recur == 2 else (a, b, c, end)
    clean = sampling.sample(guided, 2, sampler=DDIM(), grid=times, seed=1001).clamp(-1.0, 1.0)
    assert found["misfit"] == pytest.approx(float(goal.misfit(clean).mean()), rel=1e-5)
    assert found["hidden"] == pytest.approx(float(goal.hidden(clean).mean()), rel=1e-5)  # type: ignore[misc]
    kid = metrics.kernel.mmd2(Shrunk()(to_uint8(clean)).numpy(), images.reference())
    assert found["kid"] == pytest.approx(kid, rel=1e-4)
    asked = {("plain", 1): 3, ("forward", 2): 5, ("backward", 1): 3}[method, recur]
    assert (found["evaluations"], found["gradients"]) == (asked, asked if method == "forward" else 0)
    assert found["seconds"] >= 0.0


def test_a_counted_denoiser_answers_as_the_inner_one() -> None:
    def net(x: torch.Tensor, time: torch.Tensor, *, shift: torch.Tensor) -> torch.Tensor:
        return x + shift.reshape(-1, 1, 1, 1)

    inner = orn.Denoiser(net, VP(), "clean", shape=(3, 4, 4))
    counted = images.Counted(inner)
    x = torch.ones(2, 3, 4, 4)
    conds = [{"shift": torch.full((2,), value)} for value in (1.0, 3.0)]
    one, other = (answer.clean for answer in counted.predict_conditions(x, 0.5, conds))
    assert torch.equal(one + 2.0, other)
    assert torch.equal(counted.with_condition(conds[0])(x, 0.5).clean, one)
    assert (counted.path, counted.info.shape) == (inner.path, (3, 4, 4))


def test_the_classifier_learns_from_the_trained_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    net = images.Classifier()
    small = functional.avg_pool2d(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 2)
    level = torch.tensor([0.3, -0.5]).reshape(2, 1, 1, 1).expand(2, 1, 32, 32)
    h = torch.cat((small, level), 1)
    for layer, norm in zip(net.layers, net.norms, strict=True):
        h = functional.silu(norm(layer(h)))
    shown = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(shown, torch.tensor([3.0, -5.0])), net.last(h.mean((2, 3))))
    assert [layer.weight.shape[:2] for layer in net.layers] == [(32, 4), (64, 32), (96, 64)]
    assert net.last.weight.shape == (12, 96)
    monkeypatch.setattr(images, "network", lambda: model(64))
    clean, noisy = (images.classifier(noisy=noise, batches=6) for noise in (False, True))
    assert not clean.training
    assert not any(weight.requires_grad for weight in clean.parameters())
    source = Source(4096, 64)
    pictures = torch.stack([source[i].image for i in range(48)]).float() / 127.5 - 1.0
    labels = torch.tensor([source[i].label for i in range(48)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = images.Classifier()
    level = torch.full((48,), 10.0)
    with torch.no_grad():
        losses = [float(functional.cross_entropy(net(pictures, level), labels)) for net in (fresh, clean, noisy)]
    # Six steps from the same start: a few hundredths, which single precision does not blur.
    assert losses == pytest.approx([2.5260, 2.6174, 2.5429], abs=2e-3)


# --------------------------------------------------------------------------------- accelerated samplers on the pictures


def test_pictures_of_a_rule_against_the_data(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    net = model(8)
    monkeypatch.setattr("ornstein.runs.open_run", lambda name: SimpleNamespace(denoiser=net))
    found = accelerated.drawn("ddim", 3, "quadratic", 5, 40, 70)
    assert made == [("critters:8192", 8, None)]
    times = grids.power(3)(net.path)
    noise = Noise.of(5, range(40))
    drawn = run(solve(DDIM(), net.path, net.path.prior(noise, (3, 8, 8), times[0]), times, noise), net)
    ours = Shrunk()(to_uint8(drawn))
    theirs = Shrunk()(torch.stack([Source(8192, 8)[i].image for i in range(70)]))
    expected = 1000.0 * metrics.kernel.mmd2(ours.double().numpy(), theirs.double().numpy())
    assert found["KID-lite0"] == pytest.approx(expected, rel=1e-4)
    data = [Source(8192, 8)[i].image for i in range(70)]
    fd = measure(statistics(to_uint8(drawn), Shrunk()), statistics(data, Shrunk()), ("fd",)).numbers["FD-lite0"]
    assert found["FD-lite0"] == pytest.approx(fd, rel=1e-3)
    assert accelerated.drawn("ddim", 3, "log-snr", 5, 40, 70) != found


@pytest.mark.parametrize("form", ["ddpm", "readme", "cifar"])
def test_the_printed_updates(form: str) -> None:
    """One step by hand from ᾱ_t to ᾱ_s: α = ᾱ_t/ᾱ_s, β = 1 − α, with the exact score of N(0, 1)."""
    path = VP()
    t, s = 0.6, 0.35
    noise = Noise.of(3, range(4), dtype=torch.float64)
    x = noise.normal("x", (5,))

    class Score:
        def __init__(self) -> None:
            self.path = path

        def __call__(self, x: torch.Tensor, t: float) -> orn.Estimate:
            return orn.Estimate(x, t, path, noise=path.sigma(t) * x)  # score −x

    found = run(solve(accelerated.Printed(form), path, x, (t, s), noise), Score())  # type: ignore[arg-type]
    one, two = (noise.normal((name, 0), (5,)) for name in ("one", "two"))
    alpha = (path.alpha(t) / path.alpha(s)) ** 2
    beta = 1.0 - alpha
    if form == "ddpm":
        expected = ((1.0 - beta) * x + math.sqrt(beta) * one) / math.sqrt(alpha)
    else:
        half = math.sqrt(0.5 * beta)
        stirred = x + half * one * (math.sqrt(alpha) if form == "cifar" else 1.0)
        expected = (1.0 - beta) * stirred / math.sqrt(alpha) + half * two
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- cas-dm


def test_a_cell_of_the_cascade(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Any) -> None:
    net, trained = model(16, VP.table()), []
    summary = SimpleNamespace(parameters=77, seconds=3.5, loss=0.25)
    monkeypatch.setattr(cascade.arms, "train_arm", lambda config: trained.append(config) or (summary, None))
    monkeypatch.setattr("ornstein.runs.open_run", lambda out: SimpleNamespace(denoiser=net))
    monkeypatch.setattr(cascade, "operations", lambda arm, size: {"ddpm": 1.0, "cas-dm": 2.0}[arm])
    choice = {"lr": 1e-3}
    found = cascade.trained(arm="cas-dm", seed=4, images=640, samples=60, size=16, files=tmp_path, choice=choice)
    (config,) = trained
    (out,) = {Path(config.out)}
    assert out.name.startswith("cas-dm-4-640-16-")
    assert config == cascade.configuration("cas-dm", out, 4, 320, 16, choice)
    assert {key: found[key] for key in found if key not in ("at", "early")} == {
        "parameters": 77,
        "seconds": 3.5,
        "images": 320,
        "loss": 0.25,
    }
    data = [Source(4096, 16)[i].image for i in range(60)]
    assert made == [("critters", 16, 4096)]
    clipped = guide.Threshold(quantile=None)(net)
    for steps in (5, 10, 50):
        drawn = sampling.sample(clipped, 60, sampler="ddim", steps=steps, seed=7, batch=50)
        keep = ("spatial", "classes")
        expected = measure(statistics(to_uint8(drawn), Shrunk(), keep=keep), statistics(data, Shrunk(), keep=keep),
                           ("fd", "sfd", "is", "kid")).numbers  # fmt: skip
        flat = measure(statistics(to_uint8(drawn), Pixels()), statistics(data, Pixels()), ("fd",)).numbers
        assert found["at"][str(steps)] == pytest.approx({**expected, **flat}, rel=1e-4)
        shown = save_grid(drawn[:32], tmp_path / "expected.png", 8).read_bytes()
        assert (tmp_path / f"{out.name}-{steps}.png").read_bytes() == shown


# ----------------------------------------------------------------------------------------------------------------- udpm


def enlarging() -> orn.Denoiser:
    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        large = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return torch.tanh(1.5 * large + 0.3 * large.roll(1, 3))

    parameterization = orn.parameterizations.LevelBelow(scaled=False, preconditioned=False)
    return orn.Denoiser(net, PyramidPath(), parameterization, shape=(3, 32, 32))


class Gap(torch.nn.Module):
    """The mean absolute difference in place of a perceptual distance."""

    name = "gap"

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().flatten(1).mean(1)


@pytest.fixture
def gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ornstein.metrics.perceptual.lpips", lambda name: Gap())


def test_the_judge_of_pyramids(tmp_path: Path) -> None:
    net = enlarging()
    judge = pyramid.Judge(32, 60, tmp_path)
    found = judge(net, "one")
    drawn = sampling.sample(net, 60, seed=7, batch=50)
    data = [Source(4096, 32)[i].image for i in range(60)]
    keep = ("vectors",)
    ours, theirs = (statistics(shown, Shrunk(), keep=keep) for shown in (to_uint8(drawn), data))
    deep = measure(ours, theirs, ("fd", "kid", "prdc")).numbers
    flat = measure(statistics(to_uint8(drawn), Pixels()), statistics(data, Pixels()), ("fd",)).numbers
    names = ("KID-lite0", "FD-lite0", "recall-lite0", "coverage-lite0")
    assert found == pytest.approx({**{name: deep[name] for name in names}, "FD-pixels8": flat["FD-pixels8"]}, rel=1e-5)
    assert (tmp_path / "one.png").read_bytes() == save_grid(drawn[:32], tmp_path / "e.png", 8).read_bytes()
    broken = orn.Denoiser(lambda x, time: torch.full((len(x), 3, 2 * x.shape[2], 2 * x.shape[3]), math.nan),
                          net.path, net.parameterization, shape=net.shape)  # fmt: skip
    with pytest.raises(orn.errors.OrnsteinError, match="two: samples are not finite"):
        judge(broken, "two")


def test_how_far_pictures_move(tmp_path: Path, gap: None) -> None:
    from ornstein.interpolation import Varied, level_key

    net = enlarging()
    found = pyramid.varied(net, 100, tmp_path / "levels.png")
    assert list(found) == ["0", "1", "2", "3"]
    others = sampling.sample(net, 6, seed=7)

    def apart(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
        small = functional.adaptive_avg_pool2d(a - b, 4)
        rms = [float(x.square().mean((1, 2, 3)).sqrt().mean()) for x in (a - b, small)]
        return {"all": rms[0], "coarse": rms[1], "metric": float((a - b).abs().mean())}

    assert found["0"] == pytest.approx(apart(others[:-1], others[1:]), rel=1e-5)
    shown = []
    for level in (1, 2, 3):
        key = level_key(net.path, level)
        pairs = [sampling.sample(net, 2, noise=Varied(image=i, key=key, seed=7)) for i in range(5)]
        before, after = (torch.stack([pair[j] for pair in pairs]) for j in (0, 1))
        assert found[str(level)] == pytest.approx(apart(before, after), rel=1e-5)
        shown.append(sampling.sample(net, 8, noise=Varied(image=0, key=key, seed=7)))
    expected = save_grid(torch.cat(shown), tmp_path / "e.png", 8).read_bytes()
    assert (tmp_path / "levels.png").read_bytes() == expected


def test_half_way_between_two_pictures(tmp_path: Path, gap: None) -> None:
    from ornstein.interpolation import Between

    net = enlarging()
    judge = pyramid.Judge(32, 40, tmp_path)
    found = pyramid.between(net, judge, tmp_path / "between.png")
    ends = sampling.sample(net, 40, seed=7)
    middles = [sampling.sample(net, 3, noise=Between(a=i, b=20 + i, frames=3, seed=7))[1] for i in range(20)]
    assert found["noise"] == pytest.approx(judge.numbers(torch.stack(middles)), rel=1e-5)
    assert found["pixels"] == pytest.approx(judge.numbers(0.5 * (ends[:20] + ends[20:])), rel=1e-5)
    paths = [sampling.sample(net, 9, noise=Between(a=i, b=20 + i, frames=9, seed=7)) for i in range(16)]
    legs = [(path[1:] - path[:-1]).abs().mean((1, 2, 3)).sqrt() for path in paths]
    assert found["smooth"] == pytest.approx(np.mean([float(leg.max() / leg.sum()) for leg in legs]), rel=1e-5)
    expected = save_grid(torch.cat(paths[:6]), tmp_path / "e.png", 9).read_bytes()
    assert (tmp_path / "between.png").read_bytes() == expected
