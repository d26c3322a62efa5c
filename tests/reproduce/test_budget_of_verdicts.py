"""No verdict on a paper from too little training: its share, a converged baseline, and the one table of all claims."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import canned
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ornstein.errors import ConfigError
from ornstein.methods import PAPERS
from ornstein.reproduce import EXPERIMENTS, ArmTraining, Budget, Claim, Finding, Findings, experiment, judge_budget
from ornstein.reproduce.page import ours, trained
from ornstein.reproduce.record import Verdict
from ornstein.reproduce.summary import rows
from ornstein.reproduce.training import BUDGET, LEAST_SHARE, above_bar, claim_of, trained_arm, unmeasured
from ornstein.reproduce.tuning import tune

ROOT = Path(__file__).parents[2]
CLAIMS = {"Ours is": Claim("FID 3", ("ours", "theirs")), "It costs": Claim("none")}
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")


def finding(claim: str = "Ours is better", verdict: Verdict = "reproduced") -> Finding:
    reason = "" if verdict == "reproduced" else "why not"
    return Finding(claim=claim, source="s", expected="e", measured="m", verdict=verdict, reason=reason, value=1.0)


def arm(name: str, share: float | None, converged: bool | None) -> ArmTraining:
    images = None if share is None else round(share * 10**6)
    return ArmTraining(arm=name, images=images, paper=10**6, source="s", test="t", converged=converged)


def judged(one: Finding, *trainings: ArmTraining) -> Finding:
    return judge_budget(Findings(findings=[one], trainings=trainings), CLAIMS).findings[0]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_too_little_training_withholds_every_verdict(verdict: Verdict) -> None:
    enough = (arm("ours", 0.2, None), arm("theirs", 0.3, True))
    found = judged(finding(verdict=verdict), *enough)
    assert (found.verdict, found.share, found.baseline, found.kind) == (verdict, 0.2, "converged", "training")
    for trainings in (
        (arm("ours", 0.049, None), arm("theirs", 0.3, True)),  # the least share of the two counts
        (arm("ours", 0.2, True), arm("theirs", 0.01, True)),
        (arm("ours", 0.2, True), arm("theirs", 0.3, False)),  # a baseline that is noise still
        (arm("ours", 0.2, True), arm("theirs", 0.3, None)),
        (arm("ours", None, True), arm("theirs", 0.3, True)),
        (arm("theirs", 0.3, True),),
        (),
    ):
        found = judged(finding(verdict=verdict), *trainings)
        assert found.verdict == BUDGET
        assert found.reason
        assert found.by_interval == verdict


def test_laws_keep_their_verdicts() -> None:
    for verdict in (*VERDICTS, "not testable here"):
        found = judged(finding("It costs nothing", verdict))
        assert (found.verdict, found.kind, found.share, trained(found)) == (verdict, "law", None, "none")


def test_what_was_not_measured_stays_so() -> None:
    assert judged(finding(verdict="not testable here")).verdict == "not testable here"


@given(st.sampled_from(VERDICTS), st.sampled_from([0.01, 0.06, 1.0]), st.sampled_from([True, False, None]))
def test_judging_again_changes_nothing_and_more_training_brings_the_verdict_back(
    verdict: Verdict, share: float, converged: bool | None
) -> None:
    first = judged(finding(verdict=verdict), arm("ours", share, True), arm("theirs", share, converged))
    again = judged(first, arm("ours", share, True), arm("theirs", share, converged))
    assert again == first
    later = judged(first, arm("ours", 1.0, True), arm("theirs", 1.0, True))
    assert (later.verdict, later.reason) == (verdict, finding(verdict=verdict).reason)


def test_a_claim_of_no_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="in no list of claims"):
        judged(finding("Nobody said what this rests on"))
    nearest = {"A": Claim("short"), "A b": Claim("long")}
    assert claim_of("A b c", nearest).figure == "long"


@pytest.mark.parametrize(
    ("before", "after", "converged"),
    [
        ([1.0, 1.1, 0.9], [1.0, 1.1, 0.9], True),
        ([1.0, 1.1, 0.9], [0.99, 1.09, 0.89], True),  # a hundredth, where seeds differ by a tenth
        ([1.0, 1.1, 0.9], [0.5, 0.55, 0.45], False),
        ([1.0, 1.1, 0.9], [2.0, 2.2, 1.8], False),  # worse again: not at rest either
        ([1.0, 9.0, 0.1], [0.8, 7.2, 0.08], False),  # a wide interval is no excuse for a change of a fifth
        ([1.0, None, 1.1], [None, 1.0, 1.1], None),
        ([1.0], [1.0], None),
    ],
)
def test_a_training_has_converged_when_its_last_third_changes_nothing(
    before: list[float | None], after: list[float | None], converged: bool | None
) -> None:
    found = trained_arm("a", 10, 100, "s", before, after)
    assert found.converged is converged
    assert found.share == 0.1
    assert found.test


def test_a_base_model_must_draw_pictures() -> None:
    good = above_bar("base", 10, None, "s", "precision above 0.5", [0.6, 0.7], 0.5)
    bad = above_bar("base", 10, None, "s", "precision above 0.5", [0.0, 0.0], 0.5)
    assert (good.converged, bad.converged, good.share) == (True, False, None)


def test_arms_of_unequal_effort_are_refused() -> None:
    cells = canned.Canned("udpm", 0.02)
    with pytest.raises(ConfigError, match="equally many candidates"):
        tune(cells, None, {"a": [{"lr": 1.0}], "b": [{"lr": 1.0}, {"lr": 2.0}]})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_says_its_kind(name: str) -> None:
    """On made-up answers at every budget; and no entry of a list is of no claim, but those that take an option."""
    claims = experiment(name).claims
    found = experiment(name).run(canned.Canned(name, 0.02), Budget(0.02))
    for one in judge_budget(found, claims).findings:
        assert one.kind in {"law", "training"}
        assert one.figure
        assert (one.kind == "law") == (one.baseline == "")
    assert {text for text in unmeasured(found, claims) if not claims[text].option} == set()
    arms = {training.arm for training in found.trainings}
    for text, claim in claims.items():
        assert set(claim.arms) <= arms or claim.option, text


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "reproductions.py"))


def test_the_records_hold_the_verdicts_that_their_trainings_allow(tool: dict[str, Any]) -> None:
    for name, record in tool["records"]().items():
        again = tool["judged"](record).to_json()["findings"]
        stored = json.loads((tool["RECORDS"] / f"{name}.json").read_text("utf-8"))["findings"]
        assert again == stored, f"{name}: run python tools/reproductions.py --judge"


def test_no_record_judges_a_paper_below_the_least_share(tool: dict[str, Any]) -> None:
    for record in tool["records"]().values():
        for one in record.found.findings:
            assert one.kind is not None
            assert one.figure
            if one.kind == "training" and one.verdict in {"reproduced", "not reproduced"}:
                assert one.share is None or one.share >= LEAST_SHARE
                assert one.baseline == "converged"


def test_one_table_has_every_claim_of_all_eleven_papers(tool: dict[str, Any]) -> None:
    records = tool["records"]()
    table = rows(records)
    assert len(PAPERS) == 11
    assert [row[0] for row in table if row[1:] == ("", "", "", "")] == [f"**{paper.name}**" for paper in PAPERS]
    for record in records.values():
        for one in record.found.findings:
            assert (one.claim, one.figure, ours(one), trained(one), f"**{one.verdict}**") in table
        for text in unmeasured(record.found, experiment(record.experiment).claims):
            assert any(row[0] == text.rstrip(" ,") and row[4].startswith("not yet measured") for row in table)
    page = (ROOT / "docs" / "reproductions.md").read_text("utf-8").splitlines()
    head = next(i for i, line in enumerate(page) if line.startswith("| claim"))
    assert not any(line.startswith("#") for line in page[1:head]), "the table comes first"
    end = next(i for i, line in enumerate(page[head:], head) if not line.startswith("|"))
    assert end - head - 2 == len(table)


def test_without_records_every_claim_is_still_listed() -> None:
    table = rows({})
    assert all(row[4] == "" or row[4].startswith(("not yet measured", "not built yet")) for row in table)
    assert len(table) > 100


def test_numbers_of_the_table_are_short() -> None:
    one = replace(finding(), value=1.23456, interval=(-0.0001234567, math.inf))
    assert ours(one) == "1.23 [-0.000123, –]"
