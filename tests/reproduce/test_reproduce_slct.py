"""The ladder from iCT to sLCT: fair arms, honest verdicts, and measures of outliers that know known laws."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein import grids, reproduce
from ornstein.errors import ConfigError
from ornstein.latents import KLCodec
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig
from ornstein.reproduce import Budget, Cells, Record, arms
from ornstein.reproduce.arms import Pixels
from ornstein.reproduce.slct import cells as made
from ornstein.reproduce.slct import experiment as slct
from ornstein.reproduce.slct import outliers
from ornstein.reproduce.slct import world as slct_world
from ornstein.reproduce.slct.verdicts import at, best, judged
from ornstein.runs import save_codec
from ornstein.storage.configs import to_dict
from ornstein.training import DivergedError, train
from ornstein.training.config import Every

HEAVY = {"kurtosis": 1.0, "median kurtosis": 0.5, "largest": 9.0, "beyond 4": 0.01, "beyond 6": 1e-3}
LIGHT = HEAVY | {"beyond 4": 6e-5}


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    """An untrained autoencoder of factor 4 whose pictures are not all alike."""
    config = KLConfig(width=8, multipliers=(1, 2), patch=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = KLAutoencoder(config)
        for value in net.parameters():
            torch.nn.init.normal_(value, std=0.1)
    about = {"kind": "autoencoder", "network": to_dict(config)}
    folder = tmp_path_factory.mktemp("codec")
    save_codec(KLCodec(net=net, factor=config.factor, channels=config.latent, about=about), folder)
    return str(folder)


@pytest.fixture(scope="module")
def world(codec) -> slct_world.World:
    return slct_world.World(codec=codec, data="critters:24", size=16, width=8, batch=8, end=20, samples=16, rate=1e-3)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    """Images shrunk to a few pixels in place of a network's features, and latents cached apart."""
    monkeypatch.setattr("ornstein.metrics.features", lambda name: Pixels(name=name))
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path_factory.getbasetemp() / "slct-cache"))


# The ladder


def changed(a: Any, b: Any) -> set[str]:
    """The fields in which two configurations differ, those of parts with their path."""
    found: set[str] = set()
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if one != other:
            parts = dataclasses.is_dataclass(one) and type(one) is type(other)
            found |= {f"{field.name}.{name}" for name in changed(one, other)} if parts else {field.name}
    return found


def test_each_rung_changes_one_thing(world, tmp_path):
    configs = [slct_world.configuration(world, arm, tmp_path / "run", 3, 64) for arm in slct_world.LADDER]
    assert [changed(a, b) for a, b in itertools.pairwise(configs)] == [
        {"objective.distance"},
        {"objective.diffusion"},
        {"objective.coupling"},
        {"objective.scale"},
        {"network.norm", "network.norm_size"},
    ]


def test_the_ladder_leads_from_ict_to_slct(world, tmp_path):
    from ornstein.objectives import ConsistencyLoss
    from ornstein.training.slct import ICTConfig

    first, last = (slct_world.configuration(world, arm, tmp_path, 0, 64) for arm in ("ict", "slct"))
    assert changed(first.objective, ICTConfig(out="x").objective) == {"reduce", "end"}
    assert changed(last.objective, ConsistencyLoss()) == {"end"}
    assert last.network.norm == "nonscaling"
    assert (first.path, first.predicts, first.batch) == ("ve", "edm", 8)


def test_the_diffusion_model_shares_what_it_can(world, tmp_path):
    ours, theirs = (slct_world.configuration(world, arm, tmp_path, 2, 64) for arm in ("ict", "diffusion"))
    for name in ("data", "codec", "size", "batch", "seed", "path", "predicts", "network", "latents", "every"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_every_arm_gets_the_same_computing(world):
    cost = {arm: made.operations(world, arm) for arm in made.ARMS}
    assert cost["diffusion"] == pytest.approx(0.75 * cost["ict"], rel=0.02)  # no target: three passes of four
    for arm in made.ARMS:
        spent = made.seen(world, arm, 8000) * cost[arm]
        assert abs(spent - 8000 * cost["ict"]) <= world.batch * cost[arm]


@pytest.mark.parametrize(("steps", "end"), [(1, 20), (749, 20), (750, 40), (1000, 80), (10**6, 640)])
def test_the_curriculum_fits_the_steps(steps, end):
    assert slct.finest(steps) == end


def test_the_ways_of_the_diffusion_model_are_karras_grid_and_the_tuned_rule():
    levels: list[float] = []

    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        levels.append(math.exp(4.0 * float(time[0])))  # the level σ, from its conditioning log(σ)/4
        return torch.tanh(x)

    model = orn.Denoiser(net, orn.VE(), "edm", shape=(4, 8, 8))
    for name in made.SAMPLERS:
        for count in made.STEPS[1:]:
            found = orn.sample(model, 1, **made.way(name, count, 256))
            assert torch.equal(found, orn.sample(model, 1, sampler=name, evaluations=count)), (name, count)
    _, tuned = made.tuned(2, 256)
    for name, grid in (("ddim", grids.karras(2)), ("auto", tuned)):
        levels.clear()
        orn.sample(model, 1, **made.way(name, 2, 256))
        assert levels == pytest.approx(grids.times_of(grid, model.path)[:-1], rel=1e-4), name


# Outliers


def test_a_gaussian_has_no_heavy_tails():
    x = torch.randn(20_000, 100, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9.0, 100) + 3.0
    found = outliers.heaviness(x)
    assert found["kurtosis"] == pytest.approx(0.0, abs=0.02)
    assert found["beyond 4"] == pytest.approx(outliers.GAUSSIAN, rel=0.35)  # 127 values of two millions
    assert pytest.approx(6.334e-5, rel=1e-3) == outliers.GAUSSIAN
    assert found["beyond 6"] < 1e-6


def test_students_law_has():
    normal = torch.Generator().manual_seed(0)
    numbers = torch.randn(10, 20_000, 50, generator=normal, dtype=torch.float64)
    student = numbers[0] / (numbers[1:].square().mean(0)).sqrt()  # 9 degrees of freedom: kurtosis 6/(9 − 4)
    found = outliers.heaviness(student)
    assert found["kurtosis"] == pytest.approx(1.2, abs=0.2)
    from scipy.stats import t

    assert found["beyond 4"] == pytest.approx(2 * t.sf(4 * math.sqrt(9 / 7), 9), rel=0.1)


def test_scale_and_constants_do_not_count():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    with_constant = torch.cat([7.0 * x - 2.0, torch.full((500, 1), 5.0)], dim=1)
    assert outliers.heaviness(with_constant) == pytest.approx(outliers.heaviness(x), rel=1e-4)


def test_shares_of_known_errors():
    gap = torch.ones(100, 1, 2, 2)
    gap[0] = 10.0  # r = 100 in one of a hundred
    assert outliers.carried("l2", gap, 1.0) == pytest.approx(
        {"loss": 100 / 199, "gradient": 10 / 109, "elements": 400 / 796}
    )
    found = {name: outliers.carried(name, gap, 1e-3) for name in ("l2", "pseudo-huber", "cauchy", "geman-mcclure")}
    gradients = [found[name]["gradient"] for name in found]
    assert gradients == sorted(gradients, reverse=True)
    assert found["pseudo-huber"]["gradient"] == pytest.approx(1 / 100, rel=1e-3)  # far above c all weigh the same
    assert found["cauchy"]["gradient"] == pytest.approx(0.1 / 99.1, rel=1e-3)  # a tenth for ten times the error
    equal = torch.randn(1, 3, 4, 4).expand(200, 3, 4, 4)
    assert outliers.carried("cauchy", equal, 0.1)["loss"] == pytest.approx(0.01)


# Verdicts


def result(kid: float, arm: str, *, diverged: str | None = None, adapted: float = 0.002) -> dict[str, Any]:
    scale = adapted if arm in ("adaptive", "slct") else 0.01
    numbers = {arms.KID: kid, arms.FD: 100 * kid, arms.PIXELS: kid, arms.COVERAGE: 0.5}
    numbers[arms.RECALL] = 0.5 - 0.05 * math.log(max(kid, 1e-4))
    ways = [f"{name} {n}" for name in made.SAMPLERS for n in made.STEPS] if arm == "diffusion" else ["1", "2"]
    ways += ["searched"] * (arm in made.SEARCHED)
    part = {"loss": 0.1, "elements": 0.1}
    weights = {"cauchy": part | {"gradient": 0.002}, "pseudo-huber": part | {"gradient": 0.01 + kid / 1000}}
    return {
        "parameters": 10,
        "seconds": 1.0,
        "images": 10**7,
        "early": None if diverged else kid,
        "activations": None if diverged or arm == "diffusion" else 4.0 * kid,
        "left_out": 0.0,
        "diverged": diverged,
        "middle": 0.5 if arm in made.SEARCHED else None,
        "at": {} if diverged else {way: numbers | {arms.KID: kid * (0.9 if way == "2" else 1.0)} for way in ways},
        "shares": None if diverged or arm == "diffusion" else {"distances": weights, "kurtosis": 3.0, "c": scale},
    }


def found(
    tails: dict[str, float] = LIGHT,
    broken: tuple[str, ...] = (),
    adapted: float = 0.002,
    longer: int = 1,
    asked: list[dict] | None = None,
    **factors: float,
) -> slct.Findings:
    """Findings on made-up arms: what a seed has in common, then a factor for each arm, a little noise of its own."""

    class Made(Cells):
        def map(self, function, rows):
            if function is outliers.tails:
                return [{"latents": tails, "pixels": tails, "gaussian": LIGHT}]
            if function is made.floor:
                return [{"data": result(0.0, "ict")["at"]["1"], "reconstructions": result(0.01, "ict")["at"]["1"]}]
            out = []
            if asked is not None:
                asked.extend(rows)
            for row in rows:
                arm = row["arm"]
                own = 1.0 + 0.004 * ((row["seed"] * 7 + len(arm)) % 3)
                kid = 0.1 * (1 + row["seed"]) * factors.get(arm, 1.0) * own
                out.append(result(kid, arm, diverged="it grew" if arm in broken else None, adapted=adapted))
            return out

    return reproduce.measure(slct.EXPERIMENT, Made(None), Budget(0.02, longer))


def test_verdicts_follow_the_numbers():
    better = {arm: 0.8**place for place, arm in enumerate(slct_world.LADDER)}
    said = [f.verdict for f in found(HEAVY, **better, diffusion=0.5).findings]
    assert set(said) == {"reproduced"}
    worse = {arm: 1.2**place for place, arm in enumerate(slct_world.LADDER)}
    findings = found(LIGHT, **worse).findings
    assert findings[0].verdict == "not testable here"
    assert [f.verdict for f in findings[1:8]] == ["not reproduced"] * 7  # five rungs, two against iCT
    assert [f.verdict for f in findings[8:10]] == ["reproduced"] * 2  # two evaluations are better than one
    assert found().findings[1].verdict == "inconclusive"
    assert found(slct=0.2).findings[6].value == pytest.approx(math.log(0.2), abs=0.02)


def test_a_scale_that_has_not_shrunk_is_not_tested():
    better = {arm: 0.8**place for place, arm in enumerate(slct_world.LADDER)}
    said = {f.claim: f for f in found(HEAVY, adapted=0.0112, **better, diffusion=0.5).findings}
    rung = said["The adaptive scale c improves on a constant one"]
    assert rung.verdict == "not testable here"
    assert "has not shrunk yet" in rung.reason
    assert [f.verdict for f in said.values()].count("not testable here") == 1


def test_a_condition_without_outliers_tests_nothing():
    claim = "Where the latents have outliers, the Cauchy distance improves on pseudo-Huber"
    better = {arm: 0.8**place for place, arm in enumerate(slct_world.LADDER)}
    for tails, verdict in ((HEAVY, "reproduced"), (LIGHT, "not testable here"), (HEAVY | {"kurtosis": -0.1}, None)):
        one = next(f for f in found(tails, **better).findings if f.claim == claim)
        assert one.verdict == (verdict or "not testable here")
        assert ("no outliers" in one.reason) == (one.verdict != "reproduced")


def test_two_rungs_can_be_trained_longer():
    """Both, in the second condition, with a curriculum of their own length; by default they are not."""
    better = {arm: 0.8**place for place, arm in enumerate(slct_world.LADDER)}
    asked: list[dict] = []
    told = found(HEAVY, asked=asked, longer=10, **better)
    long = [row for row in asked if row["images"] == 10 * min(row["images"] for row in asked)]
    assert {row["arm"] for row in long} == {"ict", "slct"}
    assert {row["world"]["data"] for row in long} == {slct.FOREIGN}
    one = next(f for f in told.findings if f.claim.startswith("With a longer training"))
    assert (one.verdict, one.kind) == ("reproduced", "training")
    assert not [f for f in found(HEAVY, **better).findings if f.claim.startswith("With a longer")]
    with pytest.raises(ConfigError, match="longer"):
        Budget(1.0, longer=0)


def test_a_divergence_is_a_result():
    findings = found(broken=("ict",)).findings
    rung, against = findings[1], findings[6]
    assert (rung.by_interval, against.by_interval) == ("reproduced", "reproduced")
    assert against.verdict == "inconclusive (budget)", "a baseline that diverged has not converged"
    assert "diverged with 3" in against.measured
    findings = found(broken=("slct",)).findings
    assert findings[6].verdict == "not reproduced"
    assert findings[-1].by_interval == "not reproduced"
    assert "it grew" in findings[-1].why
    assert judged([-1.0, -1.0, -1.1], 1, 0)[0] == "not reproduced"
    assert judged([], 0, 0)[0] == "inconclusive"


def test_distances_are_logarithms_with_a_floor():
    run = result(0.5, "ict")
    assert at("1")(run) == pytest.approx(math.log(0.5))
    assert at("1")(result(-0.001, "ict")) == pytest.approx(math.log(1e-4))
    assert at("1")(result(0.5, "ict", diverged="x")) is None
    run = result(0.5, "diffusion")
    run["at"]["auto 2"] = run["at"]["auto 2"] | {arms.KID: 0.25}
    assert (best(2)(run), best(5)(run)) == pytest.approx((math.log(0.25), math.log(0.5)))


@pytest.mark.parametrize("broken", [(), ("ict",), tuple(made.ARMS)])
def test_the_record_survives_json(broken):
    from ornstein.reproduce.page import page

    record = Record(
        experiment="slct", title="t", arxiv="a", version=1, budget=0.02, command="c", date="d", seconds=1.0, cells=1,
        machine={}, found=found(broken=broken),
    )  # fmt: skip
    again = Record.from_json(record.to_json())
    assert len(again.found.findings) == 20
    assert "sLCT" in page(again)


# Trainings


def also(extra):
    """`train` that calls ``extra`` after every step, behind the function that it is given."""

    def trained(config, *, quiet, after_step):
        def both(session):
            after_step(session)
            extra(session)

        return train(config, quiet=quiet, after_step=both)

    return trained


def test_a_killed_training_ends_with_the_same_numbers(world, tmp_path, monkeypatch):
    rows = {"arm": "slct", "seed": 1, "images": 48, "world": asdict(world)}
    plain = slct_world.configuration
    often = Every(log=16, checkpoint=16, seconds=0, samples=0)
    monkeypatch.setattr(made, "configuration", lambda *given: replace(plain(*given), every=often))
    whole = made.trained(**rows, files=_folder(tmp_path / "whole"))

    def killed(session):
        if session.step == 5:
            raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("ornstein.training.train", also(killed))
        with pytest.raises(RuntimeError, match="killed"):
            made.trained(**rows, files=_folder(tmp_path / "parts"))
    again = made.trained(**rows, files=tmp_path / "parts")
    assert {**again, "seconds": 0.0} == {**whole, "seconds": 0.0}
    assert set(again["at"]) == {"1", "2", "searched"}
    assert again["middle"] in made.MIDDLES
    assert set(again["at"]["1"]) == {arms.KID, arms.FD, arms.PIXELS, arms.RECALL, arms.COVERAGE}
    assert len(list((tmp_path / "parts").glob("*.png"))) == 4
    assert set(again["shares"]["distances"]) == {"cauchy", "pseudo-huber", "geman-mcclure", "l2"}


def test_a_diverged_training_is_a_cell(world, tmp_path, monkeypatch):
    def diverging(config, **how):
        raise DivergedError(f"the last good checkpoint is {config.out}/checkpoints/8")

    monkeypatch.setattr("ornstein.training.train", diverging)
    cell = made.trained(arm="ict", seed=0, images=48, world=asdict(world), files=_folder(tmp_path / "f"))
    assert cell["diverged"] == "the last good checkpoint is the run/checkpoints/8"
    assert cell["at"] == {}


def test_left_out_batches_are_counted(tmp_path):
    lines = [
        '{"step": 10, "left_out": {"nonfinite": 0.1, "outlier": 0.1}}',
        '{"step": 40, "left_out": {"outlier": 0.0}}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert made.left_out(tmp_path) == pytest.approx(2 / 40)
    assert made.left_out(tmp_path / "none") == 0.0


def test_the_floor_and_the_tails_are_of_the_data(world, tmp_path):
    from ornstein.data import open_source, to_uint8
    from ornstein.metrics import measure, statistics
    from ornstein.randomness import Noise
    from ornstein.runs import open_codec

    files = _folder(tmp_path / "files")
    found = made.floor(world=asdict(world), files=files)
    source, codec = open_source("critters:24", size=16), open_codec(world.codec)
    first, others = (torch.stack([source[(start + i) % 24].image for i in range(16)]) for start in (0, 16))
    images = others.float() / 127.5 - 1.0
    again = to_uint8(codec.decode(codec.encode(images)))
    for name, shown in (("data", others), ("reconstructions", again)):
        deep, real = (statistics(stack, Pixels(name="lite0"), keep=("vectors",)) for stack in (shown, first))
        flat, plain = (statistics(stack, Pixels()) for stack in (shown, first))
        numbers = dict(measure(deep, real, ("fd", "kid", "prdc")).numbers) | dict(measure(flat, plain, ("fd",)).numbers)
        assert found[name] == pytest.approx({key: numbers[key] for key in found[name]}, rel=1e-6)
        assert set(found[name]) == {arms.KID, arms.FD, arms.PIXELS, arms.RECALL, arms.COVERAGE}
    assert (files / f"reconstructions-{world.key}.png").is_file()
    told = outliers.tails(world=asdict(world), count=10, files=files)
    latents = slct_world.clean(world, files / "x", 10)
    assert len(latents) == 10
    normal = Noise.of(0, range(10)).normal("tails", latents.shape[1:])
    for name, values in (("latents", latents), ("pixels", first[:10]), ("gaussian", normal)):
        assert told[name] == pytest.approx(outliers.heaviness(values), rel=1e-6)


@pytest.mark.slow
def test_the_whole_experiment_in_small(world, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "MIDDLES", (0.53,))
    small = replace(
        slct.EXPERIMENT, codec=world.codec, data=world.data, foreign="critters:22+shapes:2", size=16, width=8, batch=8
    )
    monkeypatch.setattr(slct, "SAMPLES", 16)
    cells = Cells(tmp_path / "cells", "slct", 1)
    first = small.run(cells, Budget(1e-4))
    assert cells.used == 3 * 7 + 3 * 2 + 4
    assert [f.verdict for f in first.findings].count("reproduced") < len(first.findings)
    again = small.run(Cells(tmp_path / "cells", "slct", 1), Budget(1e-4))
    assert again == first


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
