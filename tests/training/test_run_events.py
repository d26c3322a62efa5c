"""What a run writes and says: the log, lines and bars, TensorBoard, the folder's document and its lock."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from ornstein.data import open_source
from ornstein.errors import CheckpointError, ConfigError
from ornstein.models import card
from ornstein.models.spec import DenoiserSpec
from ornstein.networks import DiTConfig, UNetConfig
from ornstein.storage.configs import flat, from_dict, kind_of
from ornstein.training import TrainConfig, events, folder, to_dict
from ornstein.training.cas_dm import CascadeConfig

LEVELS = {"log_snr": [0.0], "samples": [3, 1], "loss": [0.25, None]}
RECORD = {
    "images": 40, "step": 5, "lr": 0.001, "loss": 0.12345, "terms": {"denoising": 0.1, "gate": 0.02345},
    "grad_norm": 2.5, "levels": LEVELS, "time": {"seconds": 5.0, "images_per_second": 8.0},
    "schedule": {"c": 0.5, "intervals": 20.0}, "left_out": {"nonfinite": 0.25},
}  # fmt: skip


def test_every_sink_hears_every_event():
    heard = []

    class Ear:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, event):
            return lambda *told: heard.append((self.name, event, *told))

    sinks = events.Sinks(Ear("a"), Ear("b"))
    pictures = torch.zeros(1)
    calls = [("log", RECORD), ("advance", 7), ("samples", 8, pictures), ("note", "x"), ("close",)]
    for event, *told in calls:
        getattr(sinks, event)(*told)
        getattr(events.Quiet(), event)(*told)
    assert heard == [(name, *call) for call in calls for name in ("a", "b")]


def test_lines_say_how_far_how_good_and_how_long(capsys):
    lines = events.Lines(1000)
    lines.log(RECORD)
    lines.log({key: value for key, value in RECORD.items() if key != "schedule"} | {"images": 1000})
    lines.log({**RECORD, "schedule": {}, "time": {"seconds": 5.0, "images_per_second": 0.0}})
    lines.note("going on")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "       40 of 1000 images  loss 0.1235  c 0.5  intervals 20  8.0 images/s  2m00s left",
        "     1000 of 1000 images  loss 0.1235  8.0 images/s  0m00s left",
        "       40 of 1000 images  loss 0.1235  0.0 images/s  ? left",
        "going on",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3.0, "0m00s"), (59.4, "0m59s"), (59.6, "1m00s"), (3599.4, "59m59s"), (3600, "1h00m"), (36_660.0, "10h11m")],
)
def test_durations(seconds, text):
    assert events.duration(seconds) == text


def test_the_log_and_the_grids_are_files(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"images": 8}\n')
    files = events.Files(tmp_path)
    files.log(RECORD)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"images": 8},
        RECORD,
    ]  # on the disk before the next step
    (tmp_path / "samples").mkdir()
    files.samples(4096, torch.zeros(4, 3, 8, 8))
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["000000004096.png"]
    files.close()
    assert files.file.closed


def test_tensorboard_has_the_numbers_of_the_log(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = events.Board(tmp_path, 0)
    first.log(RECORD)
    first.log({**RECORD, "images": 48, "loss": 9.0})
    first.close()
    again = events.Board(tmp_path, 40)  # the line at 48 was written by a run that was killed
    again.samples(56, torch.zeros(4, 3, 8, 8))
    again.log({**RECORD, "images": 56, "loss": 0.5})
    again.close()
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    expected = {
        "loss/denoising": 0.1, "loss/gate": 0.02345, "level/0": 0.25, "loss": 0.12345, "grad_norm": 2.5, "lr": 0.001,
        "images_per_second": 8.0, "schedule/c": 0.5, "schedule/intervals": 20.0, "left_out/nonfinite": 0.25,
    }  # fmt: skip
    assert set(found.Tags()["scalars"]) == set(expected)
    for name, value in expected.items():
        at = found.Scalars(name)
        assert [event.step for event in at] == [40, 56], name
        assert at[0].value == pytest.approx(value)
    assert found.Scalars("loss")[1].value == 0.5
    assert [event.step for event in found.Images("samples")] == [56]


def test_a_bar_moves(capsys):
    bar = events.Bar(1000, 40)
    (task,) = bar.bar.tasks
    assert (task.total, task.completed) == (1000, 40)
    bar.advance(48)
    bar.log(RECORD)
    assert (task.completed, task.description, task.fields["speed"]) == (48, "loss 0.1235", "8.0 images/s")
    bar.note("a [note]")
    bar.close()
    said = capsys.readouterr()
    assert "a [note]" in said.err
    assert said.out == ""
    assert bar.bar.finished is False
    assert not bar.bar.live.is_started


def test_a_note_above_the_bar_is_left_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar = events.Bar(10, 0)
    bar.note("skipped [b]3 'x'.png: 17 of 20")
    bar.close()
    assert "skipped [b]3 'x'.png: 17 of 20" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- the run's folder


def configuration(**changes) -> TrainConfig:
    given = {"out": "x", "data": "critters:6", "size": 16, "network": DiTConfig(width=16, depth=1, head_width=16)}
    return TrainConfig(**given | changes)


def document(config: TrainConfig, data: str = "critters:6") -> dict:
    source = open_source(data, size=config.size)
    return json.loads(json.dumps(folder.document(config, config.specify(source), source)))


def test_a_document_says_what_was_trained_on_what(tmp_path):
    config = configuration(condition="label")
    found = document(config)
    source = open_source("critters:6", size=16)
    assert (found["format"], found["version"]) == ("ornstein-run", 1)
    assert found["data"] == {"name": source.name, "fingerprint": source.fingerprint, "examples": 6}
    assert from_dict(TrainConfig, found["train"]) == config
    folder.begin(tmp_path / "run", found)
    path = tmp_path / "run" / "config.json"
    assert card.read_document(path) == found
    assert card.read_spec(found, path) == config.specify(source)
    for change, message in (
        ({"format": "x"}, "is not the configuration of an ornstein run"),
        ({"version": 2}, "has version 2, this library reads 1"),
    ):
        path.write_text(json.dumps(found | change))
        with pytest.raises(CheckpointError, match=message):
            card.read_document(path)
    for junk in ("[]", "{"):
        path.write_text(junk)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            card.read_document(path)
    for model in (None, {}, {"kind": "spec", "shape": 3}):
        with pytest.raises(CheckpointError, match=r"config\.json: "):
            card.read_spec({"model": model}, path)


FREE = {"out", "data", "codec", "images", "minutes", "workers", "keep", "device", "tensorboard"}


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}!" if isinstance(value, str) else 7


def test_only_what_changes_no_bit_may_change_between_two_sittings(tmp_path):
    old = document(configuration())
    folder.begin(tmp_path, old)
    folder.compare(tmp_path, old)
    keys = [key for key in flat(old["train"]) if key.rpartition(".")[2] != "kind"]
    assert len(keys) > 50
    for key in keys:
        new = json.loads(json.dumps(old))
        *inner, last = key.split(".")
        place = new["train"]
        for name in inner:
            place = place[name]
        place[last] = changed(place[last])
        if key in FREE or key.startswith("every."):
            folder.compare(tmp_path, new)
            continue
        with pytest.raises(ConfigError) as error:
            folder.compare(tmp_path, new)
        assert f"was begun with --{key} " in str(error.value), key
    new = json.loads(json.dumps(old))
    new["model"]["classes"] = ["a"]
    with pytest.raises(ConfigError, match=r"was begun with model\.classes \[\], not \['a'\]"):
        folder.compare(tmp_path, new)


def test_options_that_are_newer_than_a_run_had_their_defaults(tmp_path):
    old = document(configuration())
    folder.begin(tmp_path, old)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["train"]["optimizer"]["eps"], written["model"]["sigma_data"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    folder.compare(tmp_path, old)
    new = document(configuration(sigma_data=0.25))
    with pytest.raises(ConfigError, match=r"begun with --sigma_data 0\.5, not 0\.25"):
        folder.compare(tmp_path, new)
    # A file of before there were methods is one of ddpm.
    del written["train"]["kind"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    folder.compare(tmp_path, old)
    other = json.loads(json.dumps(old))
    other["train"]["kind"] = "cascadeconfig"
    with pytest.raises(ConfigError, match="begun with `ornstein train ddpm`, not cas-dm"):
        folder.compare(tmp_path, other)
    # What cannot be read is compared as it stands.
    written["train"] |= {"kind": "trainconfig", "size": "sixteen"}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="begun with --size sixteen, not 16"):
        folder.compare(tmp_path, old)


def test_other_data_and_long_values_are_told_briefly(tmp_path):
    old = document(configuration())
    folder.begin(tmp_path, old)
    with pytest.raises(ConfigError, match=r"\(6 examples of .* then, 7 of .* now\)"):
        folder.compare(tmp_path, document(configuration(), "critters:7"))
    new = json.loads(json.dumps(old))
    new["train"]["path"] = "x" * 60
    with pytest.raises(ConfigError, match=r"not x{60}:"):
        folder.compare(tmp_path, new)
    new["train"]["path"] = "x" * 61
    with pytest.raises(ConfigError, match=r"not x{57}…:"):
        folder.compare(tmp_path, new)
    new["train"]["path"] = None
    with pytest.raises(ConfigError, match="not nothing:"):
        folder.compare(tmp_path, new)


def test_the_log_is_cut_where_the_checkpoint_was_made(tmp_path):
    folder.truncate(tmp_path, 8)  # nothing to cut
    lines = [
        '{"images": 8}',
        '{"images": 16, "é": "ü"}',
        '{"step": 1}',
        "[1]",
        '{"images": 17}',
        '{"images": 9',
        '{"ima',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), "utf-8")
    folder.truncate(tmp_path, 16)
    assert (tmp_path / "metrics.jsonl").read_text("utf-8") == '{"images": 8}\n{"images": 16, "é": "ü"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_folder_is_begun_or_gone_on_with_or_refused(tmp_path):
    config = configuration(out=str(tmp_path / "run"))
    assert folder.check(config) is False
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".hidden").write_text("")
    assert folder.check(config) is False
    folder.begin(tmp_path / "run", document(config))
    assert folder.check(config) is True
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        folder.check(config)
    (tmp_path / "run" / "config.json").rename(tmp_path / "run" / "letter")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        folder.check(config)


def test_a_lock_is_held_and_given_back(tmp_path):
    pytest.importorskip("fcntl")
    with folder.locked(tmp_path / "a" / "b"):
        lock, mask = tmp_path / "a" / "b" / ".lock", os.umask(0)
        os.umask(mask)
        assert lock.stat().st_mode & 0o777 == 0o644 & ~mask
        with pytest.raises(ConfigError, match="another process is training in"), folder.locked(tmp_path / "a" / "b"):
            pass
        with folder.locked(tmp_path / "c"):
            pass
    with folder.locked(tmp_path / "a" / "b"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), folder.locked(tmp_path / "file" / "run"):
        pass


# --------------------------------------------------------------------------------------------------- plain dictionaries


def test_plain_dictionaries():
    assert [kind_of(kind) for kind in (UNetConfig, DiTConfig, DenoiserSpec, CascadeConfig)] == [
        "unet", "dit", "spec", "cascadeconfig",
    ]  # fmt: skip
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}
    assert flat({"a": 1}, "p") == {"p.a": 1}
    with pytest.raises(ConfigError, match="a set cannot be written"):
        to_dict({1})
    config = replace(configuration(), network=UNetConfig(width=8, blocks=(1, 2, 1), head_width=8))
    written = to_dict(config)
    assert written["network"]["blocks"] == [1, 2, 1]
    again = from_dict(TrainConfig, written)
    assert again == config
    assert isinstance(again.network.blocks, tuple)
    for change, message in (
        ({"optimizer": {"lr": 1}}, None),
        ({"optimizer": {"lr": True}}, "optimizer.lr=True must be of type float"),
        ({"images": 3.0}, "images=3.0 must be of type int"),
        ({"flip": 1}, "flip=1 must be of type bool"),
        ({"workers": None}, None),
        ({"workers": "two"}, "workers='two' must be one of: int, NoneType"),
        ({"optimizer": {"betas": 3}}, "optimizer.betas=3 must be a list"),
        ({"optimizer": {"betas": [0.9, "x"]}}, "optimizer.betas[1]='x' must be of type float"),
        ({"network": {"kind": "unet", "multipliers": [1, "x"]}}, "network.multipliers[1]='x' must be of type int"),
        ({"nonsense": 3}, "unknown key 'nonsense': known are data, out"),
        ({"imags": 3}, "unknown key 'imags': did you mean 'images'?"),
    ):
        if message is None:
            assert from_dict(TrainConfig, written | change)
            continue
        with pytest.raises(ConfigError) as error:
            from_dict(TrainConfig, written | change)
        assert str(error.value).startswith(message)
    assert isinstance(from_dict(TrainConfig, written | {"optimizer": {"lr": 1}}).optimizer.lr, float)
    with pytest.raises(ConfigError, match="missing key 'out'"):
        from_dict(TrainConfig, {})
    with pytest.raises(ConfigError, match="model must hold named values, not 3"):
        from_dict(DenoiserSpec, 3, "model")
    with pytest.raises(ConfigError, match="the configuration must hold named values"):
        from_dict(DenoiserSpec, None)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["fifo", "loop", "folder"])
def test_what_is_no_file_in_a_run_is_refused_and_not_waited_for(name, kind, tmp_path):
    path = tmp_path / name
    {"fifo": os.mkfifo, "loop": lambda at: at.symlink_to(at.name), "folder": os.mkdir}[kind](path)
    with pytest.raises(ConfigError, match="is no regular file: remove it"):
        folder.check(TrainConfig(data="critters:8", out=str(tmp_path)))
