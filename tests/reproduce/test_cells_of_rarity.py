"""The cells of minority guidance with toys in place of networks: scores, judges, arms, and what every picture costs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

import ornstein as orn
from ornstein import grids, rarity, sampling
from ornstein import guidance as guide
from ornstein.data import to_uint8
from ornstein.metrics import measure, statistics
from ornstein.metrics.kernel import mmd2
from ornstein.metrics.manifold import manifold
from ornstein.metrics.rarity import rarity as rarity_of
from ornstein.reproduce.arms import Pixels
from ornstein.reproduce.minority import arms, measures
from ornstein.reproduce.minority import cells as made

DATA = "critters:40+planets:7+landscape:6"
ROW: dict[str, Any] = {"data": DATA, "size": 16, "seed": 2, "images": 64, "log_snr": -1.5, "distance": "squared",
                       "draws": 2, "taught": 96}  # fmt: skip


class Shrunk:
    """Images of 2 × 2 pixels in place of a network's features."""

    name, width, heads = "lite0", 12, ("pooled",)

    def outputs(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pooled": functional.adaptive_avg_pool2d(pictures.float() / 255.0, 2).flatten(1)}

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.outputs(pictures)["pooled"]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "features", lambda name: Shrunk())
    for cached in (measures.references, made.model, made.classifier, made.source):
        cached.cache_clear()


@pytest.fixture(scope="module")
def judged_rows() -> Any:
    return made.source(DATA, 16)


# ---------------------------------------------------------------------------------------------------- the training


def test_a_setting_is_found_again_by_all_that_it_depends_on(tmp_path: Path) -> None:
    setting = made.Setting.of({**ROW, "samples": 9, "arm": "plain"})
    base, scores, teacher = (setting.folder(tmp_path, what) for what in ("base", "scores", "classifier"))
    assert base.name.startswith("base-2-")
    assert scores.name.startswith("scores-2-")
    assert teacher.name.startswith("classifier-2-")
    for name, value, moves in (
        *(("data", "x", 3), ("size", 8, 3), ("seed", 3, 3), ("images", 65, 3)),
        *(("log_snr", -2.0, 2), ("distance", "lite0", 2), ("draws", 3, 2), ("taught", 97, 1)),
    ):
        other = made.Setting.of({**ROW, name: value})
        moved = [
            other.folder(tmp_path, what) != setting.folder(tmp_path, what) for what in ("base", "scores", "classifier")
        ]
        assert moved == [moves >= 3, moves >= 2, True], name


def test_the_model_is_trained_where_its_setting_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[Any] = []
    summary = SimpleNamespace(parameters=5, seconds=2.0, loss=0.5)
    monkeypatch.setattr(made, "train", lambda config, quiet: trained.append(config) or summary)
    monkeypatch.setattr(made, "open_own", lambda folder: ("run", folder))
    setting = made.Setting.of(ROW)
    found = made.based(data=DATA, size=16, seed=2, images=64, files=tmp_path)
    assert found == {"parameters": 5, "seconds": 2.0, "loss": 0.5}
    (config,) = trained
    assert config.out == str(setting.folder(tmp_path, "base"))
    assert (config.data, config.size, config.images, config.batch, config.seed) == (DATA, 16, 64, 32, 2)
    assert (config.optimizer.lr, config.optimizer.warmup, config.network) == (1e-3, 16, made.SMALL)
    assert (config.every.log, config.every.checkpoint, config.every.samples, config.keep) == (8, 4096, 0, 1)
    assert made.model(setting, tmp_path) == ("run", setting.folder(tmp_path, "base"))
    assert len(trained) == 2, "a lost folder is trained again"
    made.model.cache_clear()
    setting.folder(tmp_path, "base").mkdir()
    made.model(setting, tmp_path)
    assert len(trained) == 2


def test_scores_tell_the_rare_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = made.Setting.of(ROW)
    monkeypatch.setattr(made, "model", lambda setting, files: "run")
    asked: list[Any] = []
    scores = np.arange(20.0)
    labels = np.array([0] * 12 + [1] * 4 + [2] * 4)
    scores[15] = 3.5  # one rare image among the common ones
    table = SimpleNamespace(scores=scores, labels=labels, classes=("critters", "planets", "landscape"))
    monkeypatch.setattr(rarity, "score", lambda *args: asked.append(args) or table)
    found = made.scored(files=tmp_path, **ROW)
    ((run, source, out, recipe),) = asked
    assert (run, len(source)) == ("run", 53)
    assert out == setting.folder(tmp_path, "scores").with_suffix(".csv")
    assert recipe == rarity.Recipe(log_snr=-1.5, distance="squared", draws=2, seed=2)
    # Of the planets three lie above all twelve, one above four; of the rarest tenth (2 of 20) both are landscapes.
    assert found["auc"] == pytest.approx({"planets": (3 * 12 + 4) / 48, "landscape": 1.0, "rare": (7 * 12 + 4) / 96})
    assert found["share"] == {"planets": 0.0, "landscape": 0.5}


def test_the_classifier_is_held_out_and_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = made.Setting.of(ROW)
    log: list[Any] = []
    monkeypatch.setattr(made, "table", lambda setting, files: log.append("table"))
    monkeypatch.setattr(made, "train", lambda config, quiet: log.append(config) or SimpleNamespace(seconds=4.0))
    monkeypatch.setattr(made, "open_own", lambda out: SimpleNamespace(denoiser="net"))
    monkeypatch.setattr(made, "source", lambda data, size: "data")
    monkeypatch.setattr(rarity, "load", lambda folder: ("classifier", folder))
    answers = {"log_snr": [0.0], "accuracy": [0.5], "loss": [1.0], "other": 3}
    held = SimpleNamespace(validation=lambda net: {**answers, "asked": net})
    config = SimpleNamespace(out="there", select=lambda data, device: held)
    monkeypatch.setattr(made, "teaching", lambda setting, files: config)
    assert made.taught(files=tmp_path, **ROW) == {"seconds": 4.0, "log_snr": [0.0], "accuracy": [0.5], "loss": [1.0]}
    assert log == ["table", config]
    assert made.classifier(setting, tmp_path) == ("classifier", setting.folder(tmp_path, "classifier"))
    assert log == ["table", config] * 2
    made.classifier.cache_clear()
    setting.folder(tmp_path, "classifier").mkdir()
    made.classifier(setting, tmp_path)
    assert log == ["table", config] * 2


# ---------------------------------------------------------------------------------------------------- the measures


def test_numbers_of_a_set_of_pictures(tmp_path: Path) -> None:
    joined = made.source(DATA, 16)
    real = torch.stack([joined[i].image for i in range(45)])
    labels = np.array([joined[i].label for i in range(45)])
    rare = torch.stack([*measures.beyond(DATA, 16, 1, 0, 7), *measures.beyond(DATA, 16, 2, 0, 6)])
    shown = torch.stack([*measures.beyond(DATA, 16, 0, 0, 20), *measures.beyond(DATA, 16, 1, 7, 6)])
    found = measures.measured(shown, DATA, 16, 45, tmp_path)
    ours, theirs = (statistics(x, Shrunk(), keep=("vectors",)) for x in (shown, real))
    numbers = measure(ours, theirs, ("prdc", "avgknn", "lof", "rarity")).numbers
    labelled = {"avgknn": "AvgkNN", "lof": "LOF"}
    for name in ("avgknn", "lof", "rarity", "precision", "recall", "density", "coverage"):
        label = labelled.get(name, name)
        assert found[name] == pytest.approx(numbers[f"{label}-lite0"], rel=1e-9), name
    assert found["undefined"] == numbers["rarity-lite0 undefined"]
    mine, known, rows = (Shrunk()(x).double().numpy() for x in (shown, real, rare))
    near = manifold(mine, rows)
    assert (found["recall rare"], found["coverage rare"]) == pytest.approx((near.recall, near.coverage))
    assert found["kid"] == pytest.approx(mmd2(mine, known), rel=1e-4)
    assert found["kid rare"] == pytest.approx(mmd2(mine, rows), rel=1e-4)
    flat, flat_real, flat_rare = (Pixels()(x).double().numpy() for x in (shown, real, rare))
    plain, other, strange = manifold(flat, flat_real), manifold(flat, flat_rare), rarity_of(flat, flat_real)
    for name in ("precision", "recall", "density", "coverage"):
        assert found[f"{name} pixels"] == pytest.approx(getattr(plain, name))
    assert found["recall rare pixels"] == pytest.approx(other.recall)
    assert found["coverage rare pixels"] == pytest.approx(other.coverage)
    assert found["avgknn pixels"] == pytest.approx(float(strange.average.mean()))
    assert found["lof pixels"] == pytest.approx(float(strange.outlier.mean()))
    assert (found["rarity pixels"], found["undefined pixels"]) == (strange.mean_score, strange.undefined)
    weights = measures.judge(known, labels)
    assert found["share"] == pytest.approx(float((measures.judged(mine, weights) > 0).mean()))
    # The judge on new drawings, and what the files keep.
    worth = measures.judging(data=DATA, size=16, reference=45, files=tmp_path)
    expected = np.array([1] * 7 + [2] * 6)
    assert worth["rare"] == pytest.approx(float((measures.judged(rows, weights) == expected).mean()))
    common = Shrunk()(torch.stack(measures.beyond(DATA, 16, 0, 0, 64))).double().numpy()
    assert worth["common"] == pytest.approx(float((measures.judged(common, weights) == 0).mean()))
    assert len(worth["hash"]) == 32
    (folder,) = tmp_path.glob("reference-*")
    assert sorted(path.name for path in folder.iterdir()) == ["rare.safetensors", "real.safetensors"]


def test_the_judge_weighs_every_part_alike() -> None:
    draw = np.random.default_rng(3)
    rows, labels = draw.standard_normal((30, 4)), np.repeat([0, 1, 2], (20, 7, 3))
    wide = np.c_[rows, np.ones(30)]
    root = np.sqrt(1.0 / np.array([20, 7, 3])[labels])[:, None]
    inner = (root * wide).T @ (root * wide)
    # Ridge regression as an ordinary one with further rows.
    tall = np.vstack((root * wide, np.sqrt(0.1 * np.trace(inner) / 5) * np.eye(5)))
    targets = np.vstack((root * np.eye(3)[labels], np.zeros((5, 3))))
    np.testing.assert_allclose(measures.judge(rows, labels), np.linalg.lstsq(tall, targets, rcond=None)[0], rtol=1e-9)


def test_held_out_drawings_come_in_the_proportions_of_the_data() -> None:
    held = measures.held(DATA, 16, 26)
    parts = [(0, 0, 20), (1, 7, 3), (2, 6, 3)]  # 26 · 40/53 = 19.6, 26 · 7/53 = 3.4, 26 · 6/53 = 2.9
    expected = torch.stack([image for part, first, n in parts for image in measures.beyond(DATA, 16, part, first, n)])
    assert torch.equal(held, expected)
    assert measures.held(DATA, 16, 2).shape[0] == 4, "at least one of each: 2, 1 and 1"


# ---------------------------------------------------------------------------------------------------- the arms


class Bright:
    """A classifier that prefers bright images."""

    labels = ("a", "b")

    def number(self, target: int) -> int:
        return target

    def log_likelihood(
        self, state: torch.Tensor, log_snr: torch.Tensor, target: int, label: Any = None
    ) -> torch.Tensor:
        del log_snr, label
        return 0.01 * target * state.flatten(1).sum(1)


def model() -> orn.Denoiser:
    return orn.Denoiser(lambda x, time: 0.5 * torch.tanh(x), path=orn.VP(), predicts="clean", shape=(3, 8, 8))


def test_constants_of_the_arms() -> None:
    assert (arms.COMMON, arms.MIDDLE, arms.RAREST) == (0, 5, 9)
    assert (arms.EVERY, arms.SCALE, arms.BOOST, arms.START) == (5, 0.4, 4.0, -7.9)
    assert [arms.steps_of(arms.Arm(name="", method=method, full=full), n)
            for method, full, n in (("plain", True, 10), ("noisy", True, 10), ("plain", False, 2), ("self", True, 7),
                                    ("self", True, 1), ("self", True, 9))] == [10, 3, 1, 5, 1, 5]  # fmt: skip
    table = {name: (arm.method, arm.weight, arm.target, arm.sampler, arm.full) for name, arm in arms.ARMS.items()}
    assert table["noisy-8"] == ("noisy", 8.0, 9, "ancestral", True)
    assert table["noisy-3-middle"][2] == 5
    assert table["noisy-3-common"][2] == 0
    assert table["noisy-3-high-snr"] == ("noisy", 3.0, 9, "ancestral", False)
    assert table["self"][:2] == ("self", 0.4)
    assert table["boost-ddim"] == ("boost", 4.0, 9, "ddim", True)


def test_the_guidance_of_an_arm() -> None:
    grid = grids.log_snr(5)
    rule, asked = arms.guided(arms.ARMS["self"], grid, Bright)  # type: ignore[arg-type]
    assert isinstance(rule, guide.SelfMinority)
    assert (rule.scale, rule.every, rule.grid, asked) == (0.4, 5, grid, None)
    assert rule.distance == guide.SelfMinority(distance="squared").distance != guide.SelfMinority().distance
    rule, asked = arms.guided(arms.ARMS["noisy-3-middle"], grid, Bright)  # type: ignore[arg-type]
    assert isinstance(rule, guide.Minority)
    assert (rule.classifier, rule.target, rule.weight) == (asked, 5, 3.0)
    plain, asked = arms.guided(arms.ARMS["boost"], grid, Bright)  # type: ignore[arg-type]
    net = model()
    assert plain(net) is net
    assert asked is None
    counted = arms.CountedClassifier(Bright())  # type: ignore[arg-type]
    state = torch.ones(3, 2)
    assert torch.equal(counted.log_likelihood(state, torch.zeros(3), 2), torch.full((3,), 0.04))
    assert (counted.passes, counted.labels, counted.number(4)) == (6, ("a", "b"), 4)


@pytest.mark.parametrize("name", ["plain", "plain-ddim", "noisy-3", "noisy-3-low", "self"])
def test_pictures_of_an_arm(name: str) -> None:
    arm, net = arms.ARMS[name], model()
    images, spent = arms.pictures(arm, net, Bright, 3, 70, 12)
    steps = arms.steps_of(arm, 12)
    grid = grids.default(net.path, steps)
    rule, _ = arms.guided(arm, grid, Bright)  # type: ignore[arg-type]
    expected = sampling.sample(rule(net), 70, sampler=arm.sampler, grid=grid, seed=1003, batch=64)
    assert torch.equal(images, to_uint8(expected))
    assert spent["steps"] == steps
    inside = [t for t in grids.times_of(grid, net.path)[:-1] if name != "noisy-3-low" or net.path.log_snr(t) >= 3.41]
    assert spent["classifier"] == (2 * len(inside) if arm.method == "noisy" else 0.0)
    assert spent["model"] == (steps + 2 * math.ceil(steps / 5) if name == "self" else steps)


def test_a_boosted_start_spends_what_it_skips_on_a_finer_grid() -> None:
    arm, net = arms.ARMS["boost"], model()
    images, spent = arms.pictures(arm, net, Bright, 0, 4, 20)
    path = net.path
    times = grids.times_of(grids.default(path, 20), path)
    skip = sum(path.log_snr(t) < -7.9 for t in times[:-1])
    assert skip >= 1
    finer = round(20 * 20 / (20 - skip))
    assert finer > 20
    grid = grids.default(path, finer)
    expected = sampling.sample(
        net, 4, sampler="ancestral", grid=grid, seed=1000, prior_scale=4.0, skip_steps=finer - 20
    )
    assert torch.equal(images, to_uint8(expected))
    assert (spent["steps"], spent["model"]) == (20, 20.0)


def test_a_drawn_arm_is_kept_and_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    net = model()
    monkeypatch.setattr(arms, "model", lambda setting, files: SimpleNamespace(denoiser=net))
    monkeypatch.setattr(arms, "classifier", lambda setting, files: Bright())
    monkeypatch.setattr(arms, "measured", lambda images, *known: asked.append((images, known)) or {"n": len(images)})
    words = {"samples": 5, "evaluations": 9, "reference": 45, "files": tmp_path}
    found = arms.drawn(arm="noisy-3", **words, **ROW)
    images, spent = arms.pictures(arms.ARMS["noisy-3"], net, Bright, 2, 5, 9)
    assert found == {"n": 5, **spent}
    assert torch.equal(asked[-1][0], images)
    assert asked[-1][1] == (DATA, 16, 45, tmp_path)
    (kept,) = tmp_path.glob("samples-noisy-3-*.safetensors")
    with safe_open(kept, framework="pt") as file:
        assert json.loads(file.metadata()["spent"]) == spent
    monkeypatch.setattr(arms, "model", None)  # kept pictures are drawn no more
    assert arms.drawn(arm="noisy-3", **words, **ROW) == found
    real = arms.drawn(arm="real", **words, **ROW)
    assert {key: real[key] for key in ("steps", "model", "classifier")} == {"steps": 0, "model": 0.0, "classifier": 0.0}
    assert torch.equal(asked[-1][0], measures.held(DATA, 16, 5))
