"""Laws of the energies with networks behind them."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import guidance as guide
from ornstein import guides
from ornstein.errors import ConfigError, DataError, UsageError
from ornstein.guidance.energies import rows_of, slope
from ornstein.randomness import Noise

_spec = importlib.util.spec_from_file_location("guide_fakes", Path(__file__).with_name("conftest.py"))
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)

X = Noise.of(0, range(3), dtype=torch.float64).normal("x", (3, 8, 8)).clamp(-1, 1)
PICTURE = Noise.of(1, range(1), dtype=torch.float64).normal("y", (3, 8, 8)).clamp(-1, 1)
MAP = torch.arange(64).reshape(1, 8, 8) % 4 - 1  # a quarter is ignored
BOXES = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 1.0, 1.0]])
SEEN = {
    "segmentation": fakes.FakeSegmenter(),
    "classifier": fakes.FakeClassifier(),
    "identity": fakes.FakeEmbedder(),
    "text": fakes.FakeTextImage(),
    "boxes": fakes.FakeDetector(),
    "edges": fakes.FakeEdges(),
}

ENERGIES = {
    "classifier": guides.ClassLogit(classifier=SEEN["classifier"], label=1),
    "logit": guides.ClassLogit(classifier=SEEN["classifier"], label=2, kind="logit"),
    "segmentation": guides.SegmentationMap(segmenter=SEEN["segmentation"], target=MAP),
    "identity": guides.Identity.like(SEEN["identity"], PICTURE),
    "boxes": guides.ObjectLocation(detector=SEEN["boxes"], boxes=BOXES, labels=torch.tensor([0, 1])),
    "text": guides.Likeness.to_text(SEEN["text"], ["a critter"]),
    "style": guides.Likeness.to_picture(SEEN["text"], PICTURE),
    "gram": guides.Gram.like(SEEN["edges"], PICTURE),
    "outlines": guides.Outlines.like(SEEN["edges"], PICTURE),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_one_number_a_sample_with_the_gradient_of_finite_differences(name: str) -> None:
    energy = ENERGIES[name]
    values = energy(X)
    assert values.shape == (3,)
    assert values.dtype == X.dtype
    for i in range(3):
        torch.testing.assert_close(energy(X[i : i + 1]), values[i : i + 1], rtol=1e-10, atol=1e-12)
    gradient, found = slope(((1.0, energy),), X)
    torch.testing.assert_close(found, values)
    way = Noise.of(2, range(3), dtype=torch.float64).normal("d", (3, 8, 8))
    h = 1e-6
    change = (energy(X + h * way) - energy(X - h * way)) / (2 * h)
    assert float(change.abs().min()) > 1e-6, "a flat energy would pass"
    torch.testing.assert_close((gradient * way).flatten(1).sum(1), change, rtol=1e-6, atol=1e-8)


def test_two_energies_are_the_sum_in_any_order() -> None:
    one, two = ENERGIES["text"], ENERGIES["segmentation"]
    both, values = slope(((3.0, one), (-0.5, two)), X)
    apart = 3.0 * slope(((1.0, one),), X)[0] - 0.5 * slope(((1.0, two),), X)[0]
    torch.testing.assert_close(both, apart, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(both, slope(((-0.5, two), (3.0, one)), X)[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(values, 3.0 * one(X) - 0.5 * two(X))


PER_SAMPLE = {
    "classifier": guides.ClassLogit(classifier=SEEN["classifier"], label=torch.tensor([2, 0, 1])),
    "segmentation": guides.SegmentationMap(
        segmenter=SEEN["segmentation"], target=torch.cat([MAP, MAP.flip(1), MAP.flip(2)])
    ),
    "identity": guides.Identity.like(SEEN["identity"], X.flip(0)),
    "boxes": guides.ObjectLocation(
        detector=SEEN["boxes"],
        boxes=(BOXES, BOXES[:1], BOXES[1:]),
        labels=(torch.tensor([0, 1]), *[torch.tensor([1])] * 2),
    ),
    "text": guides.Likeness.to_text(SEEN["text"], ["a", "b", "c"]),
    "style": guides.Likeness.to_picture(SEEN["text"], X.flip(0)),
    "gram": guides.Gram.like(SEEN["edges"], X.flip(0)),
    "outlines": guides.Outlines.like(SEEN["edges"], X.flip(0)),
}


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_targets_for_each_sample_survive_chunks(name: str) -> None:
    energy = PER_SAMPLE[name]
    values = energy(X)
    for i in range(3):
        part = rows_of(energy, slice(i, i + 1))(X[i : i + 1])
        torch.testing.assert_close(part, values[i : i + 1], rtol=1e-10, atol=1e-12)
    with pytest.raises(UsageError, match="fit"):
        energy(X[:2])
    model = orn.Denoiser(lambda x, time: torch.tanh(x), path=orn.VP(), predicts="clean", shape=(3, 8, 8))
    whole, parts = (guide.Universal(energies=energy, chunk=chunk)(model)(X, 0.4).clean for chunk in (None, 2))
    torch.testing.assert_close(whole, parts, rtol=1e-8, atol=1e-10)


def test_what_the_energies_are_least_at() -> None:
    assert float(ENERGIES["identity"](PICTURE)) == pytest.approx(0.0, abs=1e-14)
    assert float(ENERGIES["gram"](PICTURE)) == pytest.approx(0.0, abs=1e-20)
    assert float(ENERGIES["outlines"](PICTURE)) == pytest.approx(0.0, abs=1e-14)
    assert float(ENERGIES["style"](PICTURE)) == pytest.approx(-10.0)
    assert float(guides.Likeness.to_picture(SEEN["text"], PICTURE.mul(0.5))(PICTURE)) == pytest.approx(-10.0)
    logits = SEEN["classifier"](X)
    torch.testing.assert_close(
        ENERGIES["classifier"](X), torch.nn.functional.cross_entropy(logits, torch.tensor([1] * 3), reduction="none")
    )
    torch.testing.assert_close(ENERGIES["logit"](X), -logits[:, 2])


def test_a_map_is_scored_by_the_mean_over_the_pixels_it_speaks_of() -> None:
    logits = SEEN["segmentation"](X)  # 4 × 4, of pictures of 8 × 8
    target = MAP[:, 1::2, 1::2]
    nearest = torch.nn.functional.interpolate(MAP[:, None].float(), size=(4, 4), mode="nearest-exact")[0, 0].long()
    assert torch.equal(nearest, target[0])
    each = -torch.log_softmax(logits, 1).gather(1, target.clamp_min(0).expand(3, 4, 4)[:, None])[:, 0]
    asked = (target >= 0).double()
    torch.testing.assert_close(ENERGIES["segmentation"](X), (each * asked).sum((1, 2)) / asked.sum())


def test_a_sample_in_which_nothing_is_found_stays_unguided_and_this_is_said_once() -> None:
    dark = X.clone()
    dark[1] = -1.0
    energy = ENERGIES["identity"]
    assert torch.isnan(energy(dark)).tolist() == [False, True, False]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            gradient, values = slope(((1.0, energy),), dark)
    assert [w.category for w in said] == [guide.GuideWarning]
    assert float(gradient[1].abs().max()) == 0.0
    assert torch.isnan(values).tolist() == [False, True, False]
    torch.testing.assert_close(gradient[[0, 2]], slope(((1.0, energy),), dark[[0, 2]])[0])
    with pytest.raises(DataError, match="nobody was found"):
        guides.Identity.like(SEEN["identity"], dark)


class Counted(torch.nn.Module):
    calls = 0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x)


def test_several_guides_cost_one_call_a_question_and_weight_zero_costs_nothing() -> None:
    net = Counted()
    model = orn.Denoiser(net, path=orn.VP(), predicts="clean", shape=(3, 8, 8))
    ready = guides.make(["colour:navy:3", "palette:red,white", "colour:#ffffff:0"], shape=(3, 8, 8))
    assert len(ready.energies) == 2
    assert [row["weight"] for row in ready.records] == [3.0, guides.kinds()["palette"].weight, 0.0]
    guided = guides.compose(ready)(model)
    guided(X.float(), 0.5)
    assert net.calls == 1
    orn.sample(guided, n=2, steps=5)
    assert net.calls == 6
    assert guides.compose(guides.make(["colour:navy:0"], shape=(3, 8, 8))) is None


def test_windows_backward_steps_and_placement() -> None:
    model = orn.Denoiser(Counted(), path=orn.VP(), predicts="clean", shape=(3, 8, 8))
    ready = guides.make(["colour:navy:3"], shape=(3, 8, 8))
    x, plain = X.float(), model(X.float(), 0.5).clean
    everywhere = guides.compose(ready)(model)(x, 0.5).clean
    level = model.path.sigma(0.5) / model.path.alpha(0.5)
    for window, expected in (((0.0, level + 0.1), everywhere), ((level + 0.1, float("inf")), plain)):
        assert torch.equal(guides.compose(ready, guides.GuidanceOptions(window=window))(model)(x, 0.5).clean, expected)
    down = guides.compose(ready, guides.GuidanceOptions(backward=guides.backward_of("5:0.1")))(model)(x, 0.5).clean
    energy = ready.energies[0][1]
    assert bool((energy(down) < energy(everywhere)).all())
    assert bool((energy(everywhere) < energy(plain)).all())
    with pytest.raises(UsageError, match="null"):
        guides.compose(ready, guides.GuidanceOptions(placement="separate"))


def test_joint_and_separate_are_stack_and_together() -> None:
    model = orn.Denoiser(
        lambda x, time, label: torch.tanh(x + label[:, None, None, None]),
        path=orn.VP(),
        predicts="clean",
        shape=(3, 8, 8),
    )
    null = {"label": torch.zeros(1)}
    bound = model.with_condition({"label": torch.full((3,), 0.4)})
    cfg = guide.CFG(weight=3.0, null=null)
    ready = guides.make(["colour:navy:3"], shape=(3, 8, 8))
    joint = guides.compose(ready, guides.GuidanceOptions(), cfg, null)(bound)(X.float(), 0.5).clean
    apart = guides.compose(ready, guides.GuidanceOptions(placement="separate"), cfg, null)(bound)(X.float(), 0.5).clean
    energies = ready.energies
    assert torch.equal(joint, guide.compose(cfg, guide.Universal(energies=energies))(bound)(X.float(), 0.5).clean)
    expected = guide.add(cfg, guide.Universal(energies=energies, at=null))(bound)(X.float(), 0.5).clean
    assert torch.equal(apart, expected)
    assert not torch.equal(joint, apart)
    assert guides.compose(guides.make([], shape=(3, 8, 8)), None, cfg) is cfg


def test_a_kind_may_yield_a_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    from ornstein.guides import registry

    def brighter(job: guides.GuideContext) -> guide.Rule:
        return guide.Universal(energies=lambda clean: -job.weight * clean.mean((1, 2, 3)))

    kind = guides.GuideType(name="bright", takes="X", what="light", weight=5.0, make=brighter, yields="guidance")
    known = registry.kinds()
    monkeypatch.setattr(registry, "kinds", lambda: known | {"bright": kind})
    model = orn.Denoiser(Counted(), path=orn.VP(), predicts="clean", shape=(3, 8, 8))
    ready = guides.make(["bright:x", "colour:navy:3"], shape=(3, 8, 8))
    assert (len(ready.energies), len(ready.guidances)) == (1, 1)
    x = X.float()
    apart = [
        guides.compose(guides.make([word], shape=(3, 8, 8)))(model)(x, 0.5).clean
        for word in ("bright:x", "colour:navy:3")
    ]
    plain = model(x, 0.5).clean
    torch.testing.assert_close(guides.compose(ready)(model)(x, 0.5).clean, sum(apart) - plain, rtol=1e-5, atol=1e-6)
    assert not guides.make(["bright:x:0"], shape=(3, 8, 8)).guidances


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guides.ClassLogit(classifier=SEEN["classifier"], label=4), "0 … 3"),
        (lambda: guides.ClassLogit(classifier=SEEN["classifier"], label=0, kind="probability"), "kind"),
        (lambda: guides.SegmentationMap(segmenter=SEEN["segmentation"], target=MAP[0]), "map of classes"),
        (lambda: guides.SegmentationMap(segmenter=SEEN["segmentation"], target=MAP + 3), "class 5"),
        (lambda: guides.SegmentationMap(segmenter=SEEN["segmentation"], target=0 * MAP - 1), "nothing"),
        (lambda: guides.ObjectLocation(detector=SEEN["boxes"], boxes=BOXES, labels=torch.tensor([0])), "K labels"),
        (lambda: guides.ObjectLocation(detector=SEEN["boxes"], boxes=2 * BOXES, labels=torch.tensor([0, 1])), "leaves"),
        (
            lambda: guides.ObjectLocation(detector=SEEN["boxes"], boxes=BOXES.flip(1), labels=torch.tensor([0, 1])),
            "empty",
        ),
        (lambda: guides.ObjectLocation(detector=SEEN["boxes"], boxes=BOXES, labels=torch.tensor([0, 2])), "0 … 1"),
    ],
)
def test_what_cannot_be_is_refused_at_construction(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
