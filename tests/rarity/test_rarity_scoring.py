"""The minority score: closed forms (H2–H4), and a table that no kill, shard or batch changes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ornstein.cli.main import main
from ornstein.data.base import UnreadableError
from ornstein.denoisers import Denoiser
from ornstein.errors import PathError, UsageError
from ornstein.lab.targets import GaussianTarget
from ornstein.metrics.pairs import distance as named
from ornstein.networks import UNetConfig
from ornstein.paths import VE, VP, Flow, PyramidPath
from ornstein.randomness import Noise
from ornstein.rarity import LSUN_LOG_SNR, Recipe, Table, distance, one_step, rarities, score
from ornstein.rarity.table import beside
from ornstein.runs import open_run
from ornstein.scalars import sigmoid
from ornstein.training import Every, TrainConfig, train

D, V = 16, 1.3
TARGET = GaussianTarget([0.2] * D, [V] * D)
SQUARED = distance("squared")[1]


def gauss(n: int, seed: int = 0) -> torch.Tensor:
    return TARGET.sample(Noise.of(seed, range(n), dtype=torch.float64))


def closed(x: torch.Tensor, log_snr: float) -> torch.Tensor:
    """g²‖x_0 − μ‖² + κ²(1 − a)d."""
    a = sigmoid(log_snr)
    g, kappa = (1 - a) / (a * V + 1 - a), math.sqrt(a) * V / (a * V + 1 - a)
    return g**2 * (x - 0.2).square().sum(1) + kappa**2 * (1 - a) * D


def found(x: torch.Tensor, log_snr: float, draws: int, path=None) -> torch.Tensor:
    path = VP() if path is None else path
    recipe = Recipe(log_snr=log_snr, distance="squared", draws=draws, clamp=None)
    noise = Noise.of(0, range(len(x)), dtype=torch.float64)
    return rarities(TARGET.denoiser(path), x, noise, recipe, SQUARED)


def test_the_published_level_is_index_60_of_100_on_the_linear_table():
    table = VP.table()
    assert table.log_snr(606 / 1000) == pytest.approx(LSUN_LOG_SNR, abs=1e-3)
    assert sigmoid(LSUN_LOG_SNR) == pytest.approx(0.0241, abs=5e-5)


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=lambda p: type(p).__name__)
def test_the_squared_score_is_the_error_of_the_noise(path):
    """H2: ‖x_0 − x̂_0‖² = (σ/α)²‖ẑ − z‖², unclamped, and the same on every path."""
    x = gauss(6)
    z = Noise.of(1, range(6), dtype=torch.float64).normal("z", (D,))
    t = path.time_of(LSUN_LOG_SNR)
    clean = one_step(TARGET.denoiser(path), x, z, LSUN_LOG_SNR)
    noise = TARGET.denoiser(path)(path.diffuse(x, t, z), t).noise
    expected = (path.sigma(t) / path.alpha(t)) ** 2 * (noise - z).square().sum(1)
    torch.testing.assert_close((x - clean).square().sum(1), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(clean, one_step(TARGET.denoiser(VP()), x, z, LSUN_LOG_SNR), rtol=1e-9, atol=1e-9)


def test_the_closed_form_of_a_gaussian():
    """H3: Monte Carlo agrees; five draws order the images as the density does."""
    x = gauss(300)
    ratio = found(x[:40], LSUN_LOG_SNR, 500) / closed(x[:40], LSUN_LOG_SNR)
    assert abs(float(ratio.mean()) - 1.0) < 0.004
    assert float(ratio.std()) < 0.02
    unusual = -TARGET.log_density(x)
    assert spearmanr(closed(x, LSUN_LOG_SNR), unusual).statistic == pytest.approx(1.0, abs=1e-9)
    for draws, least in ((1, 0.94), (5, 0.985), (20, 0.995)):
        assert spearmanr(found(x, LSUN_LOG_SNR, draws), unusual).statistic > least


def test_the_limits_of_the_level():
    """H4."""
    x, path = gauss(20), VP()
    clear, dark = path.log_snr(path.t_min), path.log_snr(path.t_range[1])
    torch.testing.assert_close(closed(x, 40.0), torch.zeros(20, dtype=torch.float64), atol=1e-10, rtol=0)
    assert float((found(x, clear, 3) / (x - 0.2).square().sum(1)).max()) < 1e-2
    torch.testing.assert_close(found(x, dark, 3), (x - 0.2).square().sum(1), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("clamp", "seen"), [(1.0, 1.0), (0.5, 0.5), (None, 3.0)])
def test_the_clean_estimate_is_clamped_as_the_recipe_says(clamp, seen):
    model = Denoiser(lambda x, time: torch.full_like(x, 3.0), VP(), "clean")
    clean, noise = torch.full((2, 3, 4, 4), -0.25), Noise.of(0, range(2))
    recipe = Recipe(distance="absolute", draws=2, clamp=clamp)
    found = rarities(model, clean, noise, recipe, distance("absolute")[1])
    torch.testing.assert_close(found, torch.full((2,), 48 * (seen + 0.25), dtype=torch.float64))


def test_what_cannot_be_scored():
    x = gauss(2)
    with pytest.raises(UsageError, match=r"log-SNR 99 is outside of what this model was trained on, -10\.0"):
        found(x, 99.0, 1)
    with pytest.raises(PathError, match="AffinePath"):
        one_step(replace_path(PyramidPath()), x, x, 0.0)


def replace_path(path):
    class Model:
        pass

    model = Model()
    model.path = path
    return model


@pytest.mark.parametrize("name", ["squared", "absolute", "lite0"])
def test_a_distance_is_zero_at_home_and_rows_are_apart(name):
    called, pair = named(name)
    assert called == name
    a = Noise.of(0, range(3)).normal("a", (3, 16, 16)).clamp(-1, 1)
    b = Noise.of(0, range(3)).normal("b", (3, 16, 16)).clamp(-1, 1)
    assert float(pair(a, a).abs().max()) < 1e-6
    assert pair(a, b).shape == (3,)
    torch.testing.assert_close(pair(a, b)[1:2], pair(a[1:2], b[1:2]))


# -------------------------------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A tiny labelled run."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    train(
        TrainConfig(
            data="critters:96",
            out=str(out),
            size=16,
            images=32,
            batch=16,
            condition="label",
            network=UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), patch=2),
            every=Every(log=32, samples=0),
            tensorboard=False,
        ),
        quiet=True,
    )
    return out


@pytest.fixture(scope="module")
def run(run_folder):
    return open_run(run_folder)


RECIPE = Recipe(distance="squared", draws=2)


@pytest.fixture(scope="module")
def whole(run, source, tmp_path_factory):
    """The table of one call."""
    out = tmp_path_factory.mktemp("whole") / "scores.csv"
    score(run, source, out, RECIPE)
    HEADERS[out.read_bytes()] = beside(out).read_bytes()
    return out.read_bytes()


HEADERS: dict[bytes, bytes] = {}


def put(path, table):
    path.write_bytes(table)
    beside(path).write_bytes(HEADERS[table])


def test_the_table_says_what_it_is(whole, run, source, tmp_path):
    put(tmp_path / "scores.csv", whole)
    table = Table.read(tmp_path / "scores.csv")
    table.check(source)
    assert len(table) == 96
    assert np.isfinite(table.scores).all()
    assert table.names[5] == source[5].name
    assert table.labels[5] == source[5].label
    header = table.header
    assert (header["distance"], header["draws"], header["clamp"], header["log_snr"]) == ("squared", 2, 1.0, -3.703)
    assert header["alpha_bar"] == pytest.approx(0.0241, abs=1e-4)
    assert header["run"]["images"] == 32


def test_a_row_is_the_score_of_its_image_under_its_label(whole, run, source, tmp_path):
    """By hand: image 7, its own noise, its own label, clamped."""
    from ornstein.randomness import mix

    put(tmp_path / "scores.csv", whole)
    table = Table.read(tmp_path / "scores.csv")
    example = source[7]
    clean = example.image[None].float() / 127.5 - 1.0
    noise = Noise.of(mix(0, "rarity"), [7])
    model = run.denoiser.with_condition(run.cond(labels=[example.label]))
    path, values = model.path, []
    for draw in range(2):
        t = path.time_of(-3.703)
        x = path.diffuse(clean, t, noise.normal(("rarity", draw), clean.shape[1:]))
        with torch.no_grad():
            values.append(float((model(x, t).clean.clamp(-1, 1) - clean).square().sum()))
    assert table.scores[7] == pytest.approx(sum(values) / 2, rel=1e-5)


@pytest.mark.parametrize(("batch", "shards"), [(1, 1), (40, 3), (1000, 6)])
def test_no_split_changes_a_bit(whole, run, source, tmp_path, batch, shards):
    out = tmp_path / "scores.csv"
    tables = [score(run, source, out, RECIPE, shard=(i, shards), batch=batch) for i in reversed(range(shards))]
    assert [table is None for table in tables] == [True] * (shards - 1) + [False]
    assert out.read_bytes() == whole
    assert not out.with_name("scores.csv.parts").exists()


def test_a_call_without_a_shard_finishes_what_shards_began(whole, run, source, tmp_path):
    out = tmp_path / "scores.csv"
    assert score(run, source, out, RECIPE, shard=(1, 2), batch=16) is None
    seen = []
    score(run, source, out, RECIPE, batch=16, progress=lambda done, total: seen.append(done))
    assert len(seen) == 3
    assert out.read_bytes() == whole


@dataclass
class Failing:
    """A source that stops the work at an image."""

    source: object
    at: int

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == self.at:
            raise KeyboardInterrupt
        return self.source[index]


def test_a_stopped_call_goes_on(whole, run, source, tmp_path):
    out = tmp_path / "scores.csv"
    for at in (40, 90):
        with pytest.raises(KeyboardInterrupt):
            score(run, Failing(source, at), out, RECIPE, batch=16)
    parts = out.with_name("scores.csv.parts")
    broken = min(parts.glob("0*.json"))
    broken.write_text("{")  # a damaged part is made again
    score(run, source, out, RECIPE, batch=16)
    assert out.read_bytes() == whole
    assert score(run, source, out, RECIPE) is not None, "and a finished one is read"
    with pytest.raises(UsageError, match="another draws"):
        score(run, source, out, replace(RECIPE, draws=3))


def test_parts_of_another_recipe_are_refused(run, source, tmp_path):
    out = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        score(run, Failing(source, 40), out, RECIPE, batch=16)
    with pytest.raises(UsageError, match="begun with another seed"):
        score(run, source, out, replace(RECIPE, seed=1))


def test_a_refused_call_leaves_nothing_behind(run, source, tmp_path):
    out = tmp_path / "scores.csv"
    with pytest.raises(UsageError, match="log-SNR 100"):
        score(run, source, out, replace(RECIPE, log_snr=100.0))
    assert not list(tmp_path.iterdir())


@dataclass
class Holed(Failing):
    """A source with an unreadable image."""

    def __getitem__(self, index):
        if index == self.at:
            raise UnreadableError("torn.png", "truncated")
        return self.source[index]


def test_an_unreadable_image_has_no_score_and_changes_no_other(whole, run, source, tmp_path):
    out = tmp_path / "scores.csv"
    table = score(run, Holed(source, 20), out, RECIPE)
    put(tmp_path / "whole.csv", whole)
    expected = Table.read(tmp_path / "whole.csv").scores
    assert np.flatnonzero(np.isnan(table.scores)).tolist() == [20]
    assert table.names[20] == "torn.png"
    assert np.array_equal(np.delete(table.scores, 20), np.delete(expected, 20))


def test_the_command(whole, run_folder, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    args = ["score", str(run_folder), "--draws", "2", "--json"]
    usual = [*args, "--out", str(out), "--distance", "squared"]
    assert main([*usual, "--shard", "0/2"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is False
    assert main(usual) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] is True
    assert len(document["rarest"]) == 10
    assert out.read_bytes() == whole, "the data is that of the run by default"
    for wrong, said in (
        (["--out", str(out), "--shard", "2/2"], "shard 2/2"),
        (["--out", str(out), "--shard", "x"], "--shard 'x'"),
        (["--log-snr", "50", "--distance", "squared", "--out", str(tmp_path / "b.csv")], "log-SNR 50"),
        (["--out", str(tmp_path / "b.txt")], "ends in"),
        (["--data", "planets:20", "--out", str(tmp_path / "c.csv")], "other labels"),
        (["--distance", "nothing", "--out", str(tmp_path / "c.csv")], "nothing"),
    ):
        assert main([*args, *wrong]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_goes_on(whole, run_folder, tmp_path):
    out = tmp_path / "scores.csv"
    words = ["score", str(run_folder), "--out", str(out), "--distance", "squared", "--draws", "2", "--batch", "16"]
    command = [sys.executable, "-m", "ornstein", *words]
    for parts in (1, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.with_name("scores.csv.parts").glob("0*.json"))) < parts:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert out.read_bytes() == whole
