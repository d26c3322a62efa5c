"""Where a run's events go: the log in JSON lines, TensorBoard, and one moving or many plain lines on standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..data import grid, save_png
from ..errors import printable
from ..storage.console import tell
from .folder import METRICS


class Sink(Protocol):
    """A place for events."""

    def log(self, record: dict[str, Any]) -> None:
        """A line of the log, every few thousand images."""
        ...

    def advance(self, images: int) -> None:
        """Called after every step: so many images have been seen."""
        ...

    def samples(self, images: int, pictures: Tensor) -> None:
        """A batch of samples (N, C, H, W)."""
        ...

    def note(self, text: str) -> None:
        """Something for the eye only."""
        ...

    def close(self) -> None:
        """No more events."""
        ...


class Sinks:
    """Several sinks as one."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks

    def log(self, record: dict[str, Any]) -> None:
        """To all."""
        for sink in self.sinks:
            sink.log(record)

    def advance(self, images: int) -> None:
        """To all."""
        for sink in self.sinks:
            sink.advance(images)

    def samples(self, images: int, pictures: Tensor) -> None:
        """To all."""
        for sink in self.sinks:
            sink.samples(images, pictures)

    def note(self, text: str) -> None:
        """To all."""
        for sink in self.sinks:
            sink.note(text)

    def close(self) -> None:
        """To all."""
        for sink in self.sinks:
            sink.close()


class Quiet:
    """A sink that does nothing, to inherit from."""

    def log(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def advance(self, images: int) -> None:
        """Nothing."""

    def samples(self, images: int, pictures: Tensor) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Files(Quiet):
    """metrics.jsonl, one record a line, and samples/IMAGES.png."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.file = (out / METRICS).open("a", encoding="utf-8")

    def log(self, record: dict[str, Any]) -> None:
        """Append a line; it is with the system before the next step begins."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def samples(self, images: int, pictures: Tensor) -> None:
        """Write the grid."""
        save_png(grid(pictures), self.out / "samples" / f"{images:012d}.png")

    def close(self) -> None:
        """Close the log."""
        self.file.close()


class Board(Quiet):
    """TensorBoard, with images as the step."""

    def __init__(self, out: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=images + 1 if images else None)

    def log(self, record: dict[str, Any]) -> None:
        """Loss, its terms, its levels, gradient and rate."""
        at, levels = record["images"], record["levels"]
        named = {f"loss/{name}": value for name, value in record["terms"].items()}
        for i, value in enumerate(levels["loss"]):
            named[f"level/{i}"] = value
        named |= {key: record[key] for key in ("loss", "grad_norm", "lr")}
        named["images_per_second"] = record["time"]["images_per_second"]
        for group in ("schedule", "left_out"):
            named |= {f"{group}/{name}": value for name, value in record.get(group, {}).items()}
        for name, value in named.items():
            if value is not None:
                self.writer.add_scalar(name, value, at)

    def samples(self, images: int, pictures: Tensor) -> None:
        """The grid."""
        self.writer.add_image("samples", grid(pictures).numpy(), images)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Lines(Quiet):
    """One plain line on standard error for every line of the log."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def log(self, record: dict[str, Any]) -> None:
        """Images, loss, speed and time left."""
        speed = record["time"]["images_per_second"]
        left = duration((self.budget - record["images"]) / speed) if speed else "?"
        done = f"{record['images']:>9} of {self.budget} images"
        at = "".join(f"  {name} {value:.4g}" for name, value in record.get("schedule", {}).items())
        self.note(f"{done}  loss {record['loss']:.4f}{at}  {speed:.1f} images/s  {left} left")

    def note(self, text: str) -> None:
        """A line."""
        tell(text)


class Bar(Quiet):
    """A progress bar on a terminal, with the loss, images/s and the time left."""

    def __init__(self, budget: int, images: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            speed_estimate_period=120.0,
        )
        self.task = self.bar.add_task("training", total=budget, completed=images, speed="")
        self.bar.start()

    def advance(self, images: int) -> None:
        """Move on."""
        self.bar.update(self.task, completed=images)

    def log(self, record: dict[str, Any]) -> None:
        """The newest loss and speed."""
        speed = f"{record['time']['images_per_second']:.1f} images/s"
        self.bar.update(self.task, description=f"loss {record['loss']:.4f}", speed=speed)

    def note(self, text: str) -> None:
        """Above the bar."""
        self.bar.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal in order."""
        self.bar.stop()


class DurationEstimate:
    """One line about the time that a run will take, after a second of steps; none for a run of a few seconds."""

    def __init__(self, budget: int) -> None:
        self.budget, self.done = budget, False
        self.first: tuple[float, int] | None = None

    def __call__(self, now: float, images: int) -> str | None:
        """A line, or None, after the step that ended at ``now`` seconds with ``images`` images seen."""
        if self.first is None:  # the first step warms up
            self.first = now, images
        elif not self.done and now - self.first[0] >= 1.0:
            self.done = True
            pace = (images - self.first[1]) / (now - self.first[0])
            left = (self.budget - images) / pace
            if left >= 10.0:
                return f"about {duration(left)} on this machine, at {pace:.1f} images/s"
        return None


def duration(seconds: float) -> str:
    """A duration as hours and minutes, or minutes and seconds.

    >>> duration(75), duration(7260)
    ('1m15s', '2h01m')
    """
    whole = max(round(seconds), 0)
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"
