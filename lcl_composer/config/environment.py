"""Variables of the environment in a YAML: which it reads, and that none of them is a secret.

A run's settings are written down: in its folder, its checkpoints, its loggers, its reports. A YAML from
elsewhere may also send them somewhere (``remote: s3://bucket/${oc.env:TOKEN}``). So no secret gets into them:
what needs one (object stores, Weights & Biases, MLflow, ``notify``) reads it from the environment by itself.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

#: In the name of a variable that holds a secret.
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|WEBHOOK|API_?KEY|PRIVATE|COOKIE|(^|_)(KEY|PASS|PAT|PWD|DSN|SAS|AUTH)(_|$)",
    re.IGNORECASE,
)
#: A password in an address, and what signs one.
_SECRET_TEXT = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|[?&](sig|signature|x-[\w-]+-signature|\w*token|\w*key|password)=", re.IGNORECASE
)
#: Shorter values of secret variables are too common to be looked for.
_SHORTEST = 8


def is_secret(name: str) -> bool:
    """Whether a variable's name says that it holds a secret; ``PWD`` is the working directory."""
    return name != "PWD" and bool(_SECRET_NAME.search(name))


def secret_in(text: str) -> str:
    """Where a setting has a secret from, for a message; "" if it holds none that can be told."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and is_secret(name):
            return f"the value of {name}"
    return "a password or a signature" if _SECRET_TEXT.search(text) else ""


@contextmanager
def noted_variables(note: Callable[[str], None]) -> Iterator[None]:
    """Hand each NAME of ``${oc.env:NAME}`` that the body resolves to ``note``; secrets come out empty.

    An empty variable is one that is not set: with it ``${oc.env:SCRATCH}/runs`` would be ``/runs``.
    """

    def read(name: str, *default: Any) -> Any:
        note(name)
        if is_secret(name):
            return ""
        if not default and os.environ.get(name) == "":
            raise KeyError(f"Environment variable '{name}' not found")
        return oc.env(name, *default)

    _resolve_by(read)
    try:
        yield
    finally:
        _resolve_by(oc.env)


def _resolve_by(resolver: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the new name for it means something else in 2.3
        OmegaConf.register_new_resolver("oc.env", resolver, replace=True)
