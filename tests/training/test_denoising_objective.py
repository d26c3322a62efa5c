from dataclasses import replace

import pytest
import torch

from ornstein.denoisers import Denoiser
from ornstein.objectives import Denoising, TrainBatch
from ornstein.objectives.weights import slope, weight
from ornstein.parameterizations import EDM, Clean, NoisePrediction, V, Velocity
from ornstein.paths import VE, VP, Flow, PyramidPath
from ornstein.randomness import Noise

CASES = [
    (VP(), "noise"),
    (VP.cosine(), "v"),
    (VP.table(), "noise"),
    (VE(), "edm"),
    (Flow(), "velocity"),
    (VP(), "clean"),
]


def examples(count: int, first: int = 0) -> tuple[TrainBatch, Noise]:
    positions = tuple(range(first, first + count))
    clean = Noise.of(9, positions).normal("clean", (3, 4, 4)).clamp(-1, 1)
    return TrainBatch(clean=clean, cond={}, positions=positions), Noise.of(1, positions)


@pytest.mark.parametrize(("path", "predicts"), CASES)
def test_the_right_answer_has_no_loss(path, predicts):
    batch, noise = examples(16)

    def oracle(x, time):
        t = Denoising().draw(path, batch.positions, noise)
        z = noise.normal("noise", (3, 4, 4))
        state = path.diffuse(batch.clean, t, z)
        return model.parameterization.target(path, batch.clean, z, state, t)

    model = Denoiser(oracle, path, predicts)
    assert float(Denoising()(model, batch, noise, 0.0).total) < 1e-9


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("times", ["uniform", "log-normal", "logit-normal"])
def test_losses_do_not_depend_on_the_split(stratified, times):
    objective = Denoising(stratified=stratified, times=times)
    model = Denoiser(lambda x, time: 0.1 * x, VP(), "noise")
    whole = objective(model, *examples(8), 0.0)
    parts = [objective(model, *examples(4, first), 0.0) for first in (0, 4)]
    # Exponentials and sums of another shape may round otherwise: float64 times, and float32 means of 48 numbers.
    torch.testing.assert_close(whole.times, torch.cat([part.times for part in parts]), rtol=1e-12, atol=1e-12)
    terms = torch.cat([part.terms["denoising"] for part in parts])
    torch.testing.assert_close(whole.terms["denoising"], terms, rtol=1e-5, atol=0.0)


def test_laws_of_the_times():
    positions = tuple(range(4000))
    noise = Noise.of(0, positions)
    path = VE()
    t = Denoising().draw(path, positions, noise)  # auto on VE: log-normal
    assert t.log().mean().item() == pytest.approx(-1.2, abs=0.01)
    assert t.log().std().item() == pytest.approx(1.2, abs=0.02)
    t = Denoising().draw(Flow(), positions, noise)
    assert t.mean().item() == pytest.approx(0.5, abs=2e-3)
    t = Denoising(times="logit-normal", mean=0.5).draw(Flow(), positions, noise)
    assert torch.logit(t).mean().item() == pytest.approx(0.5, abs=0.02)
    t = Denoising().draw(VP.table(), positions, noise) * 1000
    assert torch.equal(t, t.round())
    assert (t.min().item(), t.max().item()) == (1.0, 1000.0)


def test_stratified_times_fill_every_batch_evenly():
    positions = tuple(range(32 * 77, 32 * 78))
    t = Denoising().draw(Flow(), positions, Noise.of(0, positions)).sort().values
    assert t.diff().max().item() < 3 / 32
    # Another seed shifts them; another batch is another part of the same sequence.
    other = Denoising().draw(Flow(), positions, Noise.of(1, positions)).sort().values
    assert not torch.equal(t, other)


READINGS = [Clean(), NoisePrediction(), V(), Velocity(), EDM(sigma_data=0.7)]


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("path", [VP(), Flow(), VE()], ids=lambda p: type(p).__name__)
def test_slope_is_the_derivative(reading, path):
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = (reading.to_estimate(path, x, t, torch.full_like(x, raw)).clean for raw in (0.0, 1.0))
    torch.testing.assert_close((b - a)[:, 0], slope(reading, path, t))


def test_known_weights():
    t = torch.linspace(0.02, 0.98, 30, dtype=torch.float64)
    options = {"gamma": 5.0, "sigma_data": 0.7}
    path, snr = VP(), VP().log_snr(t).exp()
    by = weight("min-snr", NoisePrediction(), path, t, **options)
    torch.testing.assert_close(by, snr.clamp(max=5.0) / snr)
    by = weight("min-snr", V(), path, t, **options)
    torch.testing.assert_close(by, snr.clamp(max=5.0) / (snr + 1))
    by = weight("edm", EDM(sigma_data=0.7), path, t, **options)
    torch.testing.assert_close(by, torch.ones_like(t))
    assert weight("none", V(), path, t, **options) is None


def test_conditions_are_dropped_by_sample():
    seen = []

    def net(x, time, label, words):
        seen.append((label, words))
        return x

    batch, noise = examples(400)
    cond = {"label": torch.arange(400) % 5, "words": torch.ones(400, 3, dtype=torch.int64)}
    batch = replace(batch, cond=cond)
    Denoising(label_dropout=0.25)(Denoiser(net, VP()), batch, noise, 0.0)
    label, words = seen[0]
    gone = label == -1
    assert 60 < int(gone.sum()) < 140
    assert torch.equal(gone, (words == 0).all(1))
    assert torch.equal(label[~gone], cond["label"][~gone])


def test_log_normal_needs_noise_levels():
    positions = (0, 1)
    with pytest.raises(ValueError, match="uniform"):
        Denoising(times="log-normal").draw(PyramidPath(), positions, Noise.of(0, positions))
