"""Errors that end a command with one message instead of a traceback, and with a status that launchers act on."""

from __future__ import annotations

from data_pipelines.errors import ConfigError, ImageError, RetryError, UserError, pip_line

__all__ = ["ConfigError", "ImageError", "RetryError", "UserError", "pip_line"]
