"""What one step of the loop does: rate, length under clipping, noise, intervals, clocks and signals."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ornstein.data import batches, open_source
from ornstein.errors import ConfigError, DataError
from ornstein.networks import DiTConfig
from ornstein.objectives import CascadeLoss, Denoising
from ornstein.randomness import Noise, mix
from ornstein.storage.files import digest
from ornstein.training import DivergedError, Every, Optimizer, TrainConfig, to_dict, train
from ornstein.training.cas_dm import CascadeConfig
from ornstein.training.session import accelerator

BATCH = 8
LOG = Every(log=BATCH, checkpoint=10**6, seconds=0, samples=0)
TINY = DiTConfig(width=16, depth=1, head_width=16, patch=8)
SEEN: list[Any] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(Optimizer):
    """Plain gradient descent: its step is −rate · gradient."""

    kind: ClassVar[str] = "sgd"

    def make(self, groups, device):
        return torch.optim.SGD(groups, lr=self.lr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spied(TrainConfig):
    """Keeps what the objective is given."""

    kind: ClassVar[str] = "spied"

    def make_objective(self, spec, device, averages):
        def spy(model, batch, noise, progress):
            SEEN.append((batch, noise, progress, model.net.training))
            return self.objective(model, batch, noise, progress)

        return spy


def options(out: Path, **changes) -> dict[str, Any]:
    return {
        "data": "critters:12",
        "out": str(out),
        "size": 16,
        "images": 5 * BATCH,
        "batch": BATCH,
        "network": TINY,
        "optimizer": Optimizer(lr=3e-3, warmup=0),
        "every": LOG,
        "tensorboard": False,
        "workers": 0,
    } | changes


def configuration(out: Path, **changes) -> TrainConfig:
    return TrainConfig(**options(out, **changes))


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_rate_of_a_step_is_the_rate_at_its_first_image(tmp_path):
    optimizer, seen = Optimizer(lr=1e-3, warmup=30, decay=16), []
    train(
        configuration(tmp_path / "run", optimizer=optimizer),
        quiet=True,
        after_step=lambda s: seen.append((s.images, s.step, {group["lr"] for group in s.optimizer.param_groups})),
    )
    expected = [(BATCH * k, k, {optimizer.rate(BATCH * (k - 1))}) for k in range(1, 6)]
    assert seen == expected
    assert len({min(rate) for _, _, rate in seen}) == 5
    assert [line["lr"] for line in log_of(tmp_path / "run")] == [min(rate) for _, _, rate in expected]


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e6])
@pytest.mark.parametrize("method", ["one part", "two parts"])
def test_the_step_is_as_long_as_the_clipped_gradient(method, clip, tmp_path):
    """Of plain gradient descent, ‖step‖ = rate · min(‖gradient‖, clip), for each part of a cascade by itself."""
    given = options(tmp_path / "run", optimizer=SGD(lr=0.5, warmup=0, clip=clip), images=3 * BATCH)
    if method == "two parts":
        config = CascadeConfig(**given, objective=CascadeLoss(metric="none"))
    else:
        config = TrainConfig(**given)
    places: list[list[torch.Tensor]] = []

    def keep(session):
        places.append([torch.cat([p.detach().double().flatten() for p in part]) for part in session.parts])

    train(config, quiet=True, after_step=keep)
    assert len(places[0]) == (2 if method == "two parts" else 1)
    assert sum(map(len, places[0])) > 1000
    for line, before, after in zip(log_of(tmp_path / "run")[1:], places, places[1:], strict=False):
        lengths = [float((b - a).norm()) / 0.5 for a, b in zip(before, after, strict=True)]
        # Weights of about 0.1 are float32: a step of 0.005 over thousands of them is known to one in a thousand.
        if clip == 0.01:
            assert lengths == pytest.approx([0.01] * len(lengths), rel=1e-3)
        else:
            assert math.hypot(*lengths) == pytest.approx(line["grad_norm"], rel=1e-3)
        assert line["grad_norm"] > 0.02  # the log tells the length before clipping


@pytest.mark.parametrize("flip", [False, True])
def test_the_objective_is_given_the_stream_of_the_run(flip, tmp_path):
    SEEN.clear()
    given = options(tmp_path / "run", seed=7, flip=flip, condition="label", objective=Denoising(label_dropout=0.0))
    train(Spied(**given | {"images": 3 * BATCH}), quiet=True)
    train(Spied(**given), quiet=True)  # goes on
    # Each sitting ends with the loss of its last weights on the batch before: they are written only if it is finite.
    assert [progress for _, _, progress, _ in SEEN] == pytest.approx([0, 1 / 3, 2 / 3, 1, 3 / 5, 4 / 5, 1])
    for last in (6, 3):
        assert SEEN[last][0].positions == SEEN[last - 1][0].positions
        del SEEN[last]
    assert [batch.positions for batch, *_ in SEEN] == [tuple(range(BATCH * k, BATCH * (k + 1))) for k in range(5)]
    source = open_source("critters:12", size=16)
    stream = batches(source, batch=BATCH, seed=7, flip=flip)
    plain = batches(source, batch=BATCH, seed=7)
    mirrored = 0
    for (batch, noise, _, training), expected, upright in zip(SEEN, stream, plain, strict=False):
        assert training
        assert torch.equal(batch.clean, expected.images)
        assert torch.equal(batch.cond["label"], expected.labels)
        ours = Noise.of(mix(7, "train"), batch.positions)
        assert torch.equal(noise.normal("noise", (3, 2, 2)), ours.normal("noise", (3, 2, 2)))
        mirrored += int((batch.clean != upright.images).flatten(1).any(1).sum())
    assert (8 < mirrored < 32) if flip else (mirrored == 0)


def test_layers_that_draw_are_seeded_by_the_step(tmp_path):
    seeds = []
    train(configuration(tmp_path / "run", seed=7), quiet=True, after_step=lambda _: seeds.append(torch.initial_seed()))
    assert [seed % 2**64 for seed in seeds] == [mix(7, "step", step, 0) for step in range(5)]


# ----------------------------------------------------------------------------------------------------------- intervals


def test_lines_and_checkpoints_come_at_the_first_step_past_their_interval(tmp_path):
    out = tmp_path / "run"
    config = configuration(
        out, images=10 * BATCH, keep=99, every=Every(log=20, checkpoint=28, seconds=0, samples=44), condition="label"
    )
    summary = train(config, quiet=True)
    lines = log_of(out)
    assert [line["images"] for line in lines] == [24, 40, 64, 80]
    assert [line["step"] for line in lines] == [3, 5, 8, 10]
    assert [line["epoch"] for line in lines] == [2.0, 3.3333, 5.3333, 6.6667]
    assert [sum(line["levels"]["samples"]) for line in lines] == [24, 16, 24, 16]
    assert sorted(int(path.name) for path in (out / "checkpoints").iterdir()) == [32, 56, 80]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["000000000048.png", "000000000080.png"]
    # The summary is that of the last line and of the whole run.
    assert (summary.out, summary.images, summary.steps, summary.epochs) == (str(out), 80, 10, 6.6667)
    assert (summary.loss, summary.levels) == (lines[-1]["loss"], lines[-1]["levels"])
    assert summary.config_digest == digest(to_dict(config))
    assert (summary.resumed_at, summary.finished_before, summary.skipped_count, summary.skipped) == (0, False, 0, {})
    written = json.loads((out / "summary.json").read_text())
    assert {field.name: written[field.name] for field in fields(summary)} == to_dict_of(summary)
    again = train(config, quiet=True)
    assert again == replace(
        summary,
        resumed_at=80,
        finished_before=True,
        seconds=again.seconds,
        images_per_second=again.images_per_second,
    )
    assert summary.seconds == pytest.approx(again.seconds, abs=0.5)


def to_dict_of(summary) -> dict[str, Any]:
    return {field.name: getattr(summary, field.name) for field in fields(summary)}


def test_a_line_is_left_over_at_the_end_and_the_budget_is_met(tmp_path):
    summary = train(configuration(tmp_path / "run", images=20, every=replace(LOG, log=16)), quiet=True)
    assert [line["images"] for line in log_of(tmp_path / "run")] == [16, 24]
    assert (summary.images, summary.parameters) == (24, sum(p.numel() for p in parameters_of(tmp_path / "run")))
    # The run has a checkpoint at its end whatever the interval.
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000024"]


def parameters_of(out: Path) -> list[torch.Tensor]:
    from ornstein.runs import open_run

    return list(open_run(out).model.parameters())


@pytest.mark.parametrize(("seconds", "steps"), [(1e-9, [8, 16, 24, 32, 40]), (0.0, [40]), (1e6, [40])])
def test_a_checkpoint_is_also_written_after_so_many_seconds(seconds, steps, tmp_path):
    train(configuration(tmp_path / "run", keep=9, every=replace(LOG, seconds=seconds)), quiet=True)
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == steps


def test_neither_pace_nor_time_counts_saving_and_sampling(tmp_path, monkeypatch):
    """On a clock that moves two seconds a step and a hundred for every file that is flushed to the disk, rounded."""
    now, flush = [1000.0], os.fsync

    def slow(handle):
        now[0] += 100.0
        flush(handle)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("os.fsync", slow)

    def work(session):
        now[0] += 2.00204

    config = configuration(tmp_path / "run", every=Every(log=2 * BATCH, checkpoint=BATCH, seconds=0, samples=BATCH))
    half = train(replace(config, images=3 * BATCH), quiet=True, after_step=work)
    assert (half.seconds, half.images_per_second) == (6.006, 4.0)
    whole = train(config, quiet=True, after_step=work)
    assert (whole.seconds, whole.images_per_second) == (10.01, 4.0)
    assert [line["time"] for line in log_of(tmp_path / "run")] == [
        {"seconds": seconds, "images_per_second": 4.0} for seconds in (4.004, 8.008, 10.01)
    ]
    assert now[0] > 2000.0


def test_the_seconds_without_a_checkpoint_are_counted_from_the_last_one(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def work(session):
        now[0] += 2.0

    train(configuration(tmp_path / "run", keep=9, every=replace(LOG, seconds=3.0)), quiet=True, after_step=work)
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == [16, 32, 40]


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("numbers", "at_once"),
    [
        ([signal.SIGINT], False),
        ([signal.SIGTERM], False),
        ([signal.SIGTERM, signal.SIGTERM], False),
        ([signal.SIGINT, signal.SIGTERM], False),
        ([signal.SIGINT, signal.SIGINT], True),
        ([signal.SIGTERM, signal.SIGINT], True),
    ],
)
def test_the_first_signal_waits_for_a_checkpoint_and_a_second_interrupt_does_not(numbers, at_once, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    steps = []

    def interrupted(session):
        steps.append(session.step)
        if session.step == 2:
            for number in numbers:
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        train(configuration(tmp_path / "run"), quiet=True, after_step=interrupted)
    assert steps == [1, 2]
    kept = [path.name for path in (tmp_path / "run").glob("checkpoints/*")]
    assert kept == ([] if at_once else ["000000000016"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not (tmp_path / "run" / "summary.json").exists()


def test_an_interrupt_at_the_last_step_is_a_finished_run(tmp_path):
    def interrupted(session):
        if session.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(configuration(tmp_path / "run"), quiet=True, after_step=interrupted).images == 40


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    before, seen, done = signal.getsignal(signal.SIGINT), [], []
    config = configuration(tmp_path / "run", images=2 * BATCH)

    def work():
        done.append(train(config, quiet=True, after_step=lambda _: seen.append(signal.getsignal(signal.SIGINT))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done[0].images == 16
    assert seen == [before, before]


# -------------------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("strict", [False, True])
def test_kernels_are_set_for_the_run_alone(strict, tmp_path):
    def state():
        return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark

    seen = []
    for before in ((False, False), (True, True)):
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
        try:
            out = tmp_path / str(before[0])
            config = configuration(out, images=BATCH, strict=strict)
            train(config, quiet=True, after_step=lambda _: seen.append(state()))
            assert state() == before
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = False
    assert seen == [(strict, not strict)] * 2


@pytest.mark.parametrize(("strict", "during"), [(False, "high"), (True, "highest")])
def test_products_may_be_rounded_on_a_gpu_unless_the_run_is_strict(strict, during, tmp_path, monkeypatch):
    """On a machine that says that it has one, from when the accelerator is there."""

    def pretend(config):
        made = accelerator(config)
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        return made

    monkeypatch.setattr("ornstein.training.loop.accelerator", pretend)
    seen = []
    config = configuration(tmp_path / "run", images=BATCH, strict=strict)
    train(config, quiet=True, after_step=lambda _: seen.append(torch.get_float32_matmul_precision()))
    assert seen == [during]
    assert torch.get_float32_matmul_precision() == "highest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaking(TrainConfig):
    """Its third loss, or its gradient, is not finite."""

    kind: ClassVar[str] = "breaking"

    gradient: bool = False

    def make_objective(self, spec, device, averages):
        count = [0]

        def broken(model, batch, noise, progress):
            found = self.objective(model, batch, noise, progress)
            count[0] += 1
            if count[0] < 3:
                return found
            term = found.terms["denoising"]
            # The root has a slope of infinity at 0.
            bad = (0.0 * term).sqrt() if self.gradient else math.nan * term
            return replace(found, terms={"denoising": bad})

        return broken


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("checkpoint", [BATCH, 10**6])
def test_a_loss_or_gradient_that_is_no_number_ends_the_run_at_its_step(gradient, checkpoint, tmp_path):
    steps = []
    every = Every(log=10**6, checkpoint=checkpoint, seconds=0, samples=0)
    config = Breaking(**options(tmp_path / "run", every=every, gradient=gradient))
    with pytest.raises(DivergedError) as error:
        train(config, quiet=True, after_step=lambda session: steps.append(session.step))
    assert steps == [1, 2]
    remedy = "lower --optimizer.lr, and the same command goes on from there"
    # No loss after the checkpoint of 16 images was finite.
    kept = f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / '000000000008'}, 000000000016 is set aside"
    expected = kept if checkpoint == BATCH else "there was no checkpoint yet"
    assert str(error.value) == f"the loss or its gradient is not finite at 24 images; {expected}: {remedy}"


def test_a_run_that_goes_on_has_no_summary_until_it_ends(tmp_path, capsys):
    out = tmp_path / "run"
    train(configuration(out, images=2 * BATCH), quiet=True)
    assert capsys.readouterr().err == ""
    seen = []
    train(configuration(out), after_step=lambda _: seen.append((out / "summary.json").exists()))
    assert seen == [False] * 3
    assert (out / "summary.json").is_file()
    said = capsys.readouterr().err
    assert "going on at 16 images" in said
    assert "40 of 40 images  loss" in said
    assert not (out / "tensorboard").exists()


def test_files_for_tensorboard_are_written_where_they_are_wanted(tmp_path):
    train(configuration(tmp_path / "run", images=BATCH, tensorboard=True), quiet=True)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_a_file_that_cannot_be_read_is_named_once_and_remembered_over_a_pause(tmp_path, capsys):
    from PIL import Image

    data = tmp_path / "pictures"
    data.mkdir()
    for i in range(7):
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(data / f"{i}.png")
    for name in ("broken", "also"):
        (data / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    config = configuration(tmp_path / "run", data=str(data), images=4 * BATCH)
    train(replace(config, images=2 * BATCH))
    said = capsys.readouterr().err
    assert said.count("skipped broken.png: ") == said.count("skipped also.png: ") == 1
    summary = train(replace(config, images=4 * BATCH))
    assert "skipped" not in capsys.readouterr().err
    assert (summary.skipped_count, list(summary.skipped)) == (2, ["also.png", "broken.png"])
    again = train(replace(config, images=4 * BATCH), quiet=True)
    assert (again.skipped_count, again.skipped) == (2, summary.skipped)


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    with pytest.raises(DataError, match="none of the 1 images"):
        train(configuration(tmp_path / "run", data=str(tmp_path / "data")), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError):
        train(configuration(tmp_path / "run", data="planets:8", condition="label"), quiet=True)
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
