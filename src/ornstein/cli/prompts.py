"""What the images of `ornstein sample` are conditioned on: labels, or prompts from the command or a file, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .output import note
from .sample_args import SampleArgs

if TYPE_CHECKING:
    from torch import Tensor

    from ..runs import OpenedModel

_LARGEST_FILE = 2**24  # bytes of prompts


def read_prompts(args: SampleArgs) -> tuple[str, ...]:
    """The prompts of a call: those of --prompt, or the lines of --prompts.

    Raises `UsageError` for a file that cannot be read, is no text or holds no line.
    """
    if args.prompts is None:
        return args.prompt
    lines = [line.strip() for line in _text(args.prompts).split("\n")]
    found = tuple(line for line in lines if line)
    if not found:
        raise UsageError(f"--prompts {args.prompts} holds no prompt: write one on each line")
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"--prompts {path} is no file: name a text file with a prompt on each line")
    if path.stat().st_size > _LARGEST_FILE:
        raise UsageError(f"--prompts {path} is larger than {_LARGEST_FILE // 2**20} MiB: split it")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"--prompts {path} is no text in UTF-8: write it as such") from None


def labels_of(run: OpenedModel, args: SampleArgs) -> tuple[str, ...]:
    """The labels of a call: those of --label, or where no condition is given all classes of a model of labels.

    Images between two others, and variations of one, have one condition: they have no label by default.
    """
    if args.conditioned or args.interpolate is not None or args.resample_level is not None:
        return args.label
    return run.classes


def note_labels(labels: Sequence[str]) -> None:
    """Say which labels are taken in turn where none is given."""
    shown = ", ".join(labels[:6]) + (", …" if len(labels) > 6 else "")
    note(f'no --label: the classes of the model in turn ({shown}); --label "" draws without a label')


def cond_in_turn(run: OpenedModel, images: range) -> dict[str, Tensor] | None:
    """The condition of images by their numbers where none is given: the classes of a model of labels in turn."""
    return run.cond(labels=[run.classes[i % len(run.classes)] for i in images]) if run.classes else None


def conditions_of(
    run: OpenedModel, args: SampleArgs, prompts: Sequence[str], *, guided: bool
) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """The condition of every image, and what classifier-free guidance leads away from; None without a condition.

    Labels and prompts are cycled over the stream of images. Unknown words, and empty prompts where ``guided``
    guidance leads toward them, are warned of.
    """
    if args.negative_prompt is not None and run.condition != "text":
        raise UsageError(f"--negative-prompt needs a model of captions, {args.run} has the condition {run.condition}")
    numbers = range(args.first, args.first + args.n)
    cond = None
    if prompts:
        cond = run.cond(captions=[prompts[i % len(prompts)] for i in numbers])
        _warn(run, prompts, guided=guided)
    elif args.label:
        cond = run.cond(labels=[args.label[i % len(args.label)] for i in numbers])
    if run.condition == "none" or not (guided or args.guide_placement == "separate"):
        if args.negative_prompt is not None:
            note("warning: --negative-prompt does nothing without --guidance-scale or another guidance that uses it")
        return cond, None
    return cond, run.null() if args.negative_prompt is None else run.null(negative=args.negative_prompt)


def _warn(run: OpenedModel, prompts: Sequence[str], *, guided: bool) -> None:
    from ..runs import TrainedModel

    if guided and any(not prompt.strip() for prompt in prompts):
        note("warning: an empty prompt is what guidance leads away from: images with it are as without guidance")
    if isinstance(run, TrainedModel) and run.model.text is not None:
        unknown = run.model.text.config.unknown(prompts)
        if unknown:
            shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
            note(f"warning: words that this model has never seen, and reads as one unknown word: {shown}")
