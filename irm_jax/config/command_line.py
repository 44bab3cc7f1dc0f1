"""Parses a command line with `--config NAME` and `--config.KEY=VALUE`; a mistake is one message and exit status 2."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from etils import epath

from data_pipelines import storage
from data_pipelines.storage import StorageError
from irm_jax.config import key_table, run_files
from irm_jax.config.check_keys import unknown_override
from irm_jax.errors import ConfigError

_HELP = ("-h", "-help", "--help", "--helpshort")


def parse(argv: Sequence[str], usage: str) -> list[str]:
    """The arguments that are no flags, program name first; for `absl.app.run(main, flags_parser=parse)`.

    `--config` takes the name of a shipped run file (`quickstart`) or a path. `--help` prints `usage`, `--keys WORD` the
    configuration keys that match; both exit with status 0. Everything that is wrong exits with status 2.
    """
    if set(_HELP) & set(argv[1:]):
        print(usage, end="")
        sys.exit(0)
    for place, argument in enumerate(argv):
        flag, _, word = argument.partition("=")
        if flag in ("-keys", "--keys"):
            following = next(iter(argv[place + 1 :]), "")
            print_keys(word or ("" if following.startswith("-") else following))
    try:
        return list(flags.FLAGS(_with_run_file(argv)))
    except (ConfigError, flags.Error) as error:
        exit_with(_with_nearest(str(error)))


def folder(path: str, flag: str) -> epath.Path:
    """The folder of a run that a flag names. Raises ConfigError if its kind of storage cannot be it, or be reached."""
    try:
        storage.require_workdir(path)
    except StorageError as error:
        raise ConfigError(f"{flag}: {error}") from error
    return epath.Path(path).expanduser()


def print_keys(word: str) -> NoReturn:
    """Prints the keys whose name has the word in it, all of them for "", and exits; with status 2 if there are none."""
    found = key_table.listed(word)
    if found:
        print(found)
        sys.exit(0)
    near = key_table.nearest(word)
    exit_with(
        f"no configuration key has {word!r} in its name or description; "
        + (f"did you mean {', '.join(near)}?" if near else "--keys without a word lists all of them")
    )


def exit_with(message: str) -> NoReturn:
    """Prints the message to stderr and exits with status 2: a retry cannot help."""
    sys.stderr.write(f"{message}\n")
    sys.exit(2)


def _with_run_file(argv: Sequence[str]) -> list[str]:
    """The arguments with the run file's path for its name. Raises ConfigError for a missing file, an unknown key."""
    found = list(argv)
    for place, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("-config", "--config") or (not equals and place + 1 == len(argv)):
            continue
        name = value if equals else argv[place + 1]
        file, colon, rest = name.partition(":")
        path = f"{run_files.find(file)}{colon}{rest}"
        found[place : place + 1 + (not equals)] = [f"--config={path}"]
        # The library for such flags gives up at an unknown key without a word on the nearest one.
        if message := unknown_override(run_files.load(path), argv):
            raise ConfigError(message)
        break
    return found


def _with_nearest(message: str) -> str:
    """A message on a flag's values, with the nearest value."""
    found = re.search(r"flag --\w+=(\S+): value should be one of <(.*)>", message)
    near = difflib.get_close_matches(found[1], found[2].split("|"), n=1, cutoff=0.5) if found else []
    return f"{message}; did you mean {near[0]}?" if near else message
