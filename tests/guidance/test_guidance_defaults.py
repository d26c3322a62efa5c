"""The published defaults of every guidance in one table, and how far its numbers may go."""

import math
from dataclasses import MISSING, fields

import pytest
import torch

from ornstein import guidance as guide
from ornstein.errors import ConfigError
from ornstein.guidance import Backward, Universal
from ornstein.guidance.boost import Boosted
from ornstein.guidance.registry import GUIDANCES
from ornstein.guides import GuidanceOptions
from ornstein.randomness import Noise

REQUIRED = object()
NEAR = guide.Measured(operator=lambda x: x, target=torch.zeros(1, 2))
DEFAULTS = {
    guide.CFG: {"weight": REQUIRED, "null": REQUIRED, "rescale": 0.0},
    guide.APG: {"weight": REQUIRED, "null": REQUIRED, "parallel": 0.0, "norm": None},
    guide.CFGpp: {"scale": REQUIRED, "null": REQUIRED, "grid": REQUIRED},
    guide.Autoguidance: {"weight": REQUIRED, "worse": REQUIRED, "conditional": True},
    guide.NoisyClassifier: {"classifier": REQUIRED, "label": None, "weight": 1.0, "feeds": "unit"},
    # The rarest class; weight 1 is the exact law.
    guide.Minority: {"classifier": REQUIRED, "target": -1, "weight": 1.0},
    # Scale .4 (CelebA); the second look at .8·T of the cosine schedule; one draw.
    guide.SelfMinority: {
        "scale": 0.4, "log_snr": -2.25, "distance": "lite0", "draws": 1, "seed": 0, "every": 1, "grid": None,
        "normalise": True,
    },
    # Ten steps of Adam at .01, λ = 1, the second look at .75·T of Stable Diffusion's schedule.
    guide.MinorityPrompt: {
        "steps": 10, "rate": 0.01, "balance": 1.0, "log_snr": -2.81, "text": "text", "mask": "text_mask", "seed": 0,
    },
    guide.Perturbed: {"scale": REQUIRED, "by": REQUIRED, "net": None},
    guide.PAG: {"scale": REQUIRED, "at": "mid.*", "net": None},
    guide.SEG: {"scale": 3.0, "blur": math.inf, "at": "mid.*", "net": None},
    guide.SkipLayer: {"layers": REQUIRED, "scale": 2.8, "net": None},
    guide.Threshold: {"quantile": 0.995, "bound": 1.0},  # Imagen
    guide.DPS: {"misfit": REQUIRED, "scale": REQUIRED, "grid": REQUIRED, "eta": 1.0},
    guide.LinearPosterior: {"measured": REQUIRED, "iterations": 5, "weight": 1.0, "tolerance": 1e-12},
    Universal: {
        "energies": REQUIRED, "strength": 1.0, "differentiate_through": "network", "backward": None, "decode": None,
        "encode": None, "at": None, "limit": None, "checkpoint": False, "chunk": None,
    },
    # The paper's plain descent, but where forward guidance has led.
    Backward: {
        "steps": REQUIRED, "rate": REQUIRED, "descent": "gradient", "centre": "guided", "clamp": None, "cutoff": None,
        "energies": None, "space": "clean",
    },
    guide.Measured: {"operator": REQUIRED, "target": REQUIRED, "std": 1.0},
    guide.Colour: {"target": REQUIRED, "mask": None},
    guide.Palette: {"colours": REQUIRED, "softness": 0.02},
    guide.Edges: {"target": REQUIRED},
    guide.Smoothness: {},
    Boosted: {"source": REQUIRED, "gamma": REQUIRED},
    GuidanceOptions: {"differentiate_through": "network", "backward": None, "window": None,
                      "placement": "joint", "chunk": None},
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_defaults(kind):
    found = {
        f.name: REQUIRED if f.default is MISSING and f.default_factory is MISSING else f.default for f in fields(kind)
    }
    assert found == DEFAULTS[kind]


def test_networks_and_pictures_are_not_printed():
    """The text of a guidance is one line: weights and targets are left out of it."""
    hidden = {f"{kind.__name__}.{f.name}" for kind in DEFAULTS for f in fields(kind) if not f.repr}
    assert hidden == {
        *("Autoguidance.worse", "NoisyClassifier.classifier", "Minority.classifier", "LinearPosterior.tolerance"),
        *("Perturbed.net", "PAG.net", "SEG.net", "SkipLayer.net", "Universal.decode", "Universal.encode"),
        *("Universal.at", "Measured.operator", "Measured.target", "Colour.mask", "Edges.target"),
    }


def test_defaults_of_the_shorthands():
    assert guide.SkipLayer.blocks(1).scale == 2.8
    assert guide.SkipLayer.blocks(1, scale=0.5).scale == 0.5
    assert guide.SkipLayer.blocks(3, 1).layers == (
        ("block.0.hidden", "block.1.hidden"),
        ("block.2.hidden", "block.3.hidden"),
    )
    assert guide.inpainting(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).std == 0.1
    assert guide.super_resolution(torch.zeros(1, 1, 2, 2), 2).std == 0.05
    paper, code = Universal.as_in_paper(NEAR, 3.0), Universal.as_in_code(NEAR, 3.0)
    for made, wanted in (
        (paper.backward, ("gradient", "plain", None, None, 0, 0.0)),
        (code.backward, ("adam", "guided", (-1.0, 1.0), 1e-5, 0, 0.01)),
    ):
        assert (made.descent, made.centre, made.clamp, made.cutoff, made.steps, made.rate) == wanted
    assert (paper.strength, code.strength) == (3.0, 3.0)
    assert Universal.as_in_paper(NEAR, 3.0, limit=0.5).limit == Universal.as_in_code(NEAR, 3.0, limit=0.5).limit == 0.5
    # w·std²/(std² + v/(1 + v·SNR)) at v = 1, w = 1
    assert guide.corrected(0.5)(math.log(3.0)) == pytest.approx(0.25 / (0.25 + 0.25))
    assert guide.corrected(0.5, variance=2.0, weight=3.0)(math.log(3.0)) == pytest.approx(0.75 / (0.25 + 2.0 / 7.0))


@pytest.mark.parametrize(
    ("make", "good", "bad"),
    [
        (lambda v: guide.CFG(weight=2.0, null={}, rescale=v), (0.0, 1.0), (-1e-9, 1.0 + 1e-9, math.nan)),
        (lambda v: guide.APG(weight=2.0, null={}, norm=v), (1e-9, None), (0.0, -1.0, math.nan)),
        (lambda v: guide.CFGpp(scale=v, null={}, grid=[1.0, 0.0]), (0.0, 1.0), (-1e-9, 1.0 + 1e-9)),
        (lambda v: guide.Threshold(quantile=v), (1e-9, 1.0, None), (0.0, 1.0 + 1e-9)),
        (lambda v: guide.Threshold(bound=v), (1e-9,), (0.0, -1.0)),
        (lambda v: guide.SEG(blur=v), (1e-9, math.inf), (0.0, -1.0, math.nan)),
        (lambda v: guide.SkipLayer.blocks(v), (1,), (0, -1)),
        (lambda v: guide.LinearPosterior(measured=NEAR, iterations=v), (1,), (0,)),
        (lambda v: guide.SelfMinority(draws=v), (1,), (0,)),
        (lambda v: guide.SelfMinority(every=v, grid=[1.0, 0.0]), (1, 2), (0,)),
        (lambda v: guide.MinorityPrompt(steps=v), (0,), (-1,)),
        (lambda v: guide.MinorityPrompt(rate=v), (0.0,), (-1e-9,)),
        (lambda v: Backward(steps=v, rate=0.1), (0,), (-1,)),
        (lambda v: Backward(steps=1, rate=v), (0.0,), (-1e-9,)),
        (lambda v: Universal(energies=NEAR, chunk=v), (1, None), (0,)),
        (lambda v: guide.Measured(operator=lambda x: x, target=torch.zeros(1), std=v), (1e-9,), (0.0, -1.0, math.nan)),
        (lambda v: Boosted(Noise.of(0, [0]), v), (1e-9, 1e9), (0.0, -1.0, math.inf, math.nan)),
        (lambda v: guide.interval(guide.Threshold(), sigma=(v, 1.0)), (0.0, 0.999), (-1e-9, 1.0, 1.5)),
        (lambda v: guide.interval(guide.Threshold(), log_snr=(v, 1.0)), (-math.inf, 0.999), (1.0, 1.5, math.nan)),
    ],
)  # fmt: skip
def test_numbers_are_allowed_up_to_their_bounds(make, good, bad):
    for value in good:
        make(value)
    for value in bad:
        with pytest.raises(ConfigError):
            make(value)
    with pytest.raises(ConfigError, match="blocks"):
        guide.SkipLayer.blocks()


def test_energies_are_read_as_pairs_of_weight_and_callable():
    energy = NEAR
    for given, wanted in (
        (energy, ((1.0, energy),)),
        ((2.0, energy), ((2.0, energy),)),
        ((2, energy), ((2, energy),)),
        ([energy, energy], ((1.0, energy), (1.0, energy))),
        ([energy, (3.0, energy)], ((1.0, energy), (3.0, energy))),
        ([(0.5, energy)], ((0.5, energy),)),
        ([(0.5, energy), (2.0, energy)], ((0.5, energy), (2.0, energy))),
        ((), ()),
    ):
        assert Universal(energies=given).energies == wanted
        assert Backward(steps=1, rate=0.1, energies=given).energies == wanted
    for wrong in ([3.0], [(energy, 2.0)], [(1.0, 2.0)], [(1.0, energy, 2.0)], ["x"], (2.0, 3.0), [("1", energy)]):
        with pytest.raises(ConfigError, match="energies are callables"):
            Universal(energies=wrong)
    assert Backward(steps=1, rate=0.1).energies is None


def test_a_boosted_source_is_louder_at_its_start_alone():
    source = Noise.of(3, range(2))
    loud = Boosted(source, 2.5)
    assert torch.equal(loud.normal("prior", (3,)), 2.5 * source.normal("prior", (3,)))
    for key in ("noise", 0, ("prior", 1)):
        assert torch.equal(loud.normal(key, (3,)), source.normal(key, (3,)))
    assert loud.uniform("u") == source.uniform("u")
    assert torch.equal(loud.uniform_per_sample("u"), source.uniform_per_sample("u"))
    assert torch.equal(loud.brownian_increment("w", 0.2, 0.7, (3,)), source.brownian_increment("w", 0.2, 0.7, (3,)))
    assert torch.equal(loud.fork("x").normal("prior", (3,)), source.fork("x").normal("prior", (3,)))


def test_a_guidance_named_without_a_number_has_the_published_one() -> None:
    """CFG++ (Chung et al. 2024), autoguidance (Karras et al. 2024), PAG, SEG, skip-layer (SD 3.5), Imagen's share."""
    published = {
        "cfg": ("weight", None),
        "apg": ("weight", None),
        "cfg++": ("scale", 0.6),
        "autoguidance": ("weight", 2.0),
        "pag": ("scale", 3.0),
        "seg": ("scale", 3.0),
        "skip-layer": ("scale", 2.8),
        "threshold": ("quantile", 0.995),
    }
    assert {name: (GUIDANCES[name].number, GUIDANCES[name].default) for name in published} == published
