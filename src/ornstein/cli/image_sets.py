"""The two sides of `ornstein eval`: samples of a run, files of a folder, or another source of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError
from .output import note

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Example, Source
    from ..runs import OpenedModel

How = Literal["auto", "bicubic", "lanczos"]
Size = tuple[int, int]
RESIZED = ("centre square", "as for training")
"""How ``about["preprocessing"]`` begins for images that were resized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a run is sampled."""

    sampler: str
    steps: int
    seed: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """A set of images: how many, at which resolution (height, width), and what they are made from."""

    name: str
    images: Any  # a source, or an iterator of examples
    count: int
    resolution: Size
    about: Mapping[str, str] = field(default_factory=dict[str, str])
    source: Any = None  # for its file formats; None for samples


def open_measured(what: str, n: int, size: int | None, how: How) -> ImageSet:
    """The set of images ``what``, at most ``n``, at the resolution that the comparison takes from it."""
    from ..metrics import images

    folder = images.list_folder(what)
    if folder is None:
        return open_data(what, n, (size or 64, size or 64), how)
    found = images.resolutions(folder, n)
    first = images.one_resolution(found, what)
    if size is not None:
        target = (size, size)
    elif len(found) == 1:
        target = first
    else:
        target = (min(first), min(first))
        note(f"{what} holds images of {len(found)} resolutions: brought to {target[0]}×{target[1]}")
    return open_data(what, n, target, how)


def open_data(where: str, n: int, target: Size, how: How) -> ImageSet:
    """At most ``n`` images of ``where``, evenly spread, at ``target``: files that have it are read as they are."""
    from ..data import open_source
    from ..data.base import First
    from ..metrics import images

    folder = images.list_folder(where)
    height, width = target
    if folder is not None and images.resolutions(folder, n) == [target]:
        source, way = images.Files(folder=folder, size=None), "as it is"
    elif height != width:
        raise UsageError(
            f"{where} is not of {height}×{width} pixels throughout: give --size, a square's side, for both"
        )
    elif folder is not None and how != "lanczos":
        source, way = images.Files(folder=folder, size=height), f"centre square, bicubic with antialiasing, {height} px"
    else:
        found = open_source(where, size=height, limit=n)
        source = found.source if isinstance(found, First) else found
        way = f"as for training, {height} px"
    source = images.spread(source, n)
    about = {"source": where, "source fingerprint": source.fingerprint, "preprocessing": way}
    return ImageSet(name=where, images=source, count=len(source), resolution=target, about=about, source=source)


def open_samples(run: OpenedModel, n: int, sampling: Sampling, conditions: Source | None) -> ImageSet:
    """Samples of a run; a conditional model is examples what the images of ``conditions`` are labelled or called."""
    if run.condition != "none":
        if conditions is None:
            raise UsageError(
                f"the model in {run.folder} is conditional: name the data whose {run.condition}s it is given"
            )
        if run.condition == "label" and not conditions.classes:
            raise UsageError(f"the model in {run.folder} takes labels and {conditions.name} has none: name other data")
    else:
        conditions = None
    what = "captions" if run.condition == "text" else "labels"
    about = {
        "source": str(run.folder),
        "weights": str(run.weights.name),
        "preprocessing": "samples rounded to bytes",
        "sampler": sampling.sampler,
        "steps": str(sampling.steps),
        "seed": str(sampling.seed),
        "condition": "none" if conditions is None else f"the {what} of {conditions.name}",
    }
    images = _samples(run, n, sampling, conditions)
    side = run.picture
    return ImageSet(name=str(run.folder), images=images, count=n, resolution=(side[-2], side[-1]), about=about)


def _samples(run: OpenedModel, n: int, how: Sampling, conditions: Source | None) -> Iterator[Example]:
    from .. import sampling
    from ..data import Example, to_uint8

    for begin in range(0, n, how.batch):
        numbers = range(begin, min(begin + how.batch, n))
        examples = [None if conditions is None else _readable(conditions, i * len(conditions) // n) for i in numbers]
        cond = None if conditions is None else _condition(run, [one for one in examples if one is not None], conditions)
        images = sampling.sample(
            run.denoiser,
            len(numbers),
            sampler=how.sampler,
            steps=how.steps,
            seed=how.seed,
            first=begin,
            cond=cond,
        )
        note(f"sampled {numbers.stop} of {n}")
        for i, image, one in zip(numbers, to_uint8(images), examples, strict=True):
            caption = one.caption if one is not None and run.condition == "text" else ""
            yield Example(image=image, caption=caption, name=f"{i:06d}")


def _readable(source: Source, index: int) -> Example:
    """The example with this number, or the next one that can be read."""
    from ..data import UnreadableError

    for step in range(len(source)):
        try:
            return source[(index + step) % len(source)]
        except UnreadableError:
            continue
    raise UsageError(f"not one image of {source.name} can be read")


def _condition(run: OpenedModel, examples: list[Example], source: Source) -> dict[str, Tensor]:
    if run.condition == "label":
        return run.cond(labels=["" if one.label < 0 else source.classes[one.label] for one in examples])
    if not all(one.caption for one in examples):
        raise UsageError(f"the model in {run.folder} takes captions and {source.name} lacks some: name other data")
    return run.cond(captions=[one.caption for one in examples])
