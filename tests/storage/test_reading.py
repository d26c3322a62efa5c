"""Bounded reading: what is no regular file, too large, too deep or no text is refused at once, in a few words."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.errors import CheckpointError, DataError, OrnsteinError, printable
from ornstein.storage.files import write_json
from ornstein.storage.reading import (
    DEPTH,
    Refused,
    lines_of,
    load_json,
    load_lines,
    open_regular,
    parse_json,
    read_bytes,
    text_of,
)

fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")


@fifos
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    began = time.monotonic()
    for place in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(Refused, match="not a regular file"):
            open_regular(place)
    with pytest.raises(Refused, match="is a directory"):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(tmp_path / "loop")
    assert time.monotonic() - began < 1.0


def test_a_file_is_measured_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of zeros that takes no space
    with pytest.raises(Refused, match="1099511627776 bytes, more than the 1024"):
        read_bytes(path, 1024)
    with pytest.raises(CheckpointError, match=r"sparse cannot be read \(1099511627776 bytes, .*\): copy it"):
        load_json(path, CheckpointError, "copy it")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deep"),
        ("[" * 100_000 + "]" * 100_000, "deep"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "deep"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "deep"),
        ("9" * 5_000, "a whole number of 5000 digits"),
        ("[-" + "1" * 30 + "]", "a whole number of 30 digits"),
        ("{", "not JSON"),
        ("", "not JSON"),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_json_is_bounded(text: str | bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        parse_json(text)


def test_json_within_the_bounds_is_read_as_it_is() -> None:
    assert parse_json("[" * DEPTH + "]" * DEPTH) == json.loads("[" * DEPTH + "]" * DEPTH)
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]  # a byte-order mark
    digits = "0" * 60
    assert parse_json(f'{{"{digits}": [0.{digits}1, 1e5, 12345678901234567890]}}')[digits][2] == 12345678901234567890


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=60, deadline=None)
def test_what_json_writes_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=True).encode()) == value


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_value_or_a_reason(data: bytes) -> None:
    why = "fine"
    try:
        parse_json(data)
    except Refused as error:
        why = str(error)
    assert why
    assert "\n" not in why


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
@settings(max_examples=200, deadline=None)
def test_what_is_printed_is_one_line_that_moves_no_terminal(text: str) -> None:
    for shown in (printable(text), str(OrnsteinError(text))):
        assert len(shown.splitlines()) <= 1
        assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in shown)
        shown.encode("utf-8")
    assert printable(printable(text)) == printable(text)


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes("\ufeffa\u2028b\u0085c\x0bd\r\n\n \ne".encode())
    assert list(lines_of(path)) == [(1, "a\u2028b\u0085c\x0bd"), (4, "e")]
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(Refused, match=r"line 2 is not UTF-8 text \(byte 0\)"):
        list(lines_of(path))
    path.write_bytes(b"x" * (5 << 20))
    with pytest.raises(Refused, match="line 1 has more than"):
        list(lines_of(path))
    assert text_of(b"\xef\xbb\xbfx") == "x"


def test_records_are_dictionaries_or_the_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "\u2028"}\n', "utf-8")
    assert load_lines(path, DataError, "delete it") == [{"a": 1}, {"a": "\u2028"}]
    for wrong in ("[1]", '{"a": ', "[" * 10_000, "7" * 5_000):
        path.write_text('{"a": 1}\n' + wrong + "\n", "utf-8")
        with pytest.raises(DataError, match=r"log\.jsonl cannot be read \(line 2: .*\): delete it$"):
            load_lines(path, DataError, "delete it")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_lines(path, DataError, "delete it")
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        load_lines(path, DataError, "delete it")


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("n" * 200 + ".json")
    write_json(path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert json.loads(path.read_text()) == {"a": 1}
