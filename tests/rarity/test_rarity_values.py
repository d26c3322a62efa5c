"""The table of scores by hand, number by number: conditions, latents, holes; and what makes a table another one."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata
from torch import Tensor, nn

from ornstein.data.base import Example, UnreadableError
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError, DataError, UsageError
from ornstein.metrics.pairs import distance
from ornstein.paths import VP
from ornstein.randomness import Noise, mix
from ornstein.rarity import Recipe, Table, held_out, normal_scores, one_step, quantile_classes, score
from ornstein.runs import TrainedModel

CLASSES = ("a", "b", "c")
SIDE = 4


def test_published_defaults():
    """Index 60 of 100 of the linear schedule, five draws, a clean estimate within [−1, 1]."""
    assert asdict(Recipe()) == {"log_snr": -3.703, "distance": "lite0", "draws": 5, "seed": 0, "clamp": 1.0}
    for wrong in ({"draws": 0}, {"log_snr": math.inf}, {"log_snr": math.nan}):
        with pytest.raises(ConfigError):
            Recipe(**wrong)


@dataclass
class Pictures:
    """A source in memory; pictures in ``holes`` cannot be read."""

    count: int = 37
    name: str = "pictures"
    size: int = SIDE
    classes: tuple[str, ...] = CLASSES
    fingerprint: str = "f"
    holes: tuple[int, ...] = ()
    visits: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        self.visits.append(index)
        if index in self.holes:
            raise UnreadableError(f"hole {index}", "torn")
        pixels = np.random.default_rng(index).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
        return Example(image=torch.from_numpy(pixels), label=index % 3, caption="x" * (index % 5), name=f"p{index}")


class Weights(nn.Module):
    def __init__(self, captions: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.7, -0.2]))
        self.text = (lambda texts: (torch.tensor([[float(len(t))] for t in texts]), None)) if captions else None


def run(condition: str = "label", codec=None, **more) -> TrainedModel:
    weights = Weights(condition == "text")
    scale = weights.scale

    def net(x: Tensor, time: Tensor, label=None, text=None, text_mask=None) -> Tensor:
        told = 0.0
        if label is not None:
            told = 0.3 * (label.float() + 1.0)[:, None, None, None]
        if text is not None:
            told = 0.1 * text[:, :, None, None]
        return (scale[0] + told) * x + scale[1]

    if condition == "text":
        assert weights.text is not None
        encode = weights.text
        weights.text = lambda texts: (encode(texts)[0], encode(texts)[0])
    side = SIDE if codec is None else SIDE // codec.factor
    spec = SimpleNamespace(
        labels=CLASSES if condition == "label" else (),
        encoder=object() if condition == "text" else None,
        shape=(3, side, side),
    )
    denoiser = Denoiser(net, VP(), "clean", shape=spec.shape, codec=codec)
    made = {
        "folder": Path("runs/mine"),
        "weights": Path("w"),
        "images": 123,
        "details": {"model": {"path": "vp-linear"}},
    }
    return TrainedModel(denoiser=denoiser, model=weights, spec=spec, **made | more)  # type: ignore[arg-type]


RECIPE = Recipe(distance="absolute", draws=3, seed=9, log_snr=-1.2, clamp=0.8)


def by_hand(made: TrainedModel, source: Pictures, recipe: Recipe, told, compare) -> list[float]:
    """Every picture by itself, its own noise and its own condition."""
    path, t = VP(), VP().time_of(recipe.log_snr)
    found = []
    for i in range(len(source)):
        example = source[i]
        clean = example.image[None].float() / 127.5 - 1.0
        clean = clean if made.codec is None else made.codec.encode(clean)
        noise = Noise.of(mix(recipe.seed, "rarity"), [i])
        values = []
        for draw in range(recipe.draws):
            x = path.alpha(t) * clean + path.sigma(t) * noise.normal(("rarity", draw), clean.shape[1:])
            seen = (0.7 + told(example)) * x - 0.2
            values.append(float(compare(clean, seen)))
        found.append(sum(values) / recipe.draws)
    return found


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("label", lambda e: 0.3 * (e.label + 1.0)),
        ("text", lambda e: 0.1 * len(e.caption)),
        ("none", lambda e: 0.0),
    ],
)
@pytest.mark.parametrize("name", ["absolute", "squared"])
def test_every_score_by_hand(tmp_path, condition, told, name):
    """mean over draws of d(x_0, clamp(x̂_0)), with the label or the caption of the picture itself."""
    recipe = replace(RECIPE, distance=name)
    power = {"absolute": 1, "squared": 2}[name]
    table = score(run(condition), Pictures(), tmp_path / "s.csv", recipe)
    wanted = by_hand(
        run(condition), Pictures(), recipe, told,
        lambda clean, seen: ((clean - seen.clamp(-0.8, 0.8)).abs() ** power).double().sum(),
    )  # fmt: skip
    assert table.scores.tolist() == pytest.approx(wanted, rel=1e-5)
    assert table.names == tuple(f"p{i}" for i in range(37))
    assert table.labels.tolist() == [i % 3 for i in range(37)]
    wide = score(run(condition), Pictures(), tmp_path / "w.csv", replace(recipe, clamp=None))
    assert (wide.scores > table.scores * 1.001).any()


class Codec:
    """Latents of half the size and half the range; pictures decode to beyond [−1, 1]."""

    factor, channels = 2, 3

    def encode(self, image: Tensor) -> Tensor:
        return 0.5 * nn.functional.avg_pool2d(image, 2) + 0.1

    def decode(self, latent: Tensor) -> Tensor:
        return 3.0 * nn.functional.interpolate(latent, scale_factor=2.0) - 0.2


@pytest.mark.parametrize("name", ["absolute", "lite0"])
def test_latents_are_compared_as_they_are_or_as_pictures(tmp_path, name):
    """Plain distances of latents, unclamped; a perceptual one of what is decoded, within its range."""
    recipe, codec = replace(RECIPE, distance=name, draws=1), Codec()
    made = run(codec=codec)
    table = score(made, Pictures(count=5), tmp_path / "s.json", recipe)
    pair = distance(name)[1]
    shown = (lambda z: z) if name == "absolute" else (lambda z: codec.decode(z).clamp(-1, 1))
    wanted = by_hand(
        made, Pictures(count=5), recipe, lambda e: 0.3 * (e.label + 1.0), lambda a, b: pair(shown(a), shown(b))
    )
    assert table.scores.tolist() == pytest.approx(wanted, rel=1e-4)
    assert table.header["clamp"] is None
    assert table.header["size"] == SIDE


@pytest.mark.parametrize("holes", [(0,), (15, 16), tuple(range(16)), (36,), tuple(range(32, 37))])
def test_pictures_that_cannot_be_read_have_no_score_and_change_no_other(tmp_path, holes):
    whole = score(run(), Pictures(), tmp_path / "whole.csv", RECIPE)
    table = score(run(), Pictures(holes=holes), tmp_path / "holes.csv", RECIPE)
    assert np.flatnonzero(np.isnan(table.scores)).tolist() == list(holes)
    rest = [i for i in range(37) if i not in holes]
    assert np.array_equal(table.scores[rest], whole.scores[rest])
    assert [table.names[i] for i in holes] == [f"hole {i}" for i in holes]
    assert [int(table.labels[i]) for i in holes] == [-1] * len(holes)
    assert [table.names[i] for i in rest] == [f"p{i}" for i in rest]


def test_the_header_says_everything_that_changes_a_number(tmp_path):
    made = run()
    table = score(made, Pictures(), tmp_path / "s.csv", RECIPE)
    state = hashlib.blake2b(digest_size=16)
    state.update(b"scale" + made.model.scale.detach().numpy().tobytes())
    assert table.header == {
        "format": "ornstein-rarity",
        "version": 1,
        "data": {"name": "pictures", "fingerprint": "f", "examples": 37, "classes": list(CLASSES)},
        "run": {
            "name": "mine", "images": 123, "weights": state.hexdigest(), "path": "vp-linear", "condition": "label",
        },
        "log_snr": -1.2,
        "alpha_bar": pytest.approx(1.0 / (1.0 + math.exp(1.2))),
        "distance": "absolute",
        "draws": 3,
        "seed": 9,
        "size": SIDE,
        "clamp": 0.8,
    }  # fmt: skip
    assert (table.classes, table.fingerprint, len(table)) == (CLASSES, "f", 37)


def other_weights() -> TrainedModel:
    made = run()
    with torch.no_grad():
        made.model.scale[1] += 1e-6
    return made


CHANGES = {
    "run.weights": (other_weights, {}, {}),
    "run.images": (lambda: run(images=124), {}, {}),
    "run.path": (lambda: run(details={"model": {"path": "vp-cosine"}}), {}, {}),
    "run.condition": (lambda: run("none"), {}, {}),
    "data.fingerprint": (run, {"fingerprint": "g"}, {}),
    "data.examples": (run, {"count": 36}, {}),
    "log_snr": (run, {}, {"log_snr": -1.3}),
    "distance": (run, {}, {"distance": "squared"}),
    "draws": (run, {}, {"draws": 4}),
    "seed": (run, {}, {"seed": 8}),
    "clamp": (run, {}, {"clamp": None}),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_table_or_a_beginning_of_another_kind_is_refused(tmp_path, key):
    make, source, recipe = CHANGES[key]
    called = (make(), Pictures(**source))
    done, begun = tmp_path / "done.csv", tmp_path / "begun.csv"
    score(run(), Pictures(), done, RECIPE)
    assert score(run(), Pictures(), begun, RECIPE, shard=(0, 3)) is None
    with pytest.raises(UsageError, match=f"holds scores with another {key}"):
        score(*called, done, replace(RECIPE, **recipe))
    with pytest.raises(UsageError, match=f"begun with another {key}"):
        score(*called, begun, replace(RECIPE, **recipe))


def test_another_name_is_no_other_table(tmp_path):
    out = tmp_path / "s.csv"
    first = score(run(), Pictures(), out, RECIPE)
    source = Pictures(name="moved")
    again = score(run(folder=Path("elsewhere/renamed")), source, out, RECIPE)
    assert source.visits == []
    assert again.header == first.header
    begun = tmp_path / "begun.csv"
    score(run(), Pictures(), begun, RECIPE, shard=(0, 3))
    assert score(run(folder=Path("renamed")), source, begun, RECIPE) is not None


def test_the_work_is_split_by_groups_of_sixteen_and_told(tmp_path):
    out, told = tmp_path / "s.csv", []
    for shard, seen in (((2, 3), range(32, 37)), ((0, 3), range(16)), ((1, 3), range(16, 32))):
        source = Pictures()
        table = score(run(), source, out, RECIPE, shard=shard, progress=lambda *p: told.append(p))
        assert source.visits == list(seen)
        assert (table is None) == (shard != (1, 3))
    assert told == [(16, 37)] * 3
    told.clear()
    score(run(), Pictures(), tmp_path / "one.csv", RECIPE, batch=1, progress=lambda *p: told.append(p))
    assert told == [(16, 37), (32, 37), (37, 37)]
    told.clear()
    score(run(), Pictures(), tmp_path / "two.csv", RECIPE, batch=17, progress=lambda *p: told.append(p))
    assert told == [(32, 37), (37, 37)]
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes() == out.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.csv{end}" for name in ("one", "s", "two") for end in ("", ".json")
    ]
    for wrong in ((-1, 3), (3, 3)):
        with pytest.raises(UsageError, match="number the shards"):
            score(run(), Pictures(), out, RECIPE, shard=wrong)
    with pytest.raises(UsageError, match="batch"):
        score(run(), Pictures(), out, RECIPE, batch=0)


def test_data_that_does_not_fit_the_run_is_refused(tmp_path):
    out = tmp_path / "s.csv"
    with pytest.raises(UsageError, match="makes images of 4 pixels, not 5"):
        score(run(), Pictures(size=5), out, RECIPE)
    with pytest.raises(UsageError, match="other labels"):
        score(run(), Pictures(classes=("c", "b", "a")), out, RECIPE)
    with pytest.raises(UsageError, match="only runs"):
        score(SimpleNamespace(picture=(3, SIDE, SIDE)), Pictures(), out, RECIPE)  # type: ignore[arg-type]
    assert score(run("none"), Pictures(count=2, classes=()), out, RECIPE) is not None
    path = VP()
    clean = torch.zeros(1, 3, SIDE, SIDE)
    for level in (path.log_snr(path.t_range[1]), path.log_snr(path.t_min)):  # both ends can be scored
        assert one_step(run("none").denoiser, clean, clean, level).shape == clean.shape
        with pytest.raises(UsageError, match="outside of what this model was trained on"):
            one_step(run("none").denoiser, clean, clean, level * 1.001)


# ------------------------------------------------------------------------------------------------------------ the files


def table(**changes) -> Table:
    header = {
        "format": "ornstein-rarity",
        "version": 1,
        "data": {"name": "n", "fingerprint": "f", "examples": 3, "classes": ["x", "y"]},
        "size": 8,
    }
    return Table(
        header=header | changes,
        names=("one", "two", "three"),
        scores=np.array([0.3, np.nan, 0.1]),
        labels=np.array([1, 0, -1]),
    )


def test_a_table_of_sorted_rows_is_refused(tmp_path):
    """Row i is example i: a spreadsheet that was sorted by score, or that lost a row, is no table any more."""
    path = tmp_path / "s.csv"
    table().write(path)
    columns, *rows = path.read_text().splitlines()
    assert columns == "index,name,score,label"
    assert rows == ["0,one,0.3,1", "1,two,,0", "2,three,0.1,-1"]
    assert Table.read(path).names == ("one", "two", "three")
    for changed in ([*reversed(rows)], [rows[1], rows[0], rows[2]], [rows[0], rows[0], rows[2]]):
        path.write_text("\n".join([columns, *changed]) + "\n")
        with pytest.raises(DataError, match="not a readable table"):
            Table.read(path)
    path.write_text("\n".join(["{}", columns, *rows]) + "\n")
    with pytest.raises(DataError, match="not a readable table"):
        Table.read(path)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".safetensors"])
def test_a_table_of_another_format_is_refused_and_numbers_come_back(tmp_path, suffix):
    path = tmp_path / f"deep/folder/s{suffix}"
    table().write(path)
    again = Table.read(path)
    assert again.scores[[0, 2]].tolist() == [0.3, 0.1]
    assert np.isnan(again.scores[1])
    assert (again.labels.tolist(), again.names) == ([1, 0, -1], ("one", "two", "three"))
    assert (again.scores.dtype, again.labels.dtype) == (np.float64, np.int64)
    for wrong in ({"format": "other"}, {"version": 2}):
        table(**wrong).write(path)
        with pytest.raises(DataError, match="not a table of scores of this version"):
            Table.read(path)
    table().write(tmp_path / "x.json")
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["rows"] == {"name": ["one", "two", "three"], "score": [0.3, None, 0.1], "label": [1, 0, -1]}


def test_scores_belong_to_data_of_one_fingerprint_and_one_length():
    scores = table()
    scores.check(Pictures(count=3))
    for wrong in (Pictures(count=4), Pictures(count=3, fingerprint="g")):
        with pytest.raises(DataError, match="belong to other data"):
            scores.check(wrong)
    for torn in ({"names": ("a", "b")}, {"scores": np.zeros(2)}, {"labels": np.zeros(4, np.int64)}):
        with pytest.raises(DataError, match="torn"):
            Table(
                **{"header": scores.header, "names": scores.names, "scores": scores.scores, "labels": scores.labels}
                | torn
            )


# ---------------------------------------------------------------------------------------------------------- the classes


def test_classes_are_floors_of_ranks_and_normal_scores_their_quantiles():
    """⌊rank·L/N⌋ of the least rank, Φ⁻¹((mean rank − ½)/N), in each group by itself, without those that are NaN."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 40).astype(np.float64)
    groups = rng.integers(0, 3, 40)
    scores[[3, 17]] = np.nan
    for own in (None, groups):
        classes, normal = quantile_classes(scores, 4, own), normal_scores(scores, own)
        for group in (0,) if own is None else (0, 1, 2):
            rows = np.flatnonzero(~np.isnan(scores) & (True if own is None else own == group))
            low, mean = rankdata(scores[rows], "min"), rankdata(scores[rows], "average")
            assert classes[rows].tolist() == ((low - 1).astype(int) * 4 // len(rows)).tolist()
            np.testing.assert_allclose(normal[rows], norm.ppf((mean - 0.5) / len(rows)), rtol=1e-9, atol=1e-12)
        assert classes[[3, 17]].tolist() == [-1, -1]
        assert np.isnan(normal[[3, 17]]).all()
    assert quantile_classes([np.nan, np.nan], 2).tolist() == [-1, -1]
    assert quantile_classes([5, 4, 3], 3).tolist() == [2, 1, 0]
    for wrong in (np.zeros((2, 2)), ["a", "b"], [True, False]):
        with pytest.raises(UsageError, match="list of numbers"):
            quantile_classes(wrong, 2)
    with pytest.raises(UsageError, match="as many groups"):
        normal_scores([1.0, 2.0], [0])


def test_the_share_held_out_of_every_class():
    classes = np.array([0] * 10 + [1] * 30 + [2] * 3 + [-1] * 9 + [4])
    for part, counts in ((0.0, [0, 0, 0, 0]), (0.25, [2, 8, 1, 0]), (0.9, [9, 27, 2, 0]), (0.999, [9, 29, 2, 0])):
        held = held_out(classes, part, seed=5)
        assert [int(held[classes == kind].sum()) for kind in (0, 1, 2, 4)] == counts  # round(2.5) is 2
        assert not held[classes == -1].any()
    two = held_out(np.array([0] * 20 + [1] * 20), 0.5, seed=5)
    assert not np.array_equal(two[:20], two[20:]), "another class is drawn by itself"
    assert not np.array_equal(two, held_out(np.array([0] * 20 + [1] * 20), 0.5))
    for wrong in (1.0, -1e-9, 1.5):
        with pytest.raises(UsageError, match=r"\[0, 1\)"):
            held_out(classes, wrong)


def test_plain_distances_sum_in_full_precision():
    a, b = (Noise.of(s, range(2)).normal("x", (3, 2)) for s in (0, 1))
    for name, power in (("squared", 2), ("absolute", 1)):
        called, pair = distance(name)
        assert called == name
        found = pair(a, b)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, ((a - b).double().abs() ** power).sum((1, 2)))
    assert distance()[0] == "lite0"
