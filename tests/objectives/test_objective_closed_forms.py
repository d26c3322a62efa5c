"""Objectives against closed forms in which every number is another one: times, weights, conditions, terms, defaults."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import ornstein as orn
from ornstein.cascade import Cascade
from ornstein.errors import ConfigError, PathError
from ornstein.objectives import CascadeLoss, Cascading, ConsistencyLoss, ConsistencyTraining, Denoising, TrainBatch
from ornstein.objectives.base import Losses, quantiles, without
from ornstein.objectives.cascading import posterior_weight, scheduled
from ornstein.objectives.reconstruction import Reconstructing, ReconstructionLoss
from ornstein.objectives.weights import weight
from ornstein.parameterizations import EDM, V, parameterization
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.randomness import Noise

F64 = torch.float64


@dataclass
class Given:
    """A source of noise whose numbers per sample are given: the quantiles, and the odds of a dropped condition."""

    us: list[float]
    dropped: list[float] | None = None

    def uniform_per_sample(self, key: str) -> Tensor:
        return torch.tensor(self.us if key == "time" else self.dropped, dtype=F64)

    def uniform(self, key: str) -> float:
        return {"time": 0.3}[key]

    def normal(self, key: str, event) -> Tensor:
        return Noise.of(2, range(len(self.us)), dtype=F64).normal(key, event)

    def fork(self, name: str) -> Noise:
        return Noise.of(2, range(len(self.us)), dtype=F64).fork(name)


def pictures(rows: int, event=(3, 2, 4), seed: int = 1) -> Tensor:
    return Noise.of(seed, range(rows), dtype=F64).normal("clean", event)


def batch(rows: int, cond: Mapping[str, Tensor] | None = None, event=(3, 2, 4)) -> TrainBatch:
    return TrainBatch(clean=pictures(rows, event), cond=cond or {}, positions=tuple(range(rows)))


# ------------------------------------------------------------------------------------------------------------- defaults

PUBLISHED = {
    # Times of EDM (Karras et al. 2022, table 1) and SD3; γ = 5 of min-SNR (Hang et al. 2023); a tenth unconditional.
    Denoising: {
        "times": "auto", "mean": None, "std": None, "stratified": True, "weight": "auto", "gamma": 5.0,
        "label_dropout": 0.1,
    },
    # Cas-DM: λ = 1
    CascadeLoss: {"metric": "lite0", "metric_weight": 1.0, "metric_schedule": "none", "gate": "posterior"},
    # sLCT: Cauchy, c_0 = .00054·√d, then exp(−1.15·log S − .85), 10 → 640 intervals, weight 5 on the last quarter.
    ConsistencyLoss: {
        "distance": "cauchy", "reduce": "mean", "scale": "adaptive", "base": 0.00054, "slope": 1.15, "offset": 0.85,
        "weight": "gap", "spacing": "grid", "curriculum": "doubling", "start": 10, "end": 640, "rho": 7.0,
        "times": "log-normal", "mean": -1.1, "std": 2.0, "stratified": True, "coupling": "assignment",
        "same_class_only": True, "diffusion": 5.0, "low_noise_fraction": 0.75, "target": 0.0, "label_dropout": 0.1,
    },
    ReconstructionLoss: {
        "pixels": "l1", "gradients": 0.0, "metric": "lite0", "metric_weight": 0.5, "kl": 1e-6, "adversarial": 0.0,
        "adversarial_from": 50_000,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED, ids=lambda kind: kind.__name__)
def test_published_defaults(kind):
    inherited = PUBLISHED[Denoising] if issubclass(kind, Denoising) else {}
    assert asdict(kind()) == inherited | PUBLISHED[kind]


def test_defaults_of_the_objectives_themselves():
    training = ConsistencyTraining()
    assert (training.steps, training.of, training.sigma_max, training.teacher) == (1000, 1000.0, 80.0, None)
    assert training.loss == ConsistencyLoss()
    assert Cascading() == Cascading(loss=CascadeLoss(), metrics={})
    assert (Reconstructing().loss, Reconstructing().metric, Reconstructing().discriminator) == (
        ReconstructionLoss(),
        None,
        None,
    )


@pytest.mark.parametrize(
    ("kind", "name", "good", "bad"),
    [
        (Denoising, "label_dropout", (0.0, 1.0), (-1e-9, 1.0 + 1e-9, math.nan)),
        (Denoising, "gamma", (1e-9,), (0.0, -1.0, math.nan)),
        (Denoising, "std", (1e-9, None), (0.0, -1.0, math.nan)),
        (CascadeLoss, "metric_weight", (0.0,), (-1e-9, math.inf, math.nan)),
        (ConsistencyLoss, "start", (1, 640), (0, 641)),
        (ConsistencyLoss, "base", (1e-9,), (0.0, math.inf, math.nan)),
        (ConsistencyLoss, "std", (1e-9,), (0.0, math.inf)),
        (ConsistencyLoss, "rho", (1e-9,), (0.0, math.inf)),
        (ConsistencyLoss, "low_noise_fraction", (0.0, 1.0), (-1e-9, 1.0 + 1e-9)),
        (ConsistencyLoss, "label_dropout", (0.0, 1.0), (-1e-9, 1.0 + 1e-9)),
        (ConsistencyLoss, "diffusion", (0.0,), (-1e-9, math.inf)),
        (ConsistencyLoss, "target", (0.0, 0.999), (1.0, -1e-9)),
        (ConsistencyLoss, "mean", (-60.0,), (math.inf, math.nan)),
        # |slope|·log 640 + |offset| ≤ 35
        (ConsistencyLoss, "offset", (27.5, -27.5), (27.6, -27.6, math.nan)),
        (ConsistencyLoss, "slope", (5.28, -5.28), (5.29, -5.29, math.inf)),
        (ReconstructionLoss, "gradients", (0.0,), (-1e-9, math.inf)),
        (ReconstructionLoss, "metric_weight", (0.0,), (-1e-9, math.inf)),
        (ReconstructionLoss, "kl", (0.0,), (-1e-9, math.nan)),
        (ReconstructionLoss, "adversarial", (0.0,), (-1e-9,)),
        (ReconstructionLoss, "adversarial_from", (0,), (-1,)),
    ],
)  # fmt: skip
def test_numbers_are_allowed_up_to_their_bounds(kind, name, good, bad):
    for value in good:
        assert getattr(kind(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ConfigError, match=name):
            kind(**{name: value})


# -------------------------------------------------------------------------------------------------- quantiles and times


def test_quantiles_are_a_kronecker_sequence_of_the_positions():
    """Position p stands at frac(p/φ + start), φ the golden ratio, however far the run has come."""
    positions, phi = (0, 1, 2, 5, 1000, 10**6), (1.0 + math.sqrt(5.0)) / 2.0
    noise = Noise.of(4, positions)
    found = quantiles("time", positions, noise, True)
    wanted = [(p / phi + noise.uniform("time")) % 1.0 for p in positions]
    assert found == pytest.approx(wanted, abs=1e-9)  # p/φ in float64 has 10⁶ times its rounding error
    assert all(0.0 <= u < 1.0 for u in found)
    assert quantiles("time", positions, noise, False) == noise.uniform_per_sample("time").tolist()
    assert quantiles("time", (0, 1), Given([0.1, 0.2]), True) == pytest.approx([0.3, 0.3 + 1.0 / phi], abs=1e-15)


US = [0.0, 1e-4, 0.1, 0.37, 0.5, 0.8, 0.9999, 1.0 - 2.0**-53]
Z = norm.ppf(np.clip(US, 2.0**-54, 1.0 - 2.0**-53))  # where the library cuts the quantiles of a normal law
TABLE = VP.table()
LEVELS = {
    "ve": (VE(), Denoising(), np.exp(1.2 * Z - 1.2).clip(0.002, 80.0)),
    "ve, other law": (VE(), Denoising(mean=0.4, std=0.7), np.exp(0.7 * Z + 0.4).clip(0.002, 80.0)),
    "ve, uniform": (VE(), Denoising(times="uniform"), 0.002 + 79.998 * np.array(US)),
    "flow": (Flow(), Denoising(), 0.001 + 0.999 * np.array(US)),
    "flow, logit-normal": (Flow(), Denoising(times="logit-normal"), 0.001 + 0.999 / (1.0 + np.exp(-Z))),
    "flow, other logit-normal": (
        Flow(t_min=0.1), Denoising(times="logit-normal", mean=-0.6, std=2.0), 0.1 + 0.9 / (1.0 + np.exp(0.6 - 2.0 * Z)),
    ),
    "flow, log-normal": (
        Flow(), Denoising(times="log-normal"), (1.0 / (1.0 + np.exp(1.2 - 1.2 * Z))).clip(0.001, 1.0),
    ),
    "table": (TABLE, Denoising(), (np.floor(1000.0 * np.array(US)) + 1.0) / 1000.0),
    "table, logit-normal": (
        TABLE, Denoising(times="logit-normal", std=6.0),
        np.maximum(np.round(1000.0 * (TABLE.t_min + (1.0 - TABLE.t_min) / (1.0 + np.exp(-6.0 * Z)))), 1.0) / 1000.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEVELS)
def test_a_time_is_the_quantile_of_its_law(name):
    """At u = 0 and just below 1 as well: the normal laws are cut to the path, and never infinite."""
    path, objective, wanted = LEVELS[name]
    found = replace(objective, stratified=False).draw(path, tuple(range(len(US))), Given(US))
    assert found.dtype == F64
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-7)
    low, high = path.t_min, path.t_range[1]
    assert found.min() >= low
    assert found.max() <= high


def test_a_state_is_made_of_its_own_time_noise_and_condition():
    """x_t = α(t)·x_0 + σ(t)·z; the condition goes where its number is *below* ``drop``."""
    cond = {"label": torch.tensor([4, 5, 6, 7]), "text": torch.ones(4, 2, 3)}
    source = Given([0.1, 0.4, 0.6, 0.95], [0.05, 0.0999, 0.1, 0.9])
    asked = Denoising(stratified=False).make_noisy_batch(VE(sigma_max=40.0), batch(4, cond), source)
    z = source.normal("noise", (3, 2, 4))
    torch.testing.assert_close(asked.x, asked.clean + asked.t[:, None, None, None] * z, rtol=1e-14, atol=0)
    assert torch.equal(asked.noise, z)
    assert asked.cond["label"].tolist() == [-1, -1, 6, 7]
    assert asked.cond["text"].flatten(1).sum(1).tolist() == [0.0, 0.0, 6.0, 6.0]
    every = Denoising(label_dropout=0.0).make_noisy_batch(VE(), batch(4, cond), source)
    assert every.cond is not None
    assert torch.equal(every.cond["label"], cond["label"])
    none = Denoising(label_dropout=1.0).make_noisy_batch(VE(), batch(4, cond), source)
    assert none.cond["label"].tolist() == [-1] * 4
    kept = without({"label": torch.tensor([3, 0])}, torch.tensor([False, True]))
    assert kept["label"].tolist() == [3, -1]


def test_a_tenth_of_the_conditions_is_dropped_by_default():
    rows = 3000
    cond = {"label": torch.zeros(rows, dtype=torch.int64)}
    for objective in (Denoising(), ConsistencyLoss(coupling="none")):
        source = Noise.of(0, range(rows))
        if isinstance(objective, Denoising):
            asked = objective.make_noisy_batch(VE(), batch(rows, cond, (1,)), source)
        else:
            model = orn.Denoiser(lambda x, time: x, VE(), "consistency")
            asked = ConsistencyTraining(loss=objective).make_noisy_batch(model, batch(rows, cond, (1,)), source, 10)
        share = float((asked.cond["label"] == -1).double().mean())
        assert share == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / rows))


# --------------------------------------------------------------------------------------------- weights of the denoising


@pytest.mark.parametrize("name", ["auto", "none", "min-snr", "edm"])
@pytest.mark.parametrize(
    ("path", "reading"),
    [
        (path, reading)
        for path in (VP(), VE(), Flow())
        for reading in ("clean", "noise", "v", "velocity", "edm")
        if (type(path), reading) != (Flow, "noise")  # refused: nothing is left of the clean sample at t = 1
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_loss_is_the_weighted_error_of_the_clean_sample(path, reading, name):
    """w(SNR)·mean((x̂_0 − x_0)²), whatever the network predicts; ``none``: the mean error of its own output."""
    made = EDM(sigma_data=0.7) if reading == "edm" else parameterization(reading)
    objective = Denoising(weight=name, gamma=2.5, stratified=False)
    source = Given([0.2, 0.45, 0.7, 0.9])
    data = batch(4)
    model = orn.Denoiser(lambda x, time: torch.sin(1.7 * x) + 0.3, path, made)
    losses = objective(model, data, source, 0.0)
    asked = objective.make_noisy_batch(path, data, source)
    t, clean = asked.t, data.clean
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    if name == "none" or (name == "auto" and reading != "clean"):
        target = made.target(path, clean, asked.noise, asked.x, t)
        wanted = (model.raw(asked.x, t) - target).square().flatten(1).mean(1)
    else:
        s = 0.7 if reading == "edm" else 0.5
        w = 1.0 / s**2 + snr if name == "edm" else snr.clamp(max=2.5)
        wanted = w * (model(asked.x, t).clean - clean).square().flatten(1).mean(1)
    assert list(losses.terms) == ["denoising"]
    assert losses.terms["denoising"].dtype == torch.float32, "whatever the weight is computed in"
    assert torch.equal(losses.times, t)
    # The errors are taken in float32; x̂_0 of a noise prediction loses 1/SNR of its digits against x_0.
    torch.testing.assert_close(losses.terms["denoising"].double(), wanted, rtol=1e-4, atol=1e-7)
    assert losses.total.item() == pytest.approx(wanted.mean().item(), rel=1e-4)


def test_a_path_without_a_signal_to_noise_ratio_has_plain_weights_alone():
    t, options = torch.tensor([1.0]), {"gamma": 5.0, "sigma_data": 0.5}
    assert weight("auto", parameterization("clean"), PyramidPath(), t, **options) is None
    for name in ("min-snr", "edm"):
        with pytest.raises(PathError, match="use 'none'"):
            weight(name, parameterization("clean"), PyramidPath(), t, **options)


def test_the_total_is_the_sum_of_the_means():
    terms = {"a": torch.tensor([1.0, 2.0, 6.0]), "b": torch.tensor([10.0, 20.0, 60.0])}
    losses = Losses(terms=terms, times=torch.zeros(3))
    assert losses.total.item() == pytest.approx(33.0)
    assert (losses.watched, losses.schedule) == ({}, {})


# ------------------------------------------------------------------------------------------------------------- cascades


class Both(torch.nn.Module):
    """A front and a back that answer 2·C and C + 1 channels of what they are fed."""

    def forward(self, x: Tensor, time: Tensor, stage: str) -> Tensor:
        if stage == "front":
            return torch.cat([0.9 * x.sin() + 0.1, 100.0 + x], 1)
        return torch.cat([1.3 * x - 0.2, x[:, :1] - 0.5], 1)


@pytest.mark.parametrize("path", [VE(), Flow(), TABLE], ids=["VE", "Flow", "table"])
@pytest.mark.parametrize("shape", ["map", "scalar"])
def test_every_term_of_a_cascade_has_its_formula(path, shape):
    """A front of learned variance, whose second half no term sees; a clip that acts; a fade where α² + σ² ≠ 1."""
    loss = CascadeLoss(metric="none", metric_schedule="signal", stratified=False, weight="none")
    metrics = {
        "one": (1.7, lambda a, b: (a - b).abs().flatten(1).sum(1)),
        "two": (0.0, lambda a, b: a.flatten(1)[:, 0]),
    }
    reading = Cascade(front=parameterization("clean"), clip=0.6, gate=shape)
    data, source = batch(4), Given([0.2, 0.45, 0.7, 0.9])
    objective, model = Cascading(loss=loss, metrics=metrics), orn.Denoiser(Both(), path, reading)
    with torch.no_grad():
        losses = objective(model, data, source, 0.4)
    asked = loss.make_noisy_batch(path, data, source)
    t, x, clean = asked.t, asked.x, data.clean
    front = 0.9 * x.sin() + 0.1
    start = front.clamp(-0.6, 0.6)
    assert (start != front).any()
    refined, g = 1.3 * start - 0.2, start[:, :1] - 0.5
    r = torch.sigmoid(g.mean((1, 2, 3), keepdim=True) if shape == "scalar" else g)
    mean = lambda error: error.square().flatten(1).mean(1)  # noqa: E731
    k = torch.as_tensor(posterior_weight(path, t))
    signal = path.alpha(t) ** 2 / (path.alpha(t) ** 2 + path.sigma(t) ** 2)
    wanted = {
        "denoising": mean(front - clean),
        "clean": mean(refined - clean),
        "gate": k**2 * mean(r * refined + (1.0 - r) * start - clean),
        "one": signal * 1.7 * (refined - clean).abs().flatten(1).sum(1),
        "two": torch.zeros(4, dtype=F64),
    }
    assert list(losses.terms) == list(wanted)
    assert list(objective(model, data, source, 0.4).terms) == list(wanted)[1:], "a front that learns nothing"
    for name, value in wanted.items():
        torch.testing.assert_close(losses.terms[name].double(), value, rtol=1e-5, atol=1e-9)
    plain = replace(objective, loss=replace(loss, gate="clean", metric_schedule="none"))(model, data, source, 0.4).terms
    torch.testing.assert_close(plain["gate"].double() * k**2, wanted["gate"], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(plain["one"].double() * signal, wanted["one"], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(losses.watched["gate_mean"].double(), r.flatten(1).mean(1), rtol=1e-6, atol=0)
    assert torch.equal(losses.times, t)


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("path", [VP(), VE(), Flow(), TABLE], ids=["VP", "VE", "Flow", "table"])
def test_the_posteriors_weight_at_any_number_of_steps(path, steps):
    """k = α_s·(1 − SNR_t/SNR_s) one step below t, in floats and in tensors; α of the clean end where s is below."""
    low, high = path.t_range
    count = steps or 1000
    times = [0.35 * high, 0.9 * high, (high - low) / count, 0.4 * (high - low) / count, path.t_min]
    wanted = []
    for t in times:
        s = t - (high - low) / count
        if s < path.t_min * (1.0 - 1e-6):
            wanted.append(path.alpha(low))
        else:
            ratio = (path.alpha(t) * path.sigma(s) / (path.sigma(t) * path.alpha(s))) ** 2
            wanted.append(path.alpha(s) * (1.0 - ratio))
    assert wanted[0] != wanted[1]
    assert wanted[3] == wanted[4] == path.alpha(low)
    assert [posterior_weight(path, t, steps) for t in times] == pytest.approx(wanted, rel=1e-7)
    found = posterior_weight(path, torch.tensor(times, dtype=F64), steps)
    assert torch.as_tensor(found).tolist() == pytest.approx(wanted, rel=1e-7)


def test_a_table_of_another_length_has_as_many_steps():
    short = VP.table(steps=50)
    t = torch.tensor([0.5, 1.0], dtype=F64)
    assert torch.equal(torch.as_tensor(posterior_weight(short, t)), torch.as_tensor(posterior_weight(short, t, 50)))
    assert not torch.equal(torch.as_tensor(posterior_weight(short, t)), torch.as_tensor(posterior_weight(short, t, 51)))


def test_the_metric_is_loaded_where_it_has_a_weight():
    for loss in (CascadeLoss(metric="none"), CascadeLoss(metric_weight=0.0)):
        assert loss.with_metric().metrics == {}
    made = CascadeLoss(metric_weight=0.25).with_metric()
    assert made.loss == CascadeLoss(metric_weight=0.25)
    assert made.metrics["metric"][0] == 0.25
    t = torch.tensor([0.2, 0.7], dtype=F64)
    assert scheduled("none", PyramidPath(), t).tolist() == [1.0, 1.0]
    torch.testing.assert_close(scheduled("signal", VE(), t), 1.0 / (1.0 + t**2))
    shifted = ShiftedPath(shift=lambda clean, c, t: 0.3 * clean)
    with pytest.raises(PathError, match="use 'none'"):
        scheduled("signal", shifted, t)
    with pytest.raises(PathError, match="use 'clean'"):
        posterior_weight(shifted, t)
    with pytest.raises(ConfigError, match="metric is empty"):
        CascadeLoss(metric="")
    with pytest.raises(ConfigError, match="metric is empty"):
        ReconstructionLoss(metric="")


def test_v_is_weighed_by_its_own_slope():
    """g = −σ/(α² + σ²) of v: the weight min(SNR, γ)·g² on a path whose rates are not those of a circle."""
    t = torch.tensor([0.2, 0.6], dtype=F64)
    a, s = 1.0 - t, t
    slope = s / (a**2 + s**2)
    found = weight("min-snr", V(), Flow(), t, gamma=5.0, sigma_data=0.5)
    torch.testing.assert_close(found, slope**2 * (a / s).square().clamp(max=5.0))
