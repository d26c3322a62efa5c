"""The exceptions a user can meet. Each message is one line: what is wrong, the value, and the remedy."""


class OrnsteinError(Exception):
    """Base of every exception raised on purpose by this library."""


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
