"""The drawn set: exact masks, true captions, stable fingerprints, and a cache that cannot harm."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein.data import cache as cache_module
from ornstein.data import captions, embedded, open_source
from ornstein.data.base import First
from ornstein.errors import DataError
from ornstein.storage import files


@pytest.fixture(scope="module")
def critters(tmp_path_factory: pytest.TempPathFactory) -> embedded.Drawn:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORNSTEIN_CACHE", str(tmp_path_factory.mktemp("critters")))
        return embedded.open_drawn("critters", ("critters",), size=64, count=48)


def test_masks_have_known_sizes(critters: embedded.Drawn) -> None:
    sizes = {part: int(critters.mask(3, part).sum()) for part in ("eyes", "top", "mouth", "pattern", "cheeks")}
    assert sizes == {"eyes": 156, "top": 68, "mouth": 40, "pattern": 36, "cheeks": 0}


def test_a_mask_is_where_the_picture_changes(critters: embedded.Drawn) -> None:
    for index in (1, 3):
        image, mask = critters[index].image, critters.mask(index, "eyes")
        without, _ = embedded.draw("critters", 64, {"seed": str(index), "eyesProbability": 0})
        assert mask.dtype == torch.bool
        assert torch.equal(image[:, ~mask], torch.from_numpy(without)[:, ~mask])
        assert bool((image != torch.from_numpy(without)).any(0)[mask].all())


def test_unknown_parts_are_refused(critters: embedded.Drawn) -> None:
    with pytest.raises(DataError, match=r"no part 'wheels'; its parts are top, body"):
        critters.mask(0, "wheels")


def test_labels_and_captions_tell_the_truth(critters: embedded.Drawn) -> None:
    assert len(set(critters.classes)) == 12
    for index in range(len(critters)):
        example, chosen = critters[index], critters.attributes(index)
        assert critters.classes[example.label] == f"{chosen['body colour']} critter"
        assert f"{chosen['body colour']} critter" in example.caption
        assert example.caption.endswith(f" on {chosen['background colour']}")
        assert set(critters.parts(index)) <= set(chosen)
        for part in {"top", "eyes", "mouth", "pattern", "cheeks"} & set(chosen):
            alone = captions.caption("critters", {"body colour": "lime", part: chosen[part]})
            assert alone.removeprefix("a lime critter with ") in example.caption
    # The label is what one sees: most of the body's middle has the colour of the class.
    for index in range(8):
        code = critters.pictures.notes[index]["body colour"]
        assert captions.colour_name(code) == critters.attributes(index)["body colour"]
        colour = torch.tensor([int(code[i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8).reshape(3, 1, 1)
        assert int((critters[index].image == colour).all(0).sum()) > 300


def test_every_critter_option_has_words() -> None:
    for number in range(100):
        _, chosen = embedded.draw("critters", 8, {"seed": str(number)})
        text = captions.caption("critters", captions.named(chosen))
        assert text == text.lower()
        assert "  " not in text
        assert " a an " not in text
        assert " a a " not in text


def test_a_source_says_what_it_holds() -> None:
    """Names, seeds, labels and licences of one style and of several; the published number of pictures."""
    assert embedded.DEFAULT_COUNT == 4096
    assert " ".join(embedded.STYLES) == (  # their order is that of the labels
        "cameo clay constellation critters cutouts gaze landscape lorelei marbles moods notionists open-peeps "
        "pixel-art pixelbot planets shapes sprouts stack thumbs voxel-art voxel-bot blobs"
    )
    one, several = open_source("stack:5", size=16), open_source("dicebear:stack,critters:7", size=16)
    assert (one.name, one.classes, len(one), one[3].label, one[3].name) == ("stack:5", (), 5, -1, "stack/3")
    assert (several.classes, [several[i].label for i in range(7)]) == (("stack", "critters"), [0, 1, 0, 1, 0, 1, 0])
    assert [several[i].name for i in (0, 1, 5, -1)] == ["stack/0", "critters/0", "critters/2", "stack/3"]
    assert torch.equal(several[6].image, one[3].image)
    assert several[5].caption == open_source("critters:3", size=16)[2].caption
    assert one.licence == "CC0 1.0"  # type: ignore[attr-defined]
    assert embedded.known_styles() == tuple(sorted(embedded.known_styles()))
    assert {"critters", "dylan", *embedded.STYLES} <= set(embedded.known_styles())
    critters = open_source("critters:4", size=16)
    assert critters.parts(-1) == critters.parts(3)  # type: ignore[attr-defined]
    assert critters.attributes(-1) == critters.attributes(3)  # type: ignore[attr-defined]
    assert torch.equal(critters.mask(-1, "eyes"), critters.mask(3, "eyes"))  # type: ignore[attr-defined]
    assert not [part for part in critters.parts(3) if part.endswith("colour")]  # type: ignore[attr-defined]
    for wrong in (4, -5):
        with pytest.raises(IndexError):
            critters.mask(wrong, "eyes")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="unknown style 'zork'; known are adventurer"):
        embedded.open_drawn("zork", ("zork",), size=16)


def test_colours_have_the_nearest_name() -> None:
    assert captions.colour_name("#FDA4AF") == "pink"
    assert captions.colour_name("#010101") == "black"
    assert captions.colour_name("#fefefe") == "white"
    assert captions.colour_name("#cc2020") == "red"


def test_drawing_is_a_function_of_style_seed_and_size() -> None:
    first, again = (embedded.draw("stack", 32, {"seed": "5"})[0] for _ in range(2))
    assert first.shape == (3, 32, 32)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, embedded.draw("stack", 32, {"seed": "6"})[0])


def test_drawing_is_on_white_and_knows_no_font_of_the_machine() -> None:
    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{}</svg>'
    text = embedded.rasterize(box.format('<text y="14" font-size="16" font-family="sans-serif">W</text>'), 32)
    assert text.shape == (3, 32, 32)
    assert (text == 255).all()
    half = embedded.rasterize(box.format('<rect width="8" height="16" fill="#102030" fill-opacity="0.2"/>'), 16)
    assert half[:, 5, 3].tolist() == [round(255 * 0.8 + value * 0.2) for value in (16, 32, 48)]
    assert half[:, 5, 12].tolist() == [255, 255, 255]
    assert half.flags.c_contiguous
    for view, shape in (("0 0 16 8", (3, 6, 12)), ("0 0 8 16", (3, 12, 6))):  # an oblong drawing fits into the square
        assert embedded.rasterize(box.replace("0 0 16 16", view).format(""), 12).shape == shape


def test_the_default_styles_are_cc0() -> None:
    assert len(embedded.STYLES) == len(set(embedded.STYLES)) >= 20
    for style in embedded.STYLES:
        assert embedded.licence_of(style).startswith("CC0")


def test_several_styles_are_balanced_classes() -> None:
    source = open_source("dicebear:stack,critters,dylan:9", size=16)
    assert source.classes == ("stack", "critters", "dylan")
    assert [source[i].label for i in range(9)] == [0, 1, 2] * 3
    assert torch.equal(source[4].image, open_source("critters:2", size=16)[1].image)


@pytest.mark.slow
def test_every_default_style_draws_distinct_pictures() -> None:
    source = open_source("dicebear:110", size=32)
    assert source.classes == embedded.STYLES
    assert len({source[i].image.numpy().tobytes() for i in range(110)}) == 110
    assert all(captions.noun(s) in source[i].caption for i, s in enumerate(embedded.STYLES))


def test_another_version_of_a_renderer_or_of_the_styles_is_another_set(monkeypatch: pytest.MonkeyPatch) -> None:
    prints, version = [open_source("stack:2", size=16).fingerprint], embedded.version
    for changed in ("dicebear-core", "dicebear-styles", "resvg_py"):
        monkeypatch.setattr(embedded, "version", lambda name, changed=changed: version(name) + "!" * (name == changed))
        prints.append(open_source("stack:2", size=16).fingerprint)
    assert len(set(prints)) == 4


def test_other_licences_must_be_named() -> None:
    with pytest.raises(DataError, match=r"dylan is under 'CC BY 4.0', not CC0; write dicebear:dylan"):
        open_source("dylan", size=16)
    source = open_source("dicebear:dylan,critters:2", size=16)
    assert source.licence == "CC BY 4.0, CC0 1.0"  # type: ignore[attr-defined]


def test_a_limit_keeps_the_first_examples_and_changes_the_fingerprint() -> None:
    whole, some = open_source("critters:12", size=16), open_source("critters:12", size=16, limit=5)
    assert len(some) == 5
    assert torch.equal(whole[4].image, some[4].image)
    assert some.classes == whole.classes
    assert whole.fingerprint != some.fingerprint
    assert whole.fingerprint == open_source("critters:12", size=16).fingerprint
    part = First(source=whole, count=3)
    assert len(list(part)) == 3  # IndexError ends iteration
    assert part.fingerprint not in {whole.fingerprint, First(source=whole, count=4).fingerprint}


# --------------------------------------------------------------------------------------------------------- the cache


def _draw(index: int) -> tuple[np.ndarray, dict[str, str]]:
    return np.full((3, 8, 8), index, dtype=np.uint8), {"number": str(index)}


def _only_files(folder: Path) -> list[str]:
    return sorted(p.suffix for p in folder.iterdir())


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "fresh"))
    return tmp_path / "fresh"


def test_pictures_are_drawn_once(fresh: Path) -> None:
    drawn: list[int] = []

    def counted(index: int) -> tuple[np.ndarray, dict[str, str]]:
        drawn.append(index)
        return _draw(index)

    for _ in range(2):
        found = cache_module.pictures({"what": "numbers"}, 5, 8, counted)
        assert [int(p[0, 0, 0]) for p in found.array] == drawn == [0, 1, 2, 3, 4]
        assert found.notes[3] == {"number": "3"}
    assert _only_files(fresh) == [".json", ".npy"]
    cache_module.pictures({"what": "others"}, 5, 8, counted)
    assert len(drawn) == 10


@pytest.mark.parametrize("harm", ["truncate", "flip", "foreign", "json", "gone", "shape"])
def test_a_damaged_cache_is_made_again(fresh: Path, harm: str) -> None:
    good = np.array(cache_module.pictures({"what": "numbers"}, 5, 8, _draw).array)
    (array,), (notes,) = fresh.glob("*.npy"), fresh.glob("*.json")
    data = array.read_bytes()
    if harm == "truncate":
        array.write_bytes(data[:-100])
    elif harm == "flip":
        array.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "foreign":
        # Another entry under this one's name: whole and well formed, but made from something else.
        cache_module.pictures({"what": "others"}, 5, 8, lambda i: _draw(i + 1))
        for own, suffix in ((array, "*.npy"), (notes, "*.json")):
            next(p for p in fresh.glob(suffix) if p != own).replace(own)
    elif harm == "json":
        notes.write_text("{")
    elif harm == "gone":
        array.unlink()
    else:
        np.save(array, np.zeros((2, 2)))
    again = cache_module.pictures({"what": "numbers"}, 5, 8, _draw)
    assert np.array_equal(again.array, good)
    assert array.read_bytes() == data


def test_an_unwritable_cache_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "file" / "cache"))
    found = cache_module.pictures({"what": "numbers"}, 5, 8, _draw)
    assert [int(p[0, 0, 0]) for p in found.array] == [0, 1, 2, 3, 4]
    assert len(open_source("critters:3", size=16)) == 3


def test_several_processes_draw_the_same(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = np.array(cache_module.pictures({"what": "alone"}, 40, 8, _draw).array)
    monkeypatch.setattr(cache_module, "PARALLEL_FROM", 8)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    seen: list[tuple[int, int]] = []
    together = cache_module.pictures({"what": "together"}, 40, 8, _draw, lambda done, total: seen.append((done, total)))
    assert np.array_equal(alone, together.array)
    assert seen == [(40, 40)]


def test_a_source_travels_to_another_process_without_its_pictures(critters: embedded.Drawn) -> None:
    data = pickle.dumps(critters)
    assert len(data) < 40_000 < critters.pictures.array.nbytes
    assert torch.equal(pickle.loads(data)[7].image, critters[7].image)


def test_atomic_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.atomic(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
