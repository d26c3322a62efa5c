"""`ornstein sample --guidance` draws what the guidance of the same name draws in Python; bad words cost one line."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein import grids, guidance, guides
from ornstein.cli.main import main
from ornstein.data import save_png
from ornstein.denoisers import Guidance
from ornstein.guidance.registry import GUIDANCES, Setting, read_guidance
from ornstein.networks import UNetConfig
from ornstein.runs import TrainedModel, export, open_own
from ornstein.training import TrainConfig, train
from ornstein.training.config import Every

DOCS = Path(__file__).parents[2] / "docs"
STEPS, CAPTION = 3, "an orange critter"


@pytest.fixture(scope="module")
def labelled(bold_run: Path) -> TrainedModel:
    return open_own(bold_run)


@pytest.fixture(scope="module")
def captioned(text_run: Path) -> TrainedModel:
    """With attention, and so with sites for it."""
    return open_own(text_run)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a condition, of the states and the path of ``labelled``."""
    out = tmp_path_factory.mktemp("runs") / "bare"
    network = UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), patch=2)
    config = TrainConfig(data="critters:16", out=str(out), size=16, images=16, batch=16, network=network,
                         every=Every(log=16, samples=0), tensorboard=False)  # fmt: skip
    train(config, quiet=True)
    return out


def pictures(capsys: pytest.CaptureFixture[str], run: TrainedModel, out: Path, *words: object) -> list[bytes]:
    """The files of a call that succeeds; its JSON names the guidances in order."""
    condition = ("--caption", CAPTION) if run.condition == "text" else ("--label", 1)
    call = ("sample", run.folder, "--n", 2, "--steps", STEPS, "--strict", "--out", out, "--json", *condition, *words)
    status = main([str(word) for word in call])
    said = capsys.readouterr()
    assert status == 0, said.err
    asked = [str(after) for word, after in itertools.pairwise(words) if word == "--guidance"]
    assert json.loads(said.out)["guidance"] == asked
    return [(out / f"{i:06d}.png").read_bytes() for i in range(2)]


def drawn(run: TrainedModel, rule: Guidance | None, folder: Path, sampler: str | None = None) -> list[bytes]:
    """The same pictures by a call from Python."""
    cond = run.cond(captions=[CAPTION] * 2) if run.condition == "text" else run.cond(labels=[1] * 2)
    model = run.denoiser if rule is None else rule(run.denoiser)
    images = orn.sample(model, 2, steps=STEPS, cond=cond, sampler=sampler, strict=True)
    assert torch.isfinite(images).all()
    return [save_png(image, folder / "expected.png").read_bytes() for image in images]


def times_of(run: TrainedModel) -> tuple[float, ...]:
    return tuple(grids.default(run.denoiser.path, STEPS)(run.denoiser.path))


OF_LABELS = {
    "cfg:3": lambda run: guidance.CFG(weight=3.0, null=run.null()),
    "cfg:3,rescale=0.7": lambda run: guidance.CFG(weight=3.0, null=run.null(), rescale=0.7),
    "cfg:3,sigma=0.1:20": lambda run: guidance.interval(
        guidance.CFG(weight=3.0, null=run.null()), sigma=(0.1, 20.0)
    ),
    "apg:4": lambda run: guidance.APG(weight=4.0, null=run.null()),
    "apg:4,norm=2.5,parallel=0.5": lambda run: guidance.APG(weight=4.0, null=run.null(), norm=2.5, parallel=0.5),
    "cfg++": lambda run: guidance.CFGpp(scale=0.6, null=run.null(), grid=times_of(run)),
    "cfg++:0.3": lambda run: guidance.CFGpp(scale=0.3, null=run.null(), grid=times_of(run)),
    "threshold": lambda run: guidance.Threshold(),
    "threshold:0.8": lambda run: guidance.Threshold(quantile=0.8),
    "threshold:none,bound=0.5": lambda run: guidance.Threshold(quantile=None, bound=0.5),
    "skip-layer:2,before=mid.0.hidden,after=mid.1.hidden": lambda run: guidance.SkipLayer(
        layers=(("mid.0.hidden", "mid.1.hidden"),), scale=2.0
    ),
}  # fmt: skip
OF_CAPTIONS = {
    "pag": lambda run: guidance.PAG(scale=3.0),
    "pag:1.5": lambda run: guidance.PAG(scale=1.5),
    "pag:1.5,at=up.0.0": lambda run: guidance.PAG(scale=1.5, at="up.0.0"),
    "seg": lambda run: guidance.SEG(),
    "seg:2,blur=0.5": lambda run: guidance.SEG(scale=2.0, blur=0.5),
    "cfg:2": lambda run: guidance.CFG(weight=2.0, null=run.null()),
}


@pytest.mark.parametrize("words", OF_LABELS)
def test_a_guidance_of_a_labelled_model_is_that_of_python(
    capsys: pytest.CaptureFixture[str], labelled: TrainedModel, tmp_path: Path, words: str
) -> None:
    expected = drawn(labelled, OF_LABELS[words](labelled), tmp_path)
    assert pictures(capsys, labelled, tmp_path / "out", "--guidance", words) == expected
    assert expected != drawn(labelled, None, tmp_path)


@pytest.mark.parametrize("words", OF_CAPTIONS)
def test_a_guidance_of_a_captioned_model_is_that_of_python(
    capsys: pytest.CaptureFixture[str], captioned: TrainedModel, tmp_path: Path, words: str
) -> None:
    expected = drawn(captioned, OF_CAPTIONS[words](captioned), tmp_path)
    assert pictures(capsys, captioned, tmp_path / "out", "--guidance", words) == expected
    assert expected != drawn(captioned, None, tmp_path)


def test_the_default_numbers_are_not_one_another() -> None:
    """Every written form above is another guidance: none of the comparisons repeats one before."""
    for forms in (OF_LABELS, OF_CAPTIONS):
        specs = [
            (read_guidance(words).type.name, str(read_guidance(words).arguments), read_guidance(words).window)
            for words in forms
        ]
        assert len(set(specs)) == len(forms)


def test_a_second_model_guides_by_its_answer(
    capsys: pytest.CaptureFixture[str], labelled: TrainedModel, bare: Path, tmp_path: Path
) -> None:
    """One with the same labels is given them, one without a condition is evaluated as it is."""
    other = open_own(labelled.folder)
    for weight in other.model.parameters():
        weight.mul_(0.8)
    same_labels = export(other, tmp_path / "other", half=False)
    for worse, conditional, weight, text in ((same_labels, True, 2.0, ""), (bare, False, 3.5, ":3.5")):
        rule = guidance.Autoguidance(weight=weight, worse=open_own(worse).denoiser, conditional=conditional)
        expected = drawn(labelled, rule, tmp_path)
        assert pictures(capsys, labelled, tmp_path / "out", "--guidance", f"autoguidance:{worse}{text}") == expected
        assert expected != drawn(labelled, None, tmp_path)


def test_several_act_one_after_the_other_in_the_order_given(
    capsys: pytest.CaptureFixture[str], labelled: TrainedModel, tmp_path: Path
) -> None:
    cfg, threshold = guidance.CFG(weight=3.0, null=labelled.null()), guidance.Threshold(quantile=0.8)
    found = []
    for name, order in (("cfg:3", (cfg, threshold)), ("threshold:0.8", (threshold, cfg))):
        words = ["cfg:3", "threshold:0.8"] if name == "cfg:3" else ["threshold:0.8", "cfg:3"]
        expected = drawn(labelled, guidance.compose(*order), tmp_path)
        options = [option for word in words for option in ("--guidance", word)]
        assert pictures(capsys, labelled, tmp_path / name, *options) == expected
        found.append(expected)
    assert found[0] != found[1]


def test_the_scale_is_short_for_cfg_before_all_others(
    capsys: pytest.CaptureFixture[str], labelled: TrainedModel, tmp_path: Path
) -> None:
    long = pictures(capsys, labelled, tmp_path / "long", "--guidance", "cfg:3", "--guidance", "threshold:0.8")
    short = pictures(capsys, labelled, tmp_path / "short", "--guidance", "threshold:0.8", "--guidance-scale", 3)
    assert short == long
    alone = pictures(capsys, labelled, tmp_path / "alone", "--guidance-scale", 3)
    assert alone == pictures(capsys, labelled, tmp_path / "cfg", "--guidance", "cfg:3") != long


@pytest.mark.parametrize("placement", ["joint", "separate"])
def test_guides_see_the_guided_answer_or_stand_beside_it(
    capsys: pytest.CaptureFixture[str], labelled: TrainedModel, tmp_path: Path, placement: str
) -> None:
    words = ("--guidance", "threshold:0.8", "--guide", "colour:navy:300", "--guide-placement", placement)
    made = guides.make(["colour:navy:300"], shape=labelled.denoiser.shape or ())
    options = guides.GuidanceOptions(placement=placement)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    inner = guidance.Threshold(quantile=0.8)
    rule = guides.compose(made, options, inner, labelled.null() if placement == "separate" else None)
    expected = drawn(labelled, rule, tmp_path)
    assert pictures(capsys, labelled, tmp_path / "out", *words) == expected
    assert expected != drawn(labelled, inner, tmp_path)


# ------------------------------------------------------------------------------------------------------------ bad input

LABEL = ("--label", "1")
REFUSED: Sequence[tuple[str, Sequence[str]]] = (
    ("unknown guidance 'pgag': did you mean pag?", ("--guidance", "pgag:3")),
    ("unknown guidance 'zzz': choose one of cfg, apg, cfg++, autoguidance, pag,", ("--guidance", "zzz")),
    ("guidance 'cfg' needs a number: write cfg:WEIGHT[,rescale=…][,sigma=…]", ("--guidance", "cfg")),
    ("guidance 'cfg:x': weight must be a number, got 'x'", ("--guidance", "cfg:x")),
    ("guidance 'threshold:inf': quantile must be a number, or none for plain", ("--guidance", "threshold:inf")),
    ("guidance 'cfg:2,rescal=1' has no 'rescal': did you mean rescale?", ("--guidance", "cfg:2,rescal=1")),
    ("guidance 'pag:3,q=1' has no 'q': choose one of at, sigma", ("--guidance", "pag:3,q=1")),
    ("guidance 'cfg:2,rescale' must give rescale once, as rescale=VALUE", ("--guidance", "cfg:2,rescale")),
    ("must give sigma once", ("--guidance", "pag,sigma=1:2,sigma=1:2")),
    ("must give rescale once", ("--guidance", "cfg:2,rescale=0.5,rescale=0.5")),
    ("has no 'weight': choose one of rescale, sigma", ("--guidance", "cfg:2,weight=3")),
    ("sigma must be LOW:HIGH in σ/α with 0 ≤ LOW < HIGH, got '5:1'", ("--guidance", "pag,sigma=5:1")),
    ("rescale must lie in [0, 1], got 2.0", ("--guidance", "cfg:2,rescale=2", *LABEL)),
    ("quantile must lie in (0, 1]", ("--guidance", "threshold:2")),
    ("the scale of CFG++ lies in [0, 1], got 7.0", ("--guidance", "cfg++:7", *LABEL)),
    ("skip-layer needs blocks=2+3 of a transformer, or before=", ("--guidance", "skip-layer:2")),
    ("blocks must be numbers such as 2+3, got '2-3'", ("--guidance", "skip-layer:2,blocks=2-3")),
    ("guidance 'skip-layer,blocks=2': no site matches", ("--guidance", "skip-layer,blocks=2")),
    ("guidance 'pag:3': no site matches 'mid.*.value'", ("--guidance", "pag:3")),
    ("guidance 'seg': no site matches 'mid.*.query'", ("--guidance", "seg")),
    ("--guidance-scale 2 and --guidance cfg:3 are the same guidance twice",
     ("--guidance-scale", "2", "--guidance", "cfg:3", *LABEL)),
    ("guidance 'autoguidance' needs a second model: write autoguidance:RUN[:WEIGHT]", ("--guidance", "autoguidance")),
    ("no-such-run", ("--guidance", "autoguidance:no-such-run:2")),
    ("second model on the same states and path: critters has (3, 64, 64)", ("--guidance", "autoguidance:critters")),
)  # fmt: skip


@pytest.mark.parametrize(("said", "words"), REFUSED, ids=[" ".join(words) for _, words in REFUSED])
def test_bad_words_cost_one_line(
    capsys: pytest.CaptureFixture[str], bold_run: Path, tmp_path: Path, said: str, words: Sequence[str]
) -> None:
    out = tmp_path / "out"
    assert main(["sample", str(bold_run), "--n", "1", "--steps", "2", "--out", str(out), *words]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("ornstein: ")
    assert said in found.err
    assert found.err.count("\n") == 1
    assert not out.exists(), "nothing is begun"


def test_models_that_lack_a_condition_or_have_another_are_refused(
    capsys: pytest.CaptureFixture[str], bare: Path, bold_run: Path, text_run: Path, tmp_path: Path
) -> None:
    other = export(open_own(bold_run), tmp_path / "other")
    details = json.loads((other / "config.json").read_text())
    details["model"]["classes"] = [f"x{name}" for name in details["model"]["classes"]]
    (other / "config.json").write_text(json.dumps(details))
    for run, words, said in (
        (bare, ("cfg:3", "--label", "1"), "takes no labels"),
        (bold_run, (f"autoguidance:{other}",), "needs a second model with the labels of"),
        (text_run, (f"autoguidance:{text_run}", "--caption", CAPTION), "cannot give captions to"),
    ):
        assert main(["sample", str(run), "--n", "1", "--out", str(tmp_path / "out"), "--guidance", *words]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_a_setting_without_what_is_needed_is_refused_in_python_too() -> None:
    for words, said in (("cfg:2", "needs a condition"), ("autoguidance:x", "needs a second model")):
        with pytest.raises(orn.errors.UsageError, match=said):
            read_guidance(words).make(Setting())
    with pytest.raises(orn.errors.UsageError, match="needs the grid of the sampler"):
        read_guidance("cfg++").make(Setting(null={}))
    with pytest.raises(orn.errors.PathError, match=r"cfg\+\+ needs an AffinePath"):
        read_guidance("cfg++").make(Setting(null={}, grid=[1.0, 0.0], path=orn.PyramidPath()))
    with pytest.raises(orn.errors.PathError):
        read_guidance("threshold,sigma=1:2").make(Setting(path=orn.PyramidPath()))


# ------------------------------------------------------------------------------------------------ registry, help, pages


def test_help_and_the_page_name_every_guidance(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    text = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())
    assert "--guidance help lists them" in text
    with pytest.raises(orn.errors.ConfigError) as caught:
        read_guidance("help")
    assert all(one.form in str(caught.value) for one in GUIDANCES.values())
    page = (DOCS / "reference" / "guidance.md").read_text("utf-8")
    table = page[page.index("## On the command line") : page.index("## Which paths")]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert rows == [(one.form, one.what) for one in GUIDANCES.values()]


def test_a_row_of_the_registry_is_complete() -> None:
    assert all(name == one.name for name, one in GUIDANCES.items())
    for one in GUIDANCES.values():
        assert set(one.needs) <= {"condition", "grid", "model", "sites"}
        assert one.default is None or math.isfinite(one.default)
        words = one.name + (":x" if "model" in one.needs else "") + (":1" if one.default is None else "")
        spec = read_guidance(words)
        assert (spec.type, spec.window) == (one, None)
        assert spec.arguments == {one.number: 1.0 if one.default is None else one.default}
