"""Samplers as schedulers of diffusers. Importing this module imports diffusers."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import checks, scalars
from ..errors import ConfigError, UsageError
from ..interop.loading import diffusers_library
from ..interop.schedulers import number_of, time_of_number
from ..interop.seeds import noise_of
from ..paths import VP
from ..paths.base import AffinePath
from ..samplers import Sampler, named
from .levels import arguments_of, law_of, source_name, source_scheduler, times_of
from .outside import Descent, EvaluationList, evaluations_per_step

_library = diffusers_library()
SchedulerMixin = _library.SchedulerMixin
_output = _library.schedulers.scheduling_ddim.DDIMSchedulerOutput


class SamplerScheduler(SchedulerMixin, _library.ConfigMixin):
    """A sampler of this library in the place of a scheduler of diffusers.

    The classes of `ornstein.schedulers` derive from it, one for each kind of sampler; `from_sampler` takes any sampler.

    States are those of the path, α·x_0 + σ·z, so ``init_noise_sigma`` is 1 for tables of betas and for flows, and only
    EDM scales the input of the network. ``timesteps`` lists every evaluation of the network, also those inside a step;
    ``order`` is the number of evaluations of a usual step. `step` works without gradients and never waits for the
    device.
    """

    config_name = "scheduler_config.json"
    kind: ClassVar[type[Any] | None] = None
    """The class of the sampler; None for one of your own (`from_sampler`)."""

    def __init__(self, *, seed: int = 0, rule: Sampler | None = None, **config: Any) -> None:
        """See `from_config`: keywords are options of the sampler, and of the scheduler of diffusers."""
        fields = _fields(self.kind)
        if rule is None:
            rule = self._made({name: config.pop(name) for name in fields if name in config})
        self._rule = rule
        source = source_name(config)
        self._scheduler = source_scheduler(source, config)
        self._spec = law_of(self._scheduler)
        self._seed = checks.whole("seed", seed, error=ConfigError)
        options = {name: getattr(rule, name) for name in fields}
        self.register_to_config(
            **{**config, **self._scheduler.config, "_class_name": source, "_source": source},
            _sampler={"kind": type(rule).__name__, "seed": seed, **options},
        )
        self.order = evaluations_per_step(rule)
        if isinstance(self._spec.path, VP):
            self.alphas_cumprod = self._scheduler.alphas_cumprod
        self.num_inference_steps: int | None = None
        self.timesteps = _untimed(self._scheduler, self._spec.path)
        self._list: EvaluationList | None = None
        self._numbers: list[float] = []
        self._begin: int | None = None
        self._descent: Descent | None = None

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | None = None, return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """The scheduler with the forward law and the spacing of another one.

        Args:
            config: of a scheduler of diffusers, ``pipe.scheduler.config``, or of one of these.
            return_unused_kwargs: return a pair with the options that are not used, of which there are none.
            options: of the sampler, such as ``form="memory"``; ``seed`` of samplers that draw their times; and changes
                of the configuration, such as ``timestep_spacing="trailing"``.

        Raises:
            UsageError: a scheduler that is not known, one of few-step models, or an option that nobody has.
        """
        if not isinstance(config, Mapping):
            raise UsageError(f"from_config takes pipe.scheduler.config, got {checks.brief(config)}")
        values: dict[str, Any] = {key: value for key, value in config.items() if key != "_diffusers_version"}
        saved = dict(values.pop("_sampler", None) or {})
        source = source_name(values)
        own = {*_fields(cls.kind), "seed"}
        known = {*own, "rule", *values, *arguments_of(getattr(_library, source))}
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3)
                hint = f": did you mean {close[0]}?" if close else f": its sampler has {', '.join(sorted(own))}"
                raise UsageError(f"{cls.__name__} has no option {checks.brief(name)}{hint}")
        if cls.kind is not None and saved.pop("kind", None) == cls.kind.__name__:
            options = {**{name: value for name, value in saved.items() if name in own}, **options}
        used = [key for key in values.get("_use_default_values", []) if key not in options]
        made = cls(**{**values, "_source": source, "_use_default_values": used, **options})
        return (made, {}) if return_unused_kwargs else made

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write ``scheduler_config.json``.

        Raises:
            UsageError: the sampler is your own, which no file can name.
        """
        if self.kind is None:
            raise UsageError(f"{type(self._rule).__name__} is not of this library, so that no file can name it")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def sampler(self) -> Sampler:
        """The sampler."""
        return self._rule

    @property
    def path(self) -> AffinePath:
        """The forward law of the configuration."""
        return self._spec.path

    @property
    def times(self) -> tuple[float, ...]:
        """The grid on the path, its end included; none before ``set_timesteps``."""
        if self._list is None:
            return ()
        return (self._list.steps[0].t, *(step.s for step in self._list.steps))

    @property
    def evaluations(self) -> tuple[float, ...]:
        """The time on the path of every entry of ``timesteps``."""
        return () if self._list is None else tuple(entry.t for entry in self._list.entries)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the first state."""
        path = self._spec.path
        top = path.t_range[1] if self._list is None else self._list.steps[0].t
        return 1.0 if isinstance(path, VP) else float(path.std(top))

    @property
    def begin_index(self) -> int | None:
        """The first evaluation of a loop that does not begin at the top, if it was said."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The number of the next evaluation, None before the first."""
        return None if self._descent is None else self._descent.position

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The loop begins at this entry of ``timesteps``: image-to-image and inpainting pipelines say so."""
        self._begin = checks.whole("begin_index", begin_index, 0)
        self._descent = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """List the evaluations, on the times of the pipeline's own scheduler or on given ones.

        Args:
            num_inference_steps: the number of steps, spaced as the configuration says. Most samplers evaluate
                the network once a step.
            device: of ``timesteps``.
            timesteps: instead, the falling numbers that the network is to be given, used exactly.
            sigmas: instead, falling noise levels, used exactly: σ/α, or σ of a flow before the scheduler's shift.
            mu: the shift that pipelines of flows compute from the size of the picture.

        Raises:
            UsageError: numbers that do not fall, are no numbers, or lie outside the path.
        """
        times = times_of(self._scheduler, self._spec, num_inference_steps, timesteps, sigmas, mu)
        listed = EvaluationList.of(self._rule, self._spec.path, times, self._seed)
        self._numbers = [number_of(self._spec, entry.t) for entry in listed.entries]
        whole = isinstance(self._spec.path, VP) and all(number.is_integer() for number in self._numbers)
        self.timesteps = torch.tensor(self._numbers, dtype=torch.int64 if whole else torch.float32, device=device)
        if not isinstance(self._spec.path, VP):
            path = self._spec.path
            levels = [float(path.std(t)) for t in (*(entry.t for entry in listed.entries), listed.steps[-1].s)]
            self.sigmas = torch.tensor(levels, dtype=torch.float32)
        self.num_inference_steps = len(listed.steps)
        self._list, self._begin, self._descent = listed, None, None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input: of EDM c_in(σ)·x, else the state itself."""
        listed = self._listed()
        index = self._index(timestep) if self._descent is None else self._descent.position
        return self._spec.predicts.precondition(self._spec.path, sample, listed.entries[index].t)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The state of the next evaluation, or the final one.

        A state that was changed since the last call – blended with a known region, say – is taken as it is.

        Args:
            model_output: the network's output at ``timestep``, guided or not.
            timestep: the entry of ``timesteps``; needed to find the place of the first call alone.
            sample: the state that the network was evaluated at.
            generator: seeds the noise of the whole loop, by its state at the first call; a list has one a sample, so
                that a sample does not depend on its batch. By default torch's global one.
            return_dict: an object with ``prev_sample`` and ``pred_original_sample`` instead of a tuple.

        Raises:
            UsageError: `set_timesteps` was not called, or shapes do not fit.
        """
        listed, path = self._listed(), self._spec.path
        x = sample.detach().to(torch.float64 if sample.dtype == torch.float64 else torch.float32)
        descent = self._descent
        if descent is not None and descent.position != self._seen(timestep, descent.position):
            descent = None  # the loop began anew, or leaps
        with torch.no_grad():
            if descent is None:
                noise = noise_of(generator, x.shape[0], x.device, x.dtype, self._seed)
                descent = Descent(listed, self._index(timestep), x.clone(), noise)
            else:
                descent.replace(x)
            query = descent.query
            _check_output(model_output, query.x)
            raw = model_output.detach().to(x.device, x.dtype)
            estimate = self._spec.predicts.to_estimate(path, query.x, query.t, raw)
            out = descent.send(estimate).to(sample.dtype, copy=True)
            self._descent = None if descent.done else descent
            if not return_dict:
                return (out,)
            return _output(prev_sample=out, pred_original_sample=estimate.clean.to(sample.dtype))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α·x_0 + σ·z at the time of each entry of ``timesteps``, one or one a sample."""
        times = time_of_number(self._spec, torch.as_tensor(timesteps).detach().cpu().double().reshape(-1))
        high = self._spec.path.t_range[1]
        alpha, sigma = (
            f(times.clamp(max=high)).to(original_samples) for f in (self._spec.path.alpha, self._spec.path.sigma)
        )
        return scalars.expand(alpha, original_samples) * original_samples + scalars.expand(sigma, noise) * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise` in the order of flows' schedulers."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descent": None}  # generators are not copied: a copy begins anew

    def _listed(self) -> EvaluationList:
        if self._list is None:
            raise UsageError("call set_timesteps before the loop")
        return self._list

    def _index(self, timestep: Any) -> int:
        """The entry that a loop begins with."""
        listed = self._listed()
        if self._begin is not None:
            if self._begin >= len(listed.entries):
                raise UsageError(f"begin_index {self._begin} is past the last of {len(listed.entries)} evaluations")
            return self._begin
        found = self._seen(timestep, -1)
        if found >= 0 or timestep is None:
            return max(found, 0)
        number = float(timestep)
        near = [i for i, own in enumerate(self._numbers) if abs(own - number) <= 1e-5 * max(1.0, abs(own))]
        if not near:
            raise UsageError(f"timestep {number:g} is none of {checks.brief(self._numbers)}: call set_timesteps")
        return next((i for i in near if listed.entries[i].opens), near[0])

    def _seen(self, timestep: Any, otherwise: int) -> int:
        """The place of a view into ``timesteps``, found without a look at its value; ``otherwise`` of anything else."""
        own = self.timesteps
        if not isinstance(timestep, Tensor) or timestep.numel() != 1 or timestep.dtype != own.dtype:
            return otherwise
        if timestep.untyped_storage().data_ptr() != own.untyped_storage().data_ptr():
            return otherwise
        return int(timestep.storage_offset() - own.storage_offset())

    @classmethod
    def _made(cls, options: dict[str, Any]) -> Sampler:
        if cls.kind is None:
            raise UsageError(f"choose a class of ornstein.schedulers, such as {next(iter(CLASSES))}, or from_sampler")
        return cls.kind(**options)


def from_sampler(which: str | Sampler, config: Mapping[str, Any], *, seed: int = 0) -> Any:
    """Any sampler as a scheduler: one of this library by name, or an object of your own.

    >>> import ornstein as orn, diffusers
    >>> scheduler = orn.schedulers.from_sampler("dpmpp-3m", diffusers.DDPMScheduler().config)
    >>> scheduler.set_timesteps(10)
    >>> len(scheduler.timesteps)  # the third-order rule evaluates once more in its first step
    11

    Args:
        which: a name of `ornstein.samplers.SAMPLERS`, "package.module:Class", or a sampler.
        config: see `SamplerScheduler.from_config`.
        seed: of samplers that draw their times.

    Raises:
        UsageError: no sampler, or one whose evaluations cannot be listed beforehand (in ``set_timesteps``).
    """
    rule = named.sampler(which, import_paths=True)
    if isinstance(rule, type) or not callable(getattr(rule, "step", None)):
        raise UsageError(f"a sampler is needed, or the name of one, got {checks.brief(which)}")
    made: type[SamplerScheduler] = CLASSES.get(type(rule).__name__, SamplerScheduler)
    if made.kind is not type(rule):
        made = SamplerScheduler
    return made.from_config(config, seed=seed, rule=rule)


def _fields(kind: type[Any] | None) -> tuple[str, ...]:
    return () if kind is None else tuple(item.name for item in dataclasses.fields(kind))


def _untimed(source: Any, path: Any) -> Tensor:
    """The list before ``set_timesteps``: every step of a table, or what the source has."""
    if isinstance(path, VP):
        return torch.arange(len(source.alphas_cumprod) - 1, -1, -1)
    return torch.as_tensor(source.timesteps)


def _check_output(output: Tensor, x: Tensor) -> None:
    twice = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else x.shape
    if output.shape not in (x.shape, torch.Size(twice)):
        raise UsageError(f"the network returned {tuple(output.shape)} for a state of {tuple(x.shape)}")


def _class(kind: type[Any]) -> type[SamplerScheduler]:
    first = (kind.__doc__ or "").strip().splitlines()[0]
    about = f"`ornstein.samplers.{kind.__name__}` as a scheduler of diffusers. {first}"
    return type(
        kind.__name__, (SamplerScheduler,), {"kind": kind, "__doc__": about, "__module__": "ornstein.schedulers"}
    )


CLASSES: dict[str, type[SamplerScheduler]] = {
    kind.__name__: _class(kind) for kind in dict.fromkeys(type(make()) for make in named.SAMPLERS.values())
}
"""The schedulers by name: one for each kind of sampler."""
