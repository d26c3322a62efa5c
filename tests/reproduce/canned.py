"""Made-up answers for the cells of every reproduction, and what its claims, tables and plots make of them.

``python tests/reproduce/canned.py`` writes the files of ``tests/reproduce/golden`` again after a change that is meant.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ornstein.reproduce import EXPERIMENTS, Budget, Cells, Record, experiment, measure

GOLDEN = Path(__file__).parent / "golden"
# How much the logarithms of answers scatter, their sign, and the budget; on the other side of 1 no claim holds.
WORLDS = {"calm": (0.02, 1, 0.02), "rough": (1.2, 1, 0.3), "contrary": (0.02, -1, 0.02)}
BUDGETS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)  # at which only the cells that are asked for are compared


def part(*names: object) -> float:
    """A number in (0, 1), a pure function of the names."""
    return (int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:6], "big") + 0.5) / 2**48


class Canned(Cells):
    """Answers that follow the theories up to ``scatter`` (of a logarithm), and a record of what was asked."""

    def __init__(self, name: str, scatter: float, sign: int = 1) -> None:
        super().__init__(None)
        self.name, self.scatter, self.sign = name, scatter, sign
        # Where claims hold, and where none does, the trainings are long enough to say so.
        self.images = 10**7 if scatter < 1.0 else 64
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def map(self, function: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """One answer a row."""
        self.rows.setdefault(function.__name__, []).extend(dict(row) for row in rows)
        return [getattr(self, function.__name__)(row) for row in rows]

    def noisy(self, value: float, row: Mapping[str, Any], what: str = "") -> float:
        """The value with this cell's own noise."""
        return value**self.sign * math.exp(self.scatter * (part(self.name, what, sorted(row.items(), key=str)) - 0.5))

    def asked(self) -> dict[str, Any]:
        """Of every function how many cells, the values of their settings, and a digest of all of them in order."""
        found = {}
        for name, rows in self.rows.items():
            values: dict[str, dict[str, Any]] = {}
            for row in rows:
                for key, value in row.items():
                    values.setdefault(key, {})[json.dumps(value)] = value
            text = json.dumps(rows, sort_keys=True)
            found[name] = {
                "cells": len(rows),
                "settings": {key: list(each.values()) for key, each in values.items()},
                "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
            }
        return found

    # ------------------------------------------------------------------------------- accelerated-ode, accelerated-sde

    def _order(self, rule: str) -> float:
        return 2.0 if rule in {"accelerated-ode", "accelerated-ode-memory", "heun"} else 1.0

    def _gaussian(self, row: Mapping[str, Any]) -> float:
        if row.get("copies"):
            return self.noisy(0.01 * math.sqrt(row["copies"]), row)
        if row.get("stretch", 1.0) != 1.0:
            factor = 15.0 if row["rule"] == "accelerated-ode-memory" else 2.0
            return self.noisy((row["stretch"] - 1.0) * factor, row)
        width = math.log(row["steps"]) / row["steps"] if row.get("schedule") == "paper" else 1.0 / row["steps"]
        return self.noisy(3.0 * width ** (2.0 if row["rule"] == "accelerated-sde" else self._order(row["rule"])), row)

    def line(self, row: Mapping[str, Any]) -> float | None:
        if self.scatter > 1.0 and row["steps"] < 16:
            return None
        return self.noisy(3.0 / row["steps"] ** self._order(row["rule"]), row)

    def in_law(self, row: Mapping[str, Any]) -> float:
        return self.noisy((0.8 if row["rule"] == "accelerated-sde" else 1.8) / row["steps"], row)

    def trajectories(self, row: Mapping[str, Any]) -> Any:
        mean = self.noisy(1.0 / row["evaluations"] ** self._order(row["rule"]), row)
        return {"mean": mean, "median": 0.5 * mean}

    def rippled(self, row: Mapping[str, Any]) -> Any:
        if "height" not in row:
            return self.noisy(0.001 if row["rule"] == "accelerated-sde" else 0.306, row)
        numbers = {"score": 0.7 / row["frequency"], "divergence": 0.7, "flow": 0.306, "limit": 0.3058, "heun": 0.3058}
        numbers |= {"sde": 0.005, "sde exact": 0.005}
        return {key: self.noisy(value, row, key) for key, value in numbers.items()}

    def _drawn(self, row: Mapping[str, Any]) -> Any:
        """Pictures of the shipped network."""
        gain = 3.0 if row["rule"].startswith("accelerated") else 0.0
        return {key: self.noisy(100.0 + row["seed"] - gain, row, key) for key in ("FD-lite0", "KID-lite0")}

    # ------------------------------------------------------------------------------------------ exponential-integrator

    def certificate(self, row: Mapping[str, Any]) -> Any:
        tv = self.noisy(0.5 / row["steps"] * (10.0 if row.get("schedule") == "equal" else 1.0), row)
        return {"tv": tv, "bound": 3.5 * tv, "tight": 1.2 * tv, "divergence": 2.0 * tv, "drift": 1.5 * tv, "least": 0.1}

    def few_steps(self, row: Mapping[str, Any]) -> float:
        return self.noisy((0.16 if row["target"] == "M1" else 0.6) if row["freeze"] == "score" else 0.2, row)

    def started(self, row: Mapping[str, Any]) -> Any:
        error = self.noisy(0.4 / row["level"] if row["mean"] else 0.24 / row["level"] ** 2, row)
        return {"start": error, "end": self.noisy(error, row, "end")}

    def product(self, row: Mapping[str, Any]) -> float:
        return self.noisy(0.1 * math.sqrt(row["dim"]), row)

    def exploding_against_preserving(self, row: Mapping[str, Any]) -> float:
        return 1e-15 if self.scatter < 1.0 else 1e-3

    # --------------------------------------------------------------------------------------------- randomized-midpoint

    def over_draws(self, row: Mapping[str, Any]) -> Any:
        return {"conditional": 1.0, "law": self.noisy(900.0 / row["evaluations"] ** 2, row)}

    def _midpoint(self, row: Mapping[str, Any]) -> Any:
        power = {"random": 1.5, "middle": 2.0, "left": 1.0}[row["places"]]
        value = self.noisy(1000.0 / row["rounds"] / row["evaluations"] ** power, row)
        return {"root_kl": value, "tv": self.noisy(0.4 * value, row, "tv")}

    def schedules(self, row: Mapping[str, Any]) -> Any:
        mean = self.noisy(row["dim"] * math.log(row["steps"]) ** 4 / row["steps"] ** 3, row)
        return {"mean": mean, "median": self.noisy(0.3 * mean, row, "median"), "flat": 0.02 * mean}

    def plateau(self, row: Mapping[str, Any]) -> float:
        return self.noisy(1.4 * row["error"] + 30.0 / row["evaluations"] ** 1.5, row)

    def trajectory(self, row: Mapping[str, Any]) -> Any:
        value = self.noisy(math.sqrt(row["dim"]) * 40.0 / row["evaluations"] ** 1.5, row)
        return {"random": value, "middle": self.noisy(0.2 * value, row, "middle")}

    def sweeps(self, row: Mapping[str, Any]) -> Any:
        power = 1.7 if self.sign > 0 else 3.5
        depth = round(self.noisy((2.0 * math.log(row["steps"]) ** power) ** self.sign, row))
        factors = [self.noisy(2.0 / row["rounds"], row, f"sweep {i}") for i in range(6)]
        late = self.scatter > 1.0 and row["rounds"] == 4 and row["steps"] == 128 and row["seed"] == 1
        deviations = [math.prod(factors[: i + 1]) for i in range(6)]
        own = self.noisy(3.0 / row["steps"], row, "own")
        return {"own": own, "deviations": deviations, "depth": 0 if late else depth}

    # ---------------------------------------------------------------------------------------------- universal-guidance

    def _universal(self, row: Mapping[str, Any]) -> Any:
        good = {"corrected": 0.01, "posterior": 0.3, "both": 0.3, "dps": 2.0, "noisy": 1.0, "backward": 0.5}
        method = row.get("method", "dps")
        value = self.noisy(good.get(method, 0.9) / row.get("recur", 1) ** 2 * (1.0 + 0.3 * row.get("seed", 0)), row)
        names = ("sw2", "energy", "spread", "misfit", "kid", "hidden")
        return {
            "mean": 1.8142857142857143 + value,
            "variance": 0.21428571428571427 * (1.0 - min(value, 0.9)),
            "w2": value,
            **{name: self.noisy(value**self.sign, row, name) for name in names},
            "evaluations": 32,
            "gradients": 0 if method in {"plain", "backward"} else 1,
            "seconds": self.noisy(1.0, row, "seconds"),
        }

    # ----------------------------------------------------------------------------------------------- minority-guidance

    def based(self, row: Mapping[str, Any]) -> Any:
        return {"parameters": 1, "seconds": 1.0, "loss": 0.1}

    def scored(self, row: Mapping[str, Any]) -> Any:
        names = ("planets", "landscape", "rare")
        return {"auc": {name: self.noisy(0.8, row, name) for name in names},
                "share": {name: self.noisy(0.5, row, f"share {name}") for name in names[:2]}}  # fmt: skip

    def taught(self, row: Mapping[str, Any]) -> Any:
        return {"seconds": 9.0, "log_snr": [-8.0, 0.0, 8.0],
                "accuracy": [self.noisy(v, row, f"accuracy {v}") for v in (0.1, 0.3, 0.4)],
                "loss": [self.noisy(v, row, f"loss {v}") for v in (2.3, 2.0, 1.5)]}  # fmt: skip

    def judging(self, row: Mapping[str, Any]) -> Any:
        return {"rare": self.noisy(0.9, row, "rare"), "common": self.noisy(0.95, row, "common"), "hash": "0" * 32}

    def truncated(self, row: Mapping[str, Any]) -> Any:
        mean = self.noisy(2.06 + 0.5 * (row["weight"] - 1.0), row)
        inside = min(self.noisy(0.99, row, "inside"), 1.0)
        return {"mean": mean, "variance": self.noisy(4.4, row, "variance"), "inside": inside}

    def _minority(self, row: Mapping[str, Any]) -> Any:
        factor = {"noisy-1": 1.1, "noisy-3": 1.3, "noisy-8": 1.6, "noisy-3-common": 0.9, "noisy-3-mid": 1.2,
                  "noisy-3-mid-snr": 1.2, "self": 1.4, "boost": 1.1}.get(row["arm"], 1.0)  # fmt: skip
        factor *= 1.0 + 0.004 * ((row["seed"] * 7 + len(row["arm"])) % 3)
        rare = ("avgknn", "lof", "rarity", "avgknn pixels", "lof pixels", "rarity pixels")
        good = ("precision", "recall rare", "recall rare pixels", "density pixels", "coverage pixels", "recall pixels",
                "undefined pixels", "recall", "density", "coverage", "kid", "coverage rare", "undefined")  # fmt: skip
        own = {"precision pixels": 0.8 - 0.3 * (row["arm"] == "boost-ddim"), "share": 0.1 * factor,
               "coverage rare pixels": 0.3 * factor, "kid rare": 1.0 / factor}  # fmt: skip
        numbers = dict.fromkeys(rare, 10.0 * (1 + row["seed"]) * factor) | dict.fromkeys(good, 0.5) | own
        told = {name: self.noisy(value, row, name) for name, value in numbers.items()}
        if self.scatter > 1.0 and row["arm"] == "noisy-8" and row["seed"] == 1:
            told["rarity"] = None
        return {**told, "steps": 16, "model": 48.0, "classifier": self.noisy(3.0, row, "classifier")}

    # --------------------------------------------------------------------------------------------- cas-dm, slct, udpm

    def _cascade(self, row: Mapping[str, Any]) -> Any:
        factor = {"cas-dm-metric": 0.8, "cas-dm": 0.9, "ddpm-large": 0.95, "ddpm-metric": 1.1}.get(row["arm"], 1.0)
        value = 100.0 * (1 + row["seed"]) * factor
        numbers = {"FD-lite0": value, "sFD-lite0": 10 * value, "IS-lite0": 2.0 / factor, "FD-pixels8": value}
        at = {str(n): {key: self.noisy(v, row, f"{key} {n}") for key, v in numbers.items()} for n in (5, 10, 50)}
        seconds = self.noisy(60.0, row, "s")
        for each in at.values():
            each["KID-lite0"] = 0.01 * each["FD-lite0"]
        early = at["10"]["KID-lite0"] * self.noisy(1.0, row, "early")
        return {"parameters": 10 + len(row["arm"]), "seconds": seconds, "images": self.images, "loss": 0.1, "at": at,
                "early": early}  # fmt: skip

    def tried(self, row: Mapping[str, Any]) -> float | None:
        """A candidate's distance; the third rate is too large in the rough world."""
        if self.scatter > 1.0 and row["choice"].get("lr", 0.0) > 1.5e-3:
            return None
        return self.noisy(0.3, row)

    def tails(self, row: Mapping[str, Any]) -> Any:
        names = {"kurtosis": 1.0, "median kurtosis": 0.5, "largest": 9.0, "beyond 4": 0.01, "beyond 6": 1e-3}
        kinds = {"latents": 1.0, "pixels": 0.5, "gaussian": 6e-3}
        return {kind: {key: self.noisy(v * size, row, f"{kind} {key}") for key, v in names.items()}
                for kind, size in kinds.items()}  # fmt: skip

    def _distances(self, row: Mapping[str, Any], value: float, what: str) -> dict[str, float]:
        near = {"recall-lite0": 0.4, "coverage-lite0": 0.6}
        far = {"KID-lite0": value, "FD-lite0": 100.0 * value, "FD-pixels8": 2.0 * value}
        return {key: self.noisy(v, row, f"{what} {key}") for key, v in {**far, **near}.items()}

    def floor(self, row: Mapping[str, Any]) -> Any:
        return {"data": self._distances(row, 1e-3, "data"), "reconstructions": self._distances(row, 0.01, "again")}

    def _consistency(self, row: Mapping[str, Any]) -> Any:
        arm, seed = row["arm"], row["seed"]
        ladder = ("ict", "cauchy", "anchored", "paired", "adaptive", "slct", "diffusion")
        value = 0.1 * (1 + seed) * 0.85 ** ladder.index(arm)
        broken = "the loss grew" if self.scatter > 1.0 and (arm, seed) in {("ict", 1), ("paired", 0)} else None
        diffusion = arm == "diffusion"
        ways = [f"{name} {n}" for name in ("ddim", "auto") for n in (2, 5, 10, 50)] if diffusion else ["1", "2"]
        searched = arm in {"ict", "slct"}
        ways += ["searched"] * searched
        slopes = {"cauchy": 0.002, "pseudo-huber": 0.02, "geman-mcclure": 1e-3, "l2": 0.3}
        parts = {name: {"loss": 0.1, "elements": 0.1, "gradient": slope} for name, slope in slopes.items()}
        weights = {name: {key: self.noisy(v, row, f"{name} {key}") for key, v in each.items()}
                   for name, each in parts.items()}  # fmt: skip
        at = {way: self._distances(row, value * (0.9 if way == "2" else 1.0), way) for way in ways}
        scale = 0.002 if arm in {"adaptive", "slct"} else 0.01
        shares = {"distances": weights, "kurtosis": self.noisy(3.0, row, "k"), "c": scale}
        return {
            "parameters": 10,
            "seconds": self.noisy(60.0, row, "s"),
            "images": self.images,
            "early": None if broken else self.noisy(value, row, "early"),
            "activations": None if broken or diffusion else self.noisy(3.0 if arm == "slct" else 4.0, row, "fourth"),
            "diverged": broken,
            "left_out": self.noisy(0.01, row, "left"),
            "middle": self.noisy(0.5, row, "middle") if searched else None,
            "at": {} if broken else at,
            "shares": None if broken or diffusion else shares,
        }

    def cost(self, row: Mapping[str, Any]) -> Any:
        seconds = {"three": 0.3, "one": 1.0, "squares": 0.25}
        rounds = {key: [self.noisy(v, row, f"{key} {i}") for i in range(5)] for key, v in seconds.items()}
        return {"operations": {"three": 0.33e6, "one": 1e6, "squares": 0.25e6}, "seconds": rounds}

    def _pyramid(self, row: Mapping[str, Any]) -> Any:
        arm, seed = row["arm"], row["seed"]
        factor = {"udpm": 0.5, "udpm-fit": 0.8, "consistency": 1.2}.get(arm, 1.0)
        value = 0.1 * (1 + seed) * factor
        flat = arm in {"diffusion", "consistency"}
        broken = "the loss is not finite" if self.scatter > 1.0 and (arm, seed) == ("udpm-fit", 1) else None
        ways = ["three levels"]
        if arm == "consistency":
            ways = ["one evaluation"]
        elif flat:
            ways = [*(f"ddim {n}" for n in (3, 5, 10, 50)), *(f"ddim {n}, equal times" for n in (3, 5, 10)), "auto 3"]
        sizes = {n: {"all": 1.0, "coarse": 0.05 * 4.0 ** max(n - 1, 0), "metric": 0.1} for n in (0, 1, 2, 3)}
        levels = {
            str(n): {key: self.noisy(v, row, f"{key} {n}") for key, v in each.items()} for n, each in sizes.items()
        }
        middle = {"noise": self._distances(row, value, "noise"), "pixels": self._distances(row, 2 * value, "pixels"),
                  "smooth": self.noisy(0.2, row, "smooth")}  # fmt: skip
        return {
            "parameters": 10,
            "images": self.images + len(arm),
            "early": None if broken else self.noisy(value, row, "early"),
            "operations": self.noisy(1e6, row, "o"),
            "seconds": self.noisy(60.0, row, "s"),
            "diverged": broken,
            "at": {} if broken else {way: self._distances(row, value, way) for way in ways},
            "levels": None if broken or flat else levels,
            "middle": None if broken or flat else middle,
        }

    # --------------------------------------------------------------------------------------------------------- sdxl

    def network(self, row: Mapping[str, Any]) -> Any:
        part, good = row["part"], self.sign > 0
        counts = {"base": 2567463684, "refiner": 2259526660, "autoencoder": 83653863, "clip-l": 123060480}
        digests = {"base": "9556a38d644b6b53", "refiner": "33876647fb4e4a93", "autoencoder": "600696bc94ffc80f"}
        found = {"parameters": counts.get(part, 694659840) * (1 if good else 2), "tensors": 7}
        found |= {"digest": digests.get(part, "0") if good else "0"}
        if part in ("base", "refiner"):
            number, context = (6, 2048) if part == "base" else (5, 1280)
            found |= {"depths": [0, 2, 10 if good else 4], "multipliers": [1, 2, 4], "sinusoid": 256}
            found |= {"context": context if good else 768, "label": 1280 + 256 * number}
        return found

    def sizes(self, row: Mapping[str, Any]) -> Any:
        return {"own": 6 if self.sign > 0 else 5, "gap": 1e-6}

    def formats(self, row: Mapping[str, Any]) -> Any:
        return {"formats": 40, "whole": 40, "kept": 40 if self.sign > 0 else 39, "least": 0.9023, "most": 1.0}

    def handed_over(self, row: Mapping[str, Any]) -> Any:
        late = row["steps"] // 5
        found = {"first": row["steps"] - late, "second": late, "alone": row["steps"], "ratio": 0.5693}
        return found | {
            "gap": 0.0 if self.scatter < 1.0 < self.sign + 1 else 0.1,
            "number": 199.0 if self.sign > 0 else 250.0,
        }

    # -------------------------------------------------------------------------------------- names that several share

    def gaussian(self, row: Mapping[str, Any]) -> Any:
        if self.name == "randomized-midpoint":
            return self._midpoint(row)
        return self._universal(row) if self.name == "universal-guidance" else self._gaussian(row)

    gaussian_dps = _universal

    def mixture(self, row: Mapping[str, Any]) -> Any:
        return self._universal(row) if self.name == "universal-guidance" else min(self.noisy(0.999, row), 1.0)

    def _guided(self, row: Mapping[str, Any]) -> Any:
        failed, kid = {"plain": (0.8, 0.6), "universal": (0.2, 0.5), "dps": (0.4, 0.7)}[row["method"]]
        numbers = {"failed": failed, "kid": kid, "energy": failed, "seconds": 1.0}
        counts = {"evaluations": 24, "gradients": 24 * (row["method"] != "plain")}
        return {key: self.noisy(value, row, key) for key, value in numbers.items()} | counts

    def drawn(self, row: Mapping[str, Any]) -> Any:
        if self.name == "universal-guides":
            return self._guided(row)
        if self.name == "universal-guidance":
            return self._universal(row)
        return self._minority(row) if self.name == "minority-guidance" else self._drawn(row)

    def trained(self, row: Mapping[str, Any]) -> Any:
        if self.name == "exponential-integrator":
            return {key: self.noisy(v, row, key) for key, v in {"score": 0.2, "divergence": 1.0, "norm": 2.0}.items()}
        return {"cas-dm": self._cascade, "slct": self._consistency, "udpm": self._pyramid}[self.name](row)


def made(name: str, world: str) -> dict[str, Any]:
    """Everything that an experiment says of one world, and what it asked for, as plain values."""
    scatter, sign, budget = WORLDS[world]
    cells = Canned(name, scatter, sign)
    found = measure(experiment(name), cells, Budget(budget))
    record = Record(experiment=name, title=experiment(name).title, arxiv=experiment(name).arxiv, version=1,
                    budget=budget, command="", date="", seconds=0.0, cells=0, machine={}, found=found)  # fmt: skip
    tree = record.to_json()
    kept = ("title", "arxiv", "findings", "tables", "plots", "notes", "trainings") if sign > 0 else ("findings",)
    return rounded({key: tree[key] for key in kept}) | {"asked": cells.asked()}


def rounded(tree: Any) -> Any:
    """Numbers of ten digits, as the files hold them."""
    if isinstance(tree, float):
        return float(f"{tree:.10g}")
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    return [rounded(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def requests(name: str) -> dict[str, dict[str, list[Any]]]:
    """At every budget and of every function, how many cells and their digest."""
    out = {}
    for budget in BUDGETS:
        cells = Canned(name, 0.02)
        experiment(name).run(cells, Budget(budget))
        out[str(budget)] = {key: [one["cells"], one["digest"]] for key, one in cells.asked().items()}
    return out


def lines(tree: Any, levels: int = 3) -> str:
    """JSON with a line for each finding, table and plot."""
    if not levels or not isinstance(tree, (dict, list)) or not tree:
        return json.dumps(tree, ensure_ascii=False)
    if isinstance(tree, list):
        return "[\n" + ",\n".join(lines(value, levels - 1) for value in tree) + "\n]"
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {lines(value, levels - 1)}" for key, value in tree.items()) + "\n}"


def write(names: Sequence[str]) -> None:
    """The golden files again."""
    GOLDEN.mkdir(exist_ok=True)
    for name in names:
        tree = {**{world: made(name, world) for world in WORLDS}, "requests": requests(name)}
        (GOLDEN / f"{name}.json").write_text(lines(tree) + "\n", "utf-8")


if __name__ == "__main__":
    write(sys.argv[1:] or list(EXPERIMENTS))
