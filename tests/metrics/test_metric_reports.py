"""Reports in full: every number under its name, what each metric needs, and which sets can be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ornstein import metrics
from ornstein.errors import ConfigError, UsageError
from ornstein.metrics import Moments, Sample, kernel_distance
from ornstein.metrics.manifold import manifold
from ornstein.metrics.measure import METRICS, check, measure, needs, neighbours
from ornstein.metrics.rarity import rarity
from ornstein.metrics.sets import KEEPS, Collector, Statistics, statistics


def pictures(n, seed=0, side=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


class Net:
    """Means of the pixels under three fixed weights each, with all the outputs that a metric may be defined on."""

    heads = ("pooled", "spatial", "classes")

    def __init__(self, name="net", width=5):
        self.name, self.width = name, width
        g = torch.Generator().manual_seed(1)
        self.matrices = [torch.randn(48, size, generator=g, dtype=torch.float64) for size in (width, 4, 6)]

    def outputs(self, images):
        flat = images.flatten(1).double() / 64.0
        return dict(zip(self.heads, (flat @ matrix for matrix in self.matrices), strict=True))

    def __call__(self, images):
        return self.outputs(images)["pooled"]


def of(n, seed=0, **options):
    return statistics(pictures(n, seed), Net(), keep=KEEPS, **options)


@pytest.fixture(scope="module")
def pair():
    return of(60), of(50, seed=1)


def test_every_number_of_every_metric(pair):
    """All of a measurement: names, order, errors, parts, and each image's own numbers."""
    a, b = pair
    found = measure(a, b, METRICS)
    rows_a, rows_b = a.vectors.rows, b.vectors.rows
    kernel = kernel_distance(a.sample.rows(5), b.sample.rows(5))
    score, around = a.classes.score(), manifold(rows_a, rows_b, k_precision=3, k_density=5)
    rare = rarity(rows_a, rows_b, k_average=5, k_outlier=20, k_rarity=3)
    assert dict(found.numbers) == {
        "FD-net": metrics.frechet_distance(a.moments, b.moments),
        "sFD-net": metrics.frechet_distance(a.spatial, b.spatial),
        "KID-net": kernel.value,
        "KID-net error": kernel.error,
        "KID-net blocks": kernel.blocks,
        "IS-net": score.value,
        "IS-net deviation": score.deviation,
        "IS-net parts": 10,
        "precision-net": around.precision,
        "recall-net": around.recall,
        "density-net": around.density,
        "coverage-net": around.coverage,
        "AvgkNN-net": rare.average.mean(),
        "LOF-net": rare.outlier.mean(),
        "rarity-net": rare.mean_score,
        "rarity-net undefined": rare.undefined,
    }
    assert {name: values.tolist() for name, values in found.images.items() if "rarity" not in name} == {
        "AvgkNN-net": rare.average.tolist(),
        "LOF-net": rare.outlier.tolist(),
    }
    np.testing.assert_array_equal(found.images["rarity-net"], rare.score)
    assert found.indices == list(range(60))
    assert measure(a, b, ["fd", "prdc"]).indices == []
    for k in (2, 7):
        other = measure(a, b, ["prdc", "avgknn", "lof", "rarity"], k=k)
        around = manifold(rows_a, rows_b, k_precision=k, k_density=k)
        rare = rarity(rows_a, rows_b, k_average=k, k_outlier=k, k_rarity=k)
        numbers = [around.precision, around.recall, around.density, around.coverage, rare.average.mean()]
        numbers += [rare.outlier.mean(), rare.mean_score, rare.undefined]
        assert list(other.numbers.values()) == numbers


def test_what_a_metric_needs(pair):
    known = {
        "fd": (),
        "sfd": ("spatial",),
        "kid": (),
        "is": ("classes",),
        **dict.fromkeys(("prdc", "avgknn", "lof", "rarity"), ("vectors",)),
    }
    assert {name: needs([name]) for name in known} == known
    assert {name: needs([name], "theirs") for name in known if name != "is"} == {
        name: needs([name]) for name in known if name != "is"
    }
    assert needs(["is"], "theirs") == needs(["lpips", "clip"]) == ()
    assert neighbours(["lof", "fd", "clip"]) == {"lof": 20}
    assert neighbours(["prdc"], 1) == {"precision": 1, "density": 1}
    with pytest.raises(ConfigError, match="k must be at least 1, got -1"):
        neighbours(["lof"], -1)
    a, _ = pair
    assert measure(a, None, ["is"]).numbers["IS-net"] == a.classes.score().value
    bare = statistics(pictures(30), Net())
    for name in ("prdc", "avgknn", "lof", "rarity"):
        with pytest.raises(UsageError, match=f"the metric {name} needs statistics that keep 'vectors'"):
            measure(a, bare, [name])


def test_which_sets_can_be_compared():
    a = statistics(pictures(40), Net())
    check(a, statistics(pictures(2), Net()))
    half = statistics(pictures(100), Net(), rank=1, world=3)
    for one, other, message in (
        (a, statistics(pictures(1), Net()), "at least 2 images on each side, got 40 and 1"),
        (statistics(pictures(1), Net()), a, "at least 2 images on each side, got 1 and 40"),
        (half, a, r"lack the parts of ranks \[0, 2\] of 3"),
        (a, half, r"lack the parts of ranks \[0, 2\] of 3"),
        (a, statistics(pictures(40), Net("other")), "'net' with 'other'"),
    ):
        with pytest.raises(UsageError, match=message):
            check(one, other)

    class Any(Net):
        def __call__(self, images):
            return images.flatten(1)[:, :5] / 255.0

        outputs = None

    wide = torch.zeros(3, 3, 4, 6, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"different resolutions \(4×6 and 6×4\)"):
        check(statistics(wide, Any()), statistics(wide.transpose(2, 3), Any()))
    nothing = Statistics(
        features="net", resolution=None, moments=Moments(5), sample=Sample(), fingerprint=0, parts=frozenset({0})
    )
    with pytest.raises(UsageError, match="got 0 and 40"):
        check(nothing, a)
    with pytest.raises(UsageError, match="cannot keep others, things: choose from spatial, classes, vectors"):
        Collector(Net(), keep=("things", "vectors", "others"))


def test_the_report_in_words_and_in_numbers(pair):
    a, b = pair
    found = metrics.compare(a, b)
    kernel = kernel_distance(a.sample.rows(5), b.sample.rows(5))
    assert found.as_dict() == {
        "FD-net": metrics.frechet_distance(a.moments, b.moments),
        "KID-net": kernel.value,
        "KID-net error": kernel.error,
        "KID-net blocks": 4,
        "features": "net",
        "resolution": [4, 4],
        "images": [60, 50],
        "skipped": 0,
        "fingerprints": [f"{a.fingerprint:032x}", f"{b.fingerprint:032x}"],
    }
    json.dumps(found.as_dict())
    words = f"FD-net {found.distance:.4g}, KID-net {found.kid:.4g} ± {found.kid_error:.2g} (60 against 50 images)"
    assert str(found) == words
    few = metrics.compare(of(3), b)
    assert str(few) == f"FD-net {few.distance:.4g}, KID-net {few.kid:.4g} (3 against 50 images)"
    assert (few.n_a, few.n_b, few.skipped, few.kid_blocks) == (3, 50, 0, 1)
