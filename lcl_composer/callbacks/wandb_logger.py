"""Weights & Biases, online or not."""

from __future__ import annotations

import atexit
from pathlib import Path
from typing import Any

import composer.loggers
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.callbacks.launches import Launches, pictures_of
from lcl_composer.errors import ConfigError, one_line

#: The horizontal axis of all charts: W&B's own step counts calls, and cannot say a batch twice.
_STEP = "batch"


class WandBLogger(composer.loggers.WandBLogger):
    """Send metrics, settings and pictures to Weights & Biases; if WANDB_MODE=offline to ``runs/NAME/wandb``.

    All launches of a run are one run there. Checkpoints stay in the run folder.

    Args:
        project: W&B's project.
        entity: User or team; None: the default of the account.
        group: Group of the runs; None: none.
        tags: Tags of the run.
        log_dir: Folder in which ``wandb`` is made; the run's folder unless set.

    Raises:
        ImportError: The package wandb is not there; says how to install it.
    """

    def __init__(
        self,
        log_dir: str = ".",
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ):
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            # Not Composer's advice: that version's protobuf breaks TensorBoard.
            raise ImportError("needs the package wandb: pip install -c constraints.txt '.[wandb]'") from error
        super().__init__(project=project, entity=entity, group=group, tags=tags)
        self.log_dir = Path(log_dir)
        self._launches: Launches | None = None

    def init(self, state: State, logger: Logger) -> None:
        """Open the run on rank 0.

        Raises:
            ConfigError: W&B refuses, such as for want of a key.
        """
        import wandb

        if dist.get_global_rank() != 0:
            return
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._launches = launches = Launches(self.log_dir / "wandb" / "launches.json", state.run_name)
        settings = {"name": state.run_name, **self._init_kwargs, "id": launches.id, "resume": "allow"}
        try:
            run = wandb.init(dir=self.log_dir, **settings)
        except wandb.Error as error:
            raise ConfigError(
                f"loggers.wandb: {one_line(error)}; set WANDB_API_KEY, or WANDB_MODE=offline"
            ) from error
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP)
        launches.begin(run.id)
        self.run_dir, self.run_url = run.dir, run.url
        atexit.register(self._set_is_in_atexit)

    def log_settings(self, settings: dict[str, Any], text: str) -> None:
        """Keep the settings as the run's config."""
        import wandb

        if wandb.run is not None:
            wandb.run.config.update(settings, allow_val_change=True)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Pass over Composer's own, which the settings and ``environment.json`` say better."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log what no earlier launch has logged."""
        self._log(metrics, step)

    def log_images(
        self,
        images: Any,
        name: str = "Images",
        channels_last: bool = True,
        step: int | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        """Show pictures, uint8 [H, W, 3] each, under a name."""
        import wandb

        if self._launches is not None:
            self._log({name: [wandb.Image(picture) for picture in pictures_of(images)]}, step)

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        import wandb

        if self._launches is not None and wandb.run is not None and self._launches.is_new(step or 0):
            self._launches.note(step or 0)
            wandb.run.log({**values, _STEP: step or 0})

    def can_upload_files(self) -> bool:
        """Checkpoints are not sent."""
        return False

    def download_file(
        self, remote_file_name: str, destination: str, overwrite: bool = False, progress_bar: bool = True
    ) -> None:
        """Refuse: a resume asks every logger for a checkpoint, and this one has none."""
        raise FileNotFoundError(f"no {remote_file_name} at Weights & Biases")
