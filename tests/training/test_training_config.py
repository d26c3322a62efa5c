import json
from dataclasses import replace

import pytest

from ornstein.cli.parser import parse
from ornstein.errors import ConfigError
from ornstein.networks import DiTConfig, UNetConfig
from ornstein.objectives import Denoising
from ornstein.parameterizations import parameterization
from ornstein.paths import VP
from ornstein.training import Optimizer, TrainConfig, read_config, to_dict

CONFIGS = [
    TrainConfig(out="x"),
    TrainConfig(out="x", network=DiTConfig(depth=3), condition="text", workers=3),
    TrainConfig(out="x", network=UNetConfig(blocks=(1, 2, 1)), path="ve", predicts="edm", optimizer=Optimizer(lr=1)),
    TrainConfig(out="x", objective=Denoising(times="log-normal", mean=-1.0, weight="min-snr"), precision="bf16"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_file_round_trip(config):
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": {}}, "unknown key 'optimiser': did you mean 'optimizer'"),
        ({"optimizer": {"rate": 1.0, "learning": 2}}, "optimizer.rate"),
        ({"images": "many"}, "images='many' must be of type int"),
        ({"images": True}, "images=True must be of type int"),
        ({"path": "vp-square"}, "path='vp-square' is unknown: choose one of vp-linear"),
        ({"network": {"kind": "mlp"}}, "network.kind='mlp' is unknown: choose one of unet, dit"),
        ({"network": {"kind": "dit", "multipliers": [1]}}, "network.multipliers"),
        ({"network": {"kind": "unet", "blocks": "two"}}, "network.blocks='two'"),
        ({"optimizer": {"betas": [0.9]}}, "a list of 2 values"),
        ({"optimizer": 3}, "optimizer must hold named values"),
        ({"kind": "dit"}, "expected 'trainconfig'"),
    ],
)
def test_unreadable_files_are_named(change, message):
    with pytest.raises(ConfigError) as error:
        read_config(to_dict(CONFIGS[0]) | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_keys_take_defaults_and_out_is_required():
    assert read_config({"out": "x"}) == TrainConfig(out="x")
    with pytest.raises(ConfigError, match="missing key 'out'"):
        read_config({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "images must be at least 1"),
        ({"out": ""}, "out is empty"),
        ({"size": 66}, "size 66 does not divide by"),
        ({"path": "ve", "predicts": "v"}, "use --predicts edm"),
        ({"network": UNetConfig(classes=3)}, "network.classes follows"),
        ({"workers": -1}, "workers must not be negative"),
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIGS[0], **changes)


def test_parts_refuse_too():
    for make in (
        lambda: Optimizer(lr=0.0),
        lambda: Optimizer(betas=(0.9, 1.0)),
        lambda: Optimizer(clip=-1.0),
        lambda: Optimizer(lr=float("nan")),
        lambda: Denoising(label_dropout=1.5),
        lambda: Denoising(gamma=0.0),
    ):
        with pytest.raises(ConfigError):
            make()


def test_command_line():
    args = ["--data", "d", "--out", "o", "--images", "7", "--batch", "2"]
    args += ["--network.width", "64", "--optimizer.lr", "2e-3", "--every.log", "5"]
    config = parse(TrainConfig, "ornstein train ddpm", args)
    assert (config.data, config.images, config.network.width, config.optimizer.lr) == ("d", 7, 64, 2e-3)
    assert isinstance(config.network, UNetConfig)
    config = parse(TrainConfig, "p", ["--out", "o", "--network.depth", "3", "--network", "dit", "--seed", "4"])
    assert config.network == DiTConfig(depth=3)
    assert config.seed == 4


def test_help_says_what_each_option_is(capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, "ornstein train ddpm", ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("Example: ornstein train ddpm", "Budget: how many images", "Learning rate after the warm-up"):
        assert words in text


def test_warm_up_and_decay():
    optimizer = Optimizer(lr=1.0, warmup=100, decay=400)
    assert optimizer.rate(0) == pytest.approx(0.01)
    assert optimizer.rate(99) == optimizer.rate(400) == 1.0
    assert optimizer.rate(1600) == pytest.approx(0.5)


def test_the_fields_spellings_of_a_prediction_are_understood(tmp_path):
    spellings = {
        "epsilon": "noise", "eps": "noise", "x0": "clean", "sample": "clean", "v_prediction": "v", "flow": "velocity",
    }  # fmt: skip
    for spelling, name in spellings.items():
        assert type(parameterization(spelling)) is type(parameterization(name))
        config = TrainConfig(out=str(tmp_path), predicts=spelling)
        assert config == TrainConfig(out=str(tmp_path), predicts=name)
        assert parse(TrainConfig, "train", ["--out", str(tmp_path), "--predicts", spelling]) == config
        assert read_config({"kind": "trainconfig", "out": str(tmp_path), "predicts": name}) == config
    assert VP.table("squaredcos_cap_v2") == VP.table("cosine")
    assert VP.table("scaled_linear") == VP.table("scaled-linear")
