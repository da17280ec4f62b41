"""A stream of Documents from MDS shards: laid out, decoded, and the same wherever a run is taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import StreamingDataset
from torch import Tensor

from lcl_composer.data.collate import Sample, bad_sample, make_sample
from lcl_composer.data.document import MDS_COLUMNS, Document
from lcl_composer.data.image import decode_image, eval_transform, train_transform
from lcl_composer.data.interleave import LayoutRules, TokenLayout, lay_out
from lcl_composer.data.rng import sample_rng
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import DataError

#: Samples that are shuffled among themselves; Streaming's default depends on ``num_canonical_nodes``.
_SHUFFLE_BLOCK = 1 << 18


class DocumentStream(StreamingDataset):
    """Documents as samples. Random draws of a document depend on (seed, epoch, id) alone.

    In training an epoch is a whole number of global batches; what is left over is dropped on every rank
    alike, whether the epoch was resumed or not. In evaluation every document is seen, in order, with the
    draws of epoch 0 and the evaluation transform.

    Args:
        local: Folder of the shards (with ``remote``: the cache).
        remote: Where to fetch shards from, or None.
        split: Sub-folder of both, or None.
        train: Training or evaluation.
        shuffle: Shuffle, anew each epoch.
        shuffle_seed: Seed of the order.
        num_canonical_nodes: Pieces the order is made of; fix it to change the number of nodes in mid-run.
        batch_size: Documents a batch on this rank.
        predownload: Documents to fetch ahead; None for Streaming's default.
        cache_limit: Bytes to keep in ``local`` (``100gb``), or None.
        tokenizer: Encodes the texts.
        rules: Token layout.
        image_size: Side of the images in pixels.
        seed: Seed of the layout and augmentation draws.

    Raises:
        DataError: If the data set is missing, empty, or not one of Documents in safe encodings.
    """

    def __init__(
        self,
        *,
        local: str,
        remote: str | None,
        split: str | None,
        train: bool,
        shuffle: bool,
        shuffle_seed: int,
        num_canonical_nodes: int,
        batch_size: int,
        predownload: int | None,
        cache_limit: str | int | None,
        tokenizer: Tokenizer,
        rules: LayoutRules,
        image_size: int,
        seed: int,
    ) -> None:
        self._key = "data.train" if train else "data.eval"
        index = Path(local, split or "", "index.json")
        if index.is_file():
            _check_index(index)
        elif remote is None:
            raise DataError(
                f"{self._key}.local: no data set in {index.parent} (no index.json there); convert one with "
                f"'lcl convert', set {self._key}.local to where it lies, or set {self._key}.remote"
            )
        super().__init__(
            local=local,
            remote=remote,
            split=split,
            shuffle=shuffle,
            shuffle_algo="py1e",
            shuffle_block_size=_SHUFFLE_BLOCK,
            shuffle_seed=shuffle_seed,
            num_canonical_nodes=num_canonical_nodes,
            batch_size=batch_size,
            predownload=predownload,
            cache_limit=cache_limit,
        )
        _check_index(index)
        self.tokenizer = tokenizer
        self.rules = rules
        self.image_size = image_size
        self._train = train
        self._seed = seed
        self._epoch = 0
        self._ranks = self._parallel_rank_world.num_ranks
        if train:
            self._batches = self._count_batches(num_canonical_nodes)
            self.length = self._batches * batch_size  # Streaming's own count ignores its padding

    def _count_batches(self, num_canonical_nodes: int) -> int:
        """Return the whole global batches of an epoch, the repeats that fill canonical nodes included."""
        nodes = max(num_canonical_nodes, self._parallel_rank_world.num_nodes)
        assert isinstance(self.batch_size, int)
        batches = -(-self.epoch_size // nodes) * nodes // (self.batch_size * self._ranks)
        if not batches:
            raise DataError(
                f"{self._key}: {self.epoch_size} documents do not fill one global batch of "
                f"{self.batch_size * self._ranks}; lower global_train_batch_size or add documents"
            )
        return batches

    def document(self, index: int) -> Document:
        """Return a document as it was written, by its place in the shards.

        Raises:
            DataError: If its record does not add up.
        """
        try:
            return Document.from_record(super().get_item(int(index)))
        except ValueError as error:
            raise DataError(str(error)) from error

    def get_item(self, sample_id: int, retry: int = 7) -> Sample:
        """Return the sample of a document by its place in the shards; a bad one is empty and says why."""
        record = super().get_item(sample_id, retry)
        try:
            document = Document.from_record(record)
            return self._to_sample(document)
        except (DataError, ValueError) as error:
            return bad_sample(record["id"], f"{error} (source {record['source']})", self.image_size)

    def _to_sample(self, document: Document) -> Sample:
        rng = sample_rng(self._seed, self._epoch, document.id, "layout")
        layout = lay_out(document, self.tokenizer, self.rules, rng)
        if not len(layout.tokens):
            raise DataError(f"document {document.id!r}: nothing to learn from, it has no text")
        return make_sample(document.id, layout, self._pixels(document, layout))

    def _pixels(self, document: Document, layout: TokenLayout) -> Tensor:
        """Return the pixels of the images that the layout uses, uint8 [I, 3, H, W]."""
        images = document.images
        pixels = torch.empty(len(layout.images), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for row, index in zip(pixels, layout.images.tolist(), strict=True):
            image = decode_image(images[index].data, f"document {document.id!r}, image {index}")
            if self._train:
                rng = sample_rng(self._seed, self._epoch, document.id, f"augment {index}")
                row.copy_(train_transform(image, self.image_size, rng))
            else:
                row.copy_(eval_transform(image, self.image_size))
        return pixels

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        """Return this worker's samples; called in the worker at the start of each epoch.

        Streaming ends an epoch with short batches, on some ranks only, and after a resume with more batches
        than ``len`` says. Batches are dealt to workers in turn, so the number of each follows from its place.
        """
        if not self._train:
            return super()._get_work(0, sample_in_epoch)
        self._epoch = epoch
        work = super()._get_work(epoch, sample_in_epoch)
        assert isinstance(self.batch_size, int)
        world = self._parallel_worker_world
        rows = work.reshape(-1, self.batch_size)
        seen = sample_in_epoch // (self.batch_size * self._ranks)
        number = seen + np.arange(len(rows)) * world.workers_per_rank + world.worker_of_rank
        return rows[number < self._batches].reshape(-1)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Return where the stream stands.

        At the end of an epoch Composer counts 0 samples and Streaming still names the finished epoch, which
        would be trained again; before the first one Streaming names epoch -1.
        """
        state = super().state_dict(num_samples, from_beginning)
        if from_beginning and num_samples == 0:
            epoch, _ = self._resume(self._parallel_rank_world, self.next_epoch)
            state["epoch"] = epoch
        return state


def _check_index(path: Path) -> None:
    """Check that every shard has the columns of a Document, in the encodings that run no code.

    Raises:
        DataError: If the index cannot be read, names no shards, or has other columns.
    """
    try:
        shards = json.loads(path.read_text())["shards"]
        columns = [dict(zip(s["column_names"], s["column_encodings"], strict=True)) for s in shards]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not an MDS index ({type(error).__name__}: {error}); convert the data anew"
        ) from error
    if not columns or not sum(s["samples"] for s in shards):
        raise DataError(f"{path}: the data set is empty; convert the data anew")
    for found in columns:
        unsafe = sorted(name for name, encoding in found.items() if encoding == "pkl")
        if unsafe:
            raise DataError(
                f"{path}: column {unsafe[0]!r} is a pickle, which runs code when read; convert it anew"
            )
        if wrong := sorted(name for name, encoding in MDS_COLUMNS.items() if found.get(name) != encoding):
            raise DataError(
                f"{path}: column {wrong[0]!r} is {found.get(wrong[0], 'missing')}, not "
                f"{MDS_COLUMNS[wrong[0]]}; this is no data set of Documents, make one with 'lcl convert'"
            )
