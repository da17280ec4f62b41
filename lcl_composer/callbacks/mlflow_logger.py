"""MLflow: a run on a tracking server, with its settings and pictures."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from PIL import Image

from lcl_composer.callbacks.launches import Launches, pictures_of
from lcl_composer.dotted import leaves
from lcl_composer.errors import ConfigError, one_line

#: Characters that MLflow does not take in the name of a metric, and its limits on parameters.
_ODD = re.compile(r"[^\w\-. /:]")
_LONGEST_KEY, _LONGEST_VALUE, _MOST_AT_ONCE = 250, 6000, 100
#: Seconds between two requests, a batch of metrics each; where the last one failed, at first and at most.
_PAUSE, _AFTER_FAILURE, _LONGEST_PAUSE = 5.0, 60.0, 600.0
#: Numbers that wait for a server at most; the oldest beyond are lost.
_MOST_WAITING = 200_000


class MLFlowLogger(LoggerDestination):
    """Send metrics, settings and pictures to MLflow; who may do so is in the environment.

    All launches of a run are one run there, FINISHED or FAILED at its end. Where the server cannot be reached
    later on, metrics wait for it, pictures are left out, and it is said once; training goes on.

    Args:
        experiment: MLflow's experiment; made if it is not there.
        tracking_uri: The server, ``http://host:5000``; None: MLFLOW_TRACKING_URI.
        log_dir: Folder in which ``mlflow`` notes the run's id; the run's folder unless set.

    Raises:
        ImportError: The package is not there; says how to install it.
    """

    def __init__(self, log_dir: str = ".", experiment: str = "lcl-composer", tracking_uri: str | None = None):
        try:
            from mlflow import MlflowClient  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "needs the package mlflow-skinny: pip install -c constraints.txt '.[mlflow]'"
            ) from error
        self.experiment, self.tracking_uri = experiment, tracking_uri
        self.log_dir = Path(log_dir)
        self._client: Any = None
        self._launches: Launches | None = None
        self._waiting: list[Any] = []
        self._sent, self._pause = 0.0, _PAUSE
        self._said = self._begun = self._ended = False

    def init(self, state: State, logger: Logger) -> None:
        """Open the run on rank 0.

        Raises:
            ConfigError: There is no server, or it refuses.
        """
        if dist.get_global_rank() != 0:
            return
        from mlflow import MlflowClient

        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ConfigError(
                "loggers.mlflow: no server; set MLFLOW_TRACKING_URI, such as http://localhost:5000"
            )
        # Else training waits ten minutes for a server that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._launches = launches = Launches(self.log_dir / "mlflow" / "launches.json", state.run_name)
        try:
            self._client = MlflowClient(uri)
            launches.begin(self._open(launches.id, state.run_name))
        except Exception as error:  # of its client, of requests
            raise ConfigError(f"loggers.mlflow: {one_line(error, 200)}; is the server there?") from error

    def _open(self, known: str | None, name: str) -> str:
        """Go on with the run of an earlier launch, or make one; return its id."""
        if known is not None:
            return self._client.get_run(known).info.run_id
        found = self._client.get_experiment_by_name(self.experiment)
        where = found.experiment_id if found else self._client.create_experiment(self.experiment)
        return self._client.create_run(where, run_name=name).info.run_id

    def log_settings(self, settings: dict[str, Any], text: str) -> None:
        """Keep the settings as parameters, which MLflow never changes, and whole as ``config.yaml``."""
        if self._launches is None:
            return
        from mlflow.entities import Param

        def send() -> None:
            known = self._client.get_run(self._id).data.params
            wanted = [Param(k[:_LONGEST_KEY], str(v)[:_LONGEST_VALUE]) for k, v in leaves(settings)]
            new = [param for param in wanted if param.key not in known]
            for first in range(0, len(new), _MOST_AT_ONCE):
                self._client.log_batch(self._id, params=new[first : first + _MOST_AT_ONCE])
            self._client.log_text(self._id, text, "config.yaml")

        self._try(send)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take numbers that no earlier launch has logged; they are sent every few seconds."""
        if self._launches is None or not self._launches.is_new(step or 0):
            return
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        for name, value in metrics.items():
            number = float(value) if isinstance(value, Real | torch.Tensor) else math.nan
            if math.isfinite(number):
                self._waiting.append(Metric(_ODD.sub("_", name), number, now, step or 0))
        if time.monotonic() > self._sent + self._pause:
            self._send()

    def log_images(
        self,
        images: Any,
        name: str = "Images",
        channels_last: bool = True,
        step: int | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        """Keep pictures, uint8 [H, W, 3] each, under a name."""
        failing = self._pause > _PAUSE
        if self._launches is None or failing or not self._launches.is_new(step or 0):
            return
        for number, picture in enumerate(pictures_of(images)):
            key = name if not number else f"{name}_{number}"
            shown = Image.fromarray(picture)
            self._try(lambda: self._client.log_image(self._id, shown, key=key, step=step or 0))  # noqa: B023

    def fit_start(self, state: State, logger: Logger) -> None:
        """Say that the run goes on, which an earlier launch may have ended."""
        self._begun = True
        if self._launches is not None:
            self._try(lambda: self._client.update_run(self._id, status="RUNNING"))

    def fit_end(self, state: State, logger: Logger) -> None:
        """Note that it came to its end."""
        self._ended = True

    def close(self, state: State, logger: Logger) -> None:
        """Send what waits, and how the run ended."""
        if self._launches is None:
            return
        self._send()
        if self._begun:
            self._begun = False  # Composer closes once more at the end of the process
            status = "FINISHED" if self._ended else "FAILED"
            self._try(lambda: self._client.set_terminated(self._id, status=status))

    @property
    def _id(self) -> str:
        assert self._launches is not None, "INIT comes first"
        return str(self._launches.id)

    def _send(self) -> None:
        """Send what waits, a thousand numbers a request; what cannot be sent waits on."""
        assert self._launches is not None, "INIT comes first"
        while self._waiting:
            some = self._waiting[:1000]
            sent = self._try(partial(self._client.log_batch, self._id, metrics=some))
            self._sent = time.monotonic()
            if not sent:
                self._pause = min(max(2 * self._pause, _AFTER_FAILURE), _LONGEST_PAUSE)
                del self._waiting[:-_MOST_WAITING]
                return
            self._pause = _PAUSE
            self._launches.note(max(metric.step for metric in some))
            del self._waiting[: len(some)]

    def _try(self, send: Callable[[], Any]) -> bool:
        """Send, or say once that it could not be; return whether it was."""
        try:
            send()
            return True
        except Exception as error:  # of its client, of requests
            if not self._said:
                print(
                    f"note: loggers.mlflow: something could not be sent: {one_line(error, 200)}", flush=True
                )
            self._said = True
            return False
