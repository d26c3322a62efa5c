"""The `ornstein` command. Errors are a single line on stderr.

Each subcommand is a dataclass of arguments and a function that takes it; only the chosen one is imported, so `--help`
stays quick. Bad input costs one line on standard error and exit status 2; `--json` prints one document on standard
output and nothing else there.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

from ..errors import UsageError
from ..storage.console import tell
from ..storage.reading import denied
from .output import OutputError, drop_output, flush, prepare_streams, say
from .parser import parse

# name: (module, arguments, function, what it does)
COMMANDS: dict[str, tuple[str, str, str, str]] = {
    "methods": ("catalog", "MethodsArgs", "methods", "the eleven papers: what each does, and what of it is here"),
    "demo": ("demo", "DemoArgs", "demo", "the main job on the embedded data; ends with a page"),
    "train": ("train", "TrainArgs", "train", "train a model: train ddpm --data WHERE --out runs/NAME"),
    "train-guide": ("train_guide", "TrainGuideArgs", "train_guide", "train a small network behind a guide"),
    "sample": ("sample", "SampleArgs", "sample", "images from a run, a checkpoint folder or a shipped model"),
    "eval": ("evaluate", "EvalArgs", "evaluate", "distances, precision, rarity and diversity of images"),
    "score": ("score", "ScoreArgs", "score", "how rare each image of a data set is to a trained model"),
    "guides": ("guides", "GuidesArgs", "guides", "what can steer a sample, and with which network"),
    "tune-steps": (
        "tune_steps",
        "TuneStepsArgs",
        "tune_steps",
        "search the noise levels of multistep consistency sampling",
    ),
    "rates": ("rates", "RatesArgs", "rates", "measured convergence orders of samplers beside theory"),
    "reproduce": ("reproduce", "ReproduceArgs", "reproduce", "papers' claims measured again, with verdicts"),
}

USAGE = "usage: ornstein COMMAND [options]     (ornstein COMMAND --help: the options)"

_NO_HOME = "Could not determine home directory."  # what pathlib says of ~nobody/…


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    prepare_streams()
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        flush()
        return status  # noqa: TRY300
    except UsageError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        drop_output()  # the reader of our output has gone (a pipe into head): nobody is left to tell
        return 141
    except OSError as error:
        return _failed(error)
    except MemoryError as error:
        return _complain(f"there is not enough memory {error}".rstrip() + ": take smaller pictures or batches", 1)
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":
            return _complain(f"{str(error).splitlines()[0]} Take a smaller --batch", 1)
        if str(error) != _NO_HOME:
            raise
        return _complain("a path begins with ~ and the name of no user of this machine: write it in full", 2)


def _run(args: list[str]) -> int:
    if not args or args[0] in {"-h", "--help", "help"}:
        say(_overview())
        return 0 if args else 2
    if args[0] in {"-V", "--version", "version"}:
        from .. import __version__

        say(__version__)
        return 0
    return _dispatch(args[0], args[1:])


# What the name of a file that somebody gave is at fault for; for all else, the machine is.
_NAMES = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT}


def _failed(error: OSError) -> int:
    """Complain of an OSError: exit status 2 where a name is at fault, 1 where the machine is."""
    if isinstance(error, OutputError):
        drop_output()  # it would fail again at exit
    if error.errno in _NAMES and error.filename is not None:
        name = str(error.filename)
        name = name if len(name) <= 80 else f"{name[:60]}… ({len(name)} characters)"
        return _complain(f"{name}: {(error.strerror or 'error').lower()}: name another file or folder", 2)
    if error.errno in {errno.EACCES, errno.EPERM} and error.filename is not None:
        return _complain(str(denied(error.filename)), 1)
    return _complain(str(error), 1)


def _dispatch(name: str, args: Sequence[str]) -> int:
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}: {hint}")
    module_name, kind, function, _ = COMMANDS[name]
    module = importlib.import_module(f".{module_name}", __package__)
    if hasattr(module, "parse"):  # a command whose options depend on its first word
        return getattr(module, function)(module.parse(args))
    return getattr(module, function)(parse(getattr(module, kind), f"ornstein {name}", args))


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    rows = [f"  {name:<{width}}  {what}" for name, (*_, what) in COMMANDS.items()]
    return "\n".join([USAGE, "", *rows])


def _complain(text: str, status: int) -> int:
    tell(f"ornstein: {' '.join(text.split())}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
