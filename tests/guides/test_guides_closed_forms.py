"""Guides against their formulas, their published weights in one table, and their arguments at every edge."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ornstein import guidance as guide
from ornstein import guides
from ornstein.errors import CheckpointError, ConfigError, DataError, UsageError
from ornstein.guidance.compose import Composition
from ornstein.guidance.energies import rows_of
from ornstein.guides import published, sources, standard, targets
from ornstein.guides.energies import check_boxes
from ornstein.guides.registry import Networks
from ornstein.guides.types import suggestion
from ornstein.randomness import Noise

_spec = importlib.util.spec_from_file_location("guide_fakes", Path(__file__).with_name("conftest.py"))
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)

X = Noise.of(0, range(3), dtype=torch.float64).normal("x", (3, 8, 8)).clamp(-1, 1)
PICTURE = Noise.of(1, range(1), dtype=torch.float64).normal("y", (3, 8, 8)).clamp(-1, 1)

# The weight of each kind, and of its sources where they have their own (the paper's for the published networks).
WEIGHTS = {
    "segmentation": (100.0, {"standard": 400.0}),
    "text": (3.0, {"standard": 10.0}),
    "classifier": (5.0, {"own": 2.0}),
    "identity": (400.0, {"standard": 20000.0}),
    "boxes": (10.0, {"standard": 100.0}),
    "style": (2.0, {"package": 0.1, "standard": 6.0}),
    "edges": (8000.0, {"package": 300.0}),
    "colour": (20.0, {}),
    "palette": (100.0, {}),
    "inpaint": (1.0, {}),
    "super-resolution": (3.0, {}),
    "rarity": (1.0, {}),
    "rare": (0.4, {}),
    "rare-token": (0.01, {}),
}
SOURCES = {
    "segmentation": ["own", "standard"],
    "text": ["own", "standard"],
    "classifier": ["own", "package", "standard"],
    "identity": ["own", "standard"],
    "boxes": ["own", "standard"],
    "style": ["own", "package", "standard"],
    "edges": ["own", "package"],
}


def test_published_weights_and_sources():
    found = guides.kinds()
    assert [name for name in found if name in WEIGHTS] == list(WEIGHTS)
    for name, (weight, own) in WEIGHTS.items():
        kind = found[name]
        assert (kind.weight, kind.weight_with(None)) == (weight, weight)
        assert [source.name for source in kind.sources] == SOURCES.get(name, [])
        assert {s.name: kind.weight_with(s) for s in kind.sources} == {
            s: own.get(s, weight) for s in SOURCES.get(name, [])
        }
        assert kind.yields == ("guidance" if name.startswith("rar") else "energy")
    assert published.LRASPP_FILE == "lraspp_mobilenet_v3_large-d234d4ea.pth"
    assert published.FASTER_RCNN_FILE == "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"
    assert published.RESNET_FILE == "resnet50-11ad3fa6.pth"
    assert published.FACENET_FILE == "20180402-114759-vggface2.pt"


def test_networks_and_pictures_are_not_printed():
    kinds = (
        *(guides.ClassLogit, guides.SegmentationMap, guides.Identity, guides.ObjectLocation, guides.Likeness),
        *(
            guides.Gram,
            guides.Outlines,
            guides.NetworkSource,
            guides.GuideType,
            guides.GuideContext,
            guides.GuideSpec,
            guides.NetworkChoice,
        ),
    )
    assert {f"{kind.__name__}.{f.name}" for kind in kinds for f in fields(kind) if not f.repr} == {
        *("ClassLogit.classifier", "SegmentationMap.segmenter", "SegmentationMap.target", "Identity.embedder"),
        *("Identity.target", "ObjectLocation.detector", "Likeness.network", "Likeness.target", "Gram.network"),
        *(
            "Gram.target",
            "Outlines.network",
            "Outlines.target",
            "NetworkSource.load",
            "NetworkSource.missing",
            "GuideType.make",
        ),
    }


# ------------------------------------------------------------------------------------------------------------- energies


def test_energies_of_a_network_have_their_formulas():
    classifier, text, edges = fakes.FakeClassifier(), fakes.FakeTextImage(), fakes.FakeEdges()
    logits = classifier(X)
    labels = torch.tensor([3, 0, 2])
    for kind, wanted in (
        ("cross-entropy", -torch.log_softmax(logits, 1)[torch.arange(3), labels]),
        ("logit", -logits[torch.arange(3), labels]),
    ):
        energy = guides.ClassLogit(classifier=classifier, label=labels, kind=kind)
        torch.testing.assert_close(energy(X), wanted)
        torch.testing.assert_close(rows_of(energy, slice(1, 3))(X[1:]), wanted[1:])
    target = text.image(X.flip(0))
    cosine = (text.image(X) * target).sum(1) / (text.image(X).norm(dim=1) * target.norm(dim=1))
    torch.testing.assert_close(guides.Likeness(network=text, target=target)(X), -10.0 * cosine)
    scaled = guides.Likeness(network=text, target=target, scale=2.5)
    torch.testing.assert_close(scaled(X), -2.5 * cosine)
    torch.testing.assert_close(rows_of(scaled, slice(1, 2))(X[1:2]), -2.5 * cosine[1:2])
    embedder = fakes.FakeEmbedder()
    wanted = (embedder(X) - embedder(PICTURE)).abs().mean(1)
    torch.testing.assert_close(guides.Identity.like(embedder, PICTURE)(X), wanted)
    wanted = 0.5 * (edges(X) - edges(PICTURE)).square().mean((1, 2, 3))
    torch.testing.assert_close(guides.Outlines.like(edges, PICTURE)(X), wanted)
    with pytest.raises(UsageError, match="does not fit"):
        guides.Outlines(network=edges, target=torch.zeros(1, 1, 8, 7))(X)


def test_the_style_of_several_layers():
    """∑_k ‖G_k − G*_k‖²/(C_k·K), G = F·Fᵀ/(h·w) of maps of unit mean square."""
    edges = fakes.FakeEdges()

    def gram(features: Tensor) -> Tensor:
        flat = features.numpy().reshape(len(features), features.shape[1], -1)
        flat = flat / np.sqrt((flat**2).mean((1, 2), keepdims=True) + 1e-6)
        return torch.from_numpy(np.einsum("bip,bjp->bij", flat, flat) / flat.shape[2])

    wanted = torch.zeros(3, dtype=torch.float64)
    for seen, goal in zip(edges.features(X), edges.features(PICTURE), strict=True):
        wanted += (gram(seen) - gram(goal)).square().sum((1, 2)) / (seen.shape[1] * 2)
        torch.testing.assert_close(guides.grams([seen])[0], gram(seen))
    torch.testing.assert_close(guides.Gram.like(edges, PICTURE)(X), wanted)


def test_boxes_are_allowed_up_to_the_rim():
    one = torch.tensor([0])
    for good in ([0.0, 0.0, 1.0, 1.0], [0.2, 0.3, 0.2001, 0.3001]):
        check_boxes(torch.tensor([good]), one, 1)
    for bad, said in (
        ([-1e-6, 0.0, 1.0, 1.0], "leaves"),
        ([0.0, 0.0, 1.0, 1.000001], "leaves"),
        ([0.5, 0.0, 0.5, 1.0], "empty"),
        ([0.0, 0.5, 1.0, 0.5], "empty"),
        ([0.6, 0.0, 0.5, 1.0], "empty"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_boxes(torch.tensor([bad]), one, 1)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for label in (-1, 2):
        with pytest.raises(ConfigError, match="0 … 1"):
            check_boxes(whole, torch.tensor([label]), 2)
    for boxes, labels in ((whole[0], one), (whole[:, :3], one), (whole, torch.tensor([0, 0])), (whole[:0], one[:0])):
        with pytest.raises(ConfigError, match="K labels"):
            check_boxes(boxes, labels, 1)
    detector = fakes.FakeDetector()
    with pytest.raises(ConfigError, match="both"):
        guides.ObjectLocation(detector=detector, boxes=whole, labels=(one,))
    same = guides.ObjectLocation(detector=detector, boxes=whole, labels=one)
    assert rows_of(same, slice(0, 1)) is same
    for label in (-1, 4):
        with pytest.raises(ConfigError, match="0 … 3"):
            guides.ClassLogit(classifier=fakes.FakeClassifier(), label=label)


# -------------------------------------------------------------------------------------------------------------- compose


def test_a_manner_reaches_the_guidance():
    ready = guides.make(["colour:navy:3", "palette:red:2"], shape=(3, 8, 8))
    backward = guide.Backward(steps=2, rate=0.1)
    options = guides.GuidanceOptions(differentiate_through="estimate", backward=backward, chunk=2)
    made = guides.compose(ready, options)
    assert isinstance(made, guide.Universal)
    assert (made.energies, made.differentiate_through, made.backward, made.chunk) == (
        ready.energies,
        "estimate",
        backward,
        2,
    )
    assert (made.at, made.strength) == (None, 1.0)
    null = {"label": torch.zeros(1)}
    apart = guides.compose(ready, guides.GuidanceOptions(placement="separate"), None, null)
    assert apart.at is null
    assert guides.compose(ready, guides.GuidanceOptions(), None, null).at is None
    assert guides.compose(guides.Guides(energies=(), guidances=(), records=())) is None
    cfg = guide.Threshold()
    windowed = guides.compose(ready, guides.GuidanceOptions(window=(0.2, 5.0)), cfg)
    assert isinstance(windowed, Composition)
    assert windowed.guidances[0] is cfg
    assert (windowed.guidances[1].low, windowed.guidances[1].high) == pytest.approx((-3.2188758, 3.2188758))
    # Guidances that are no energies stand beside, in their order; classifier-free guidance first.
    one, two = guide.Threshold(bound=2.0), guide.Threshold(bound=3.0)
    several = guides.Guides(energies=ready.energies, guidances=(one, two), records=())
    assert guides.compose(several).guidances[1:] == (one, two)
    assert guides.compose(several, guides.GuidanceOptions(placement="separate"), cfg, null).guidances[0] is cfg
    joint = guides.compose(several, None, cfg)
    assert (joint.guidances[0], joint.guidances[1].guidances[1:]) == (cfg, (one, two))
    alone = guides.Guides(energies=(), guidances=(one,), records=())
    assert guides.compose(alone, guides.GuidanceOptions(placement="separate")) is one, "there is no energy to set apart"


def test_backward_steps_and_windows_in_words():
    for text, steps, rate in (("5", 5, 0.01), ("1:0.02", 1, 0.02), ("7:1e-3", 7, 1e-3)):
        made = guides.backward_of(text)
        assert (made.steps, made.rate, made.descent, made.clamp) == (steps, rate, "adam", (-1.0, 1.0))
        assert (made.cutoff, made.centre, made.space, made.energies) == (None, "guided", "clean", None)
    assert guides.window_of("0.2:5") == (0.2, 5.0)


def test_pictures_are_known_by_half_the_sum_of_squares(tmp_path):
    """The weight of inpainting and of super-resolution stands for 1/std²."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    mask[0, :2] = (127, 128)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(pixels[:4, :4]).save(tmp_path / "s.png")
    wanted = torch.from_numpy(pixels).permute(2, 0, 1).double() / 127.5 - 1.0
    known = torch.from_numpy(mask >= 128)
    ready = guides.make([f"inpaint:{tmp_path / 'p.png'}@{tmp_path / 'm.png'}"], shape=(3, 8, 8))
    (weight, energy), x = ready.energies[0], X.float()
    assert weight == 1.0
    half = 0.5 * (known * (x.double() - wanted)).square().sum((1, 2, 3))
    torch.testing.assert_close(energy(x).double(), half, rtol=1e-5, atol=1e-5)
    ready = guides.make([f"super-resolution:{tmp_path / 's.png'}"], shape=(3, 8, 8))
    (weight, energy) = ready.energies[0]
    small = x.double().reshape(3, 3, 4, 2, 4, 2).mean((3, 5))
    half = 0.5 * (small - wanted[:, :4, :4]).square().sum((1, 2, 3))
    torch.testing.assert_close(energy(x).double(), half, rtol=1e-5, atol=1e-5)
    assert weight == 3.0
    edges = guides.make([f"edges:{tmp_path / 'p.png'}"], shape=(3, 8, 8)).energies[0][1]
    like = guide.Edges.like(wanted[None].float())
    torch.testing.assert_close(edges(x), like(x))
    for shape in ((3, 8, 16), (3, 12, 8)):
        with pytest.raises(UsageError, match="square pictures"):
            guides.make([f"edges:{tmp_path / 'p.png'}"], shape=shape)


# -------------------------------------------------------------------------------------------------------------- targets


CLASSES = ("style/red", "top/crown", "shape/crown", "0", "eyes")


def test_a_class_by_its_name_by_its_end_or_by_its_number():
    for name, number in (("style/red", 0), ("red", 0), ("top/crown", 1), ("0", 3), ("1", 1), ("4", 4), ("eyes", 4)):
        assert targets.class_number(name, CLASSES) == number
    for wrong in ("crown", "5", "-1", "Red", ""):  # two ends are alike; there are five
        with pytest.raises(UsageError, match="unknown class"):
            targets.class_number(wrong, CLASSES)


def test_the_palette_of_pascal_voc():
    def voc(number: int) -> tuple[int, int, int]:
        channels = [0, 0, 0]
        for shift in range(7, -1, -1):
            for channel in range(3):
                channels[channel] |= ((number >> channel) & 1) << shift
            number >>= 3
        return tuple(channels)  # type: ignore[return-value]

    assert targets.colours_of(256) == [voc(number) for number in range(256)]


def test_maps_of_colours_at_the_edge_of_transparency(tmp_path):
    classes = ("a", "b", "ignore")
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = [(128, 0, 0, 128), (128, 0, 0, 127)]
    pixels[1] = [(0, 128, 0, 255), (0, 0, 0, 255)]
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert targets.classes_map(str(tmp_path / "m.png"), (3, 2, 2), classes).tolist() == [[[1, -1], [2, 0]]]
    # A class may be called ignore; else the word stands for what nothing is asked of.
    (tmp_path / "t.json").write_text(json.dumps({"a": "black", "ignore": "#800000", "b": "rgb(0,128,0)"}))
    arg = f"{tmp_path / 'm.png'}@{tmp_path / 't.json'}"
    assert targets.classes_map(arg, (3, 2, 2), classes).tolist() == [[[2, -1], [1, 0]]]
    assert targets.classes_map(arg, (3, 2, 2), ("a", "b")).tolist() == [[[-1, -1], [1, 0]]]
    grey = np.array([[0, 1], [2, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert targets.classes_map(str(tmp_path / "g.png"), (3, 2, 2), classes).tolist() == [[[0, 1], [2, -1]]]
    with pytest.raises(DataError, match="class number 2"):
        targets.classes_map(str(tmp_path / "g.png"), (3, 2, 2), ("a", "b"))
    with pytest.raises(DataError, match="2 × 2 pixels, the model's pictures are 3 × 2"):
        targets.classes_map(str(tmp_path / "g.png"), (3, 2, 3), classes)


def test_small_pictures_are_a_whole_part_of_both_sides(tmp_path):
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    Image.fromarray(pixels).save(tmp_path / "s.png")
    seen, factor = targets.small(str(tmp_path / "s.png"), (3, 8, 12))
    assert factor == 4
    torch.testing.assert_close(seen[0], torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0)
    assert targets.small(str(tmp_path / "s.png"), (3, 2, 3))[1] == 1
    for shape in ((3, 8, 9), (3, 6, 12), (3, 9, 12), (3, 1, 1)):
        with pytest.raises(DataError, match="no whole part"):
            targets.small(str(tmp_path / "s.png"), shape)
    assert targets.colours("#00ff33")[0].tolist() == pytest.approx([-1.0, 1.0, 51 / 127.5 - 1.0])
    assert targets.square((3, 7, 7), "x") == 7


def test_names_near_and_listed():
    assert suggestion("colr", ["colour", "text"]) == "did you mean 'colour'? there are colour, text"
    assert suggestion("zzz", ["a", "b", "c"], shown=2) == "there are a, b, … (3 in all)"
    assert suggestion("zzz", ["a", "b"], shown=2) == "there are a, b"


# ------------------------------------------------------------------------------------------------------ networks, files


def test_images_are_prepared_as_the_published_networks_were_trained():
    x = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(standard.unit(x)[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (torch.tensor([0.0, 0.5, 1.0]) - mean) / std
    torch.testing.assert_close(standard.normalised(standard.unit(x))[0, :, 1, 1], wanted)
    ramp = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert standard.resized(ramp, 6).shape == (1, 1, 6, 6)
    square = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert standard.resized(square, 3) is square
    smooth = torch.nn.functional.interpolate(ramp, size=(6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(standard.resized(ramp, 6), smooth)
    cubic = torch.nn.functional.interpolate(ramp, size=(6, 6), mode="bicubic", align_corners=False)
    assert torch.equal(standard.resized(ramp, 6, "bicubic"), cubic)


def test_weights_are_where_they_were_said_to_be_or_in_the_cache_of_the_hub(tmp_path):
    before = torch.hub.get_dir()
    try:
        torch.hub.set_dir(str(tmp_path / "hub"))
        with pytest.raises(CheckpointError, match=r"download net\.pth"):
            published.weights_file(None, "net.pth", "Net")
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        cached = tmp_path / "hub" / "checkpoints" / "net.pth"
        cached.write_bytes(b"")
        assert published.hub_file("net.pth") == published.weights_file(None, "net.pth", "Net") == cached
        mine = tmp_path / "mine.pth"
        with pytest.raises(CheckpointError, match="no weights of Net at"):
            published.weights_file(str(mine), "net.pth", "Net")
        mine.write_bytes(b"")
        assert published.weights_file(str(mine), "net.pth", "Net") == mine
    finally:
        torch.hub.set_dir(before)
    assert sources.needs("numpy") is None
    assert sources.needs("no-such-package") == "the package no-such-package"
    assert sources.needs("anything", module="numpy.linalg") is None
    assert sources.needs("a-b", module="no.such.module") == "the package a-b"
    assert (sources.installed("numpy"), sources.installed("no-such-package")) == (None, "the package no-such-package")
    assert (sources.required(), sources.required(None, None)) == (None, None)


def test_a_network_is_loaded_for_each_place_of_its_weights():
    loads = []
    source = guides.NetworkSource(
        name="own", what="", load=lambda weights, device: loads.append((weights, device)) or object()
    )
    kind = guides.GuideType(name="text", takes="", what="", weight=1.0, make=print, sources=(source,))
    other = guides.GuideType(name="style", takes="", what="", weight=1.0, make=print, sources=(source,))
    networks = Networks([guides.NetworkChoice(kind="text", source="own", weights="w")], "meta")
    first = networks.of(kind)
    assert first == networks.of(kind)
    assert networks.of(other)[1] is not first[1]
    assert loads == [("w", torch.device("meta")), (None, torch.device("meta"))]
    assert networks.of(guides.kinds()["colour"]) == (None, None)
    assert guides.NetworkChoice.read("text=standard:/a:b") == guides.NetworkChoice(
        kind="text", source="standard", weights="/a:b"
    )
    assert guides.NetworkChoice.read("text=own:").weights is None
    with pytest.raises(UsageError, match="no guide of that kind"):
        guides.make(["colour:red"], shape=(3, 8, 8), choices=["text=own"])


def test_a_wish_is_made_with_what_it_names(monkeypatch):
    from ornstein.guides import registry

    jobs = []
    source = guides.NetworkSource(name="package", what="", load=lambda weights, device: "network", weight=7.0)
    kind = guides.GuideType(
        name="colour",
        takes="",
        what="",
        weight=5.0,
        make=lambda job: jobs.append(job) or (lambda x: x),
        sources=(source,),
    )
    monkeypatch.setattr(registry, "kinds", lambda: {"colour": kind})
    ready = guides.make(["colour:red", "colour:blue:-2", "colour:green:0"], shape=(3, 6, 8), device="meta")
    assert [(job.arg, job.weight, job.shape, job.network, job.source) for job in jobs] == [
        ("red", 7.0, (3, 6, 8), "network", "package"),
        ("blue", -2.0, (3, 6, 8), "network", "package"),
        ("green", 0.0, (3, 6, 8), "network", "package"),
    ]
    assert [job.device for job in jobs] == [torch.device("meta")] * 3
    assert [weight for weight, _ in ready.energies] == [7.0, -2.0]
    assert ready.records[1] == {"kind": "colour", "argument": "blue", "weight": -2.0, "source": "package"}
    for shape in ((3, 8), (1, 8, 8), (4, 8, 8)):
        with pytest.raises(UsageError, match="three channels"):
            guides.make(["colour:red"], shape=shape)
    assert guides.make([], shape=(1, 8, 8)).energies == ()


def test_guides_toward_rare_pictures_in_words(monkeypatch):
    class RunFiles:
        labels: tuple[str, ...] = ()
        spec = SimpleNamespace(shape=(3, 8, 8))

        def number(self, target: int) -> int:
            return target

        def log_likelihood(self, state, log_snr, target, label=None):
            return state.flatten(1).sum(1)

    asked = []
    monkeypatch.setattr("ornstein.runs.rarity.load", lambda where, device: asked.append((where, device)) or RunFiles())
    for words, where, target, weight in (
        ("rarity:runs/r", "runs/r", -1, 1.0),
        ("rarity:runs/r@0:2.5", "runs/r", 0, 2.5),
        ("rarity:a@b@-3", "a@b", -3, 1.0),
    ):
        (made,) = guides.make([words], shape=(3, 8, 8)).guidances
        assert (made.target, made.weight) == (target, weight)
        assert asked[-1] == (where, torch.device("cpu"))
    with pytest.raises(UsageError, match="is no number"):
        guides.make(["rarity:runs/r@x"], shape=(3, 8, 8))
    with pytest.raises(UsageError, match="pictures of 8 pixels, the model makes 16"):
        guides.make(["rarity:runs/r"], shape=(3, 16, 16))
    (made,) = guides.make(["rare:squared"], shape=(3, 8, 8)).guidances
    assert isinstance(made, guide.SelfMinority)
    assert made.scale == 0.4
    x = torch.tensor([[1.0, 2.0]])
    assert made.distance(x, 3.0 * x).tolist() == [20.0]  # type: ignore[operator]
    (made,) = guides.make(["rare-token:7:0.2"], shape=(3, 8, 8)).guidances
    assert (made.steps, made.rate) == (7, 0.2)
