"""What is allocated on a GPU, written into the run's folder; Composer's own cannot be launched again."""

from __future__ import annotations

import composer.callbacks

from lcl_composer.algorithms.schedule import in_batches

#: Where traces go; Composer puts the name in.
_FOLDER = "runs/{run_name}/memory"


class MemorySnapshot(composer.callbacks.MemorySnapshot):
    """Record what is allocated on each GPU over a few batches, as pages for a browser.

    Composer's writes beside ``runs`` and refuses a folder in which an earlier launch has written.

    Args:
        skip_batches: Batches before the record begins.
        interval: Batches that it covers, such as ``3ba``.
        max_entries: Allocations that are kept.
        folder: Where to; ``{run_name}`` is the run's name.

    Raises:
        ValueError: If ``interval`` is not in batches, or a number is too small.
    """

    def __init__(
        self, skip_batches: int = 1, interval: str = "3ba", max_entries: int = 100_000, folder: str = _FOLDER
    ):
        if skip_batches < 0 or max_entries < 1:
            raise ValueError(
                f"skip_batches {skip_batches} must be at least 0 and max_entries {max_entries} at least 1"
            )
        super().__init__(
            skip_batches,
            f"{in_batches('interval', interval)}ba",
            max_entries,
            folder,
            remote_file_name=None,
            overwrite=True,
        )


class OOMObserver(composer.callbacks.OOMObserver):
    """Write what was allocated on a GPU when its memory was too small, as pages for a browser.

    As for ``memory_snapshot``, an earlier launch's pages are no reason to refuse this one.

    Args:
        max_entries: Allocations that are kept.
        folder: Where to; ``{run_name}`` is the run's name.

    Raises:
        ValueError: If ``max_entries`` is below 1.
    """

    def __init__(self, max_entries: int = 100_000, folder: str = _FOLDER):
        if max_entries < 1:
            raise ValueError(f"max_entries {max_entries} must be at least 1")
        super().__init__(max_entries, folder, remote_file_name=None, overwrite=True)
