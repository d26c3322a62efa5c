"""SDXL without its weights: the laws behind its claims, and one sentence of need for each claim that has no verdict."""

from __future__ import annotations

import importlib.util

import canned
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.reproduce import Budget, experiment, judge_budget
from ornstein.reproduce.sdxl import experiment as sdxl
from ornstein.reproduce.sdxl.cells import FORMATS, handed_over, network, sizes, table
from ornstein.reproduce.training import unmeasured


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["ddim", "euler", "heun"]), st.sampled_from(["uniform", "karras"]), st.integers(4, 40))
def test_one_network_on_both_sides_is_the_undivided_run(rule: str, grid: str, steps: int) -> None:
    found = handed_over(rule, grid, steps)
    assert found["number"] == pytest.approx(199.0)
    assert found["ratio"] == pytest.approx(0.569285, abs=1e-6)
    assert found["first"] + found["second"] == found["alone"]
    assert rule == "heun" or found["gap"] == 0.0


def test_the_table_is_the_published_one() -> None:
    """ᾱ and σ at four levels, to six digits."""
    path = table()
    for number, product, ratio in (
        (0, 0.999150, 0.0291672),  # √(.00085/.99915); in single precision it is .0291675
        (199, 0.755238, 0.569285),
        (200, 0.753692, 0.571666),
        (999, 0.00466010, 14.6146),
    ):
        t = (number + 1) / 1000
        assert float(f"{path.alpha(t) ** 2:.6g}") == product
        assert float(f"{path.sigma(t) / path.alpha(t):.6g}") == ratio


def test_formats_are_those_of_the_paper() -> None:
    """All but one have their mirror image."""
    assert len(set(FORMATS)) == 40
    assert {one for one in FORMATS if one[::-1] not in FORMATS} == {(704, 1344)}


@pytest.mark.slow
def test_cells_on_networks() -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    assert network("autoencoder")["digest"] == sdxl.DIGESTS["autoencoder"]
    assert network("clip-l")["parameters"] == 123_060_480
    found = sizes()
    assert found["own"] == 6
    assert found["gap"] < 1e-4


def test_claims_without_a_verdict_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = experiment("sdxl")
    found = judge_budget(chosen.run(canned.Canned("sdxl", 0.02), Budget()), chosen.claims)
    for one in found.findings:
        assert one.verdict == "reproduced" or one.reason.startswith("needs "), one.claim
    needy = [one.reason for one in found.findings if one.verdict == "not testable here"]
    assert len(needy) == 8
    assert sum("the weights" in reason for reason in needy) == 7
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else plain(name))
    cells = canned.Canned("sdxl", 0.02)
    lacking = judge_budget(chosen.run(cells, Budget()), chosen.claims)
    assert set(cells.rows) == {"handed_over"}
    assert not unmeasured(lacking, chosen.claims)
    assert sum("pip install" in one.reason for one in lacking.findings) == 7
