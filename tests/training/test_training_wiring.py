"""What the parts of a run are given: accelerator, stream, terminal, first weights, guard, target and other runs."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import ornstein.training as package
from ornstein.data import Example, batches
from ornstein.errors import ConfigError
from ornstein.networks import DiTConfig, UNetConfig
from ornstein.objectives import CascadeLoss, ConsistencyLoss
from ornstein.objectives.curricula import target_decay
from ornstein.randomness import mix
from ornstein.runs import open_run
from ornstein.training import Every, Optimizer, Text, TrainConfig, events, train
from ornstein.training.cas_dm import CascadeConfig
from ornstein.training.config import Averaging
from ornstein.training.divergence import DivergenceConfig
from ornstein.training.session import accelerator
from ornstein.training.slct import Averages, CMConfig, ECTConfig, RAdam, SLCTConfig
from ornstein.training.validation import Selection

BATCH = 4
TINY = DiTConfig(width=16, depth=1, head_width=16, patch=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(Optimizer):
    """Plain gradient descent."""

    kind: ClassVar[str] = "sgd"

    def make(self, groups, device):
        return torch.optim.SGD(groups, lr=self.lr)


def options(out: Path, **changes) -> dict[str, Any]:
    return {
        "data": "critters:8",
        "out": str(out),
        "size": 16,
        "images": 4 * BATCH,
        "batch": BATCH,
        "network": TINY,
        "optimizer": Optimizer(lr=1e-3, warmup=0),
        "every": Every(log=BATCH, checkpoint=10**6, seconds=0, samples=0),
        "tensorboard": False,
        "workers": 0,
    } | changes


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_accelerator_is_asked_for_device_and_precision(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("ornstein.training.session.Accelerator", lambda **given: asked.append(given) or "made")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for changes in ({}, {"device": "cpu", "precision": "bf16"}):
        assert accelerator(TrainConfig(**options(tmp_path, **changes))) == "made"
    assert [(one["cpu"], one["mixed_precision"]) for one in asked] == [(False, "no"), (True, "bf16")]
    (handler,) = asked[0]["kwargs_handlers"]
    assert (handler.broadcast_buffers, handler.gradient_as_bucket_view) == (False, True)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    accelerator(TrainConfig(**options(tmp_path, strict=True)))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    accelerator(TrainConfig(**options(tmp_path, strict=True)))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"

    def refuse(**given):
        raise ValueError("fp16 needs a GPU\nand more")

    monkeypatch.setattr("ornstein.training.session.Accelerator", refuse)
    with pytest.raises(ConfigError) as error:
        accelerator(TrainConfig(**options(tmp_path, precision="fp16")))
    assert str(error.value) == "--precision fp16 does not work here (fp16 needs a GPU): use no or bf16"


def test_one_precision_does_not_stay_for_the_next_run(tmp_path):
    train(TrainConfig(**options(tmp_path / "a", images=BATCH, precision="bf16")), quiet=True)
    seen = []
    train(
        TrainConfig(**options(tmp_path / "b", images=BATCH)),
        quiet=True,
        after_step=lambda s: seen.append(s.accelerator.mixed_precision),
    )
    assert seen == ["no"]


@pytest.mark.parametrize(("workers", "used"), [(None, 0), (0, 0), (1, 1)])
def test_the_stream_is_asked_for_what_the_configuration_says(workers, used, tmp_path, monkeypatch):
    asked = []

    def stream(source, **given):
        asked.append((len(source), given))
        return batches(source, **given | {"workers": 0})

    monkeypatch.setattr("ornstein.training.loop.batches", stream)
    config = TrainConfig(**options(tmp_path / "run", workers=workers, seed=6, flip=True))
    train(replace(config, images=2 * BATCH), quiet=True)
    train(config, quiet=True)
    common = {"batch": BATCH, "seed": 6, "workers": used, "rank": 0, "world": 1, "flip": True}
    whole = config.images // BATCH
    assert asked == [(8, {**common, "start": 0, "count": 2}), (8, {**common, "start": 2 * BATCH, "count": whole - 2})]


class Terminal:
    """A standard error that is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.calls = terminal, []

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.calls.append(text)
        return len(text)

    def flush(self) -> None:
        self.calls.append(None)


def test_a_terminal_gets_a_bar_and_a_file_lines(tmp_path, monkeypatch):
    heard = []

    class Bar(events.Quiet):
        def __init__(self, budget, images):
            heard.append(("made", budget, images))

        def advance(self, images):
            heard.append(("advance", images))

        def log(self, record):
            heard.append(("log", record["images"]))

        def close(self):
            heard.append(("close",))

    monkeypatch.setattr("ornstein.training.events.Bar", Bar)
    monkeypatch.setattr(sys, "stderr", Terminal(terminal=True))
    train(TrainConfig(**options(tmp_path / "run", images=2 * BATCH)))
    expected = [("made", 8, 0), ("advance", 4), ("log", 4), ("advance", 8), ("log", 8), ("close",)]
    assert heard == expected
    heard.clear()
    train(TrainConfig(**options(tmp_path / "run", images=3 * BATCH)))
    assert heard == [("made", 12, 8), ("advance", 12), ("log", 12), ("close",)]
    heard.clear()
    monkeypatch.setattr(sys, "stderr", Terminal(terminal=False))
    train(TrainConfig(**options(tmp_path / "run", images=4 * BATCH)))
    assert heard == []
    (data, _, network, _, note, flushed, line, again) = sys.stderr.calls
    assert data.startswith("critters:8: 8 pictures, 12 classes, ")
    assert network.endswith(" parameters on cpu\n")
    assert note == "going on at 12 images\n"
    assert line.startswith("       16 of 16 images  loss ")
    assert flushed is again is None  # every line is out before the next step
    sys.stderr.calls.clear()
    train(TrainConfig(**options(tmp_path / "run", images=4 * BATCH)))
    assert sys.stderr.calls[2] == (
        f"{tmp_path / 'run'} is finished: 16 of 16 images seen; give a larger --images to train on, or another --out\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked(TrainConfig):
    """Counts how often held-out examples are looked at, and by which weights."""

    kind: ClassVar[str] = "checked"

    def select(self, source, device):
        class Check:
            every = 10

            def __call__(self, model):
                SEEN.append(model.net)
                return {"examples": len(source)}

        return Selection(source, Check())


SEEN: list[Any] = []


def test_held_out_examples_are_looked_at_when_their_interval_is_passed_and_at_the_end(tmp_path):
    SEEN.clear()
    averages = []
    config = Checked(**options(tmp_path / "run", images=6 * BATCH))
    train(config, quiet=True, after_step=lambda s: averages.append(s.average))
    lines = log_of(tmp_path / "run")
    assert [line["images"] for line in lines if "validation" in line] == [12, 20, 24]
    assert lines[2]["validation"] == {"examples": 8}
    assert all(net is averages[0] for net in SEEN)
    assert len(SEEN) == 3


def test_the_first_weights_are_those_of_the_seed(tmp_path):
    """With a rate too small to move a float32 number."""
    config = TrainConfig(**options(tmp_path / "run", images=BATCH, seed=9, optimizer=SGD(lr=1e-30, warmup=0)))
    train(config, quiet=True)
    spec = open_run(tmp_path / "run").spec
    expected = spec.build(mix(9, "weights")).state_dict()
    for ema in (True, False):
        found = open_run(tmp_path / "run", ema=ema).model.state_dict()
        assert all(torch.allclose(found[name], value, rtol=0, atol=1e-25) for name, value in expected.items())


def test_the_samples_of_a_run_are_drawn_without_dropout(tmp_path):
    every = Every(log=BATCH, checkpoint=10**6, seconds=0, samples=BATCH)
    seen = []

    def twice(session):
        with torch.random.fork_rng():
            torch.manual_seed(len(seen))
            one = session.samples()
            torch.manual_seed(99)
            seen.append(torch.equal(one, session.samples()))
        assert session.model.training
        assert not session.average.training

    network = DiTConfig(width=16, depth=1, head_width=16, patch=8, dropout=0.5)
    train(TrainConfig(**options(tmp_path / "run", images=2 * BATCH, network=network, every=every)), quiet=True,
          after_step=twice)  # fmt: skip
    assert seen == [True, True]


# --------------------------------------------------------------------------------------------------- consistency models


def slct(out: Path, **changes) -> dict[str, Any]:
    return options(out, optimizer=RAdam(lr=1e-3), ema=Averages(), **changes)


def test_the_guard_goes_on_with_its_numbers(tmp_path):
    whole, parts = [], []
    config = SLCTConfig(**slct(tmp_path / "whole", watch=DivergenceConfig(outlier=50.0), curriculum=4 * BATCH))
    train(config, quiet=True, after_step=lambda s: whole.append(s.guard.state() | {"bad": [*s.guard.bad]}))
    config = replace(config, out=str(tmp_path / "parts"))
    for images in (2 * BATCH, 4 * BATCH):
        keep = lambda s: parts.append(s.guard.state() | {"bad": [*s.guard.bad]})  # noqa: E731
        train(replace(config, images=images), quiet=True, after_step=keep)
    assert parts == whole
    assert whole[-1]["bad"] == [0] * 4


def test_the_target_of_a_stage_belongs_to_its_number_of_intervals():
    config = CMConfig(out="x", batch=10, images=400, objective=ConsistencyLoss(
        curriculum="root", start=2, end=12, times="uniform", coupling="none", diffusion=0.0, target=0.9,
    ))  # fmt: skip
    target = config.averages()["target"]
    counts = [config.objective.intervals(k, 40) for k in range(40)]
    assert (counts[0], counts[-1]) == (1, 12)
    assert len(set(counts)) > 8
    assert [target(step) for step in range(1, 41)] == [target_decay(0.9, count, 2) for count in counts]
    assert target(1) == pytest.approx(0.9)  # two levels, as many as at the start


def test_the_target_is_in_training_mode_as_the_network_is():
    config = CMConfig(out="x")
    net = torch.nn.Dropout(0.5).eval()
    teacher = SimpleNamespace(net=net)

    def objective(averages):
        return config.make_objective(None, torch.device("cpu"), averages)

    bound = objective({"target": teacher})
    assert bound.teacher is teacher
    assert net.training
    assert bound.loss is objective({}).loss
    assert objective({}).teacher is None
    assert objective({"ema-0.9": teacher}).teacher is None
    call = SimpleNamespace(net=lambda x, time: x)
    assert objective({"target": call}).teacher is call


class Data:
    """Data of nothing but labels and captions."""

    name, size, fingerprint = "data", 16, "f"

    def __init__(self, classes=(), caption=""):
        self.classes, self.captions = tuple(classes), ("", caption)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Example(image=torch.zeros(3, 16, 16, dtype=torch.uint8), label=-1, caption=self.captions[index], name="")


def test_the_lowest_level_is_the_paths_where_that_is_not_made_for_it():
    data = Data()
    assert SLCTConfig(out="x", size=16, sigma_min=0.001).specify(data).sigma_min == 0.001
    assert ECTConfig(out="x", size=16, path="flow").specify(data).sigma_min == 0.0
    # On a flow, σ/α at its floor of .001.
    assert SLCTConfig(out="x", size=16, path="flow", sigma_min=1e-5).specify(data).sigma_min == pytest.approx(
        0.001 / 0.999
    )
    spec = SLCTConfig(out="x", size=16, path="flow", sigma_max=20.0).specify(data)
    path = spec.denoiser(torch.nn.Identity()).path
    # A path that goes further than the model begins at the model's noisiest level.
    assert spec.multistep(0.5)(path)[0] == pytest.approx(20 / 21)
    own = SLCTConfig(out="x", size=16, sigma_max=20.0).specify(data)
    path = own.denoiser(torch.nn.Identity()).path
    assert own.multistep(0.5)(path)[0] == path.t_range[1] == 20.0
    assert own.multistep(0.5)(path).count(0.0) == 2


# -------------------------------------------------------------------------------------------------- beginning elsewhere


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, str]:
    """Short runs: told labels, told captions, a cascade."""
    where = tmp_path_factory.mktemp("given")
    made = {}
    for name in ("label", "text"):
        config = TrainConfig(
            **options(
                where / name, images=BATCH, condition=name, path="flow", text=Text(width=32), predicts="v", seed=3
            )
        )
        train(config, quiet=True)
        made[name] = str(where / name)
    made["cascade"] = str(where / "cascade")
    config = CascadeConfig(**options(where / "cascade", images=BATCH, objective=CascadeLoss(metric="none")))
    train(config, quiet=True)
    return made


def test_a_run_that_begins_with_another_is_refused_on_data_that_do_not_fit(runs):
    classes, words = open_run(runs["label"]).classes, "a green critter"
    for kind, word in ((CascadeConfig, "front"), (SLCTConfig, "init_from")):
        given = {"out": "x", "size": 16}
        option = "--front" if word == "front" else "--init-from"
        labelled, told = kind(**given, **{word: runs["label"]}), kind(**given, **{word: runs["text"]})
        assert labelled.specify(Data(classes)).classes == classes
        assert told.specify(Data(caption=words)).text == open_run(runs["text"]).spec.text
        with pytest.raises(ConfigError, match=f"{option} {runs['label']} knows other labels than data"):
            labelled.specify(Data(classes[::-1]))
        with pytest.raises(ConfigError, match=f"{option} {runs['text']} takes captions, and data has none"):
            told.specify(Data())
        spec = labelled.specify(Data(classes))
        assert (spec.path, spec.predicts, spec.network) == ("flow", "v", open_run(runs["label"]).spec.network)
    with pytest.raises(ConfigError, match="is a cascade itself"):
        CascadeConfig(out="x", size=16, front=runs["cascade"]).specify(Data())
    with pytest.raises(ConfigError, match="is not a single denoiser on a path with α and σ"):
        SLCTConfig(out="x", size=16, init_from=runs["cascade"]).specify(Data())
    spec = SLCTConfig(out="x", size=16, init_from=runs["label"], sigma_max=50.0).specify(Data(classes))
    assert (spec.time_input, spec.sigma_max) == ("path", 50.0)
    assert spec.sigma_min == pytest.approx(0.002)


def test_first_weights_may_be_those_of_another_run(runs, tmp_path):
    still = {"optimizer": RAdam(lr=1e-30), "ema": Averages()}
    given = options(tmp_path / "run", images=BATCH, **still)
    train(SLCTConfig(**given, init_from=runs["text"]), quiet=True)
    old, new = open_run(runs["text"]).model.state_dict(), open_run(tmp_path / "run").model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.allclose(new[name], value, rtol=0, atol=1e-20) for name, value in old.items())
    back = UNetConfig(width=8, multipliers=(1,), attention=(0,), head_width=8)
    config = CascadeConfig(
        **options(tmp_path / "refined", images=BATCH, back=back, objective=CascadeLoss(metric="none")),
        front=runs["text"],
    )
    train(config, quiet=True)
    refined = open_run(tmp_path / "refined")
    found = refined.model.state_dict()
    names = {name: name.replace("net.", "net.front.", 1) for name in old}
    assert all(torch.equal(found[names[name]], value) for name, value in old.items())
    assert isinstance(refined.spec.back, UNetConfig)
    assert refined.spec.back.text_width == 32


def test_names_of_the_loop_are_imported_when_they_are_asked_for():
    assert package.Summary is package.loop.Summary
    with pytest.raises(AttributeError, match=r"module 'ornstein\.training' has no attribute 'nonsense'"):
        _ = package.nonsense
    assert Averaging() == package.Averaging()
