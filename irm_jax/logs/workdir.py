"""The folder of a run: one command at a time writes into it, and removes what a killed one left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from etils import epath

from data_pipelines import files, storage
from irm_jax.errors import RetryError, UserError
from irm_jax.parallel import processes


def require_free(workdir: epath.Path) -> None:
    """Raises as `locked` would, at once and without making the folder, before long work whose results go there.

    Only a process that is alone looks: of several, each would find another one's lock.
    """
    if storage.is_remote(workdir) or not processes.alone():
        return
    if workdir.exists():
        with files.lock(workdir):
            return
    files.check_place(workdir)


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Holds the lock of a run's folder, in process 0 for all; every process must call it, once they have joined.

    Raises:
      LockedError: another command works in the folder; the message names it.
      WriteError: the folder cannot be written.
    """
    failure: UserError | RetryError | None = None
    with contextlib.ExitStack() as held:
        if processes.is_main():
            try:
                held.enter_context(files.lock(workdir))
                for name in ("", "evaluations", "per_query", "per_query/task_free"):
                    files.sweep(workdir / name)
            except (UserError, RetryError) as error:
                failure = error
        again = processes.any_process(isinstance(failure, RetryError))
        never = processes.any_process(isinstance(failure, UserError))
        if failure is not None:
            raise failure
        if again or never:
            raise (RetryError if again else UserError)(f"process 0 cannot work in {workdir}: see its message")
        yield


def locked_for(target: epath.Path, workdir: epath.Path) -> contextlib.AbstractContextManager[None]:
    """`locked` for a command that reads a run and writes `target`; outside of the run it needs no lock.

    So a run that cannot be written, or is being trained, can be read for a result that goes elsewhere; the file or
    folder appears there whole or not at all.
    """
    inside = storage.is_remote(target) or target.resolve().is_relative_to(workdir.resolve())
    return locked(workdir) if inside else contextlib.nullcontext()
