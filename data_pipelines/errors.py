"""Errors that end a command with one message instead of a traceback, and with a status that launchers act on."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user has to change. The command exits with status 2: a retry cannot help."""


class RetryError(Exception):
    """A failure that may pass, such as a lost process. The command exits with status 1: a retry may help."""
