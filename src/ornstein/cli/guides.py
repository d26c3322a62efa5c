"""`ornstein guides`: what can steer a sample, and with which network here. And the guide options of `sample`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError
from .help import filled
from .output import emit_json, note, say

if TYPE_CHECKING:
    from ..guides import GuidanceOptions, Guides, GuideType, NetworkSource
    from ..runs import OpenedModel


_NAMED = 24  # classes of a guide in the table


@dataclass(frozen=True, kw_only=True)
class GuidesArgs:
    """The guides that `ornstein sample --guide` knows: what each takes, and which networks can stand behind it.

    Example: ornstein guides --json
    """

    json: bool = False
    """Print one JSON document instead of the table."""


def guides(args: GuidesArgs) -> int:
    """Print the table."""
    from ..guides import kinds

    found = kinds()
    if args.json:
        emit_json([_facts(kind) for kind in found.values()])
        return 0
    for kind in found.values():
        facts = _facts(kind)
        say(f"{kind.name}:{kind.takes}[:WEIGHT]")
        rows = [("", kind.what), ("example: ", kind.example), ("classes: ", _several(facts["classes"]))]
        for source in facts["sources"]:
            state = "used here" if source["name"] == facts["source"] else "ready here"
            if source["missing"]:
                state = f"needs {source['missing']}"
            rows.append((f"{source['name'] + ': ':<10}", f"{source['what']}; weight {source['weight']:g} ({state})"))
        if not facts["sources"]:
            rows.append(("", f"no network; weight {kind.weight:g}"))
        for lead, text in rows:
            for line in filled(text, " " * (4 + len(lead)), f"    {lead}"):
                say(line)
    return 0


def _several(names: Sequence[str]) -> str:
    """The first names of a long list, and how many there are."""
    more = len(names) - _NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED])} and {more} more (all with --json)"


def _facts(kind: GuideType) -> dict[str, Any]:
    """A kind as plain values; "source" is the one that would be used here, None for kinds without a network."""
    from ..guides import source_of

    used = source_of(kind)
    return {
        "name": kind.name,
        "takes": kind.takes,
        "what": kind.what,
        "weight": kind.weight_with(used),
        "yields": kind.yields,
        "example": kind.example,
        "source": None if used is None else used.name,
        "classes": _classes(used),
        "sources": [
            {"name": s.name, "what": s.what, "weight": kind.weight_with(s), "missing": s.missing()}
            for s in kind.sources
        ],
    }


def _classes(used: NetworkSource | None) -> list[str]:
    """The classes of one of the library's own networks, which are quick to load."""
    import torch

    from ..errors import CheckpointError

    if used is None or used.name != "own":
        return []
    try:
        return list(getattr(used.load(None, torch.device("cpu")), "classes", ()))
    except CheckpointError:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedGuides:
    """The guide options of a call, read: what to make, and how it acts."""

    guides: Guides
    options: GuidanceOptions
    record: dict[str, Any]


def read_guides(
    run: OpenedModel,
    *,
    guide: Sequence[str],
    sources: Sequence[str],
    differentiate_through: Literal["network", "estimate"],
    backward: str | None,
    window: str | None,
    placement: Literal["joint", "separate"],
    resample: int,
) -> RequestedGuides:
    """Make the guides of a call for the pictures of a run. Raises `UsageError` for whatever cannot be."""
    from ..guides import GuidanceOptions, backward_of, make, window_of

    if not guide:
        for option, given in (("--backward", backward), ("--guide-window", window), ("--guide-source", sources)):
            if given:
                raise UsageError(f"{option} acts on guides, and there is no --guide: see ornstein guides")
    if placement == "separate" and run.condition == "none":
        raise UsageError(f"--guide-placement separate needs a model with a condition, {run.folder} has none")
    options = GuidanceOptions(
        differentiate_through=differentiate_through,
        backward=None if backward is None else backward_of(backward),
        window=None if window is None else window_of(window),
        placement=placement,
    )
    made = make(guide, shape=run.picture, device=run.denoiser.device, choices=sources)
    _note_home(run, [str(row["kind"]) for row in made.records if row["source"] == "own" and row["kind"] != "edges"])
    if options.backward is not None and made.guidances and not made.energies:
        raise UsageError(f"--backward {backward} descends on energies, and none of these guides is one: leave it out")
    for guidance in made.guidances:
        _check_fit(run, guidance)
    record: dict[str, Any] = {
        "guides": [dict(row) for row in made.records],
        "differentiate_through": differentiate_through,
        "backward": backward,
        "window": None if options.window is None else [_plain(value) for value in options.window],
        "placement": placement,
        "resample": resample,
    }
    return RequestedGuides(guides=made, options=options, record=record)


def _note_home(run: OpenedModel, kinds: Sequence[str]) -> None:
    """One line where networks of the embedded drawings guide a model that was trained on something else."""
    from ..data import embedded

    data = str(run.details.get("train", {}).get("data", ""))
    drawn = {"dicebear", *embedded.known_styles()}
    if data and all(part.strip().split(":")[0] in drawn for part in data.split("+")):
        return
    if kinds:
        what = " and ".join(dict.fromkeys(kinds))
        note(
            f"--guide {what}: the network behind it knows critters and other drawings, and {run.folder} is a model of "
            f"{data or 'something else'}: see ornstein guides for networks of photographs (--guide-source)"
        )


def _check_fit(run: OpenedModel, guidance: object) -> None:
    """Refuse a guidance that could only fail, or mean something else, once images are drawn."""
    from ..guidance import Minority, MinorityPrompt
    from ..rarity import RarityClassifier

    if isinstance(guidance, MinorityPrompt) and run.condition != "text":
        raise UsageError(
            f"rare-token learns a token of a caption, and {run.folder} takes none: use the guides rare or rarity"
        )
    if not isinstance(guidance, Minority) or not isinstance(guidance.classifier, RarityClassifier):
        return
    classifier, shape = guidance.classifier, run.denoiser.shape
    if shape != classifier.spec.shape:
        raise UsageError(
            f"a rarity classifier sees noisy pictures of shape {classifier.spec.shape}, the states of {run.folder} are "
            f"{shape}: for a model of latents use the guide rare"
        )
    if classifier.labels and run.classes and tuple(run.classes) != classifier.labels:
        raise UsageError(
            f"the rarity classifier knows other labels ({', '.join(classifier.labels[:4])}, …) than {run.folder} "
            f"({', '.join(run.classes[:4])}, …): train one on the data of the model"
        )


def _plain(value: float) -> float | str:
    """JSON has no infinity."""
    return value if value < float("inf") else "inf"


@contextmanager
def guide_warnings_once() -> Iterator[None]:
    """What guides have to say becomes one line of progress each, once."""
    from ..guidance import GuideWarning

    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", GuideWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if not issubclass(category, GuideWarning):
                usual(message, category, *place, **rest)
            elif str(message) not in said:
                said.add(str(message))
                note(str(message))

        warnings.showwarning = show
        yield


__all__ = ["GuidesArgs", "RequestedGuides", "guide_warnings_once", "guides", "read_guides"]
