"""The exceptions a user can meet. Each message is one line: what is wrong, the value, and the remedy."""

import re

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LINE_END = re.compile(r"\s*\n\s*")


def printable(text: str) -> str:
    r"""A text on one line, with escapes for what would act on a terminal instead of being seen there.

    Control characters, line ends, changes of the writing direction and undecodable bytes become ``\x1b``, ``\n``, …

    >>> print(printable("a\x1b[2Jb\nc"))
    a\x1b[2Jb\nc
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


_LONG_WORD = re.compile(r"\S{301,}")
_LONGEST = 900


def shortened(text: str) -> str:
    """A text without the middle of long words, which are values that somebody gave, and of at most 900 characters."""
    text = _LONG_WORD.sub(lambda word: f"{word[0][:160]}… ({len(word[0])} characters) …{word[0][-40:]}", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} … {text[-290:]}"


class OrnsteinError(Exception):
    """Base of every exception raised on purpose by this library. Its text is one printable line, not too long."""

    def __str__(self) -> str:
        return shortened(printable(_LINE_END.sub(" ", super().__str__())))


class UsageError(OrnsteinError, ValueError):
    """The caller asked for something that cannot be done; the command line turns it into exit status 2."""


class ConfigError(UsageError):
    """A configuration value is missing, unknown, or out of range."""


class DataError(UsageError):
    """A data source cannot be found, is empty, or is not what it claims to be."""


class CheckpointError(UsageError):
    """A run or checkpoint is missing, incomplete, or does not fit the model."""


class PathError(UsageError):
    """A sampler, guidance or parameterization needs something that this kind of forward path does not have."""


class GridError(UsageError):
    """A list of times is empty, repeats a time, or leaves the path's span."""


class NotFiniteError(UsageError):
    """A network or a sampler gave numbers that are not finite."""


class StorageError(OrnsteinError, OSError):
    """The machine failed while a file was written or read: no space, no permission; exit status 1."""
