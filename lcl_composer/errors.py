"""Errors a user can mend. The command line prints them as one line, without a traceback."""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Iterable

#: Characters that a terminal obeys, and those that turn the order of others; data may hold them.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


#: A name and a password in an address, as a library shows the one that it could not reach.
_PASSWORD = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")


def without_passwords(text: str) -> str:
    """Return a text in which addresses have no name and password."""
    return _PASSWORD.sub("...", text)


def printable(text: str) -> str:
    """Return a text without what a terminal would obey: colours, moves of the cursor, its window's title."""
    return _OBEYED.sub("\ufffd", text)


class LCLError(Exception):
    """A problem the user can mend; the message says what, where and what to do.

    It may name what stands in data, so it is made printable.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(LCLError):
    """A setting that is unknown, missing, of the wrong type, or at odds with another one."""


class DataError(LCLError):
    """Data that is absent, cannot be read, or is bad in more than the allowed share."""


class LostConnection(LCLError):
    """Another rank is gone or does not answer: this one has nothing to say of the cause."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    spelled = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(word).lower(), spelled, n=1, cutoff=0.6)
    if close:
        return f"did you mean {spelled[close[0]]!r}?"
    return f"known: {', '.join(names)}" if names else "nothing is allowed here"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return another library's message on one line, cut at ``limit`` characters, without passwords."""
    text = without_passwords(" ".join(str(error).split()))
    return text if len(text) <= limit else f"{text[:limit]}..."


def print_to_any_terminal() -> None:
    """Print what the terminal's encoding lacks as "?", where Python would end with UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
