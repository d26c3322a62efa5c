"""The metrics by name: what a number is called, what it needs, and that all agree with the parts they are made of."""

import re
from pathlib import Path

import pytest
import torch

from ornstein import metrics
from ornstein.cli.request import ON_IMAGES
from ornstein.errors import ConfigError, UsageError
from ornstein.metrics.inceptionv3 import STANDARD
from ornstein.metrics.measure import METRICS, label, measure, needs, neighbours

EVERYTHING = ("spatial", "classes", "vectors")


class Net:
    """Random projections with all the outputs that a metric may be defined on."""

    heads = ("pooled", "spatial", "classes")

    def __init__(self, name="net", width=6):
        self.name, self.width = name, width
        g = torch.Generator().manual_seed(0)
        self.matrices = [torch.randn(3 * 4 * 4, size, generator=g) for size in (width, 5, 4)]

    def outputs(self, images):
        flat = images.flatten(1).float() / 255.0
        return dict(zip(self.heads, (flat @ matrix for matrix in self.matrices), strict=True))

    def __call__(self, images):
        return self.outputs(images)["pooled"]


def pictures(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 4, 4), generator=g, dtype=torch.uint8)


@pytest.fixture(scope="module")
def pair():
    return [metrics.statistics(pictures(n, n), Net(), keep=EVERYTHING) for n in (70, 90)]


def test_every_number_carries_the_name_of_its_network(pair):
    found = measure(*pair, METRICS)
    assert {name.split("-")[0] for name in found.numbers} >= {
        *("FD", "sFD", "KID", "IS", "precision", "recall", "density", "coverage", "AvgkNN", "LOF", "rarity")
    }
    assert all("-net" in name for name in found.numbers)
    assert all("-net" in name for name in found.images)


def test_only_the_standard_weights_give_the_published_names():
    one = metrics.statistics(pictures(30), Net(STANDARD), keep=EVERYTHING)
    found = measure(one, one, METRICS).numbers
    assert {"FID", "sFID", "KID", "IS"} <= found.keys()
    assert f"precision-{STANDARD}" in found, "the paper's precision is defined on another network"
    for other in ("lite0", "inception-0badcafe", "dinov2-1024-p14-0badcafe"):
        assert label("fd", other) == f"FD-{other}"
        assert label("is", other) == f"IS-{other}"


def test_the_numbers_are_those_of_the_parts(pair):
    a, b = pair
    found = measure(a, b, METRICS).numbers
    assert found["FD-net"] == metrics.frechet_distance(a.moments, b.moments) == metrics.compare(a, b).distance
    assert found["sFD-net"] == metrics.frechet_distance(a.spatial, b.spatial) != found["FD-net"]
    assert found["KID-net"] == metrics.compare(a, b).kid
    assert found["IS-net"] == a.classes.score().value
    whole = metrics.manifold(a.vectors.rows, b.vectors.rows)
    assert [found[f"{name}-net"] for name in ("precision", "recall", "density", "coverage")] == [
        whole.precision,
        whole.recall,
        whole.density,
        whole.coverage,
    ]
    rare = metrics.rarity(a.vectors.rows, b.vectors.rows)
    assert found["AvgkNN-net"] == rare.average.mean()
    assert found["LOF-net"] == rare.outlier.mean()
    assert (found["rarity-net"], found["rarity-net undefined"]) == (rare.mean_score, rare.undefined)


def test_one_metric_alone_is_the_same_as_among_others(pair):
    every = measure(*pair, METRICS)
    for name in METRICS:
        alone = measure(*pair, [name])
        assert alone.numbers.items() <= every.numbers.items()
        assert alone.images.keys() == {f"{c}-net" for c in {"avgknn": ["AvgkNN"], "lof": ["LOF"]}.get(name, [])} | (
            {"rarity-net"} if name == "rarity" else set()
        )


def test_single_images_come_with_their_numbers(pair):
    found = measure(*pair, ["avgknn", "rarity"])
    assert found.indices == list(range(70))
    assert {len(values) for values in found.images.values()} == {70}


def test_k_is_the_definitions_own_unless_said(pair):
    published = {"precision": 3, "density": 5, "avgknn": 5, "lof": 20, "rarity": 3}
    assert neighbours(METRICS) == neighbours(METRICS) | published
    assert set(neighbours(METRICS, 7).values()) == {7}
    assert measure(*pair, ["avgknn"], k=9).numbers != measure(*pair, ["avgknn"]).numbers
    with pytest.raises(ConfigError, match="at least 1"):
        neighbours(METRICS, 0)


def test_only_what_is_needed_is_kept(pair):
    assert needs(["fd", "kid"]) == ()
    assert needs(["sfd", "is", "lof"]) == ("classes", "spatial", "vectors")
    assert needs(["sfd", "is", "lof"], "theirs") == ("spatial", "vectors")
    bare = metrics.statistics(pictures(30), Net())
    for name, keep in (("sfd", "spatial"), ("is", "classes"), ("prdc", "vectors"), ("rarity", "vectors")):
        with pytest.raises(UsageError, match=f"keep '{keep}'"):
            measure(bare, pair[0], [name])
    with pytest.raises(UsageError, match="keep 'spatial'"):
        measure(pair[0], bare, ["sfd"])
    assert "IS-net" in measure(pair[0], bare, ["is"]).numbers


def test_refusals(pair):
    with pytest.raises(ConfigError, match="unknown metric 'fdd'"):
        measure(*pair, ["fdd"])
    with pytest.raises(UsageError, match="compares two sets"):
        measure(pair[0], None, ["fd"])
    with pytest.raises(UsageError, match="use one feature network"):
        measure(pair[0], metrics.statistics(pictures(30), Net("other")), ["fd"])


def test_the_page_names_every_metric():
    page = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
    table = page.read_text("utf-8").split("## Networks")[0]
    named = {cell.strip(" `") for cell in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)}
    assert named - {"", "name", "---"} == {*METRICS, *ON_IMAGES}
    text = " ".join(re.findall(r"^\|.*", table, re.MULTILINE))
    ks = {*neighbours(METRICS).values()}
    assert {int(k) for k in re.findall(r"k = (\d+)", text)} == ks
