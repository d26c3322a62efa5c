"""The loss of the rarity classifier, its crops, its validation and its view of the data, by closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.data import Example
from ornstein.denoisers import Denoiser
from ornstein.errors import DataError, UsageError
from ornstein.models.rarity import RaritySpec
from ornstein.networks import UNetConfig
from ornstein.objectives import TrainBatch
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise, mix
from ornstein.rarity.classes import held_out, normal_scores, quantile_classes
from ornstein.rarity.table import Table
from ornstein.training.rarity import RarityConfig, RarityLoss, RarityObjective, RarityValidation, classify

CPU = torch.device("cpu")
CLASSES = torch.tensor([0, 1, 2, 1, 0])
NORMAL = torch.tensor([-1.0, 0.25, 1.5, 0.0, -0.5])
LABELS = torch.tensor([3, 4, 5, 6, -1])


def rating(head="classes", crop=1.0, conditional=False, label_dropout=0.0) -> RarityObjective:
    return RarityObjective(
        loss=RarityLoss(crop=crop, label_dropout=label_dropout),
        head=head,
        classes=CLASSES,
        normal=NORMAL,
        labels=LABELS,
        conditional=conditional,
    )


def test_the_losses_of_answers():
    raw = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0], [1.0, 2.0, -1.0]])
    rows = torch.tensor([2, 3, 0])
    losses, right = rating().scored(raw, rows)
    expected = torch.stack([raw[i].exp().sum().log() - raw[i, c] for i, c in enumerate((2, 1, 0))])
    torch.testing.assert_close(losses, expected)
    assert right.tolist() == [1.0, 1.0, 0.0]
    raw = torch.tensor([[1.25, -0.5], [0.3, 0.7], [-3.0, 0.0]])
    losses, near = rating("gaussian").scored(raw, rows)
    law = torch.distributions.Normal(raw[:, 0], raw[:, 1].exp())
    torch.testing.assert_close(losses, -law.log_prob(NORMAL[rows]) - 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(near, torch.tensor([0.75, 0.7, 0.0]))  # 1 − |distance|, no less than 0


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=lambda path: type(path).__name__)
def test_the_classifier_sees_states_of_unit_variance_and_their_level(path):
    seen = []

    def net(x, level, **cond):
        seen.append((x, level, cond))
        return torch.zeros(len(x), 3)

    t = torch.tensor([path.time_of(level) for level in (-3.0, 0.5, 2.0)], dtype=torch.float64)
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    classify(Denoiser(net, path, "clean"), x, t, {"label": LABELS[:3]})
    (state, level, cond) = seen[0]
    root = (path.alpha(t) ** 2 + path.sigma(t) ** 2).sqrt()
    torch.testing.assert_close(state, x / root[:, None, None, None])
    torch.testing.assert_close(level, torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert cond["label"] is not None


@pytest.mark.parametrize("conditional", [False, True])
def test_a_batch_is_judged_by_its_rows(conditional):
    seen = []

    def net(x, level, **cond):
        seen.append(cond)
        return torch.tensor([[1.0, 0.0, -1.0]]).expand(len(x), -1)

    rows = torch.tensor([4, 0, 2, 2])
    positions = (10, 11, 12, 13)
    noise = Noise.of(3, positions)
    batch = TrainBatch(clean=torch.zeros(4, 3, 4, 4), cond={"row": rows}, positions=positions)
    found = rating(conditional=conditional)(Denoiser(net, Flow(), "clean"), batch, noise, 0.5)
    expected = rating().scored(torch.tensor([[1.0, 0.0, -1.0]]).expand(4, -1), rows)
    assert list(found.terms) == ["rarity"]
    torch.testing.assert_close(found.terms["rarity"], expected[0])
    torch.testing.assert_close(found.watched["accuracy"], expected[1])
    assert torch.equal(found.times, RarityLoss(label_dropout=0.0).posing().draw(Flow(), positions, noise))
    if conditional:
        assert seen[0]["label"].tolist() == [-1, 3, 5, 5]
        rating(conditional=True, label_dropout=1.0)(Denoiser(net, Flow(), "clean"), batch, noise, 0.5)
        assert seen[1]["label"].tolist() == [-1] * 4
    else:
        assert seen == [{}]


def test_a_crop_is_a_smaller_square_at_a_random_place():
    """A ramp stays a ramp: its slope is the side of the crop, its middle the place."""
    count, least, size = 4000, 0.5, 8
    where = (2 * torch.arange(size) + 1) / size - 1.0
    ramp = torch.stack((where.expand(size, size), where[:, None].expand(size, size), torch.zeros(size, size))).double()
    cleaned = []

    class Keep(RarityLoss):
        def posing(self):
            return SimpleNamespace(
                make_noisy_batch=lambda path, batch, noise: cleaned.append(batch.clean) or noise_of(batch)
            )

    def noise_of(batch):
        return SimpleNamespace(x=batch.clean, t=torch.full((len(batch.clean),), 0.5), cond={})

    positions = tuple(range(count))
    batch = TrainBatch(
        clean=ramp.expand(count, -1, -1, -1), cond={"row": torch.zeros(count, dtype=torch.int64)}, positions=positions
    )
    judge = replace(rating(), loss=Keep(crop=least, label_dropout=0.0))
    judge(Denoiser(lambda x, level: torch.zeros(len(x), 3), Flow(), "clean"), batch, Noise.of(5, positions), 0.0)
    (found,) = cleaned
    assert found.dtype == torch.float64
    inner = slice(2, 6)  # away from the border, where pixels are repeated
    across, down = found[:, 0, inner, inner], found[:, 1, inner, inner]
    side = (across[:, 0, -1] - across[:, 0, 0]) / (where[5] - where[2])
    torch.testing.assert_close((down[:, -1, 0] - down[:, 0, 0]) / (where[5] - where[2]), side)
    torch.testing.assert_close(across, across[:, :1].expand_as(across))
    # 1/side is uniform between 1 and 2: mean 3/2, variance 1/12; four standard errors of 4000 draws.
    assert 0.5 <= side.min() < 0.51
    assert 0.99 < side.max() <= 1.0 + 1e-6
    assert (1 / side).mean().item() == pytest.approx(1.5, abs=0.02)
    assert (1 / side).var().item() == pytest.approx(1 / 12, rel=0.1)
    x, y = (part.mean((1, 2)) / (1.0 - side) for part in (across, down))
    far = side < 0.9
    for place in (x[far], y[far]):
        assert place.abs().max() <= 1.0 + 1e-3
        assert place.mean().item() == pytest.approx(0.0, abs=0.05)
        assert place.var().item() == pytest.approx(1 / 3, rel=0.1)
    for a, b in ((x[far], y[far]), (x[far], side[far]), (y[far], side[far])):
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1].item()) < 0.08
    assert torch.equal(found[:, 2], torch.zeros(count, size, size, dtype=torch.float64))


# ----------------------------------------------------------------------------------------------------------- validation


class Numbers:
    """Picture i is i everywhere."""

    name, classes, size, fingerprint = "numbers", ("a", "b"), 16, "f"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return Example(image=torch.full((3, 16, 16), index % 256, dtype=torch.uint8), label=-1, caption="", name="")


@pytest.mark.parametrize(
    ("path", "levels"),
    [
        (VP(), [-8.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 8.0]),
        (VE(sigma_min=0.1, sigma_max=8.0), [-3.0, -1.0, 1.0, 3.0]),
    ],
    ids=["VP", "VE"],
)
def test_validation_is_a_mean_over_what_was_held_out_at_levels_of_the_path(path, levels):
    count, seen = 70, []
    judge = replace(
        rating(conditional=True), classes=torch.arange(count) % 3, labels=torch.arange(count), normal=torch.zeros(count)
    )
    rows = tuple(range(69, -1, -1))
    check = RarityValidation(source=Numbers(count), rows=rows, rating=judge, seed=4, every=9)

    def net(x, level, label):
        seen.append((x, level, label))
        return torch.tensor([[0.0, math.log(2.0), math.log(3.0)]]).expand(len(x), -1)

    model = Denoiser(net, path)
    found = check(model)
    assert found["examples"] == 70
    assert found["log_snr"] == levels
    # Of probabilities 1/6, 2/6, 3/6: the rows have 24, 23 and 23 of the classes.
    loss = (24 * math.log(6) + 23 * math.log(3) + 23 * math.log(2)) / 70
    assert found["loss"] == pytest.approx([loss] * len(levels))
    assert found["accuracy"] == pytest.approx([23 / 70] * len(levels))
    assert [len(x) for x, _, _ in seen] == [64, 6] * len(levels)
    for i, level in enumerate(levels):
        states, told, labels = (torch.cat([part[j] for part in seen[2 * i : 2 * i + 2]]) for j in range(3))
        assert labels.tolist() == list(rows)
        assert told.tolist() == pytest.approx([level] * 70, abs=1e-5)
        share = 1.0 / math.sqrt(1.0 + math.exp(-level))
        clean = torch.tensor(rows) / 127.5 - 1.0
        noise = Noise.of(mix(4, "validation"), list(rows)).normal(("validation", str(level)), (3, 16, 16))
        expected = share * clean[:, None, None, None] + math.sqrt(1 - share**2) * noise
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    first = [x for x, _, _ in seen]
    seen.clear()
    assert check(model) == found
    assert all(torch.equal(a, b) for a, (b, _, _) in zip(first, seen, strict=True))


def table_of(tmp_path, scores, labels=None, fingerprint="f"):
    count = len(scores)
    data = {"name": "numbers", "fingerprint": fingerprint, "examples": count, "classes": ["a", "b"]}
    path = tmp_path / "scores.csv"
    Table(
        header={"format": "ornstein-rarity", "version": 1, "data": data, "size": 16},
        names=tuple(map(str, range(count))),
        scores=np.array(scores),
        labels=np.array(labels if labels is not None else [-1] * count),
    ).write(path)
    return str(path)


def config_of(scores: str, **changes) -> RarityConfig:
    small = UNetConfig(width=8, multipliers=(1,), attention=(), head_width=8)
    given = {"out": "x", "scores": scores, "size": 16, "classes": 4, "validation_fraction": 0.25, "network": small}
    return RarityConfig(**given | changes)


def test_what_is_held_out_is_shown_to_nobody_else_and_never_more_than_256(tmp_path):
    scores = [math.sin(12.9898 * i) for i in range(2000)]
    scores[7] = math.nan  # a picture that cannot be read belongs to no class
    config, source = config_of(table_of(tmp_path, scores), seed=3, validate=99), Numbers(2000)
    classes = quantile_classes(np.array(scores), 4)
    kept = np.flatnonzero(held_out(classes, 0.25, 3))
    assert len(kept) == 500
    check = config.select(source, CPU).validation
    assert check.rows == tuple(kept[[round(i * 499 / 255) for i in range(256)]].tolist())
    assert (check.seed, check.every, check.source) == (3, 99, source)
    view = config.select(source, CPU).trained
    assert view.rows == tuple(i for i in range(2000) if i != 7 and i not in set(kept.tolist()))
    assert (len(view), view.name, view.classes, view.size) == (1499, "numbers", ("a", "b"), 16)
    assert [(view[i].label, int(view[i].image[0, 0, 0])) for i in (0, 20)] == [
        (view.rows[i], view.rows[i] % 256) for i in (0, 20)
    ]
    loss = config.make_objective(None, CPU, {})
    assert torch.equal(loss.classes, torch.from_numpy(classes))
    torch.testing.assert_close(loss.normal, torch.from_numpy(np.nan_to_num(normal_scores(scores))).float())
    assert (loss.conditional, loss.head, loss.loss) == (False, "classes", config.objective)
    assert config_of(config.scores, validation_fraction=0.0).select(source, CPU).validation is None
    few = config_of(table_of(tmp_path, scores[:40])).select(Numbers(40), CPU).validation
    assert len(few.rows) == len(set(few.rows)) == len(np.flatnonzero(held_out(quantile_classes(scores[:40], 4), 0.25)))
    with pytest.raises(DataError, match="belong to other data"):
        config.select(Numbers(1999), CPU)


def test_the_view_is_told_apart_by_everything_that_changes_it(tmp_path):
    scores, labels = [float(i % 11) for i in range(40)], [i % 2 for i in range(40)]
    source = Numbers(40)
    plain = table_of(tmp_path, scores, labels)
    (tmp_path / "other").mkdir()
    other = table_of(tmp_path / "other", [*scores[:-1], 3.5], labels)
    prints = [
        config_of(plain, **change).select(source, CPU).trained.fingerprint
        for change in ({}, {"classes": 5}, {"validation_fraction": 0.5}, {"seed": 1}, {"condition": "label"})
    ]
    prints.append(config_of(other).select(source, CPU).trained.fingerprint)
    assert len(set(prints)) == 6
    assert config_of(plain).select(source, CPU).trained.fingerprint == prints[0]
    changed = replace(config_of(plain).select(source, CPU).trained, source=SimpleNamespace(fingerprint="g"))
    assert changed.fingerprint != prints[0]
    told = config_of(plain, condition="label").make_objective(None, CPU, {})
    assert told.conditional
    assert torch.equal(told.labels, torch.tensor(labels))
    assert torch.equal(told.classes, torch.from_numpy(quantile_classes(scores, 4, labels)))
    expected = torch.from_numpy(normal_scores(scores, labels)).float()
    torch.testing.assert_close(told.normal, expected)


# ---------------------------------------------------------------------------------------------------------------- model


def test_a_classifier_of_this_data(tmp_path):
    scores = table_of(tmp_path, [float(i) for i in range(8)])
    spec = config_of(scores, classes=5, path="flow").specify(Numbers(8))
    assert (spec.shape, spec.path, spec.rarities, spec.head) == ((3, 16, 16), "flow", 5, "classes")
    assert (spec.classes, spec.network.classes, spec.network.channels) == ((), 0, 3)
    assert (spec.seen, spec.front, spec.sites) == ("", None, ())
    told = config_of(scores, condition="label", features="lite0", network=None).specify(Numbers(8))
    assert (told.classes, told.network.classes, told.seen, told.sites) == (("a", "b"), 2, "lite0", ())
    assert told.network.width == 128
    x, level = torch.zeros(2, 3, 16, 16), torch.zeros(2)
    assert spec.build().net(x, level).shape == (2, 5)
    assert replace(spec, head="gaussian").build().net(x, level).shape == (2, 2)
    one, two, other = (spec.build(seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    rows = torch.tensor([4, 1])
    assert spec.conditions(rows, ["", ""]) == {"row": rows}
    assert isinstance(spec.denoiser(nn.Identity()).path, Flow)
    assert spec.denoiser(nn.Identity()).shape == (3, 16, 16)
    for ask in (
        lambda reading: reading.precondition(Flow(), x, 0.5),
        lambda reading: reading.to_estimate(Flow(), x, 0.5, x),
        lambda reading: reading.target(Flow(), x, x, x, 0.5),
    ):
        with pytest.raises(UsageError, match="a rarity classifier, which makes no images"):
            ask(spec.denoiser(nn.Identity()).parameterization)
    assert isinstance(spec, RaritySpec)
