"""Classes of rarity by rank, and the table of scores (H6)."""

import json

import numpy as np
import pytest

from ornstein.data.base import First
from ornstein.errors import DataError, UsageError
from ornstein.rarity import Table, held_out, normal_scores, quantile_classes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "count"), [(1000, 10), (1003, 10), (98, 49), (500, 103), (7, 7), (5, 7), (1001, 98)])
def test_classes_are_equal_and_ordered(n, count, dtype):
    scores = np.random.default_rng(n).normal(size=n).astype(dtype)
    classes = quantile_classes(scores, count)
    sizes = np.bincount(classes, minlength=count)
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(classes[np.argsort(scores)]) >= 0).all()
    assert classes[scores.argmin()] == 0
    if n >= count:
        assert classes[scores.argmax()] == count - 1


def test_the_rarest_image_is_in_the_last_class_for_every_count():
    """Thresholds at j/L in floating point lose it for 49, 98, 103, …"""
    assert all(quantile_classes(np.arange(2.0 * count), count)[-1] == count - 1 for count in range(2, 1001))


def test_classes_are_the_quantile_thresholds():
    """j where q_{j-1} < l ≤ q_j, with the thresholds as order statistics."""
    scores = np.random.default_rng(0).normal(size=200)
    thresholds = np.sort(scores)[[20 * (j + 1) - 1 for j in range(10)]]
    assert np.array_equal(quantile_classes(scores, 10), np.searchsorted(thresholds, scores, side="left"))


def test_ties_share_a_class_and_nan_has_none():
    scores = np.array([2.0, 1.0, 2.0, 2.0, np.nan, 3.0, 1.0])
    classes = quantile_classes(scores, 3)
    assert classes.tolist() == [1, 0, 1, 1, -1, 2, 0]
    assert set(quantile_classes(np.zeros(50), 10)) == {0}
    rng = np.random.default_rng(1).integers(0, 5, 300).astype(np.float32)
    found = quantile_classes(rng, 7)
    assert all(len(set(found[rng == value])) == 1 for value in range(5))


def test_each_group_is_binned_by_itself():
    rng = np.random.default_rng(2)
    scores, groups = rng.normal(size=300), rng.integers(0, 3, 300)
    scores[groups == 1] += 100.0
    classes = quantile_classes(scores, 5, groups)
    for group in range(3):
        alone = quantile_classes(scores[groups == group], 5)
        assert np.array_equal(classes[groups == group], alone)
    with pytest.raises(UsageError, match="as many groups"):
        quantile_classes(scores, 5, groups[:-1])
    with pytest.raises(UsageError, match="at least two"):
        quantile_classes(scores, 1)


def test_normal_scores_are_normal_and_in_order():
    scores = np.random.default_rng(3).exponential(size=501)
    normal = normal_scores(scores)
    assert np.array_equal(np.argsort(normal), np.argsort(scores))
    assert abs(normal.mean()) < 1e-12
    assert normal.std() == pytest.approx(1.0, abs=0.01)
    assert np.isnan(normal_scores([1.0, np.nan, 2.0])[1])
    assert normal_scores([1.0, 1.0]).tolist() == [0.0, 0.0]


def test_validation_is_stratified():
    classes = np.repeat(np.arange(10), 40)
    held = held_out(classes, 0.05, seed=3)
    assert np.bincount(classes[held], minlength=10).tolist() == [2] * 10
    assert np.array_equal(held, held_out(classes, 0.05, seed=3))
    assert not np.array_equal(held, held_out(classes, 0.05, seed=4))
    assert not held_out(np.array([0, 1]), 0.9).any(), "a class keeps an example for training"
    assert not held_out(np.full(10, -1), 0.5).any()


@pytest.mark.parametrize("suffix", ["csv", "json", "safetensors"])
def test_a_table_comes_back_bit_for_bit(brightness, tmp_path, suffix):
    table = Table.read(brightness)
    scores = table.scores / 3.0
    scores[3] = np.nan
    names = ('a "quoted", name\nof two lines', "ünïcode", *table.names[2:])
    whole = Table(header=table.header, names=names, scores=scores, labels=table.labels)
    path = tmp_path / f"table.{suffix}"
    whole.write(path)
    again = Table.read(path)
    assert again.scores.tobytes() == scores.tobytes()
    assert (again.names, again.header) == (names, dict(table.header))
    assert np.array_equal(again.labels, table.labels)


def test_a_table_is_plain_csv_with_its_header_beside_it_and_older_files_are_read(brightness, tmp_path):
    import csv

    table = Table.read(brightness)
    path = tmp_path / "t.csv"
    table.write(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {"index", "name", "score", "label"}
    assert [float(row["score"]) for row in rows] == table.scores.tolist()
    assert json.loads((tmp_path / "t.csv.json").read_text()) == dict(table.header)
    old = tmp_path / "old.csv"
    old.write_text(f"# {json.dumps(dict(table.header))}\n{path.read_text()}")
    assert Table.read(old).header == table.header
    (tmp_path / "t.csv.json").unlink()
    with pytest.raises(DataError, match=r"t\.csv\.json cannot be read .*: it heads the table of scores"):
        Table.read(path)


def test_scores_of_other_data_are_refused(brightness, source, tmp_path):
    table = Table.read(brightness)
    table.check(source)
    with pytest.raises(DataError, match="belong to other data"):
        table.check(First(source=source, count=95))
    for text in (
        "",
        "index,name\n",
        "# {}\nindex,name,score,label\n",
        '# {"format": "ornstein-rarity", "version": 9}\n',
    ):
        path = tmp_path / "broken.csv"
        path.write_text(text)
        with pytest.raises(DataError, match="table of scores"):
            Table.read(path)
    lines = brightness.read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(lines[:-3]) + "\n")
    (tmp_path / "short.csv.json").write_bytes(brightness.with_name(brightness.name + ".json").read_bytes())
    with pytest.raises(DataError, match="torn"):
        Table.read(tmp_path / "short.csv")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(DataError, match="not a readable"):
        Table.read(tmp_path / "broken.safetensors")
    (tmp_path / "broken.json").write_text(json.dumps({"rows": 3}))
    with pytest.raises(DataError, match="not a readable"):
        Table.read(tmp_path / "broken.json")
    with pytest.raises(UsageError, match="ends in"):
        table.write(tmp_path / "table.txt")
    with pytest.raises(DataError, match="there is no table"):
        Table.read(tmp_path / "none.csv")
