"""How SIGTERM, Ctrl-C and a lost reader process end a run: after the running step, with its state saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from absl import logging

from irm_jax.errors import RetryError


class Stopped(RetryError):
    """A signal ended the run; its state is saved, and the same command continues it."""


class Interrupted(BaseException):
    """A signal came where nothing is worth waiting for: the state has not changed since it was saved or updated."""


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into a request that the run ends; a second one ends it at once.

    Within `at_once` the request raises Interrupted instead. It is a context; signals are handled in the main thread
    only.

    Attributes:
        requested: whether a signal came.
        name: what asked for the end, as the name of a signal; '' without a request.
    """

    def __init__(self) -> None:
        self.requested, self.name = False, ""
        self._leaving = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def request(self, name: str) -> None:
        """Asks for the end of the run for another reason than a signal, which the message calls `name`."""
        self.requested, self.name = True, self.name or name

    def release(self) -> None:
        """Gives the signals back to those who handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @contextlib.contextmanager
    def at_once(self, leaving: str = "the evaluation") -> Iterator[None]:
        """Lets a signal, or one that came before, raise Interrupted within the body, named `leaving` in a warning."""
        self._leaving = leaving
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._leaving = ""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)
        if self._leaving:
            logging.warning("%s: leaving %s to save", self.name, self._leaving)
            raise Interrupted
        logging.warning("%s: saving after the running step", self.name)
