"""What a budget decides: intervals and warm-up from its length; batch, patches and length from measured steps.

`settle` fills in what a configuration leaves open (None), from the run that is continued or from the number of images.
`completed` is for the command line: options that were not given come from the run in ``out``, and the data from the run
that training begins with. `Planner` turns minutes into images by measuring single steps.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError
from ..models.card import CONFIG, read_document
from ..networks import UNetConfig
from .config import Optimizer, TrainConfig
from .methods import read_config

if TYPE_CHECKING:
    from ..data.base import Source

MINUTES = 20.0
"""Budget of a command that names none."""
STEPS = 4000
"""Steps that a plan aims at: batches grow only where the budget has more."""
VIEWS = (16, 8_000), (math.inf, 50_000)
"""Images that a network needs whose finest level has at most so many positions a side; else patches grow."""
SMOOTH = 8
"""Channels of the last convolution over pixels where patches are larger than the default's."""
_SHARE = 0.94  # of the time is training; the rest draws previews and writes checkpoints
_PREVIEW = 4096

T = TypeVar("T")


def settle(config: TrainConfig, begun: TrainConfig | None = None) -> TrainConfig:
    """The configuration without None: warm-up and intervals as the run ``begun`` has them, or by the budget.

    Warm-up is a twentieth of the images and at most 10,000; a line of the log is due every fiftieth part and at least
    every 2,048 images, a checkpoint and a preview every tenth and at least every 65,536; previews, which cost as much
    as a hundred images, at most every 4,096.
    """
    images, batch = config.images, config.batch

    def part(of: int, most: int) -> int:
        return max(min(images // of, most), batch if batch < images else 1)

    changed: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        optimizer = getattr(config, item.name)
        if isinstance(optimizer, Optimizer) and optimizer.warmup is None:
            known = getattr(getattr(begun, item.name, None), "warmup", None)
            changed[item.name] = replace(optimizer, warmup=min(images // 20, 10_000) if known is None else known)
    every = config.every
    wanted = {"log": part(50, 2048), "checkpoint": part(10, 65_536), "samples": max(part(10, 65_536), _PREVIEW)}
    every = replace(every, **{name: value for name, value in wanted.items() if getattr(every, name) is None})
    return replace(config, every=every, **changed)


def as_planned(config: TrainConfig, begun: TrainConfig) -> TrainConfig:
    """A configuration with a budget in minutes, with what was planned for it when its run began."""
    names = {"images", "batch", "network", "optimizer", "condition", "curriculum"}
    known = [item.name for item in dataclasses.fields(config) if item.name in names and hasattr(begun, item.name)]
    return replace(config, **{name: getattr(begun, name) for name in known})


def begun_in(out: str | Path, own: type[TrainConfig] | None = None) -> TrainConfig | None:
    """The configuration, of a method or of the class ``own``, of the run in a folder; None if there is no run."""
    path = Path(out) / CONFIG
    return read_config(read_document(path).get("train"), own) if path.is_file() else None


def completed(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The configuration of a command line on which the fields ``given`` ("optimizer.lr") are set.

    What is not given is taken from the run in ``out``. A new run that begins with another one (``init_from``
    or ``front``) takes its data, and with them its size and codec.

    Raises:
        ConfigError: no data; or a budget in images and one in minutes.
    """
    if "images" in given and "minutes" in given:
        raise ConfigError("--images and --minutes are two budgets: give one of them")
    begun = begun_in(config.out)
    if begun is not None and type(begun) is type(config):
        return _continued(config, begun, given)
    if not config.data:
        config = _with_data_of(config, getattr(config, "init_from", "") or getattr(config, "front", ""), given)
    if not config.data:
        raise ConfigError(
            "no data: name a folder of images or a built-in set, for example --data photos or --data critters"
        )
    if "images" not in given and "minutes" not in given:
        config = replace(config, minutes=MINUTES)
    return config


def _continued(config: TrainConfig, begun: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The run's own configuration with the given options; a budget of other minutes is that of as many more images."""
    names = set(given)
    if "minutes" in names and not begun.minutes and config.minutes:
        raise ConfigError(
            f"the run in {config.out} has a budget in images: go on with --images, more than {begun.images}"
        )
    if "minutes" in names and config.minutes:
        images = max(round(begun.images * config.minutes / begun.minutes), 1)
        return replace(_merged(begun, config, names), images=images)
    if "images" in names:
        return replace(_merged(begun, config, names), minutes=0.0)
    return _merged(begun, config, names)


def _merged(old: T, new: T, given: Collection[str], prefix: str = "") -> T:
    """``old`` with the given fields of ``new``."""
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(old):  # pyright: ignore[reportArgumentType]
        name, before, now = prefix + item.name, getattr(old, item.name), getattr(new, item.name)
        if name in given:
            changed[item.name] = now
        elif dataclasses.is_dataclass(now) and type(now) is type(before):
            changed[item.name] = _merged(before, now, given, f"{name}.")
    return replace(old, **changed)  # pyright: ignore[reportArgumentType]


def _with_data_of(config: TrainConfig, origin: str, given: Collection[str]) -> TrainConfig:
    """The configuration with the data, size and codec of the run it begins with; as it is where there is none."""
    if not origin:
        return config
    from ..runs import open_own

    run = open_own(origin)
    theirs = run.details.get("train", {})
    size = config.size if "size" in given else run.picture[-1]
    codec = config.codec
    if config.takes_latents and "codec" not in given and run.codec is not None:
        codec = str(run.folder / "codec") if (run.folder / "codec").is_dir() else str(theirs.get("codec", ""))
    return replace(config, data=str(theirs.get("data", "")), size=size, codec=codec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A configuration and how its length was found: ``images_per_second`` is 0 where nothing was measured."""

    config: TrainConfig
    images_per_second: float = 0.0

    @property
    def seconds(self) -> float:
        """The estimated time of the whole run."""
        return self.config.images / self.images_per_second if self.images_per_second else math.nan

    def __str__(self) -> str:
        config, optimizer = self.config, self.config.optimizer
        patch = getattr(config.network, "patch", 1)
        return (
            f"plan for {config.minutes:g} min: {config.images:,} images, {config.images // config.batch:,} steps of "
            f"{config.batch} at {self.images_per_second:.0f} images/s (measured), patches of {patch} pixels, "
            f"warm-up {optimizer.warmup or 0:,}" + (f", decay from {optimizer.decay:,}" if optimizer.decay else "")
        )


Measure = Callable[[TrainConfig], float]
"""Seconds that one training step of a configuration takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Turns ``config.minutes`` into images, batch, patches, warm-up and decay; what is ``given`` stays as it is.

    ``notes`` are said after the line on the data.
    """

    given: Collection[str] = ()
    notes: Collection[str] = ()

    def __call__(self, config: TrainConfig, source: Source, measure: Measure) -> Plan:
        """The plan on this data; labels are used where the data has them and --condition is not given."""
        if "condition" not in self.given and config.condition == "none":
            config = replace(config, condition=config.natural_condition(source))
        if not config.minutes:
            return Plan(config=config)
        seconds = 60.0 * config.minutes * _SHARE
        plan = Plan(config=config)
        for candidate in self._candidates(config):
            plan = self._timed(candidate, seconds, measure)
            side = config.size // getattr(candidate.network, "patch", 1)
            if plan.config.images >= next(views for most, views in VIEWS if side <= most):
                break
        return plan

    def _candidates(self, config: TrainConfig) -> Iterator[TrainConfig]:
        """The configuration, then with coarser patches where the network is the default's and the size allows it."""
        yield config
        network = config.network
        if any(name.startswith("network") for name in self.given) or config.codec or not config.coarser:
            return
        if not isinstance(network, UNetConfig):
            return
        levels = 2 ** (len(network.multipliers) - 1)
        for patch in (4, 8):
            if patch > network.patch and config.size % (patch * levels) == 0 and config.size // patch >= 8:
                yield replace(config, network=replace(network, patch=patch, smooth=SMOOTH))

    def _timed(self, config: TrainConfig, seconds: float, measure: Measure) -> Plan:
        """The configuration with as many images as fit, in the largest batches that leave `STEPS` steps."""
        batch, few = config.batch, 8
        if "batch" in self.given or not config.coarser or batch <= few:
            step = measure(config)
        else:
            step = measure(replace(config, batch=few))
            if seconds / step > STEPS:
                slope = max(measure(config) - step, 0.0) / (batch - few)
                while batch > few and seconds / (step + slope * (batch - few)) < STEPS:
                    batch //= 2
                batch = max(batch, few)
                step += slope * (batch - few)
            else:
                batch = few
        images = max(int(seconds / step), 1) * batch
        return Plan(config=self._scaled(replace(config, batch=batch), images), images_per_second=batch / step)

    def _scaled(self, config: TrainConfig, images: int) -> TrainConfig:
        """The configuration with another budget, warm-up and decay inside it."""
        config, optimizer = config.with_budget(images), config.optimizer
        if type(optimizer) is Optimizer and "optimizer.decay" not in self.given:
            config = replace(config, optimizer=replace(optimizer, decay=max(images // 3, 1)))
        return settle(config)


def measured(step: Callable[[], None], *, least: float = 0.5, most: int = 8) -> float:
    """Seconds of one call of ``step``: the fastest of a few, after a first one that warms up."""
    step()
    found: list[float] = []
    while len(found) < 2 or (sum(found) < least and len(found) < most):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return min(found)
