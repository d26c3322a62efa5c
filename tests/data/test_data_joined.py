"""Joined sources: parts in their proportions, labels that say the part, and everything else as the parts have it."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ornstein.data import batches, open_source
from ornstein.data.base import UnreadableError
from ornstein.data.joined import Joined, join, pieces
from ornstein.errors import DataError

WHERE = "critters:24+planets:4+landscape:8"


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORNSTEIN_CACHE", str(tmp_path_factory.mktemp("joined")))
        source = open_source(WHERE, size=32)
    assert isinstance(source, Joined)
    return source


def test_every_example_of_every_part_is_there_once(joined: Joined) -> None:
    assert (len(joined), joined.classes, joined.size, joined.name) == (
        36,
        ("critters", "planets", "landscape"),
        32,
        WHERE,
    )
    places = [joined.place(i) for i in range(36)]
    assert sorted(places) == [(p, n) for p, count in enumerate((24, 4, 8)) for n in range(count)]
    for index in (0, 7, -1):
        part, number = joined.place(index)
        ours, theirs = joined[index], joined.sources[part][number]
        assert torch.equal(ours.image, theirs.image)
        assert (ours.label, ours.caption, ours.name) == (part, theirs.caption, theirs.name)
        assert ours.caption
    with pytest.raises(IndexError):
        joined[36]


def test_any_first_part_holds_the_parts_in_proportion(joined: Joined) -> None:
    for count in (9, 18, 27):
        labels = [joined[i].label for i in range(count)]
        for part, whole in enumerate((24, 4, 8)):
            assert abs(labels.count(part) - count * whole / 36) <= 1
    assert len(open_source(WHERE, size=32, limit=9)) == 9


def test_example_j_of_a_part_stands_at_its_middle(joined: Joined) -> None:
    """(j + ½)/n of the whole, the earlier part first where two are equal."""
    counts = (24, 4, 8)
    stands = sorted((Fraction(2 * j + 1, 2 * n), part, j) for part, n in enumerate(counts) for j in range(n))
    assert [joined.place(i) for i in range(36)] == [(part, j) for _, part, j in stands]


def test_classes_are_the_parts_without_counts_and_folders() -> None:
    class Part:
        size, licence = 8, ""

    def names(*texts: str) -> tuple[str, ...]:
        return join("+".join(texts), texts, [Part() for _ in texts]).classes  # type: ignore[misc]

    assert names("critters:3800", "planets", "dicebear:stack,thumbs:9") == (
        "critters",
        "planets",
        "dicebear:stack,thumbs",
    )
    assert names("/data/cats", "deep/dogs/", "~/x/foxes:7") == ("cats", "dogs", "foxes")
    assert names("hf:owner/name", "hf:owner/name:test", "hf:o/n:3") == ("hf:owner/name", "hf:owner/name:test", "hf:o/n")
    assert names("critters:3", "/a/critters", "b/critters", "c/cats") == (
        "critters:3",
        "/a/critters",
        "b/critters",
        "cats",
    )
    assert names(":5", "a:b") == (":5", "a:b")


def test_parts_have_one_size_and_tell_their_licences() -> None:
    class Part:
        def __init__(self, size: int, **known: str) -> None:
            self.size = size
            self.__dict__ |= known

    with pytest.raises(DataError, match=r"^a\+b: all parts must have one size, got 8, 9$"):
        join("a+b", ("a", "b"), [Part(8), Part(9)])  # type: ignore[list-item]
    parts = [Part(8, licence="CC0"), Part(8), Part(8, licence=""), Part(8, licence="MIT"), Part(8, licence="CC0")]
    assert join("x", "abcde", parts).licence == "CC0, MIT"  # type: ignore[arg-type]


def test_masks_and_attributes_are_the_parts(joined: Joined) -> None:
    index = next(i for i in range(36) if joined.place(i) == (0, 3))
    critters = joined.sources[0]
    assert joined.attributes(index) == critters.attributes(3)  # type: ignore[attr-defined]
    assert joined.parts(index) == critters.parts(3)  # type: ignore[attr-defined]
    assert torch.equal(joined.mask(index, "eyes"), critters.mask(3, "eyes"))  # type: ignore[attr-defined]
    planet = next(i for i in range(36) if joined.place(i)[0] == 1)
    with pytest.raises(DataError, match="style planets has no part 'eyes'"):
        joined.mask(planet, "eyes")
    assert joined.licence == "CC0 1.0"


def test_the_fingerprint_knows_all_parts() -> None:
    texts = ("critters:6+planets:2", "critters:6+planets:3", "planets:2+critters:6", "critters:5+planets:2")
    found = [open_source(text, size=16).fingerprint for text in texts]
    assert len(set(found)) == 4
    assert open_source(texts[0], size=16).fingerprint == found[0]
    assert open_source(texts[0], size=32).fingerprint != found[0]


def test_a_plus_may_belong_to_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = folder.parent / "cats+dogs"
    folder.rename(both)
    monkeypatch.chdir(both.parent)
    assert len(open_source("cats+dogs", size=16)) == 10
    assert pieces("critters:4+planets:2") == ("critters:4", "planets:2")
    assert pieces("http://host/a+b.tar") == ("http://host/a+b.tar",)
    assert pieces(" critters:4 + planets") == ("critters:4", "planets")
    assert pieces("critters") == ("critters",)
    monkeypatch.setenv("HOME", str(both.parent))
    monkeypatch.chdir("/")
    assert pieces("~/cats+dogs") == ("~/cats+dogs",)
    assert pieces("cats+dogs") == ("cats", "dogs")


def test_folders_join_and_keep_what_they_cannot_do(folder: Path) -> None:
    other = folder.parent / "other" / "images"
    other.mkdir(parents=True)
    for path in sorted(folder.iterdir())[:3]:
        (other / path.name).write_bytes(path.read_bytes())
    (other / "zzz.png").write_bytes(b"no picture")
    joined = open_source(f"{folder}+{other}", size=16)
    assert isinstance(joined, Joined)
    assert joined.classes == (str(folder), str(other))  # both are called "images"
    torn = next(i for i in range(len(joined)) if joined.place(i) == (1, 3))
    with pytest.raises(UnreadableError, match=rf"^{other}: zzz\.png: not an image in any known format$"):
        joined[torn]
    with pytest.raises(DataError, match="only drawn sets"):
        joined.attributes(0)
    batch = next(batches(joined, batch=14, seed=0))
    assert sorted(batch.labels.tolist()).count(1) >= 3
    assert len(batch.skipped) == 1


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        open_source("critters:4+critters:4", size=16)
    assert open_source("critters:4+critters:5", size=16).classes == ("critters:4", "critters:5")
    with pytest.raises(DataError, match="a \\+ joins two"):
        open_source("critters:4+", size=16)
    with pytest.raises(DataError, match="no data source 'crittres'"):
        open_source("critters:4+crittres", size=16)


def test_it_travels_to_worker_processes(joined: Joined) -> None:
    copy = pickle.loads(pickle.dumps(joined))
    assert torch.equal(copy[11].image, joined[11].image)
    assert copy.fingerprint == joined.fingerprint
