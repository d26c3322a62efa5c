"""The claims of `ornstein.reproduce.exponential`: all are laws, on exact targets."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import Claim

CLAIMS: Mapping[str, Claim] = {
    "With the variance-preserving process and an exponential integrator": Claim("1/ε evaluations"),
    "The rate at which two flows drift apart": Claim("a bound on TV"),
    "The same argument covers the variance-exploding process": Claim("a polynomial cost"),
    "The error of starting from the prior decays slowly": Claim("σ_T of order 1/ε"),
    "A score that is accurate in L2 is not enough": Claim("a counter-example"),
    "The divergence error is an assumption of its own": Claim("an assumption"),
    "d²/ε evaluations suffice in d dimensions": Claim("d²/ε"),
    "Beside: the geometric tail of the schedule": Claim("none"),
    "Beside: the exponential integrator is better than DDIM": Claim("none"),
    "Beside: the exploding instance is the DDIM of practice": Claim("none"),
}
