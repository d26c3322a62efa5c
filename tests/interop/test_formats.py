"""The front door: one table of formats, for Python and for the command, which a stranger's format joins."""

import json
from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein.cli.main import main
from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.guidance import CFG
from ornstein.interop.opened import OpenedModel, PlainModel
from ornstein.networks.ncsnpp import NCSNpp, NCSNppConfig
from ornstein.runs import (
    ModelFormat,
    export,
    format_of,
    formats,
    is_run,
    open_own,
    open_run,
    register_format,
    unregister_format,
)

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def udpm_file(tmp_path_factory):
    """A checkpoint in the authors' layout, of pictures of 16 pixels in 3 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NCSNpp(NCSNppConfig(resolution=8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3))
    path = tmp_path_factory.mktemp("udpm") / "model_ema_state_tiny.pt"
    torch.save({f"net.{name}": tensor for name, tensor in net.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory, pixels, udpm_file):
    """A thing of each format."""
    one_file = tmp_path_factory.mktemp("xl") / "sdxl.safetensors"
    one_file.write_bytes(b"")  # what is in such a file: test_sdxl_files.py
    home = tmp_path_factory.mktemp("places")
    card = export(open_own("critters"), home / "card")
    run = home / "run"
    step = run / "checkpoints" / "000001"
    step.mkdir(parents=True)
    (run / "config.json").write_bytes((card / "config.json").read_bytes())
    (step / "ema.safetensors").write_bytes((card / "ema.safetensors").read_bytes())
    (step / "state.json").write_text("{}")
    return {
        "shipped model": "critters",
        "diffusers pipeline": pixels,
        "part of a diffusers pipeline": pixels / "unet",
        "checkpoint": step,
        "exported model": card,
        "run": run,
        "loaded diffusers pipeline": diffusers.DDPMPipeline.from_pretrained(pixels),
        "UDPM checkpoint": udpm_file,
        "SDXL in one file": one_file,
        "hub name": "owner/name",
    }


def test_each_format_is_recognised_as_itself(places):
    assert {known.name for known in formats()} == set(places)
    for name, what in places.items():
        found = format_of(what)
        assert found is not None
        assert found.name == name
        assert "\n" not in found.summary
        if isinstance(what, Path):
            assert format_of(str(what)) is found
            assert is_run(what)
    assert not is_run("owner/name")  # it may as well be a data set
    nothing = (
        None,
        3,
        torch.nn.Linear(2, 2),
        "",
        "no-such",
        "a" * 5000,
        "a/b/c",
        "./a/b",
        "http://x/y",
        places["run"].parent,
    )
    for what in nothing:
        assert format_of(what) is None, what


def test_what_opens_offers_the_same(places):
    for name, what in places.items():
        if name in ("hub name", "part of a diffusers pipeline", "SDXL in one file"):  # the last is empty here
            continue
        model = orn.load(what)
        assert isinstance(model, OpenedModel)
        assert model.condition == ("label" if name.startswith("UDPM") else "none")
        assert model.null().keys() == ({"label"} if name.startswith("UDPM") else set())
        assert model.parameters > 100
        assert model.picture[0] == 3
        assert model.path is model.denoiser.path
        labelled = model.condition == "label"
        options = {"cond": model.cond(labels=[1])} if labelled else {"steps": 2}
        images, again = orn.sample(model, 1, **options), orn.sample(what, 1, **options)
        assert images.shape == (1, *model.picture)
        torch.testing.assert_close(images, again, rtol=0.0, atol=1e-4)


def test_conditions_of_a_loaded_pipeline_are_kept(stable):
    model = orn.load(str(stable))
    pipe = model.pipe
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = model.cond(["a cat", "dog"])
    assert not torch.equal(model.with_condition(cond)(x, 0.5).clean, model(x, 0.5).clean)
    guided = CFG(weight=3.0, null=model.null())(model)
    images = orn.sample(guided, 2, steps=2, cond=cond)
    inner = orn.sample(CFG(weight=3.0, null=model.null())(model.denoiser), 2, steps=2, cond=cond)
    torch.testing.assert_close(images, inner, rtol=0.0, atol=1e-4)
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(
        orn.sample(pipe, 1, steps=2), orn.sample(model.denoiser, 1, steps=2), rtol=0.0, atol=1e-4
    )
    assert orn.from_pipeline(pipe).condition == orn.load(pipe).condition == "text"
    assert [event.final for event in orn.stream(pipe, 1, steps=2)] == [False, False, True]
    for sampler in ("auto", "heun"):
        assert orn.sample(model, 1, sampler=sampler, evaluations=3).isfinite().all()


def test_a_hub_name_says_that_it_is_offline(capsys, tmp_path):
    said = r"owner/name cannot be loaded: there is no such folder, and HF_HUB_OFFLINE is set.*path of a folder"
    for open_it in (orn.load, orn.from_pipeline, open_run):
        with pytest.raises(UsageError, match=said):
            open_it("owner/name")
    assert main(["sample", "owner/name", "--out", str(tmp_path / "x")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "HF_HUB_OFFLINE is set" in lines[0]


def test_a_published_checkpoint_is_sampled_by_the_command(udpm_file, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["sample", str(udpm_file), "--n", "2", "--label", "2", "--out", str(out), "--json"]
    assert main(words) == 0
    written = json.loads(capsys.readouterr().out)
    assert len(written["images"]) == 2
    assert main([*words, "--label", "3"]) == 2
    assert "unknown label '3' of 3 classes: choose 0 … 2" in capsys.readouterr().err
    assert main(["sample", str(udpm_file), "--ema", "0.5", "--out", str(out)]) == 2
    assert "is a UDPM checkpoint, which has no average 0.5" in capsys.readouterr().err
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    assert main(["sample", str(tmp_path / "bad.pt"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_model_is_refused_in_one_line(pixels, tmp_path):
    with pytest.raises(UsageError, match=r"unet is a UNet2DModel alone, .*: give the folder of the pipeline, .*ddpm"):
        orn.load(pixels / "unet")
    for wrong in (None, 3, torch.nn.Linear(2, 2)):
        for function in (orn.load, orn.sample, orn.stream):
            with pytest.raises(UsageError, match=f"a {type(wrong).__name__} is no model: give a folder"):
                function(wrong)
    with pytest.raises(CheckpointError, match="does not exist"):
        orn.sample(tmp_path / "none")
    with pytest.raises(UsageError, match=r"diffusers pipeline, which has no average 0\.9"):
        orn.load(pixels, ema=0.9)


# ----------------------------------------------------------------------------- what a new format takes: this much


def open_toy(what, /, *, ema, device):
    number = float(Path(what).read_text())
    net = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)
    torch.nn.init.constant_(net.weight, 0.0)
    torch.nn.init.constant_(net.bias, number)
    denoiser = orn.Denoiser(lambda x, time: net(x), orn.VP(), "clean", shape=(3, 8, 8))
    return PlainModel(denoiser=denoiser, folder=Path(what), weights=Path(what))


TOY = ModelFormat(
    name="toy",
    summary="one number in a file, the grey of every picture",
    recognise=lambda what: isinstance(what, str | Path) and Path(what).suffix == ".toy",
    open=open_toy,
)


def test_a_strangers_format_is_opened_everywhere(tmp_path, capsys):
    file = tmp_path / "grey.toy"
    file.write_text("0.5")
    with pytest.raises(CheckpointError):
        orn.load(file)
    register_format(TOY)
    try:
        assert formats()[0] is TOY
        with pytest.raises(ConfigError, match="a model format 'toy' already"):
            register_format(TOY)
        torch.testing.assert_close(orn.sample(orn.load(file), 1, steps=2), torch.full((1, 3, 8, 8), 0.5))
        torch.testing.assert_close(orn.sample(str(file), 1, steps=2), torch.full((1, 3, 8, 8), 0.5))
        assert main(["sample", str(file), "--n", "1", "--steps", "2", "--out", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "000000.png").is_file()
        assert main(["eval", str(file), "--n", "2", "--steps", "2", "--metrics", "diversity"]) in (0, 2)
        capsys.readouterr()
    finally:
        unregister_format("toy")
    assert format_of(file) is None


def test_the_page_lists_formats_of_the_table():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text("utf-8")
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    rows = [tuple(cell.strip() for cell in line) for line in lines]
    known = {(one.name, one.summary) for one in formats()}
    assert {row for row in rows if len(row) == 2 and row != ("format", "what")} <= known
    assert ("run", "the folder of ornstein train; its newest checkpoint") in rows
