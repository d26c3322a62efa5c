"""The claims of `ornstein.reproduce.cas_dm`: all compare trained arms. The paper's tables were not at hand."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import Claim

_NONE = "a table that was not at hand"

CLAIMS: Mapping[str, Claim] = {
    "Cas-DM with the metric improves on DDPM": Claim(_NONE, ("cas-dm-metric", "ddpm")),
    "With the metric the cascade is better than a single network of as many parameters": Claim(
        _NONE, ("cas-dm-metric", "ddpm-large")
    ),
    "The gain is the metric's and not the cascade's alone": Claim(_NONE, ("cas-dm-metric", "cas-dm")),
    "Added to the loss of a single noise-predicting network, the metric does nothing or harm": Claim(
        "in words", ("ddpm-metric", "ddpm")
    ),
    "The gain over DDPM is more than that of predicting the clean image": Claim("none", ("cas-dm-metric", "clean")),
}
