"""The claims of `ornstein.reproduce.universal`: the method trains nothing, but two rows compare trained classifiers."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import ArmTraining, Claim

NOISY = "noisy classifier"
NOISY_TRAINING = ArmTraining(
    arm=NOISY,
    images=250 * 32,
    paper=None,
    source="the paper takes a classifier that was there already",
    test="not tested",
)
"""Of the classifiers of the rows on a class: 250 batches of 32."""
_PICTURES = "pictures, no number"

_NONE = "none"
GUIDES: Mapping[str, Claim] = {
    f"Guided by {what}, {claim}": Claim(figure if paper else _NONE)
    for what, figure in (
        ("segmentation", "figures 2 and 4"),
        ("identity", "figure 5"),
        ("boxes", "figures 6 and 9"),
        ("text", "figures 3 and 8"),
        ("style", "figure 7"),
        ("three networks at once", "figure 10"),
    )
    for claim, paper in (
        ("more samples are what was asked for than without a guide", True),
        ("the samples stay as realistic as without a guide", True),
        ("more samples are what was asked for than by DPS at equal evaluations", False),
        ("the samples are more realistic than by DPS at equal evaluations", False),
    )
}
"""Of `ornstein.reproduce.universal.guided`: the paper shows pictures, and compares with nothing."""

CLAIMS: Mapping[str, Claim] = {
    "The paper's strength s(t) = √(1 − ᾱ) with a log-likelihood is not the posterior": Claim("none"),
    "With the strength corrected for that uncertainty": Claim("none"),
    "Recurrence moves the paper's strength towards the posterior of a Gaussian": Claim(_PICTURES),
    "Recurrence moves forward guidance towards the posterior of mixtures": Claim(_PICTURES),
    "It does so at equal evaluations too": Claim("none"),
    "The covariance-corrected form lies nearer to the posterior than strength 1": Claim("none"),
    "So does the corrected scalar strength": Claim("none"),
    "Forward guidance with recurrence lies nearer to the posterior than DPS": Claim("none"),
    "Realism improves with recurrence": Claim(_PICTURES),
    "Recurrence also brings the samples nearer to what was asked": Claim(_PICTURES),
    "Recurrence improves realism at equal evaluations too": Claim("none"),
    "Forward and backward guidance together come nearer": Claim(_PICTURES),
    "Forward guidance with recurrence comes nearer to what was asked than DPS": Claim("none"),
    "Forward guidance with recurrence is more realistic than DPS": Claim("none"),
    "Both parts together, without recurrence, come nearer": Claim("none"),
    "The covariance-corrected form is more realistic than strength w": Claim("none"),
    "A classifier of clean images guides as surely as one trained on noise": Claim(_PICTURES, (NOISY,)),
    "A classifier of clean images guides as realistically as one trained on noise": Claim(_PICTURES, (NOISY,)),
    "Backward guidance costs no call of the denoiser and no gradient through it": Claim("no extra call"),
}
