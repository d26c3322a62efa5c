"""The claims of `ornstein.reproduce.midpoint`: all are laws, on exact targets."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import Claim

CLAIMS: Mapping[str, Claim] = {
    "TV between the law of the exact process and the output": Claim("T^(−3/2)"),
    "Random points inside the cells gain half an order": Claim("half an order"),
    "The law of the output over all draws of the times is of second order": Claim("none"),
    "Middle points beat random ones given the times": Claim("none"),
    "KL falls like log⁴T/T³ on a degenerate Gaussian": Claim("log⁴T/T³"),
    "The rate T^(−3/2) needs no log-concavity": Claim("T^(−3/2)"),
    "O(log²) questions one after another suffice": Claim("O(log²)"),
    "After M sweeps the deviation from the sequential run": Claim("(N·log T/T)^M"),
    "An error of the scores adds a term proportional to it": Claim("√log T·ε_score"),
    "The number of evaluations grows at most like d^(1/3)": Claim("d^(1/3)"),
}
