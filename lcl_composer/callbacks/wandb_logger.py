"""Weights & Biases, online or not."""

from __future__ import annotations

import atexit
from pathlib import Path

import composer.loggers
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.errors import ConfigError, one_line


class WandBLogger(composer.loggers.WandBLogger):
    """Send metrics and pictures to Weights & Biases; with WANDB_MODE=offline to ``runs/NAME/wandb``.

    Each launch of a run is a run there, in the group of its name: steps of W&B cannot go back, as those of a
    resume do. Checkpoints stay in the run folder.

    Args:
        project: W&B's project.
        entity: User or team; None: the default of the account.
        group: Group of the runs; None: the run's name.
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

    def init(self, state: State, logger: Logger) -> None:
        """Open the run on rank 0.

        Raises:
            ConfigError: W&B refuses, such as for want of a key.
        """
        import wandb

        if dist.get_global_rank() != 0:
            return
        self.log_dir.mkdir(parents=True, exist_ok=True)
        settings = {"name": state.run_name, "group": state.run_name, **self._init_kwargs}
        try:
            run = wandb.init(dir=self.log_dir, **settings)
        except wandb.Error as error:
            raise ConfigError(
                f"loggers.wandb: {one_line(error)}; set WANDB_API_KEY, or WANDB_MODE=offline"
            ) from error
        self.run_dir, self.run_url = run.dir, run.url
        atexit.register(self._set_is_in_atexit)

    def can_upload_files(self) -> bool:
        """Checkpoints are not sent."""
        return False

    def download_file(
        self, remote_file_name: str, destination: str, overwrite: bool = False, progress_bar: bool = True
    ) -> None:
        """Refuse: a resume asks every logger for a checkpoint, and this one has none."""
        raise FileNotFoundError(f"no {remote_file_name} at Weights & Biases")
