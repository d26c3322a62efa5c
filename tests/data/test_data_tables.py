"""Tables of the parquet format and of the Hub, and the one text that names any source."""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ornstein.data import UnreadableError, open_source
from ornstein.errors import DataError


def png(value: int = 0, side: int = 8, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(file, kind)
    return file.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Files of equal content and time, so that nothing but what a test changes tells two folders apart."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())
        os.utime(root / name, ns=(0, 0))
    return root


def tar(path: Path, members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            file.addfile(info, io.BytesIO(data))
    os.utime(path, ns=(0, 0))
    return path


def listed(root: Path, *rows: dict[str, object]) -> str:
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return open_source(root, size=8).fingerprint


def all_different(prints: list[str]) -> bool:
    return len(set(prints)) == len(prints)


# --------------------------------------------------------------------------------------------------------------- tables


def parquet(path: Path, **columns: list[object]) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_columns_of_a_table_are_found_by_name_then_by_kind(tmp_path: Path) -> None:
    one, two = [png(1)], [png(2)]
    words = {"text": ["t"], "caption": ["c"]}
    path = parquet(tmp_path / "a.parquet", image=["text"], raw=one, img=two, cls=[5], label=[2], **words)
    source = open_source(path, size=8)
    assert source[0].image.unique().tolist() == [2]
    assert (source[0].caption, source[0].label, len(source.classes)) == ("c", 2, 3)
    path = parquet(tmp_path / "b.parquet", first=[1], raw=one, more=two, captions=[["x", "y"]], fine_label=["fox"])
    source = open_source(path, size=8)
    assert source[0].image.unique().tolist() == [1]
    assert (source[0].caption, source[0].label, source.classes) == ("x", 0, ("fox",))
    path = parquet(tmp_path / "c.parquet", image=one, label=[[1, 2]], prompt=[" p "])
    source = open_source(path, size=8)
    assert (source[0].caption, source[0].label, source.classes) == ("p", -1, ())
    path = parquet(tmp_path / "d.parquet", image=one * 2, label=[None, "a"], text=[None, "t"])
    source = open_source(path, size=8)
    assert [(source[i].caption, source[i].label) for i in range(2)] == [("", -1), ("t", 0)]


def test_every_usual_name_of_a_column_is_known(tmp_path: Path) -> None:
    """In this order: a column of the list before any other of the kind, an earlier one of the list before a later."""
    pictures = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values")
    labels, captions = ("label", "labels", "cls", "class", "fine_label"), ("caption", "text", "prompt", "captions")
    for names, decoy, of in (
        (pictures, [png(1)], lambda example: int(example.image[0, 0, 0])),
        (labels, ["x"], lambda example: example.label),
        (captions, ["x"], lambda example: example.caption),
    ):
        for first, later in itertools.pairwise((*names, None)):
            value = {pictures: [png(2)], labels: ["fox"], captions: ["words"]}[names]
            columns = {"other": decoy, **({later: decoy} if later else {}), first: value}
            columns |= {} if names is pictures else {"image": [png(3)]}
            source = open_source(parquet(tmp_path / "a.parquet", **columns), size=8)
            assert of(source[0]) == {pictures: 2, labels: 0, captions: "words"}[names], first
            assert names is not labels or source.classes == ("fox",)


def test_a_cell_may_name_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "deep/x.png")
    cells = [{"bytes": None, "path": str(tmp_path / "deep" / "x.png")}, {"bytes": png(9), "path": "y/name.png"}]
    cells += [{"bytes": None, "path": str(tmp_path / "absent.png")}, {"bytes": None, "path": None}]
    path = parquet(tmp_path / "a.parquet", image=cells)
    source = open_source(path, size=8)
    assert source[0].image.unique().tolist() == [0]
    assert source[-3].image.unique().tolist() == [9]
    assert [source[i].name for i in range(2)] == [f"{path}[0] x.png", f"{path}[1] name.png"]
    for index, reason in ((2, r"\[2\] absent\.png: no such file"), (3, r"\[3\]: the row has no image")):
        with pytest.raises(UnreadableError, match=reason):
            source[index]


def test_tables_are_known_by_names_content_and_size(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t" / "a.parquet", image=[png(1)])
    os.utime(path, ns=(0, 0))
    single, whole = open_source(path, size=8), open_source(path.parent, size=8)
    prints = [single.fingerprint, open_source(path, size=9).fingerprint]
    assert whole.fingerprint == single.fingerprint == open_source(path, size=8).fingerprint
    os.utime(path, ns=(0, 9))
    prints.append(open_source(path, size=8).fingerprint)
    (path.parent / "deep").mkdir()
    os.utime(path.rename(path.parent / "deep" / "a.parquet"), ns=(0, 0))
    prints.append(open_source(path.parent, size=8).fingerprint)
    assert all_different(prints)
    assert (single.name, whole.name) == (str(path), str(path.parent))


def test_progress_bars_are_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    path = parquet(tmp_path / "a.parquet", image=[png(1)])
    before, seen = datasets.are_progress_bars_disabled(), []
    read = datasets.Dataset.from_parquet

    def watched(files: list[str]) -> object:
        seen.append(datasets.are_progress_bars_disabled())
        return read(files)

    monkeypatch.setattr(datasets.Dataset, "from_parquet", watched)
    try:
        for disable in (datasets.disable_progress_bars, datasets.enable_progress_bars):
            disable()
            expected = datasets.are_progress_bars_disabled()
            open_source(path, size=8)
            assert datasets.are_progress_bars_disabled() == expected
        assert seen == [True, True]  # no bars for local files
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import HfApi, constants

    asked: list[object] = []
    sums = [None, {"url": {"checksum": "1"}}, {"url": {"checksum": "2"}}]

    def load(name: str, split: str) -> object:
        assert not datasets.are_progress_bars_disabled()  # a download shows its progress
        asked.append((name, split))
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["x", "y"]))
        count = 1 + (name == "two")
        cells = {"image": [{"bytes": png(4), "path": None}] * count, "label": [1] * count}
        rows = datasets.Dataset.from_dict(cells, features=features)
        rows.info.download_checksums = sums[min(len(asked), len(sums)) - 1]
        return rows

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, timeout: asked.append((name, timeout)))
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("hf:some-one/da.ta", size=8)
    assert asked == [("some-one/da.ta", 10), ("some-one/da.ta", "train")]
    assert (source.name, source.classes, source[0].label, len(source)) == ("hf:some-one/da.ta:train", ("x", "y"), 1, 1)
    assert source[0].image.unique().tolist() == [4]
    prints = [source.fingerprint]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for where, size in (("hf:a", 8), ("hf:a", 9), ("hf:b", 8), ("hf:a:test[:5%]", 8)):
        prints.append(open_source(where, size=size).fingerprint)
    assert asked[2:] == [("a", "train"), ("a", "train"), ("b", "train"), ("a", "test[:5%]")]
    asked[:] = [()]
    prints.append(open_source("hf:a", size=8).fingerprint)  # other files
    asked.clear()
    prints.append(open_source("hf:two", size=8).fingerprint)
    assert all_different(prints)
    monkeypatch.setattr(datasets.Dataset, "__len__", lambda self: 3)
    asked.clear()
    assert open_source("hf:two", size=8).fingerprint != prints[-1]  # other rows
    for wrong in ("hf:a/b/c", "hf:a:", "hf:a b"):
        with pytest.raises(DataError, match=r"write hf:OWNER/NAME or hf:OWNER/NAME:SPLIT"):
            open_source(wrong, size=8)


def test_the_hubs_refusal_is_not_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    def refused(*_: object, **__: object) -> None:
        raise HfHubHTTPError.__new__(HfHubHTTPError)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", refused)
    with pytest.raises(DataError, match=r"^the Hugging Face Hub does not give no/such: HfHubHTTPError$"):
        open_source("hf:no/such", size=8)


# ------------------------------------------------------------------------------------------------------- one text names


def test_sizes_and_limits_at_their_edges(folder: Path) -> None:
    for size in (3, 4097):
        with pytest.raises(DataError, match=f"4 to 4096 pixels, got {size}"):
            open_source(folder, size=size)
    for size in (4, 4096):
        assert open_source(folder, size=size).size == size
    assert [len(open_source(folder, size=8, limit=n)) for n in (1, 9, 10, 11)] == [1, 9, 10, 10]
    assert open_source(folder, size=8, limit=10).fingerprint == open_source(folder, size=8).fingerprint


def test_a_limit_draws_no_more_than_it_needs() -> None:
    drawn: list[tuple[int, int]] = []
    source = open_source("critters", size=9, limit=5, progress=lambda *done: drawn.append(done))
    assert drawn == [(5, 5)]
    assert len(source) == 5
    assert [len(open_source("critters:4", size=9, limit=n)) for n in (3, 4, 7)] == [3, 4, 4]
    assert len(open_source("critters:3+stack:3", size=9, limit=4)) == 4
    with pytest.raises(DataError, match="needs at least one picture, got 0"):
        open_source("critters:0", size=9, limit=5)


def test_what_is_inside_a_folder_decides_how_it_is_read(folder: Path) -> None:
    from ornstein.data.folder import Folder
    from ornstein.data.hub import HubDataset
    from ornstein.data.shards import Shards

    assert isinstance(open_source(folder, size=8), Folder)
    tar(folder / "a.tar", [("1.png", png())])
    assert isinstance(open_source(folder, size=8), Shards)
    parquet(folder / "deep" / "a.parquet", image=[png()])
    assert isinstance(open_source(folder, size=8), HubDataset)
    listed(folder, {"file_name": "000.png"})
    source = open_source(folder, size=8)
    assert isinstance(source, Folder)
    assert len(source) == 1


def test_built_in_names_win_over_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "critters", "a.png")
    monkeypatch.chdir(tmp_path)
    assert open_source("critters:3", size=8)[0].name == "critters/0"
    assert open_source("./critters", size=8)[0].name == "a.png"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/critters", size=8)[0].name == "a.png"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("critters:2:3", "write critters:COUNT, for example critters:2000"),
        ("dicebear:,:4", "write dicebear:STYLE[,STYLE…][:COUNT]"),
        ("dicebear:critters:stack", "write dicebear:STYLE[,STYLE…][:COUNT]"),
        ("critters:0", "critters:0 needs at least one picture, got 0"),
        ("dicebear:0", "dicebear:0 needs at least one picture, got 0"),
        ("mnsit", "did you mean mnist?"),
        ("opnmoji:3", "did you mean openmoji?"),
        ("dicebaer:3", "did you mean dicebear?"),
        ("anmals", "did you mean animals?"),
    ],
)
def test_what_cannot_be_read_is_said(where: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(where, size=8)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_hint_for_what_looks_like_a_path() -> None:
    with pytest.raises(DataError, match=r"no data source 'x/critter': give critters"):
        open_source("x/critter", size=8)
