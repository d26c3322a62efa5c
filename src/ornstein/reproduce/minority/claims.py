"""The claims of `ornstein.reproduce.minority`: those on drawn samples need a base model whose samples are pictures."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import Claim

BASE, CLASSIFIER = "base model", "classifier"
_BOTH = (CLASSIFIER, BASE)
_BASE = (BASE,)

CLAIMS: Mapping[str, Claim] = {
    "One-step reconstruction distance is larger for rare images": Claim("figures", _BASE),
    "At equal evaluations, guidance toward the rarest class raises": Claim("a table that was not at hand", _BOTH),
    "Rarity grows with the weight": Claim("a figure", _BOTH),
    "Rarity grows with the class aimed at": Claim("a figure", _BOTH),
    "Guidance toward the commonest class lowers rarity": Claim("a figure", _BOTH),
    "Guidance toward the rarest class keeps the quality of the samples": Claim("FID 2.91 and 2.93", _BOTH),
    "More samples belong to the rare classes that are known": Claim("none", _BOTH),
    "More of the rare data is covered": Claim("a table that was not at hand", _BOTH),
    "The samples come nearer to the low-density data": Claim("a table that was not at hand", _BOTH),
    "Guidance at mid noise alone has more of the effect": Claim("0.69 against 0.41 and 0.38", _BOTH),
    "Self-guided sampling raises rarity without a classifier": Claim("cFID 61.8, recall 0.84", _BASE),
    "Self-guided samples are rarer than those by the classifier": Claim("none", _BOTH),
    "Boost-and-Skip raises rarity without any guidance": Claim("cFID 32.0 against 26.4", _BASE),
    "Boost-and-Skip needs a stochastic sampler": Claim("none", _BASE),
    "Guided samples are rarer than the rarest third of three times as many": Claim("none", _BOTH),
    "Guided samples are rarer than those pushed away from the mean of the features": Claim(
        "worse in 2 of 4 measures", _BOTH
    ),
    "The classifier of rarity knows more at low noise than at high noise": Claim("none", (CLASSIFIER,)),
    "With exact model and classifier and w = 1 the samples follow the law": Claim("an identity"),
    "Larger weights overshoot": Claim("none"),
    "Guidance chooses the component of a mixture, rare or common": Claim("an identity"),
}
