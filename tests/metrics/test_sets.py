"""Statistics of image sets: one number for any batch size and number of processes, and files that can be trusted."""

import itertools
import json
import os
import random
from types import SimpleNamespace

import pytest
import torch

from ornstein.data.base import UnreadableError
from ornstein.errors import DataError, UsageError
from ornstein.metrics import Statistics, compare, files, sets, statistics
from ornstein.metrics.inceptionv3 import STANDARD


class Projection:
    """A random rectified projection of the pixels; it notes the batches it sees."""

    def __init__(self, name="projection", width=12, side=6):
        self.name, self.width = name, width
        self.matrix = torch.randn(3 * side * side, width, generator=torch.Generator().manual_seed(1))
        self.shapes = set()

    def __call__(self, images):
        self.shapes.add(tuple(images.shape))
        # In float64: the place in a block does not show in the multiples of 2⁻¹⁶ that features are rounded to.
        flat = images.flatten(1).double() / 255.0
        return (flat @ self.matrix.double()).relu().float()


class Folder:
    """A source that counts what is read of it."""

    def __init__(self, images, broken=()):
        self.images, self.broken, self.read = images, broken, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableError(f"{index}.png", "truncated")
        if not 0 <= index < len(self):
            raise IndexError(index)
        self.read.append(index)
        return SimpleNamespace(image=self.images[index])


def pictures(n, seed=0, side=6):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


def same(a, b):
    return (
        a.moments == b.moments
        and a.sample.indices == b.sample.indices
        and a.sample.rows(12).tobytes() == b.sample.rows(12).tobytes()
        and (a.fingerprint, a.resolution, a.features) == (b.fingerprint, b.resolution, b.features)
    )


@pytest.fixture(scope="module")
def whole():
    return statistics(pictures(133), Projection(), capacity=40)


@pytest.mark.parametrize("batch", [1, 7, 32, 100])
def test_any_batch_size(whole, batch):
    x, net = pictures(133), Projection()
    assert same(statistics((x[i : i + batch] for i in range(0, 133, batch)), net, capacity=40), whole)
    assert net.shapes == {(32, 3, 6, 6)}  # the network never sees the caller's batches


def test_any_container(whole):
    x = pictures(133)
    for images in (list(x), iter(x), Folder(x), (SimpleNamespace(image=one) for one in x), [x[:50], x[50:]]):
        assert same(statistics(images, Projection(), capacity=40), whole)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_any_number_of_processes(whole, world):
    x = pictures(133)
    parts = [statistics(x, Projection(), rank=r, world=world, capacity=40) for r in range(world)]
    streamed = [statistics(iter(x), Projection(), rank=r, world=world, capacity=40) for r in range(world)]
    assert all(same(a, b) for a, b in zip(parts, streamed, strict=True))
    assert sum(part.count for part in parts) == 133
    for seed in range(4):
        random.Random(seed).shuffle(parts)
        assert same(parts[0].merge(*parts[1:]), whole)
    for order in itertools.islice(itertools.permutations(parts), 6):
        one = order[0]
        for part in order[1:]:
            one = one.merge(part)
        assert same(one, whole)
        assert one.complete


def test_a_rank_reads_its_own_blocks_only():
    source = Folder(pictures(133))
    statistics(source, Projection(), rank=1, world=3)
    assert source.read == [*range(32, 64), *range(128, 133)]


def test_unreadable_images_are_left_out_and_counted():
    x = pictures(70)
    broken = {3, 40, *range(64, 70)}
    found = statistics(Folder(x, broken), Projection())
    assert (found.count, found.skipped) == (62, 8)
    assert found.moments == statistics(x[[i for i in range(70) if i not in broken]], Projection()).moments
    assert compare(found, found).as_dict()["skipped"] == 16


def test_grey_is_read_as_colour():
    grey = pictures(9)[:, :1]
    assert same(statistics(grey, Projection()), statistics(grey.expand(-1, 3, -1, -1), Projection()))


def test_the_fingerprint_knows_content_and_order():
    x = pictures(40)
    y = x.clone()
    y[7, 0, 0, 0] ^= 1
    prints = {statistics(images, Projection()).fingerprint for images in (x, y, x.flip(0), x[:39])}
    assert len(prints) == 4


class Heads(Projection):
    """A projection with the further outputs that some metrics are defined on."""

    heads = ("pooled", "spatial", "classes")

    def outputs(self, images):
        pooled = self(images)
        return {"pooled": pooled, "spatial": images.flatten(1)[:, :20] / 255.0, "classes": pooled[:, :5]}


KEEP = ("spatial", "classes", "vectors")


def kept(one):
    return (
        one.spatial.total.tobytes() + one.spatial.products.tobytes(),
        one.classes.totals.tobytes() + one.classes.entropies.tobytes() + one.classes.counts.tobytes(),
        one.vectors.indices.tobytes() + one.vectors.rows.tobytes(),
    )


def test_what_is_kept_is_the_same_for_any_batch_and_number_of_processes(tmp_path):
    x = pictures(133)
    whole = statistics(x, Heads(), keep=KEEP)
    assert whole.vectors.rows.shape == (133, 12)
    assert whole.spatial.count == whole.classes.count == 133
    assert kept(statistics((x[i : i + 7] for i in range(0, 133, 7)), Heads(), keep=KEEP)) == kept(whole)
    for world in (2, 7):  # the last of seven has no images
        parts = [statistics(x, Heads(), keep=KEEP, rank=r, world=world) for r in range(world)]
        random.Random(world).shuffle(parts)
        merged = parts[0].merge(*parts[1:])
        assert kept(merged) == kept(whole)
        merged.save(tmp_path / "file")
        assert kept(Statistics.load(tmp_path / "file")) == kept(whole)
    with pytest.raises(UsageError, match="keep different things"):
        parts[0].merge(statistics(x, Heads(), rank=1, world=7))
    with pytest.raises(UsageError, match="no classes or spatial output"):
        statistics(x, Projection(), keep=KEEP)
    with pytest.raises(UsageError, match="cannot keep everything"):
        statistics(x, Heads(), keep=("everything",))


def test_several_networks_in_one_file(tmp_path):
    both = [statistics(pictures(20), net, about={"source": "noise"}) for net in (Projection(), Projection("other"))]
    files.write(tmp_path / "file", both)
    back = sets.read_statistics(tmp_path / "file")
    assert [one.features for one in back] == ["projection", "other"]
    assert all(same(a, b) and a.about == {"source": "noise"} for a, b in zip(both, back, strict=True))
    with pytest.raises(UsageError, match="each feature network"):
        files.write(tmp_path / "file", [both[0], both[0]])


def test_an_edited_description_is_noticed(whole, tmp_path):
    path = tmp_path / "reference"
    whole.save(path)
    content = path.read_bytes()
    assert content.count(b"projection") == 1
    path.write_bytes(content.replace(b"projection", b"inceptions"))
    with pytest.raises(DataError, match="checksum"):
        Statistics.load(path)


def test_save_and_load(whole, tmp_path):
    path = tmp_path / "deep" / "reference.safetensors"
    whole.save(path)
    back = Statistics.load(path)
    assert same(back, whole)
    assert (back.count, back.parts, back.world, back.skipped) == (133, {0}, 1, 0)
    assert compare(back, whole).as_dict() == compare(whole, whole).as_dict()
    assert [file.name for file in path.parent.iterdir()] == ["reference.safetensors"]


def test_a_part_without_images_survives_a_file(tmp_path):
    x = pictures(20)
    parts = [statistics(x, Projection(), rank=r, world=2) for r in range(2)]
    assert parts[1].resolution is None
    for rank, part in enumerate(parts):
        part.save(tmp_path / f"{rank}")
    loaded = [Statistics.load(tmp_path / f"{rank}") for rank in range(2)]
    assert same(loaded[1].merge(loaded[0]), statistics(x, Projection()))


def test_damaged_files_are_refused(whole, tmp_path):
    path = tmp_path / "reference"
    whole.save(path)
    good = path.read_bytes()
    for length in (0, 5, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(DataError, match="truncated or damaged"):
            Statistics.load(path)
    path.write_bytes(good[:-300] + bytes([good[-300] ^ 1]) + good[-299:])
    with pytest.raises(DataError, match="checksum"):
        Statistics.load(path)
    with pytest.raises(DataError, match="no statistics at"):
        Statistics.load(tmp_path / "absent")


def test_foreign_files_are_refused(whole, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(DataError, match="holds no statistics"):
        Statistics.load(tmp_path / "other")
    save_file({"a": torch.ones(2)}, tmp_path / "newer", metadata={"ornstein.statistics": json.dumps({"format": 99})})
    with pytest.raises(DataError, match="format 99"):
        Statistics.load(tmp_path / "newer")
    save_file({"a": torch.ones(2)}, tmp_path / "list", metadata={"ornstein.statistics": "[]"})
    with pytest.raises(DataError, match="holds no statistics"):
        Statistics.load(tmp_path / "list")


def test_a_failed_save_leaves_the_old_file(whole, tmp_path, monkeypatch):
    path = tmp_path / "reference"
    whole.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        statistics(pictures(9), Projection()).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["reference"]


def test_merge_refuses_what_does_not_belong_together(whole):
    x = pictures(100)
    half = statistics(x, Projection(), rank=0, world=2)
    with pytest.raises(UsageError, match="overlap"):
        half.merge(half)
    with pytest.raises(UsageError, match="numbers of processes"):
        half.merge(statistics(x, Projection(), rank=1, world=3))
    with pytest.raises(UsageError, match="different features"):
        half.merge(statistics(x, Projection("other"), rank=1, world=2))
    with pytest.raises(UsageError, match="resolutions"):
        half.merge(statistics(pictures(100, side=4), Projection(side=4), rank=1, world=2))


def test_statistics_refuse_bad_images():
    net = Projection()
    for empty in (torch.zeros(0, 3, 6, 6, dtype=torch.uint8), [], iter(()), Folder([])):
        with pytest.raises(DataError, match="not one image"):
            statistics(empty, net)
    for bad in (torch.rand(4, 3, 6, 6), torch.zeros(4, 4, 6, 6, dtype=torch.uint8), ["a.png"]):
        with pytest.raises(UsageError, match="uint8 tensor"):
            statistics(bad, net)
    with pytest.raises(UsageError, match="resolutions"):
        statistics([pictures(3), pictures(1, side=4)], net)
    with pytest.raises(UsageError, match="resolutions"):
        statistics([pictures(32), pictures(1, side=4)], net)
    with pytest.raises(UsageError, match="not one of 2 processes"):
        statistics(pictures(3), net, rank=2, world=2)
    with pytest.raises(UsageError, match=r"shape \(N, C, H, W\)"):
        statistics(pictures(1)[0], net)


def test_compare_reports_names_and_counts():
    a, b = (statistics(pictures(n, seed=n), Projection()) for n in (64, 50))
    found = compare(a, b)
    assert (found.n_a, found.n_b, found.resolution) == (64, 50, (6, 6))
    assert {"FD-projection", "KID-projection", "KID-projection error"} <= found.as_dict().keys()
    assert not {"FID", "KID"} & found.as_dict().keys()
    assert json.loads(json.dumps(found.as_dict()))["images"] == [64, 50]
    assert "FD-projection" in str(found)
    assert compare(b, a).distance == pytest.approx(found.distance, rel=1e-10)
    assert compare(a, a).distance < 1e-10
    assert compare(statistics(pictures(5), Projection()), b).kid_error is None


def test_only_the_standard_weights_are_called_fid():
    for name, names in ((STANDARD, ("FID", "KID")), ("inception-0badcafe", ("FD-inception-0badcafe",))):
        one = statistics(pictures(9), Projection(name))
        assert compare(one, one).names[: len(names)] == names


def test_compare_refuses_what_cannot_be_compared(whole):
    with pytest.raises(UsageError, match="features"):
        compare(whole, statistics(pictures(9), Projection("other")))
    with pytest.raises(UsageError, match="resolutions"):
        compare(whole, statistics(pictures(9, side=4), Projection(side=4)))
    with pytest.raises(UsageError, match=r"ranks \[1\] of 2"):
        compare(whole, statistics(pictures(133), Projection(), rank=0, world=2))
    with pytest.raises(UsageError, match="at least 2 images"):
        compare(whole, statistics(pictures(1), Projection()))
