"""The times that the arguments of ``set_timesteps`` stand for, and the numbers that a network is given for them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from .. import checks
from ..errors import ConfigError, GridError, UsageError
from ..interop.loading import diffusers_library, silenced
from ..interop.schedulers import (
    SchedulerSpec,
    from_scheduler_config,
    number_of,
    time_of_number,
    times_of_pipeline,
)
from ..paths import VE, VP, Flow
from ..paths.base import AffinePath
from ..paths.times import is_near

_FLOW = frozenset({"shift", "use_dynamic_shifting", "base_shift", "max_shift"})
_BETAS = frozenset({"beta_start", "beta_end", "beta_schedule", "trained_betas"})


def source_name(config: dict[str, Any]) -> str:
    """The class of diffusers that a scheduler's configuration belongs to.

    It is the one that the configuration names. A scheduler that was made in memory does not name its class, which is
    then the one whose arguments the configuration has, all of them.

    Raises:
        UsageError: a class that diffusers does not have, or a configuration of none of its classes.
    """
    library = diffusers_library()
    name = config.get("_source") or config.get("_class_name")
    if name is not None:
        if not isinstance(name, str) or not _is_scheduler(getattr(library, name, None)):
            raise UsageError(
                f"unknown scheduler class {checks.brief(name)}: a scheduler of diffusers is needed, with betas, "
                "FlowMatch… or EDM…"
            )
        return name
    keys = {key for key in config if not key.startswith("_")}
    arguments = {one.__name__: arguments_of(one) for one in _loaded(library.SchedulerMixin)}
    # A class with hardly an argument would fit any configuration: those with a law count their training steps.
    found = [(len(own), other) for other, own in arguments.items() if own <= keys and "num_train_timesteps" in own]
    if found:
        most = max(count for count, _ in found)
        known = [other for count, other in found if count == most]  # FlowMapEuler… has the arguments of FlowMatchHeun…
        return min(known, key=lambda other: (not other.startswith("FlowMatch"), len(other)))
    if keys & _BETAS or not keys:
        return "DDIMScheduler"
    if keys & _FLOW:
        return "FlowMatchEulerDiscreteScheduler"
    raise UsageError(
        f"no scheduler of diffusers has this configuration ({checks.brief(sorted(keys))}): pass pipe.scheduler.config"
    )


def arguments_of(kind: Any) -> set[str]:
    """The arguments of a class of schedulers."""
    return set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}


def source_scheduler(name: str, config: dict[str, Any]) -> Any:
    """The scheduler of diffusers with this configuration.

    Raises:
        UsageError: it refuses the configuration.
    """
    kind = getattr(diffusers_library(), name)
    own = {key: value for key, value in config.items() if key not in ("_source", "_sampler", "_class_name")}
    try:
        with silenced():
            return kind.from_config(own)
    except (ValueError, TypeError, NotImplementedError, ImportError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(
            f"{name} cannot be made of this configuration: {' '.join(str(error).split())[:300]}"
        ) from None


def law_of(source: Any) -> SchedulerSpec:
    """Path and parameterization of a scheduler of diffusers.

    Raises:
        UsageError: a scheduler that no path is known for, or one of few-step models.
    """
    spec = from_scheduler_config(source)
    if spec.grid is not None:
        raise UsageError(
            f"{type(source).__name__} belongs to a few-step model, which is evaluated on times that climb: keep this "
            "scheduler, or sample with ornstein.from_pipeline and ornstein.sample"
        )
    return spec


def times_of(
    source: Any,
    spec: SchedulerSpec,
    steps: int | None,
    timesteps: Any = None,
    sigmas: Any = None,
    mu: float | None = None,
) -> tuple[float, ...]:
    """Falling times of the path, the end included.

    * ``steps`` alone: the levels of the source's own spacing.
    * ``timesteps``: exactly these inputs of the network.
    * ``sigmas``: exactly these noise levels: σ/α of a table of betas and of EDM, σ of a flow. A flow's scheduler shifts
      them by its ``shift`` or ``mu``, as pipelines rely on. A last 0 may be left out.

    Raises:
        UsageError: nothing or too much is given, numbers do not fall, or are out of range.
    """
    if timesteps is not None and sigmas is not None:
        raise UsageError("timesteps and sigmas say the same thing twice: pass one of them")
    given = timesteps if sigmas is None else sigmas
    if given is None:
        if steps is None:
            raise UsageError("set_timesteps needs a number of steps, timesteps or sigmas")
        count = checks.whole("num_inference_steps", steps, 1)
        return times_of_pipeline(source, spec.path, count, **_known(source, mu=mu))
    name = "sigmas" if timesteps is None else "timesteps"
    numbers = _falling(name, given)
    if name == "sigmas" and numbers[-1] == 0.0:
        numbers.pop()
    if not numbers:
        raise UsageError("sigmas need a level above 0")
    if steps is not None and checks.whole("num_inference_steps", steps, 1) != len(numbers):
        raise UsageError(f"{len(numbers)} {name} are no {steps} steps: leave num_inference_steps out")
    if name == "sigmas" and isinstance(spec.path, Flow):
        extra = _known(source, sigmas=numbers, mu=mu)
        if "sigmas" in extra:
            return times_of_pipeline(source, spec.path, len(numbers), **extra)
    times = [_time_of_sigma(spec.path, s) if name == "sigmas" else time_of_number(spec, s) for s in numbers]
    for number, t in zip(numbers, times, strict=True):
        _check(spec, name, number, t)
    end = _end(source, spec.path)
    if is_near(times[-1], end, spec.path) or times[-1] < end:
        end = spec.path.t_range[0]
    if any(is_near(t, s, spec.path) for t, s in pairwise(times)):
        raise UsageError(f"two {name} are the same but for rounding: leave one out")
    return (*times, end)


def _falling(name: str, values: Any) -> list[float]:
    entries: Any = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(entries, str | bytes) or not isinstance(entries, Sequence) or not entries:
        raise UsageError(f"{name} must be a list of numbers, got {checks.brief(values)}")
    numbers = [checks.real(f"every one of the {name}", entry, error=UsageError) for entry in entries]  # pyright: ignore[reportUnknownVariableType]
    for one, two in pairwise(numbers):
        if two >= one:
            raise UsageError(f"{name} must fall, from the noisiest on: {two:g} follows {one:g}")
    return numbers


def _time_of_sigma(path: AffinePath, sigma: float) -> float:
    if isinstance(path, Flow | VE) or sigma <= 0.0:
        return sigma
    return path.time_of(-2.0 * math.log(sigma))


def _check(spec: SchedulerSpec, name: str, number: float, t: float) -> None:
    low, high = spec.path.t_range
    top = spec.path.sigma_bar(high) if name == "sigmas" and not isinstance(spec.path, Flow) else math.inf
    inside = low < t <= high or is_near(t, high, spec.path)
    if not inside or number > top * (1.0 + 1e-6):
        most = f"{top:g}" if math.isfinite(top) else f"{number_of(spec, high) if name == 'timesteps' else high:g}"
        raise GridError(f"{name} go up to {most} here and stay above the clean end, got {number:g}")


def _end(source: Any, path: AffinePath) -> float:
    """Where the source's own steps end."""
    return times_of_pipeline(source, path, 3)[-1] if isinstance(path, VP) else path.t_range[0]


def _known(source: Any, **given: Any) -> dict[str, Any]:
    """Those arguments that the source's ``set_timesteps`` has, of those that are given."""
    names = inspect.signature(source.set_timesteps).parameters
    return {key: value for key, value in given.items() if value is not None and key in names}


def _is_scheduler(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, diffusers_library().SchedulerMixin)


def _loaded(kind: Any) -> Iterator[Any]:
    """The schedulers of diffusers that are imported: a configuration in memory comes from one of them."""
    for one in kind.__subclasses__():
        if one.__module__.startswith("diffusers."):
            yield one
        yield from _loaded(one)
