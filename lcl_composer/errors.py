"""Errors a user can mend. The command line prints them as one line, without a traceback."""

from __future__ import annotations


class LCLError(Exception):
    """A problem the user can mend; the message says what, where and what to do."""


class ConfigError(LCLError):
    """A setting that is unknown, missing, of the wrong type, or at odds with another one."""


class DataError(LCLError):
    """Data that is absent, cannot be read, or is bad in more than the allowed share."""
