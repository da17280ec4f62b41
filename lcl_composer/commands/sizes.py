"""`lcl sizes`: the sizes of a data set's documents, for one that was converted without them."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from lcl_composer.data.shards import open_shards, read_sizes_of
from lcl_composer.data.sizes import SIZES_FILE, write_sizes


def write_sizes_of(folder: Path) -> str:
    """Read all shards of a data set but their images, and write the file beside the index.

    Returns:
        What was done, in a line.

    Raises:
        DataError: If there is no data set, shards are elsewhere, or one is damaged.
    """
    shards = open_shards(folder)
    shards.check_whole()
    bar = tqdm(shards.present, "shards", unit="shard", disable=None)
    sizes = [size for shard in bar for size in read_sizes_of(folder, shard)]
    write_sizes(folder, sizes)
    return f"{folder / SIZES_FILE}: {len(sizes):,} documents, {sum(images for _, images in sizes):,} images"
