"""Small cells of the theory reproductions, all in float64, and the trainings that the others ask for.

``python tests/reproduce/cell_rows.py`` writes ``golden/cells.json`` and ``golden/trainings.json`` again after a change
that is meant.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ornstein.reproduce.slct import world as slct_world
from ornstein.training import to_dict

GOLDEN = Path(__file__).parent / "golden"


def rows() -> list[tuple[str, str, dict[str, Any]]]:
    """(module, function, settings), each a fraction of a second."""
    out: list[tuple[str, str, dict[str, Any]]] = []

    def add(module: str, function: str, *settings: dict[str, Any]) -> None:
        out.extend((module, function, one) for one in settings)

    add(
        *("accelerated.cells", "gaussian"),
        {"rule": "heun", "steps": 8},
        {"rule": "accelerated-ode-memory", "steps": 16, "schedule": "paper"},
        {"rule": "readme", "steps": 8},
        {"rule": "cifar-code", "steps": 8},
        {"rule": "ddpm-printed", "steps": 8, "stretch": 1.02},
        {"rule": "accelerated-sde", "steps": 8, "copies": 3},
        {"rule": "score-frozen", "steps": 8, "prior": True},
    )
    add(
        *("accelerated.cells", "line"),
        {"rule": "ddim", "target": "M1", "steps": 6},
        {"rule": "accelerated-ode", "target": "M1s", "steps": 16},
    )
    add("accelerated.cells", "in_law", {"rule": "ancestral", "steps": 4}, {"rule": "accelerated-sde", "steps": 4})
    add(
        *("accelerated.cells", "trajectories"),
        {"rule": "ddim", "evaluations": 6, "schedule": "quadratic", "rows": 4},
        {"rule": "heun", "evaluations": 6, "schedule": "quadratic", "rows": 4},
    )
    add(
        *("accelerated.cells", "rippled"),
        {"rule": "ddim", "frequency": 10.0, "steps": 12},
        {"rule": "accelerated-sde", "frequency": 5.0, "steps": 4},
    )
    few = {"rule": "ddim", "steps": 4}
    add(
        *("exponential.cells", "certificate"),
        {"target": "M1", "path": "vp", "schedule": "equal", **few},
        {"target": "M1", "path": "ve", "schedule": "geometric", **few},
        {"target": "M1", "path": "vp", "schedule": "stopped", **few},
        {"target": "G8", "path": "vp", "schedule": "stopped", "rows": 8, "seed": 2, **few},
    )
    add("exponential.cells", "few_steps", {"target": "M1", "freeze": "score", "steps": 4, "low": 0.1})
    add("exponential.cells", "few_steps", {"target": "M1s", "freeze": "noise", "steps": 4, "low": 0.1})
    for path in ("ve", "vp"):
        add("exponential.cells", "started", {"path": path, "level": 5.0, "mean": 0.5, "variance": 0.3})
    add("exponential.cells", "rippled", {"height": 0.8, "frequency": 5.0, "steps": 6})
    add("exponential.cells", "product", {"dim": 3, "steps": 8})
    cell = {"rounds": 8, "evaluations": 128, "draws": 3, "seed": 4}
    for form in ("score", "noise"):
        places = ("random", "middle", "left")
        add("midpoint.cells", "gaussian", *({**cell, "places": place, "form": form} for place in places))
        add("midpoint.cells", "over_draws", {"rounds": 8, "evaluations": 64, "form": form})
    add(
        *("midpoint.cells", "schedules"),
        {"dim": 9, "active": 2, "rounds": 4, "c1": 5.0, "steps": 20, "draws": 3, "seed": 1},
        {"dim": 2, "active": 2, "rounds": 4, "c1": 4.0, "steps": 20, "draws": 3, "seed": 1},
    )
    add("midpoint.cells", "plateau", {"error": 0.1, "evaluations": 32, "draws": 3, "seed": 5})
    for target in ("M2", "M64"):
        add(
            *("midpoint.cells", "trajectory"),
            {"target": target, "dim": 8, "rounds": 2, "evaluations": 8, "batch": 4, "seed": 6},
        )
    add("midpoint.cells", "sweeps", {"steps": 8, "rounds": 2, "most": 6, "batch": 4, "seed": 7, "c1": 3.0})
    add("midpoint.cells", "sweeps", {"steps": 32, "rounds": 8, "most": 3, "batch": 4, "seed": 7})
    for sampler in ("ddim", "ancestral"):
        for method in ("paper", "corrected", "posterior"):
            add("universal.cells", "gaussian", {"method": method, "sampler": sampler, "steps": 8, "recur": 2})
        add("universal.cells", "gaussian_dps", {"scale": 0.3, "sampler": sampler, "steps": 6, "samples": 40})
    for method in ("plain", "forward", "backward", "both", "paper", "corrected", "posterior", "dps", "exact"):
        seen = {"steps": 5, "recur": 2, "scale": 0.5, "seed": 2, "samples": 30}
        add("universal.cells", "mixture", {"target": "M2", "method": method, **seen})
    for target in ("M1", "M16"):
        add("universal.cells", "mixture", {"target": target, "method": "corrected", **seen})
    for name in ("ddim", "ancestral, large variance", "ancestral, posterior variance"):
        add("minority.exact", "truncated", {"sampler": name, "weight": 0.5, "steps": 6, "samples": 40})
    for target in (0, 1):
        add("minority.exact", "mixture", {"target": target, "weight": 0.3, "steps": 6, "samples": 60})
    for rule in ("ddim", "heun"):
        add("sdxl.cells", "handed_over", {"rule": rule, "grid": "karras", "steps": 8})
    return out


def value(module: str, function: str, settings: dict[str, Any]) -> Any:
    """One cell, computed; without distances from draws of M16's posterior.

    Its covariances have equal eigenvalues, whose eigenvectors are the processor's choice, and so are those draws.
    """
    found = getattr(importlib.import_module(f"ornstein.reproduce.{module}"), function)(**settings)
    return {key: found[key] for key in ("spread", "evaluations")} if settings.get("target") == "M16" else found


def trainings() -> dict[str, Any]:
    """The configuration of every training, with a number of images that no option equals."""
    from ornstein.reproduce.cas_dm import cells as cas_dm_cells
    from ornstein.reproduce.minority import cells as minority_cells
    from ornstein.reproduce.slct import cells as slct_cells
    from ornstein.reproduce.udpm import cells as udpm_cells

    out = Path("OUT")
    found = {f"cas-dm {arm}": cas_dm_cells.configuration(arm, out, 3, 9999, 16) for arm in cas_dm_cells.ARMS}
    world = slct_world.World(
        codec="critters-latents", data="D", size=32, width=8, batch=24, end=40, samples=5, rate=2e-3
    )
    found |= {f"slct {arm}": slct_world.configuration(world, arm, out, 3, 9999) for arm in slct_cells.ARMS}
    found |= {f"udpm {arm}": udpm_cells.configuration(arm, out, 3, 9999, 32, 64) for arm in udpm_cells.ARMS}
    few = {name: udpm_cells.configuration(name, out, 3, 400, 32, 32) for name in ("udpm", "diffusion")}
    found |= {f"udpm {arm}, few images": config for arm, config in few.items()}
    found["cas-dm ddpm, few images"] = cas_dm_cells.configuration("ddpm", out, 3, 400, 16)
    setting = minority_cells.Setting(
        data="critters:40+planets:9", size=16, seed=3, images=64, log_snr=-1.5, distance="squared", draws=2, taught=9999
    )
    found["minority classifier"] = minority_cells.teaching(setting, out)
    found["minority classifier, few images"] = minority_cells.teaching(replace(setting, taught=400), out)
    return json.loads(json.dumps({name: to_dict(config) for name, config in found.items()}))


def write() -> None:
    """Both files again."""
    cells = [[module, name, settings, value(module, name, settings)] for module, name, settings in rows()]
    lines = ",\n".join(json.dumps(row) for row in cells)
    (GOLDEN / "cells.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(config)}" for name, config in trainings().items())
    (GOLDEN / "trainings.json").write_text(f"{{\n{lines}\n}}\n", "utf-8")


if __name__ == "__main__":
    write()
