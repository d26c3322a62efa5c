"""Um, Lee & Ye 2024 (arXiv 2301.12334): does guidance toward rarity make rare samples, and what does it cost?

The data are known: most drawings are critters, planets and landscapes are rare. Three seeds each train a model, score
the data, train a classifier of rarity and draw with it, without it and with its successors, at equal evaluations.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...rarity import LSUN_LOG_SNR
from ..cells import Cells
from ..orders import verdict
from ..record import Budget, Claim, Finding, Findings, Line, Plot, Table, mean_interval
from . import arms, exact, measures
from . import cells as made
from .claims import CLAIMS
from .verdicts import Results, claims, control, over_seeds, telling, trainings

SOURCE = "arXiv 2301.12334"
IMAGES, TAUGHT, SAMPLES, DRAWS, SEEDS = 75_000, 30_000, 400, 5, 3
EVALUATIONS, REFERENCE = 48, 2000
LEVEL = LSUN_LOG_SNR + 2.0 * math.log(256 / made.SIZE)
"""Where the data are scored: the paper's noise at 256 pixels, as it is seen at 32."""

RECIPES = ((LEVEL, "lite0"), (LEVEL, "squared"), (LSUN_LOG_SNR, "squared"))
EXACT, STEPS = 20_000, 1000  # samples and steps where the law is known


@dataclass(frozen=True, slots=True)
class MinorityExperiment:
    """The experiment; see the module's text."""

    name: str = "minority-guidance"
    title: str = "Minority guidance"
    arxiv: str = "2301.12334"
    version: int = 2
    changed: str = "two more baselines are drawn"
    """What is not as it was for the last record."""
    data: str = made.DATA
    size: int = made.SIZE
    reference: int = REFERENCE
    exact_steps: int = STEPS

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return CLAIMS

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Three models, their scores and classifiers, all ways to draw; and what is exact."""
        known = known_laws(cells, budget, self.exact_steps)
        sizes = {
            "images": budget.count(IMAGES, 64),
            "draws": max(1, math.floor(DRAWS * budget.scale)),
            "taught": budget.count(TAUGHT, 64),
        }
        samples = budget.count(SAMPLES, 24)
        results: Results = {name: [] for name in (arms.REAL, *arms.ARMS)}
        recipes: list[list[dict[str, Any]]] = []
        taught: list[Any] = []
        # Seed by seed, so that a run that is stopped early has whole comparisons.
        for seed in range(max(SEEDS, math.floor(SEEDS * budget.scale))):
            base = {"data": self.data, "size": self.size, "seed": seed, "images": sizes["images"]}
            cells(made.based, **base)
            rows = [
                {**base, **sizes, "log_snr": round(log_snr, 4), "distance": distance} for log_snr, distance in RECIPES
            ]
            recipes.append(rows)
            cells(made.scored, **rows[0])
            taught.append(cells(made.taught, **rows[0]))
            shared = {**rows[0], "samples": samples, "evaluations": EVALUATIONS, "reference": self.reference}
            found = cells.map(arms.drawn, [{**shared, "arm": name} for name in results])
            for name, numbers in zip(results, found, strict=True):
                results[name].append(numbers)
        scores = [cells.map(made.scored, rows) for rows in recipes]
        judge = cells(measures.judging, data=self.data, size=self.size, reference=self.reference)
        return Findings(
            findings=[_scored(scores), *claims(results), telling(taught), *known.findings],
            tables=[*_rarity(results), *_quality(results), _cost(results), _areas(scores), *known.tables],
            plots=[_over_weights(results), _over_levels(taught)],
            notes=_notes(sizes, samples, judge),
            trainings=trainings(results, sizes),
        )


def _scored(scores: Sequence[Sequence[Mapping[str, Any]]]) -> Finding:
    areas = [row[0]["auc"]["rare"] for row in scores]
    shares = [statistics.fmean(row[0]["share"].values()) for row in scores]
    return control(
        areas,
        low=0.7,
        high=math.inf,
        claim="One-step reconstruction distance is larger for rare images",
        source=f"{SOURCE}, minority score",
        expected="area under the ROC curve of the known rare classes against the common one above 0.7, with its "
        "interval",
        measured=f"area {statistics.fmean(areas):.3f} (by seed {', '.join(f'{a:.3f}' for a in areas)}); "
        f"{statistics.fmean(shares):.0%} of the rare images are in the rarest tenth",
    )


# ------------------------------------------------------------------------------------------------------ what is exact


def known_laws(cells: Cells, budget: Budget, steps: int) -> Findings:
    """Guided samples where model and classifier are exact."""
    few = {"steps": steps, "samples": budget.count(EXACT, 2000)}
    rows = [{"sampler": name, "weight": weight} for name in exact.SAMPLERS for weight in (1.0, 2.0, 5.0)]
    found = cells.map(exact.truncated, [{**row, **few} for row in rows])
    tails = {(row["sampler"], row["weight"]): value for row, value in zip(rows, found, strict=True)}
    small = cells.map(exact.mixture, [{"target": n, "weight": 1.0, **few} for n in (0, 1)])
    findings = [_truncated(tails, few["samples"]), _overshot(tails), _mixed(small)]
    return Findings(findings=findings, tables=[_tails(tails)])


def _truncated(tails: Mapping[tuple[Any, Any], Mapping[str, float]], samples: int) -> Finding:
    mean, variance = exact.TRUTH["mean"], exact.TRUTH["variance"]
    slack = max(0.02, 4.0 * 0.37 / math.sqrt(samples))  # 0.37: the deviation of |x| in the rare tenth
    own = {name: value for (name, weight), value in tails.items() if weight == 1.0}
    good = all(
        abs(v["mean"] - mean) < slack and abs(v["variance"] - variance) < 5.0 * slack and v["inside"] >= 0.97
        for v in own.values()
    )
    return Finding(
        claim="With exact model and classifier and w = 1 the samples follow the law of the data given the class",
        source=f"{SOURCE}, guided score; test H5 of this library: the rare tenth of N(0, 1)",
        expected=f"E|x| = {mean:.3f} ± {slack:.3f}, E x² = {variance:.3f} ± {5 * slack:.3f}, 97 % in the class, at "
        "1000 steps with every sampler",
        measured="; ".join(
            f"{name}: {v['mean']:.3f}, {v['variance']:.3f}, {v['inside']:.1%}" for name, v in own.items()
        ),
        value=own["ddim"]["mean"],
        effect=own["ddim"]["mean"] - math.sqrt(2.0 / math.pi),
        noise=0.0,
        **verdict(good, "a sampler gives another law"),
    )


def _overshot(tails: Mapping[tuple[Any, Any], Mapping[str, float]]) -> Finding:
    means = [tails["ddim", weight]["mean"] for weight in (1.0, 2.0, 5.0)]
    good = abs(means[1] - 2.57) < 0.05 and abs(means[2] - 3.66) < 0.05
    return Finding(
        claim="Larger weights overshoot: w is a power of the classifier, not a choice of the class",
        source=f"{SOURCE}, guidance scale; derived in the same setting",
        expected="E|x| of 2.57 ± 0.05 at w = 2 and 3.66 ± 0.05 at w = 5, against 2.063 of the class",
        measured="E|x| at w = 1, 2, 5: " + ", ".join(f"{mean:.3f}" for mean in means),
        value=means[2],
        effect=means[2] - means[0],
        noise=0.0,
        **verdict(good, "the means lie elsewhere"),
    )


def _mixed(small: Sequence[float]) -> Finding:
    return Finding(
        claim="Guidance chooses the component of a mixture, rare or common",
        source=f"{SOURCE}, guided score; test H9 of this library: two components, 90 to 10",
        expected="with the exact classifier and w = 1 at least 99.5 % in the component that is asked for",
        measured=f"asked for the common one {1 - small[0]:.2%} are in it, asked for the rare one {small[1]:.2%}",
        value=small[1],
        effect=small[1] - 0.1,
        noise=0.0,
        **verdict(small[0] <= 0.005 and small[1] >= 0.995, "some samples are in the other component"),
    )


def _tails(tails: Mapping[tuple[Any, Any], Mapping[str, float]]) -> Table:
    rows = [[f"{name}, w = {weight:g}", v["mean"], v["variance"], v["inside"]] for (name, weight), v in tails.items()]
    truth: list[Any] = ["the rare tenth itself", exact.TRUTH["mean"], exact.TRUTH["variance"], 1.0]
    return Table(
        title="The rare tenth of N(0, 1), exact classifier", head=["", "E|x|", "E x²", "inside"], rows=[truth, *rows]
    )


# ------------------------------------------------------------------------------------------------------------- tables


def _named(name: str) -> str:
    return "held-out drawings" if name == arms.REAL else arms.ARMS[name].name


def _columns(results: Results, title: str, keys: Sequence[str], heads: Sequence[str], note: str) -> Table:
    """The mean over seeds of some numbers, and half the interval of the first."""
    rows: list[list[str | float | int | None]] = []
    for name, runs in results.items():
        first, (_, high) = mean_interval(over_seeds(runs, keys[0]))
        row: list[str | float | int | None] = [_named(name), first, high - first if math.isfinite(high) else None]
        for key in keys[1:]:
            values = [run[key] for run in runs if run[key] is not None]
            row.append(statistics.fmean(values) if values else None)
        rows.append(row)
    return Table(title=title, head=["samples", heads[0], "±", *heads[1:]], rows=rows, note=note)


def _rarity(results: Results) -> list[Table]:
    note = "Larger is rarer. ± is half the 95 % interval of the first column. Means over seeds."
    keys, heads = ("avgknn", "lof", "rarity", "undefined"), ("AvgkNN", "LOF", "rarity score", "off the manifold")
    return [
        _columns(
            results, "Rarity among the data, features of lite0", (*keys, "share"), (*heads, "in rare classes"), note
        ),
        _columns(results, "Rarity among the data, 8 × 8 pixels", [f"{key} pixels" for key in keys], heads, note),
    ]


def _quality(results: Results) -> list[Table]:
    keys = ("precision", "recall", "density", "coverage", "kid", "recall rare", "coverage rare", "kid rare")
    heads = ("precision", "recall", "density", "coverage", "KID", "recall, rare", "coverage, rare", "KID, rare")
    note = "Against the training data, and against new drawings of the rare classes. KID: less is better."
    flat = [f"{key} pixels" for key in keys if "kid" not in key]
    return [
        _columns(results, "Quality, features of lite0", keys, heads, note),
        _columns(
            results,
            "Quality, 8 × 8 pixels",
            flat,
            [head for head in heads if "KID" not in head],
            note.split(". KID", maxsplit=1)[0],
        ),
    ]


def _cost(results: Results) -> Table:
    rows = [
        [_named(name), *(statistics.fmean(run[key] for run in runs) for key in ("steps", "model", "classifier"))]
        for name, runs in results.items()
        if name != arms.REAL
    ]
    return Table(
        title="Evaluations",
        head=["samples", "steps", "passes of the model", "passes of the classifier"],
        rows=rows,
        note="For one image; a pass is forward or backward. No arm spends more than "
        f"{EVALUATIONS}; those at one noise level alone take the steps of the guided chain.",
    )


def _areas(scores: Sequence[Sequence[Mapping[str, Any]]]) -> Table:
    parts = list(scores[0][0]["auc"])
    rows = [
        [
            f"{distance}, log-SNR {log_snr:.2f}",
            *(statistics.fmean(row[n]["auc"][part] for row in scores) for part in parts),
        ]
        for n, (log_snr, distance) in enumerate(RECIPES)
    ]
    return Table(
        title="Area under the ROC curve of the rarity score",
        head=["score", *parts],
        rows=rows,
        note="Of a rare part, or both, against the common one. The classes come from the first score.",
    )


def _over_weights(results: Results) -> Plot:
    weights = {0.0: "plain-short", 1.0: "noisy-1", 3.0: "noisy-3", 8.0: "noisy-8"}
    return Plot(
        title="Rarity over the weight",
        x="w",
        y="AvgkNN-lite0",
        lines=[
            Line(name=f"seed {seed}", x=list(weights), y=[results[arm][seed]["avgknn"] for arm in weights.values()])
            for seed in range(len(results["plain"]))
        ],
        log_x=False,
        log_y=False,
    )


def _over_levels(taught: Sequence[Mapping[str, Any]]) -> Plot:
    return Plot(
        title="The classifier on held-out images",
        x="log-SNR",
        y="accuracy",
        lines=[Line(name=f"seed {seed}", x=row["log_snr"], y=row["accuracy"]) for seed, row in enumerate(taught)],
        log_x=False,
        log_y=False,
    )


def _notes(sizes: Mapping[str, int], samples: int, judge: Mapping[str, Any]) -> list[str]:
    parts = ", ".join(f"{count} {name}" for name, count in made.COUNTS.items())
    draws = f"{sizes['draws']} draw{'s' * (sizes['draws'] > 1)}"
    data = (
        f"Data: {parts} at {made.SIZE} pixels. Each seed trains a model on {sizes['images']} images, scores the data "
        f"with {draws} of the noise, trains a classifier of {made.RARITIES} classes on {sizes['taught']} images and "
        f"draws {samples} samples a way. The paper's sizes, 250 steps and standard networks are out of reach here."
    )
    level = (
        f"The data are scored at log-SNR {LEVEL:.2f}: the paper's −3.70 at 256 pixels, as it is seen at {made.SIZE}. "
        "The windows are carried over in the same way, and once as they are."
    )
    exam = (
        "The score, the classes and the tables so named look at features of the same network, "
        "EfficientNet-lite0, which favours guidance by that score; pixels8, images shrunk to 8 × 8, and "
        "the known classes do not. Precision and coverage are judged on pixels8: a model of so few images has fine "
        "artefacts that put all of its samples off the manifold of lite0. That was seen on plain samples of the first "
        "seed, before any guided ones, as was that recall is near 1 where samples are few and far apart."
    )
    rare = (
        "The rare pictures to compare with are new drawings, as many of each rare class as were trained on, of "
        f"fingerprint {judge['hash'][:16]}…. A linear judge on the features tells {judge['rare']:.1%} of them and "
        f"{judge['common']:.1%} of new common ones rightly; it knows no class for what is no picture."
    )
    few = (
        "KID stands for the Fréchet distance, whose bias at so few images exceeds the differences. Boost-and-Skip "
        "leaves out the steps above log-SNR −7.9 and spends them below. Self-guided sampling measures squared errors."
    )
    return [data, level, exam, rare, few]


EXPERIMENT = MinorityExperiment()
