"""The arithmetic of the guide networks and of their drawings against loops in numpy, and outputs that are kept."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from ornstein.errors import ConfigError
from ornstein.guides.own import boxes, degrade, detecting, likeness, networks, scenes, tasks, towers, training
from ornstein.guides.own.drawings import OTHERS, PARTS, Cutouts, Drawings
from ornstein.guides.own.training import GuideTraining
from ornstein.randomness import Noise, generator

# ---------------------------------------------------------------------------------------------------------------- boxes


def iou_of(a, b) -> tuple[float, float, float]:
    inner = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inner / union, inner / union - (hull - union) / hull, inner


A = [[0.1, 0.2, 0.5, 0.9], [0.3, 0.1, 0.4, 0.3], [0.0, 0.0, 0.2, 0.1]]
B = [[0.2, 0.1, 0.6, 0.7], [0.35, 0.05, 0.5, 0.2], [0.6, 0.5, 0.9, 0.8], [0.0, 0.0, 0.2, 0.1]]


def test_overlaps_of_boxes():
    a, b = torch.tensor(A, dtype=torch.float64), torch.tensor(B, dtype=torch.float64)
    wanted = [[iou_of(x, y)[:2] for y in B] for x in A]
    np.testing.assert_allclose(boxes.iou(a, b).numpy(), [[pair[0] for pair in row] for row in wanted], rtol=1e-12)
    found = boxes.giou(a[:, None], b[None])
    np.testing.assert_allclose(found.numpy(), [[pair[1] for pair in row] for row in wanted], rtol=1e-12)


def test_places_and_the_boxes_of_their_answers():
    like = torch.zeros(1, dtype=torch.float64)
    at = boxes.centres(like)
    assert at.shape == (256, 2)
    assert at[0].tolist() == [1 / 32, 1 / 32]
    assert at[1].tolist() == [3 / 32, 1 / 32], "row by row"
    assert at[16].tolist() == [1 / 32, 3 / 32]
    raw = Noise.of(0, range(2), dtype=torch.float64).normal("raw", (256, 3, 4))
    reach = 0.25 * torch.log1p(raw.exp())
    wanted = torch.cat([at[:, None] - reach[..., :2], at[:, None] + reach[..., 2:]], -1)
    torch.testing.assert_close(boxes.decoded(raw), wanted)


TRUTH = torch.tensor([[[0.1, 0.1, 0.6, 0.7], [0.3, 0.3, 0.42, 0.4], [0.0, 0.5, 1.0, 0.99], [0.0, 0.0, 1.0, 1.0]]])
LABELS = torch.tensor([[1, 1, 0, -1]])


def held(classes: int) -> np.ndarray:
    """A place answers for a box within .3 of its size, but .75 to 1.6 cells; of several for the smallest."""
    which = np.full((256, classes), -1)
    for n in range(256):
        x, y = (n % 16 + 0.5) / 16, (n // 16 + 0.5) / 16
        for c in range(classes):
            best = math.inf
            for k, (box, label) in enumerate(zip(TRUTH[0].tolist(), LABELS[0].tolist(), strict=True)):
                size = (box[2] - box[0], box[3] - box[1])
                reach = [min(max(0.3 * s, 0.75 / 16), 1.6 / 16) for s in size]
                near = abs(x - (box[0] + box[2]) / 2) <= reach[0] and abs(y - (box[1] + box[3]) / 2) <= reach[1]
                if label == c and near and size[0] * size[1] < best:
                    best, which[n, c] = size[0] * size[1], k
    return which


def test_which_place_answers_for_which_box():
    found = boxes.assigned(TRUTH.double(), LABELS, 3)[0]
    assert np.array_equal(found.numpy(), held(3))
    assert {-1, 0, 1, 2} == set(found.flatten().tolist())
    assert (found[:, 2] == -1).all()


def test_the_loss_of_a_detector():
    """2·balance·wrong²·cross entropy over all places and classes plus 2·(1 − GIoU) of the held, per held place."""
    logits = Noise.of(1, range(1), dtype=torch.float64).normal("logits", (256, 3))
    raw = Noise.of(1, range(1), dtype=torch.float64).normal("raw", (256, 3, 4))
    predicted, which = boxes.decoded(raw), held(3)
    total, count = 0.0, int((which >= 0).sum())
    for n in range(256):
        for c in range(3):
            p = 1.0 / (1.0 + math.exp(-float(logits[0, n, c])))
            if which[n, c] >= 0:
                total += 2 * 0.25 * (1 - p) ** 2 * -math.log(p)
                total += 2 * (1 - iou_of(predicted[0, n, c].tolist(), TRUTH[0, which[n, c]].double().tolist())[1])
            else:
                total += 2 * 0.75 * p**2 * -math.log(1 - p)
    found = boxes.loss(logits, predicted, TRUTH.double(), LABELS)
    assert found.tolist() == pytest.approx([total / count], rel=1e-9)
    nothing = boxes.loss(logits, predicted, TRUTH.double(), -torch.ones_like(LABELS))
    chance = torch.sigmoid(logits)
    assert nothing.item() == pytest.approx(float((1.5 * chance**2 * -torch.log(1 - chance)).sum()), rel=1e-9)


def test_what_a_detector_reports():
    """Above the threshold, the surest first; what overlaps a surer one of its class by more than half is left out."""
    box = torch.tensor([
        [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]],
        [[0.0, 0.0, 0.5, 0.45], [-0.2, 0.5, 0.5, 1.3]],
        [[0.25, 0.0, 0.75, 0.5], [0.1, 0.1, 0.2, 0.2]],
    ])  # fmt: skip
    logits = torch.tensor([[2.0, 1.5], [1.9, 1.0], [1.2, -3.0]])
    found, label, chance = boxes.chosen(logits, box, 0.3)
    assert label.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(chance, torch.sigmoid(torch.tensor([2.0, 1.5, 1.2, 1.0])))
    torch.testing.assert_close(found[3], torch.tensor([0.0, 0.5, 0.5, 1.0]))  # cut to the picture
    assert len(boxes.chosen(logits, box, 0.3, overlap=0.95)[0]) == 5
    assert boxes.chosen(logits, box, float(torch.sigmoid(torch.tensor(1.5))))[1].tolist() == [0]
    assert len(boxes.chosen(logits, box, 0.99)[0]) == 0


# ----------------------------------------------------------------------------------------------------- towers, networks


def pictures(count: int, side: int = 64) -> Tensor:
    x = Noise.of(4, range(count)).normal("p", (3, 8, 8))
    return nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=False).clamp(-1, 1)


def test_a_block_is_its_formula():
    block = towers.Block(24, 48).double()
    with torch.no_grad():
        for number, parameter in enumerate(block.parameters()):
            parameter.copy_(0.3 * Noise.of(number, [0], dtype=torch.float64).normal("w", parameter.shape)[0])
    x = Noise.of(0, range(2), dtype=torch.float64).normal("x", (24, 6, 5))
    silu, conv = nn.functional.silu, nn.functional.conv2d
    h = conv(silu(block.norm_in(x)), block.conv_in.weight, block.conv_in.bias, padding=1)
    h = conv(silu(block.norm_out(h)), block.conv_out.weight, block.conv_out.bias, padding=1)
    wanted = conv(x, block.shortcut.weight, block.shortcut.bias) + h
    torch.testing.assert_close(block(x), wanted)
    same = towers.Block(24, 24)
    x = x.float()
    assert torch.equal(same(x), x), "the last convolution begins at zero"


def summary(x: Tensor) -> list[float]:
    """Mean, spread and two projections: each weighs every number otherwise."""
    flat = x.detach().double().flatten()
    at = torch.arange(len(flat), dtype=torch.float64)
    return [
        float(flat.mean()),
        float(flat.std()),
        float((flat * (0.7 * at).cos()).mean()),
        float((flat * at).mean() / len(flat)),
    ]


def made(kind: str) -> nn.Module:
    settings = {
        "segmentation": {"classes": ["a", "b", "c"]},
        "classifier": {"groups": {"x": ["a", "b"], "y": ["c", "d", "e"]}},
        "identity": {},
        "text": {"vocabulary": ["a", "green", "critter", "crown"], "length": 6},
        "detection": {"classes": ["a", "b"]},
    }[kind]
    net = networks.GUIDES[kind](**settings)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = 0.5 if parameter.ndim < 2 else 1.0 / math.sqrt(parameter[0].numel())
            parameter.copy_(scale * Noise.of(1, [0]).normal(name, parameter.shape)[0])
    return net.eval()


def answers(kind: str) -> Tensor:
    net, x = made(kind), pictures(2, 40)
    if kind == "text":
        texts = ["a green critter", "crown"]
        return torch.cat([net(x, texts).flatten(), net.text(texts).flatten(), net.image(x).flatten()])  # type: ignore[operator]
    if kind == "identity":
        return torch.cat([part.flatten() for part in net.parts(x)])  # type: ignore[operator]
    if kind == "detection":
        return torch.cat([part.flatten() for part in net(x)])
    return net(x)


# ------------------------------------------------------------------------------------------- synthetic drawings, scenes


def cutouts(style: str, count: int = 8) -> Cutouts:
    """Discs with parts, of many colours: no renderer, no cache."""
    y, x = np.mgrid[0:64, 0:64]
    coverage, labels, colour, notes = [], [], [], []
    for i in range(count):
        radius = 14 + i
        disc = np.clip(radius - np.hypot(x - 32 - i, y - 30) + 0.5, 0, 1)
        covered = np.round(255 * disc).astype(np.uint8)
        label = (disc > 0.5).astype(np.uint8)
        if style == "critters":
            label[(label > 0) & (y < 24)] = 2
            label[(label > 0) & (np.abs(y - 30) < 4) & (np.abs(x - 32) < 8)] = 3
            label[(label > 0) & (np.abs(y - 40) < 3) & (np.abs(x - 32) < 5)] = 4
        else:
            label[:] = 0
        paint = np.array([40 * (i % 6) + 20, 250 - 30 * i, 90 + 15 * i])[:, None, None] * disc * (0.6 + 0.4 * y / 64)
        colour.append(np.round(paint).clip(0, 255).astype(np.uint8))
        coverage.append(covered)
        labels.append(label)
        notes.append({})
    return Cutouts(
        style=style, colour=np.stack(colour), coverage=np.stack(coverage), labels=np.stack(labels), notes=notes
    )


def drawings() -> Drawings:
    return Drawings(
        critters=cutouts("critters"),
        recoloured=cutouts("critters", 8),
        others=tuple(cutouts(style, 3) for style in OTHERS),
    )


def test_eighths_of_the_drawings():
    whole = cutouts("critters", 20)
    for first, last, count in ((0, 7, 17), (7, 8, 3), (0, 8, 20)):
        part = whole.part(first, last)
        assert (len(part), len(part.colour), len(part.coverage), len(part.labels)) == (count,) * 4
        start = 17 if first else 0
        assert np.array_equal(part.colour, whole.colour[start : start + count])
        assert np.array_equal(part.labels, whole.labels[start : start + count])
    assert len(cutouts("gaze", 2).part(0, 7)) == len(cutouts("gaze", 2).part(7, 8)) == 1
    colour, coverage, labels = whole.take(np.array([3, 1]))
    torch.testing.assert_close(colour[1], torch.from_numpy(whole.colour[1]) / 255.0)
    torch.testing.assert_close(coverage[0, 0], torch.from_numpy(whole.coverage[3]) / 255.0)
    assert torch.equal(labels[0], torch.from_numpy(whole.labels[3]).long())
    assert PARTS == ("body", "top", "eyes", "mouth")


def test_a_drawing_is_moved_by_whole_pixels():
    """At scale one, a shift of eight pixels to the right and of four up, and a mirrored one."""
    source = cutouts("critters", 1)

    class Drawn:
        """A generator whose uniform numbers are given."""

        def __init__(self, mirrored: bool) -> None:
            self.mirrored = mirrored

        def uniform(self, low, high, shape):
            return np.zeros(shape) if shape == 1 else np.array([[0.125, -0.0625]])

        def random(self, count):
            return np.full(count, 0.4 if self.mirrored else 0.6)

    layer = scenes.placed(source, np.array([0]), Drawn(False), scale=(1.0, 1.0), shift=0.2)  # type: ignore[arg-type]
    labels = torch.from_numpy(source.labels[0]).long()
    assert torch.equal(layer.labels[0, 4:56, 12:], labels[8:60, 4:56])
    mirrored = scenes.placed(source, np.array([0]), Drawn(True), scale=(1.0, 1.0), shift=0.2)  # type: ignore[arg-type]
    assert torch.equal(mirrored.labels[0, 4:56, 12:], labels.flip(1)[8:60, 4:56])
    plain = scenes.placed(source, np.array([0]), Drawn(True), scale=(1.0, 1.0), shift=0.2, mirror=False)  # type: ignore[arg-type]
    assert torch.equal(plain.labels, layer.labels)
    torch.testing.assert_close(
        layer.coverage[0, 0, 4:56, 12:], torch.from_numpy(source.coverage[0])[8:60, 4:56] / 255.0, rtol=0, atol=1e-4
    )
    back = torch.full((1, 3, 1, 1), 0.3)
    torch.testing.assert_close(scenes.over(layer, back), layer.colour + (1 - layer.coverage) * 0.3)
    assert scenes.signed(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]
    small = scenes.placed(source, np.array([0]), np.random.default_rng(0), scale=(0.5, 0.5), shift=0.0)
    assert float(small.coverage.sum()) == pytest.approx(source.coverage.sum() / 255 / 4, rel=0.03)


def test_a_blur_is_that_of_scipy():
    x = pictures(1)
    for sigma in (0.7, 2.0):
        wanted = ndimage.gaussian_filter(
            x[0].double().numpy(), (0, sigma, sigma), mode="nearest", radius=math.ceil(3 * sigma)
        )
        np.testing.assert_allclose(degrade.blurred(x, sigma)[0].numpy(), wanted, rtol=1e-4, atol=1e-5)
    for sigma in (0.0, -1.0):
        assert degrade.blurred(x, sigma) is x
    assert degrade.degraded(x, np.random.default_rng(0), 0) is x


def test_the_extents_of_masks_at_the_rim():
    mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    mask[0, 63, 0] = True
    mask[1, 2:5, 60:64] = True
    box, count = scenes.extents(mask)
    assert (64 * box[:2]).tolist() == [[0, 63, 1, 64], [60, 2, 64, 5]]
    assert count.tolist() == [1, 12, 0]


# -------------------------------------------------------------------------------------------------------- kept outputs


def kept() -> dict[str, list[float]]:
    """What seeded draws and losses come to, in float32: a ten-thousandth is a thousand times its rounding."""
    found = {f"network {kind}": summary(answers(kind)) for kind in networks.GUIDES}
    x = pictures(16)
    for seed, strength in ((0, 1.0), (3, 0.5), (5, 1.0), (8, 0.8)):
        found[f"degraded {seed}"] = summary(degrade.degraded(x, generator(seed), strength))
    found["varied"] = summary(scenes.varied(generator(1), 40))
    scene = detecting.Detection().scenes(drawings(), generator(2), 24)
    for name, part in scene._asdict().items():
        found[f"scene {name}"] = summary(part)
    pictures_, labels = tasks.Segmentation().batch(drawings(), generator(3), 10, 0.4)
    found["batch"], found["labels"] = summary(pictures_), summary(labels)
    strange, style = tasks.strangers(drawings(), generator(4), 24)
    found["strangers"], found["styles"] = summary(strange), summary(style)
    found["nothing"] = summary(likeness.Identity().nothing(drawings(), generator(5), 24))
    settings = {"classes": ["background", *PARTS]}
    net = networks.Segmenter(**settings)
    shaped = detecting.Detection().settings(drawings())
    detector = networks.Detector(**shaped)
    for each in (net, detector):
        with torch.no_grad():
            for name, parameter in each.named_parameters():
                scale = 0.5 if parameter.ndim < 2 else 1.0 / math.sqrt(parameter[0].numel())
                parameter.copy_(scale * Noise.of(1, [0]).normal(name, parameter.shape)[0])
    found["loss segmentation"] = [float(tasks.Segmentation().loss(net, None, drawings(), generator(6), 16).detach())]
    found["loss detection"] = [float(detecting.Detection().loss(detector, None, drawings(), generator(7), 16).detach())]
    return found


KEPT: dict[str, list[float]] = {
    "network segmentation": [0.00403622, 0.1928977, -0.0001089203, 0.0144316],
    "network classifier": [-0.9873254, 0.4218882, -0.07790635, -0.4844379],
    "network identity": [0.0260968, 0.1352614, -0.01798747, 0.01692682],
    "network text": [0.0009557481, 0.08893249, -0.003980006, 0.0009314068],
    "network detection": [-0.3587952, 1.710718, -0.0002894461, 0.1707508],
    "degraded 0": [0.01882908, 0.5256287, -0.0003275475, 0.0119978],
    "degraded 3": [0.02356764, 0.5464146, 0.0003423321, 0.01405323],
    "degraded 5": [0.009472092, 0.5456858, 8.58523e-05, 0.004368645],
    "degraded 8": [0.004658504, 0.504345, -1.415617e-05, 0.005223543],
    "varied": [0.4355504, 0.2585939, 1.477677e-05, 0.2092362],
    "scene pictures": [-0.1126137, 0.5026161, 0.0001432456, -0.05537753],
    "scene boxes": [0.4929742, 0.4285034, -0.001987358, 0.2503974],
    "scene labels": [-0.09375, 1.599726, 0.0544778, -0.07330247],
    "batch": [-0.09517749, 0.5187736, -3.869203e-05, -0.04073349],
    "labels": [0.3092529, 0.7489943, 0.001105546, 0.1468942],
    "strangers": [-0.2331092, 0.5376109, 0.0002989908, -0.1155663],
    "styles": [4.333333, 2.277807, -0.472386, 2.032986],
    "nothing": [-0.2345037, 0.5275816, 0.000149692, -0.1247292],
    "loss segmentation": [2.426283],
    "loss detection": [3.163185],
}


def test_seeded_draws_and_losses_are_those_that_are_kept():
    found = kept()
    assert found.keys() == KEPT.keys()
    for name, wanted in KEPT.items():
        assert found[name] == pytest.approx(wanted, rel=1e-4, abs=1e-6), name


def test_classes_of_scenes():
    assert detecting.Detection().settings(drawings()) == {
        "classes": ["critter", "top", "eyes", "mouth", "cutout", "gaze", "stack", "thumb"]
    }
    assert tasks.percent(0.123456) == 0.1235


# ------------------------------------------------------------------------------------------------------------- training


def test_defaults_of_a_training():
    for kind, batch in (("segmentation", 32), ("classifier", 32), ("identity", 64), ("text", 64), ("detection", 32)):
        how = GuideTraining(kind=kind)
        assert (how.seed, how.images, how.batch, how.drawings, how.lr, how.start) == (0, 16_000, batch, 2048, 2e-3, "")
        assert how.steps == 16_000 // batch
    assert GuideTraining(kind="text", images=33, batch=16).steps == 3
    for good in ({"images": 0}, {"batch": 16}, {"drawings": 32}):
        GuideTraining(kind="text", **good)
    for bad in ({"images": -1}, {"batch": 15}, {"drawings": 31}, {"lr": 0.0}, {"lr": math.inf}):
        with pytest.raises(ConfigError):
            GuideTraining(kind="text", **bad)
    assert training.command(GuideTraining(kind="text", seed=3)) == (
        "ornstein train-guide text --out text.safetensors --seed 3 --images 16000"
    )
    long = training.command(GuideTraining(kind="text", drawings=64, start="c.safetensors"))
    assert long.endswith("--drawings 64 --start c.safetensors")


class Linear:
    """A task whose gradient is the same at every step: a tenth for each weight of the last bias, nothing elsewhere."""

    def settings(self, drawings) -> dict:
        return {"classes": ["a", "b"]}

    def helper(self) -> None:
        return None

    def loss(self, net, helper, drawings, rng, count) -> Tensor:
        assert count == 16
        self.seen = [*getattr(self, "seen", []), float(rng.random())]
        return 0.1 * net.map.out.bias.sum()


def test_the_rate_the_decay_and_the_average_of_a_training():
    """AdamW of a constant slope moves by the rate; its decay is .02; the average follows by step/(step + 10)."""
    how = GuideTraining(kind="segmentation", images=16 * 60, batch=16, drawings=32, lr=0.01, seed=4)
    task, reports = Linear(), []
    start = training.files.make("segmentation", task.settings(None), 4).map.out.bias.detach().double()
    net = training.fitted_network(how, task, drawings(), lambda *told: reports.append(told))
    now, mean = start.clone(), start.clone()
    for step in range(60):
        rate = 0.01 * min(1.0, (step + 1) / 6) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / 60)))
        now = now * (1 - rate * 0.02) - rate
        mean = mean + (now - mean) * (1 - min(0.99, step / (step + 10)))
    torch.testing.assert_close(net.map.out.bias.double(), mean, rtol=2e-3, atol=2e-4)  # rounded to half precision
    assert torch.equal(net.map.out.bias, net.map.out.bias.half().float())
    assert [told[:2] for told in reports] == [(320, 960), (640, 960), (960, 960)]
    assert task.seen == [float(generator(4, "guide", "segmentation", step).random()) for step in range(60)]
    assert not any(p.requires_grad for p in net.parameters())
    long = GuideTraining(kind="segmentation", images=16 * 600, batch=16, drawings=32)
    assert long.steps == 600
