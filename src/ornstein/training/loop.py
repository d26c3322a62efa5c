"""The training loop."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..data import Batch, batches, open_source
from ..data.loader import read_example
from ..data.remembered import remembered
from ..errors import CheckpointError, ConfigError, DataError, OrnsteinError, StorageError
from ..randomness import mix
from ..storage.configs import to_dict
from ..storage.console import tell
from ..storage.files import digest, read_json, write_json
from ..storage.reading import reason_of
from . import checkpoint, events, folder, plan, process, start
from .config import TrainConfig
from .latents import encoded, keep_codec
from .scale import with_scale
from .session import Session, accelerator
from .statistics import record


class DivergedError(OrnsteinError):
    """The loss is no longer a finite number; the command line turns it into exit status 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to; also written to OUT/summary.json.

    ``loss`` and ``levels`` are those of the last line of the log; ``skipped`` maps unreadable files to reasons;
    ``resumed_at`` is where this sitting began, and ``finished_before`` says that there was nothing left to do.
    """

    out: str
    images: int
    steps: int
    epochs: float
    parameters: int
    loss: float
    levels: dict[str, Any]
    seconds: float
    images_per_second: float
    skipped_count: int
    skipped: dict[str, str]
    config_digest: str
    resumed_at: int = 0
    finished_before: bool = False


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM, after the step at hand and a checkpoint of ``images`` of ``budget`` images in ``out``."""

    def __init__(self, out: Path, images: int, budget: int) -> None:
        super().__init__(f"{images} of {budget} images are kept in {out}")
        self.out, self.images, self.budget = out, images, budget


def train(
    config: TrainConfig,
    *,
    quiet: bool = False,
    planner: plan.Planner | None = None,
    after_step: Callable[[Session], None] | None = None,
) -> Summary:
    """Train until ``config.images`` images have been seen, going on from the newest checkpoint in ``config.out``.

    Args:
        config: the run.
        quiet: nothing is written to standard error.
        planner: what chooses length, batch and patches of a new run with a budget in minutes; by default one for which
            no option is given.
        after_step: called with the `Session` after every step, before its line of the log and its checkpoint. The
            session's ``images``, ``step``, ``model``, ``average`` and ``optimizer`` are then those after the step. What
            the function raises ends the run where it stands, as a crash would: nothing more is written.

    A run that was killed at any moment and started again ends with the same bits in its weights, averages, optimizer
    and log (but for ``time``) as one that never stopped: on a CPU always, on a GPU with ``config.strict``.

    Raises:
        UsageError: a configuration that cannot be, data that cannot be read, a folder that is no run or another one's.
        DivergedError: the loss, a weight or an average is no longer finite. The last checkpoint after which a loss was
            finite stays the newest one, and the same folder goes on from it with a smaller learning rate.
        StorageError: the disk is full or cannot be written, or a process that reads data died. What can be kept of the
            work is in a checkpoint.
        Stopped: a `KeyboardInterrupt`, on SIGINT or SIGTERM, after the step at hand and a checkpoint.

    >>> from ornstein.training import TrainConfig, train
    >>> train(TrainConfig(data="critters:64", out="runs/first", images=256)).images  # doctest: +SKIP
    256
    """
    called, out = time.perf_counter(), Path(config.out)
    begun = plan.begun_in(out, type(config)) if folder.check(config) else None
    if not config.data:
        raise ConfigError("data is empty: name a folder of images or a built-in set, for example critters")
    with contextlib.ExitStack() as stack:
        hardware = accelerator(config)
        stack.callback(process.forget_accelerator)
        stack.enter_context(process.kernels(config.strict))
        # Data first: a run that cannot begin leaves no folder behind.
        with hardware.main_process_first():
            whole = open_source(config.data, size=config.size)
            read_example(whole, 0)
            say = _silent if quiet or not hardware.is_main_process else tell
            notes = [start.found(whole), *(() if planner is None else planner.notes)]
            codec, whole = encoded(config, whole, hardware.device)
            whole = whole if codec is not None or process.workers(config, hardware) else remembered(whole)
        first = start.Start(whole=whole, codec=codec, hardware=hardware, trial=_trial, say=say, notes=notes)
        config = first.planned(config, begun, planner)
        source, validation = config.select(whole, hardware.device)
        spec = with_scale(out, folder.with_known_words(out, config.specify(source)), source)
        session = Session.of(config, spec, source, hardware)
        if hardware.is_main_process:
            stack.enter_context(folder.locked(out))
        before = checkpoint.complete(out)
        ours = folder.document(config, spec, source)
        if folder.check(config):
            folder.compare(out, ours)
        hardware.wait_for_everyone()
        session.codec, session.validation = codec, validation
        if before:
            session.restore(before[-1])
        first.open()
        if before and session.images >= config.images:
            return _finished(session)
        if hardware.is_main_process:
            checkpoint.sweep(out)
            folder.begin(out, ours)  # with the learning rate of this sitting
            keep_codec(out, codec)
            folder.truncate(out, session.logged)
            (out / folder.SUMMARY).unlink(missing_ok=True)
        hardware.wait_for_everyone()
        say(start.made(session))
        with _machine(session):
            sinks = _sinks(session, quiet)
            stack.callback(sinks.close)
            return _run(session, sinks, after_step, called)


def _run(session: Session, sinks: events.Sinks, after_step: Callable[[Session], None] | None, called: float) -> Summary:
    config, hardware = session.config, session.accelerator
    began, saved_at, resumed_at = time.perf_counter() - session.seconds, time.perf_counter(), session.images
    fresh = time.perf_counter()  # since the last line of the log, sampling and saving left out
    pace, since = 0.0, session.images
    last: dict[str, Any] = {"loss": math.nan, "levels": {}}
    alone = hardware.num_processes == 1
    # A sitting ends with its minutes, of which the earlier ones have used theirs; the last pause is one of these.
    ends, longest = called + 60.0 * config.minutes - session.seconds if config.minutes and alone else math.inf, 0.0
    estimate = events.DurationEstimate(config.images)
    if resumed_at:
        sinks.note(f"going on at {resumed_at} images")
    left = math.ceil((config.images - session.images) / config.batch)
    with process.stop_requested(alone) as stopped, contextlib.closing(_stream(session, left)) as stream:
        while session.images < config.images:
            batch = _next(stream, session)
            for line in session.note_skipped(batch):
                sinks.note(line)
            before = session.images
            session.learn(batch)
            _look(session)
            if after_step is not None:
                after_step(session)
            sinks.advance(session.images)
            now = time.perf_counter()
            if (line := estimate(now, session.images)) is not None:
                sinks.note(line)
            session.seconds = now - began
            if session.images < config.images and now + longest >= ends:
                config = _end_here(session, sinks)
            done = session.images >= config.images
            if session.statistics.steps and _due(before, session.images, config.every.log):
                pace = (session.images - since) / max(now - fresh, 1e-9)
                last = _log(session, sinks, pace)
                session.clear()
                session.logged, since = session.images, session.images
                fresh = time.perf_counter()
            pause = time.perf_counter()
            if config.every.samples and (done or _due(before, session.images, config.every.samples)):
                if hardware.is_main_process:
                    sinks.samples(session.images, session.samples())
                hardware.wait_for_everyone()
            late = alone and 0.0 < config.every.seconds <= now - saved_at
            if done or late or stopped.is_set() or _due(before, session.images, config.every.checkpoint):
                _require_good(session, batch if done else None)
                session.save()
                if done:
                    session.prove()  # there is no loss after it
                saved_at = time.perf_counter()
            # Neither the speed nor the time of training counts sampling and saving.
            pause = time.perf_counter() - pause
            longest = max(longest, pause)
            fresh, began = fresh + pause, began + pause
            if stopped.is_set() and not done:
                raise Stopped(session.out, session.images, config.images)
    if session.statistics.steps:
        pace = (session.images - since) / max(time.perf_counter() - fresh, 1e-9)
        last = _log(session, sinks, pace)
    return _summarise(session, last, resumed_at)


def _end_here(session: Session, sinks: events.Sinks) -> TrainConfig:
    """The configuration of a run whose minutes are over, in its folder too: a run of as many images as it has seen."""
    planned, minutes = session.config.images, session.config.minutes
    session.config = replace(session.config, images=session.images)
    folder.begin(session.out, folder.document(session.config, session.spec, session.source))
    sinks.note(
        f"the {minutes:g} min are over after {session.images:,} of {planned:,} images: the machine was slower than "
        "when it was timed"
    )
    return session.config


def _next(stream: Iterator[Batch], session: Session) -> Batch:
    """The next batch. Where data are gone, or a process that reads them has died, the work becomes a checkpoint."""
    try:
        return next(stream)
    except (DataError, StorageError) as error:
        if session.images and (session.unproven is None or session.unproven.name != f"{session.images:012d}"):
            _require_good(session)
            session.save()
        raise type(error)(f"{error}; {_kept(session)}: the same command goes on from there") from None


@contextlib.contextmanager
def _machine(session: Session) -> Iterator[None]:
    """A failing disk as one line that says what is kept; a divergence is noted in the folder."""
    try:
        yield
    except StorageError:
        raise
    except DivergedError as error:
        if session.accelerator.is_main_process:
            with contextlib.suppress(OSError):
                folder.note_divergence(session.out, session.images, str(error))
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise StorageError(
            f"training stopped at {session.images} images, for the machine failed ({reason_of(error)}{where}); "
            f"{_kept(session)}: the same command goes on from there"
        ) from error


def _silent(text: str) -> None:
    del text


def _trial(session: Session) -> float:
    """Seconds of a step."""

    def one() -> None:
        session.learn(next(stream))
        if session.accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    with contextlib.closing(_stream(session)) as stream:
        return plan.measured(one)


def _stream(session: Session, count: int | None = None) -> Generator[Batch, None, None]:
    config, hardware = session.config, session.accelerator
    yield from batches(
        session.source,
        batch=config.batch,
        seed=config.seed,
        start=session.images,
        workers=process.workers(config, hardware),
        rank=hardware.process_index,
        world=hardware.num_processes,
        flip=config.flip,
        count=count,
    )


def _look(session: Session) -> None:
    """What must hold after a step: no divergence and, where a look at the loss waits for nothing, a finite loss."""
    _require_sound(session)
    # On an accelerator a look waits for the device: after a checkpoint alone, and at the next line of the log.
    if session.accelerator.device.type == "cpu" or session.unproven is not None:
        _require_finite(session)
        session.prove()


def _require_finite(session: Session) -> None:
    """Raise `DivergedError` unless all sums since the last line of the log are finite."""
    sums: list[torch.Tensor] = []
    for statistics in session.all_statistics:
        sums += [value.sum() for value in statistics.terms.values()]
        if session.config.precision != "fp16":  # there, an overflowing gradient is normal: the step is left out
            sums.append(statistics.norm)
    if sums and not math.isfinite(float(torch.stack(sums).sum())):
        _diverged(session, "the loss or its gradient is not finite", _lower(session))


def _lower(session: Session) -> str:
    """The remedy of a divergence. With a discriminator either of the two may have carried the other one away."""
    own = hasattr(session.config, "discriminator_optimizer") and session.discriminator is not None
    options = "--optimizer.lr or --discriminator-optimizer.lr" if own else "--optimizer.lr"
    return f"lower {options}, and the same command goes on from there"


def _diverged(session: Session, cause: str, remedy: str) -> NoReturn:
    """Raise `DivergedError`; a checkpoint after which no loss was finite is set aside."""
    images, newest, aside = session.images, session.unproven, ""
    if newest is not None and session.accelerator.is_main_process:
        others = [found for found in checkpoint.complete(session.out) if found != newest]
        if (others or newest.name != f"{session.begun:012d}") and not _holds(session, newest):
            aside = f", {newest.name} is set aside"
            checkpoint.set_aside(newest)
        session.unproven = None
    raise DivergedError(f"{cause} at {images} images; {_kept(session)}{aside}: {remedy}")


def _holds(session: Session, newest: Path) -> bool:
    """Whether a checkpoint is good although no finite loss came after it.

    A discriminator takes its step before the model's loss is known: that loss is then not that of the checkpoint.
    """
    if session.discriminator is None or session.accelerator.num_processes > 1:
        return False
    with contextlib.suppress(CheckpointError):
        session.restore(newest)
        with contextlib.closing(_stream(session)) as stream:
            return math.isfinite(_loss(session, next(stream)))
    return False


def _loss(session: Session, batch: Batch) -> float:
    """The loss of the weights as they are."""
    torch.manual_seed(mix(session.config.seed, "step", session.step, 0))
    progress = min(session.images / session.config.images, 1.0)
    noise = session.noise(batch.positions)
    return float(session.objective(session.denoiser, session.examples(batch), noise, progress).total.detach())


def _require_good(session: Session, batch: Batch | None = None) -> None:
    """Raise `DivergedError` unless the sums of the log and all weights, averages and moments are finite.

    With the last ``batch`` of a run, the loss of the new weights on it must be as well: no other loss comes after them.
    """
    _require_finite(session)
    bad = session.not_finite()
    if not bad and batch is not None and session.accelerator.num_processes == 1:
        bad = "" if math.isfinite(_loss(session, batch)) else "the loss"
    if bad:
        what = bad if bad == "the loss" else f"the weight {bad}"
        _diverged(session, f"{what} is not finite", _lower(session))


def _require_sound(session: Session) -> None:
    """Raise `DivergedError` if the guard has seen a divergence."""
    guard = session.guard
    if guard is not None and guard.cause:
        _diverged(session, f"{guard.cause},", f"raise --optimizer.eps, or {_lower(session)}")


def _kept(session: Session) -> str:
    found = checkpoint.complete(session.out)
    return f"the last good checkpoint is {found[-1]}" if found else "there was no checkpoint yet"


def _log(session: Session, sinks: events.Sinks, pace: float) -> dict[str, Any]:
    _require_finite(session)
    line = {
        "images": session.images,
        "step": session.step,
        "epoch": round(session.images / len(session.source), 4),
        "lr": session.config.optimizer.rate(session.images - session.config.batch),
        **record(session.counted()),
        **session.counted_discriminator(),
        **session.validated(),
        **({} if session.guard is None else session.guard.record()),
        "time": {"seconds": round(session.seconds, 3), "images_per_second": round(pace, 2)},
    }
    sinks.log(line)
    return line


def _summarise(session: Session, last: dict[str, Any], resumed_at: int) -> Summary:
    skipped = session.all_skipped()
    summary = Summary(
        out=session.config.out,
        images=session.images,
        steps=session.step,
        epochs=round(session.images / len(session.source), 4),
        parameters=sum(p.numel() for p in session.model.parameters()),
        loss=last["loss"],
        levels=last["levels"],
        seconds=round(session.seconds, 3),
        images_per_second=round(session.images / max(session.seconds, 1e-9), 2),
        skipped_count=len(skipped),
        skipped=skipped,
        config_digest=digest(to_dict(session.config)),
        resumed_at=resumed_at,
    )
    if session.accelerator.is_main_process:
        write_json(session.out / folder.SUMMARY, asdict(summary))
    return summary


def _finished(session: Session) -> Summary:
    """The summary of a run that has nothing left to do."""
    found = read_json(session.out / folder.SUMMARY)
    last = {"loss": math.nan, "levels": {}}
    if isinstance(found, dict):
        last = {"loss": found.get("loss", math.nan), "levels": found.get("levels", {})}
    images, budget = session.images, session.config.images
    if session.accelerator.is_main_process:
        tell(
            f"{session.out} is finished: {images} of {budget} images seen; "
            "give a larger --images to train on, or another --out"
        )
    seconds = session.seconds
    return Summary(
        out=session.config.out,
        images=images,
        steps=session.step,
        epochs=round(images / len(session.source), 4),
        parameters=sum(p.numel() for p in session.model.parameters()),
        loss=last["loss"],
        levels=last["levels"],
        seconds=round(seconds, 3),
        images_per_second=round(images / max(seconds, 1e-9), 2),
        skipped_count=len(session.skipped),
        skipped=session.skipped,
        config_digest=digest(to_dict(session.config)),
        resumed_at=images,
        finished_before=True,
    )


def _sinks(session: Session, quiet: bool) -> events.Sinks:
    config, budget = session.config, session.config.images
    if not session.accelerator.is_main_process:
        return events.Sinks()
    sinks: list[events.Sink] = [events.Files(session.out)]
    if config.tensorboard:
        sinks.append(events.Board(session.out, session.images))
    if not quiet:
        sinks.append(events.Bar(budget, session.images) if sys.stderr.isatty() else events.Lines(budget))
    return events.Sinks(*sinks)


def _due(before: int, now: int, interval: int | None) -> bool:
    return bool(interval) and now // interval > before // interval
