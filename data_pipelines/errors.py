"""The two kinds of error that a user meets; every such error of this project derives from one of them."""


class UserError(Exception):
    """Reports what a retry cannot help: wrong options, damaged or missing files. Commands end with exit status 2.

    The message says what happened, where, and what to do.
    """

    exit_status = 2


class RetryError(Exception):
    """Reports what a retry can help: a lost process, storage that does not answer. Exit status 1.

    Launchers start the command again. The message says what happened, where, and what to do if it happens again.
    """

    exit_status = 1


class BuildError(RetryError):
    """Reports a build that the same command finishes later: a worker process was killed."""


class DatasetError(UserError, ValueError):
    """Reports a data set that cannot be built or read as it is; the message names the cause and the cure."""


class ConfigError(UserError, ValueError):
    """The configuration cannot be run. The message names the key, the cause and the cure."""


class ImageError(UserError, ValueError):
    """Reports a picture that cannot be read: no picture, damaged, cut short, too large. Builds can skip such pictures.

    The message says what is wrong with it and what to do; who knows its file or record puts that in front.
    """


def pip_line(extra: str) -> str:
    """Returns the command that installs an extra of this project, which works wherever it is installed already."""
    return f"pip install 'irm_jax[{extra}]'"
