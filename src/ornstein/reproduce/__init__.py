"""Each paper's claims, measured again: ``ornstein reproduce``.

``EXPERIMENTS`` maps a method's name to the module that holds its ``EXPERIMENT``; modules are imported when asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping

from ..errors import ConfigError
from .cells import Cells
from .record import ArmTraining, Budget, Claim, Experiment, Finding, Findings, Line, Plot, Record, Table, mean_interval
from .training import judge_budget

# a name, then where its experiment is: module and attribute
EXPERIMENTS: Mapping[str, tuple[str, str]] = {
    "accelerated-ode": ("ornstein.reproduce.accelerated.experiment", "ODE"),
    "accelerated-sde": ("ornstein.reproduce.accelerated.experiment", "SDE"),
    "randomized-midpoint": ("ornstein.reproduce.midpoint.experiment", "EXPERIMENT"),
    "exponential-integrator": ("ornstein.reproduce.exponential.experiment", "EXPERIMENT"),
    "universal-guidance": ("ornstein.reproduce.universal.experiment", "EXPERIMENT"),
    "universal-guides": ("ornstein.reproduce.universal.guided", "EXPERIMENT"),
    "minority-guidance": ("ornstein.reproduce.minority.experiment", "EXPERIMENT"),
    "cas-dm": ("ornstein.reproduce.cas_dm.experiment", "EXPERIMENT"),
    "slct": ("ornstein.reproduce.slct.experiment", "EXPERIMENT"),
    "udpm": ("ornstein.reproduce.udpm.experiment", "EXPERIMENT"),
    "sdxl": ("ornstein.reproduce.sdxl.experiment", "EXPERIMENT"),
}


def experiment(name: str) -> Experiment:
    """The experiment of a method. Raises `ConfigError` for a name without one."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(EXPERIMENTS)}"
        raise ConfigError(f"no reproduction named {name!r}: {hint}")
    module, attribute = EXPERIMENTS[name]
    return getattr(importlib.import_module(module), attribute)


def measure(chosen: Experiment, cells: Cells, budget: Budget) -> Findings:
    """What an experiment finds, with verdicts that know its budget (`ornstein.reproduce.training`)."""
    return judge_budget(chosen.run(cells, budget), chosen.claims)


__all__ = [
    "EXPERIMENTS",
    "ArmTraining",
    "Budget",
    "Cells",
    "Claim",
    "Experiment",
    "Finding",
    "Findings",
    "Line",
    "Plot",
    "Record",
    "Table",
    "experiment",
    "judge_budget",
    "mean_interval",
    "measure",
]
