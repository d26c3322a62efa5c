"""Consistency models as methods of the trainer: presets, resuming, averages, watching, sampling, tuning."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ornstein as orn
from ornstein.cli import tune_steps
from ornstein.cli.main import main
from ornstein.cli.tune_steps import Search
from ornstein.data import open_source
from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.models.consistency import ConsistencySpec
from ornstein.networks import DiTConfig, UNetConfig
from ornstein.objectives import ConsistencyLoss, Denoising, Losses, TrainBatch
from ornstein.parameterizations import Anchored, Consistency
from ornstein.runs import export, open_run, resolve_model_path
from ornstein.storage.files import write_json
from ornstein.training import DivergedError, Every, TrainConfig, train
from ornstein.training.config import LatentOptions
from ornstein.training.divergence import DivergenceConfig, DivergenceMonitor
from ornstein.training.slct import Averages, CMConfig, ECTConfig, ICTConfig, RAdam, SLCTConfig

BATCH = 8
NETWORK = UNetConfig(
    width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8, patch=2, norm="nonscaling", dropout=0.1
)


def shared(out: Path, **changes) -> dict:
    return {
        "data": "critters:16",
        "out": str(out),
        "size": 16,
        "images": 7 * BATCH,
        "batch": BATCH,
        "network": NETWORK,
        "every": Every(log=2 * BATCH, checkpoint=3 * BATCH, seconds=0, samples=0),
        "tensorboard": False,
        "workers": 0,
    } | changes


def slct(out: Path, **changes) -> SLCTConfig:
    return SLCTConfig(**shared(out, ema=Averages(also=(0.05, 0.9)), optimizer=RAdam(lr=1e-3), **changes))


def weights(run: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").iterdir()) / f"{part}.safetensors")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(line: dict) -> dict:
    return {key: value for key, value in line.items() if key != "time"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Seven steps, one a stage."""
    out = tmp_path_factory.mktemp("slct") / "run"
    train(slct(out, every=Every(log=BATCH, checkpoint=3 * BATCH, seconds=0, samples=7 * BATCH)), quiet=True)
    return out


def test_the_log_tells_stage_scale_levels_and_what_was_left_out(run):
    log = lines(run)
    assert [line["schedule"]["intervals"] for line in log] == [10, 20, 40, 80, 160, 320, 640]
    assert [line["schedule"]["c"] for line in log] == pytest.approx(
        [ConsistencyLoss().scale_at(S, 3 * 16 * 16) for S in (10, 20, 40, 80, 160, 320, 640)]
    )
    for line in log:
        assert line["left_out"] == {"nonfinite": 0.0, "outlier": 0.0}
        assert set(line["terms"]) == {"consistency", "diffusion"}
        assert set(line["levels"]["watched"]) == {"jump", "output"}
        assert sum(line["levels"]["samples"]) == BATCH
    assert (run / "samples" / f"{7 * BATCH:012d}.png").is_file()


def test_a_stopped_run_goes_on_bit_for_bit(run, tmp_path):
    out = tmp_path / "run"
    every = Every(log=BATCH, checkpoint=3 * BATCH, seconds=0, samples=0)
    train(slct(out, every=every, images=3 * BATCH, curriculum=7 * BATCH), quiet=True)
    train(slct(out, every=every), quiet=True)
    for part in ("model", "ema", "optimizer", "ema-0.05", "ema-0.9"):
        ours, theirs = weights(out, part), weights(run, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    assert [untimed(line) for line in lines(out)] == [untimed(line) for line in lines(run)]


def test_a_longer_run_keeps_to_its_curriculum(run):
    with pytest.raises(ConfigError, match=f"--curriculum {7 * BATCH}, not {9 * BATCH}"):
        train(slct(run, images=9 * BATCH), quiet=True)
    config = slct(run, images=9 * BATCH, curriculum=7 * BATCH)
    loss = config.make_objective(None, torch.device("cpu"), {})
    assert loss.loss.intervals(round(7 / 9 * loss.of), loss.steps) == 640


def test_no_gain_of_a_norm_is_trained(run):
    names = {name.split("/")[1] for name in weights(run, "optimizer")}
    assert not [name for name in names if "norm" in name and name.endswith("weight")]
    assert [name for name in names if "norm" in name and name.endswith("bias")]
    assert {name.split("/")[0] for name in weights(run, "optimizer")} == {"step", "exp_avg", "exp_avg_sq"}


def test_further_averages_open_by_their_number(run):
    half = open_run(run, ema=0.9)
    assert half.weights.name == "ema-0.9.safetensors"
    stored = weights(run, "ema-0.9")
    assert all(torch.equal(value, stored[name]) for name, value in half.model.state_dict().items())
    with pytest.raises(UsageError, match=r"has no average 0\.5; it has 0\.05, 0\.9"):
        open_run(run, ema=0.5)


def test_an_exponential_average_is_a_mean_at_first(run, tmp_path):
    """With a decay that is not reached, the plain mean of the weights after each step."""
    seen = []
    for steps in (1, 2, 3):
        out = tmp_path / str(steps)
        train(slct(out, images=steps * BATCH, curriculum=7 * BATCH), quiet=True)
        seen.append(weights(out)["net.head.weight"])
    found = weights(tmp_path / "3", "ema-0.9")["net.head.weight"]
    assert seen[-1].abs().max() > 0.0
    assert torch.allclose(found, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ sampling


def test_a_run_is_sampled_at_one_and_two_evaluations(run):
    model = orn.load(run)
    assert isinstance(model.parameterization, Consistency)
    assert model.grid(1)(model.path) == (80.0, 0.0)
    assert model.grid(None)(model.path) == model.grid(2)(model.path) == (80.0, 0.0, 0.53, 0.0)
    assert model.grid(4)(model.path) == pytest.approx((80.0, 0.0, 0.53, 0.0, 0.265, 0.0, 0.1325, 0.0))
    noise = orn.Noise.of(0, range(2))
    once = model(80.0 * noise.normal("prior", (3, 16, 16)), 80.0).clean
    for sampler in ("ddim", "dpmpp-2m", "heun", "auto"):
        assert torch.allclose(orn.sample(model, 2, steps=1, sampler=sampler), once, atol=1e-6)
        assert torch.allclose(orn.sample(model, 2, evaluations=1, sampler=sampler), once, atol=1e-6)
    state = once + 0.53 * noise.normal(("up", 1), (3, 16, 16))
    assert torch.allclose(orn.sample(model, 2), model(state, 0.53).clean, atol=1e-6)


def test_an_image_answered_by_itself_is_sampled_at_any_number(run):
    star = torch.full((1, 3, 16, 16), 0.3)
    spec = open_run(run).spec
    # F such that f(x, t) is the image: the boundary form solved for it, with the level read off the time number.

    def net(fed, time):
        t = (time.double() / 250.0).exp().reshape(-1, 1, 1, 1)
        root = (t**2 + 0.25).sqrt()
        skip, out = 0.25 / ((t - 0.002) ** 2 + 0.25), 0.5 * (t - 0.002) / root
        return ((star - skip * fed.double() * root) / out).to(fed.dtype)

    model = spec.denoiser(net)
    for steps in (1, 2, 3):
        assert torch.allclose(orn.sample(model, 2, steps=steps), star.expand(2, -1, -1, -1), atol=1e-4)
    # A level at the floor adds nothing: it is no evaluation.
    assert spec.multistep(0.002)(model.path) == (80.0, 0.0)


@pytest.mark.parametrize("evaluations", [0, -1])
def test_no_evaluation_is_no_grid(run, evaluations):
    with pytest.raises(UsageError, match=f"steps must be at least 1, got {evaluations}"):
        orn.sample(orn.load(run), 1, steps=evaluations)


@pytest.mark.parametrize("path", ["vp-linear", "vp-cosine", "vp-scaled-linear", "vp-table", "flow", "ve"])
def test_every_level_is_one_of_the_path(path, tmp_path):
    """The lowest level is no lower than the path goes: there the model answers with its input, and no pair is empty."""
    config = slct(tmp_path / "x", path=path, predicts="edm")
    spec = config.specify(open_source("critters:2", size=16))
    model = spec.denoiser(lambda x, time: 0.0 * x + 3.0)
    floor = model.path.sigma_bar(model.path.t_min)
    assert spec.sigma_min == pytest.approx(max(0.002, floor))
    rows = tuple(range(256))
    batch = TrainBatch(clean=torch.zeros(256, 3, 4, 4), cond={}, positions=rows)
    pair = config.make_objective(None, torch.device("cpu"), {}).make_noisy_batch(
        model, batch, orn.Noise.of(0, rows), 640
    )
    assert (pair.t > pair.t_next).all()
    for level, t in ((pair.upper, pair.t), (pair.lower, pair.t_next)):
        found = torch.tensor([model.path.sigma_bar(float(one)) for one in t])
        assert torch.allclose(found.double(), level.double(), rtol=1e-4)
    x, t = torch.ones(1, 3, 4, 4), model.path.time_of(-2.0 * math.log(spec.sigma_min))
    assert torch.allclose(model(x, t).clean, x / model.path.alpha(t), atol=1e-5)


def test_settled_levels_are_kept_with_the_run_and_its_card(run, tmp_path):
    card = export(open_run(run), tmp_path / "card")
    write_json(card / "sampling.json", {"middle": [0.8, 0.3]})
    model = orn.load(card)
    assert model.grid(None)(model.path) == (80.0, 0.0, 0.8, 0.0, 0.3, 0.0)
    again = export(open_run(card), tmp_path / "again")
    assert open_run(again).spec.middle == (0.8, 0.3)
    write_json(card / "sampling.json", {"middle": "high"})
    with pytest.raises(CheckpointError, match="holds no middle levels"):
        open_run(card)


def test_the_search_finds_the_least():
    search = Search(
        score=lambda levels: sum((math.log(x) - math.log(y)) ** 2 for x, y in zip(levels, (0.7, 0.2), strict=False)),
        candidates=(0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 5.0),
        refine=4,
    )
    found = search.find(2)
    assert found[0] == pytest.approx(0.7, rel=0.1)
    assert found[1] == pytest.approx(0.2, rel=1e-9)
    assert search.tried[found] == min(search.tried.values())
    with pytest.raises(UsageError, match="no candidate lies below"):
        Search(score=lambda _: 0.0, candidates=(1.0,)).find(2)


WORDS = ["--reference", "critters:16", "--n", "8", "--candidates", "0.3", "1.0", "--refine", "0", "--json"]


def test_the_command_searches_and_samples(run, tmp_path, capsys, monkeypatch):
    """With a distance that is quick: how near the first level is to one."""
    monkeypatch.setattr(tune_steps, "distance_to_data", lambda *_: lambda levels: abs(math.log((*levels, 9.0)[0])))
    card = export(open_run(run), tmp_path / "card")
    assert main(["tune-steps", str(card), *WORDS, "--dry"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tried"] == [{"levels": [0.3], "distance": abs(math.log(0.3))}, {"levels": [1.0], "distance": 0.0}]
    assert open_run(card).spec.middle == (0.53,)
    assert main(["tune-steps", str(card), *WORDS, "--evaluations", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["middle"] == [1.0, 0.3]
    assert open_run(card).spec.middle == (1.0, 0.3)
    out = tmp_path / "out"
    sampled = ["sample", str(card), "--n", "2", "--json", "--out", str(out)]
    for options, evaluations in (([], 3), (["--steps", "1"], 1), (["--evaluations", "4"], 4), (["--steps", "2"], 2)):
        assert main([*sampled, *options]) == 0
        assert json.loads(capsys.readouterr().out)["evaluations"] == evaluations
    assert main(["sample", str(run), "--n", "1", "--ema", "0.9", "--steps", "1", "--out", str(out)]) == 0
    assert main(["sample", str(run), "--ema", "0.3", "--out", str(out)]) == 2


@pytest.mark.slow
def test_the_search_measures_what_eval_measures(run, tmp_path, capsys):
    card = export(open_run(run), tmp_path / "card")
    assert main(["tune-steps", str(card), *WORDS, "--batch", "16"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["distance"] == min(entry["distance"] for entry in told["tried"])
    assert main(["eval", str(card), "critters:16", "--n", "8", "--metrics", "fd", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert found["FD-lite0"] == pytest.approx(told["distance"], rel=1e-6)


def test_the_search_refuses_other_models(tmp_path):
    assert main(["tune-steps", "critters"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "--batch must be at least 1"),
        (["--batch", "-5"], "--batch must be at least 1"),
        (["--n", "1"], "--n must be at least 2"),
        (["--candidates", "0.002"], "must lie between"),
        (["--candidates", "nan"], "must be a finite number"),
    ],
)
def test_the_search_refuses_what_cannot_be(run, words, message, capsys):
    assert main(["tune-steps", str(run), "--reference", "critters:16", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_search_leaves_the_library_as_it_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune_steps, "distance_to_data", lambda *_: lambda levels: abs(math.log((*levels, 9.0)[0])))
    card = export(open_run(run), tmp_path / "weights" / "shipped-one")
    monkeypatch.setattr("ornstein.runs.places.WEIGHTS", card.parent)
    assert main(["tune-steps", "shipped-one", *WORDS]) == 2
    assert "comes with the library" in capsys.readouterr().err
    assert not (card / "sampling.json").exists()
    assert main(["tune-steps", "shipped-one", *WORDS, "--dry"]) == 0


# ------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("kind", [ICTConfig, CMConfig])
def test_presets_train(kind, tmp_path):
    out = tmp_path / "run"
    summary = train(kind(**shared(out, images=3 * BATCH)), quiet=True)
    assert math.isfinite(summary.loss)
    spec = open_run(out).spec
    assert isinstance(spec, ConsistencySpec)
    if kind is CMConfig:
        assert set(weights(out, "target")) == set(weights(out))
        moved = weights(out, "target")["net.head.weight"]
        assert not torch.equal(moved, weights(out)["net.head.weight"])
        again = tmp_path / "again"
        train(kind(**shared(again, images=BATCH, curriculum=3 * BATCH)), quiet=True)
        train(kind(**shared(again, images=3 * BATCH)), quiet=True)
        assert torch.equal(weights(again, "target")["net.head.weight"], moved)
    else:
        assert lines(out)[-1]["schedule"]["c"] == pytest.approx(0.00054 * math.sqrt(768))


@pytest.mark.parametrize(
    ("path", "predicts"), [("ve", "edm"), ("vp-cosine", "clean"), ("vp-linear", "noise"), ("flow", "velocity")]
)
def test_a_diffusion_model_is_tuned(path, predicts, tmp_path):
    """Its first answers are those of the diffusion model, up to the boundary; its first loss is finite."""
    plain = replace(NETWORK, dropout=0.0, norm="group")
    given, out = tmp_path / "given", tmp_path / "run"
    options = {"network": plain, "path": path, "predicts": predicts, "condition": "label", "images": 2 * BATCH}
    train(TrainConfig(**shared(given, objective=Denoising(), **options)), quiet=True)
    config = ECTConfig(**shared(out, images=2 * BATCH, init_from=str(given)))
    train(config, quiet=True)
    old, new = open_run(given), open_run(out)
    assert new.classes == old.classes
    assert isinstance(new.denoiser.parameterization, Consistency if predicts == "edm" else Anchored)
    cond = new.cond(labels=[0, 1])
    tuned = new.spec.denoiser(old.model.net).with_condition(cond)
    before = old.denoiser.with_condition(cond)
    x = torch.randn(2, 3, 16, 16)
    at = before.path.time_of(-2.0 * math.log(2.0))
    assert torch.allclose(tuned(x, at).clean, before(x, at).clean, atol=1e-3)
    assert orn.sample(new.denoiser, 2, steps=2, cond=cond).isfinite().all()
    if path == "ve":
        assert torch.equal(tuned(x, at).clean, before(x, at).clean)
        again = SLCTConfig(**shared(tmp_path / "slct", images=BATCH, init_from=str(out)))
        train(again, quiet=True)
        assert open_run(tmp_path / "slct").spec == new.spec


def test_tuning_nothing_is_said(tmp_path, capsys):
    small = [
        "--network.width",
        "8",
        "--network.multipliers",
        "1",
        "--network.attention",
        "0",
        "--network.head-width",
        "8",
    ]
    words = ["--data", "critters:8", "--size", "16", "--images", "8", "--batch", "8", "--workers", "0", *small]
    for method, told in (("ect", True), ("ict", False)):
        assert main(["train", method, *words, "--out", str(tmp_path / method)]) == 0
        assert ("--init-from RUN" in capsys.readouterr().err) == told


def test_what_cannot_be_is_refused(run, tmp_path):
    out = tmp_path / "none"
    with pytest.raises(ConfigError, match="fp16 cannot hold"):
        slct(out, precision="fp16")
    with pytest.raises(ConfigError, match="sigma_min 0 has no place"):
        slct(out, sigma_min=0.0)
    with pytest.raises(ConfigError, match="need 0 ≤ sigma_min"):
        slct(out, sigma_min=3.0, sigma_max=2.0)
    with pytest.raises(ConfigError, match=r"ema\.also holds"):
        Averages(also=(0.4,))
    with pytest.raises(ConfigError, match=r"watch\.surge"):
        DivergenceConfig(surge=0.5)
    with pytest.raises(ConfigError, match="give --size 16"):
        train(slct(out, init_from=str(run), size=32), quiet=True)
    with pytest.raises(ConfigError, match="makes latents: give the --codec"):
        train(slct(out, init_from="critters-64"), quiet=True)
    with pytest.raises(ConfigError, match="makes pictures: leave --codec out"):
        train(slct(out, init_from=str(run), codec="critters-latents", size=64), quiet=True)
    with pytest.raises(CheckpointError, match="does not exist"):
        train(slct(out, init_from=str(tmp_path / "nowhere")), quiet=True)
    assert not out.exists()


def test_another_autoencoder_of_the_same_shape_is_refused(tmp_path):
    weights = shutil.copytree(resolve_model_path("critters-latents"), tmp_path / "codec") / "ema.safetensors"
    save_file({name: 0.9 * tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ConfigError, match="latents of another autoencoder"):
        train(slct(tmp_path / "none", init_from="critters-64", codec=str(tmp_path / "codec"), size=64), quiet=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", [LatentOptions(std=1.0), LatentOptions(statistics="channel")])
def test_latents_of_another_normalisation_are_refused(options, tmp_path):
    config = slct(tmp_path / "none", init_from="critters-64", codec="critters-latents", size=64, latents=options)
    with pytest.raises(ConfigError, match=r"give --latents\.(std 0\.5|statistics element)"):
        train(config, quiet=True)
    assert not (tmp_path / "none").exists()


def test_a_stopped_run_goes_on_without_the_first_codec(tmp_path):
    codec, few = tmp_path / "codec", {"data": "critters:2", "size": 64, "batch": 2}
    shutil.copytree(resolve_model_path("critters-latents"), codec)
    config = slct(tmp_path / "run", init_from="critters-64", codec=str(codec), images=2, curriculum=4, **few)
    train(config, quiet=True)
    shutil.rmtree(codec)
    assert train(replace(config, images=4), quiet=True).resumed_at == 2


def test_other_networks_and_paths(tmp_path):
    """A transformer without gains, and a bias for each pixel; on a variance-preserving path; with labels."""
    network = DiTConfig(width=32, depth=1, head_width=16, patch=4, norm="nonscaling", qk_norm=True)
    config = slct(tmp_path / "a", network=network, images=2 * BATCH, path="flow", condition="label")
    train(config, quiet=True)
    model = open_run(tmp_path / "a")
    times = model.denoiser.grid(1)(model.denoiser.path)
    assert times == pytest.approx((80.0 / 81.0, 0.0))
    assert orn.sample(model.denoiser, 1, steps=2, cond=model.cond(labels=[0])).isfinite().all()
    config = slct(tmp_path / "b", network=replace(NETWORK, norm_size=16), images=2 * BATCH)
    train(config, quiet=True)
    biases = [value for name, value in weights(tmp_path / "b").items() if "norm" in name]
    assert {value.ndim for value in biases} == {3}


# ------------------------------------------------------------------------------------------------------------ watching


def broken(monkeypatch, bad) -> None:
    """Every call of the objective whose number is in ``bad`` gives no finite loss."""
    from ornstein.objectives.consistency import ConsistencyTraining

    honest, calls = ConsistencyTraining.__call__, [0]

    def call(self, *args):
        calls[0] += 1
        losses = honest(self, *args)
        if calls[0] - 1 not in bad:
            return losses
        return replace(losses, terms={name: term * math.nan for name, term in losses.terms.items()})

    monkeypatch.setattr(ConsistencyTraining, "__call__", call)


def test_a_batch_without_a_finite_loss_is_left_out(tmp_path, monkeypatch):
    broken(monkeypatch, {2, 5})
    out = tmp_path / "run"
    train(slct(out, every=Every(log=7 * BATCH, seconds=0, samples=0)), quiet=True)
    (line,) = lines(out)
    assert line["left_out"] == {"nonfinite": pytest.approx(2 / 7), "outlier": 0.0}
    assert sum(line["levels"]["samples"]) == 5 * BATCH
    assert all(value.isfinite().all() for value in weights(out).values())
    assert weights(out, "optimizer")["step/net.stem.weight"].item() == 5


def test_too_many_of_them_are_a_divergence_with_a_name(tmp_path, monkeypatch):
    broken(monkeypatch, set(range(4, 100)))
    out = tmp_path / "run"
    with pytest.raises(DivergedError) as error:
        train(
            slct(out, images=40 * BATCH, every=Every(log=BATCH, checkpoint=3 * BATCH, seconds=0, samples=0)), quiet=True
        )
    assert "11 of the last 15 batches gave no finite loss" in str(error.value)
    assert "000000000096" in str(error.value)
    assert "lower --optimizer.lr" in str(error.value)


def test_the_guard():
    guard = DivergenceMonitor(watch=DivergenceConfig(outlier=20.0))
    assert all(guard.accepts_numbers([1.0, 2.0, 0.5], 10.0) for _ in range(50))
    assert not guard.accepts_numbers([1.0, 50.0, 0.5], 10.0)
    assert guard.record() == {"left_out": {"nonfinite": 0.0, "outlier": 1 / 51}}
    twin = DivergenceMonitor(watch=guard.watch)
    twin.load(json.loads(json.dumps(guard.state())))
    assert twin == guard
    assert guard.accepts_numbers([1.0, 50.0, 0.5], 20.0)  # another stage has gradients of its own
    assert not guard.cause
    while not guard.cause and guard.settled < 1000:
        guard.accepts_numbers([1.0, 2.0, 60.0], 20.0)
    assert "root mean square of the network's outputs" in guard.cause
    guard = DivergenceMonitor(watch=DivergenceConfig())
    for _ in range(300):
        guard.accepts_numbers([1.0, 2.0, 0.5], 10.0)
    for _ in range(60):
        guard.accepts_numbers([1.0, 2e4, 0.5], 10.0)
    assert "times as large as in the stage so far" in guard.cause


def test_one_bad_batch_is_seen_by_the_guard_alone():
    losses = Losses(terms={"a": torch.ones(2)}, times=torch.ones(2), watched={"output": torch.ones(2)})

    class Alone:
        num_processes = 1

    guard = DivergenceMonitor(watch=DivergenceConfig())
    assert guard.accepts(losses, torch.tensor(1.0), Alone())  # type: ignore[arg-type]
    assert not guard.accepts(losses, torch.tensor(math.inf), Alone())  # type: ignore[arg-type]
    assert guard.left_out == {"nonfinite": 1, "outlier": 0}
