"""A stream of Documents from MDS shards: laid out, decoded, and the same wherever a run is taken up again."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming.base.batching import generate_work
from streaming.base.world import World
from torch import Tensor

from lcl_composer.data.balance import DocumentCost, deal
from lcl_composer.data.collate import Sample, bad_sample, make_sample
from lcl_composer.data.document import Document
from lcl_composer.data.features import FeatureViews
from lcl_composer.data.filters import filter_document
from lcl_composer.data.image import OPEN_CLIP, Augmentation, view_of
from lcl_composer.data.interleave import Layout, TokenLayout
from lcl_composer.data.rng import sample_rng, share_of
from lcl_composer.data.sampling import (
    ShardIndex,
    batch_parts,
    deal_held_out,
    draw_samples,
    trim_to_batches,
    whole_batches,
)
from lcl_composer.data.shared_memory import mend_numbers
from lcl_composer.data.sizes import SIZES_FILE
from lcl_composer.data.sources import DocumentSource, ShardSet
from lcl_composer.data.watched import WatchedDataset
from lcl_composer.errors import DataError

log = logging.getLogger(__name__)

#: Samples that are shuffled among themselves; Streaming's default depends on ``num_canonical_nodes``.
_SHUFFLE_BLOCK = 1 << 18

#: A sample number with this many times the data set's size added is a place that stays empty.
_BLANK = 1 << 20


class DocumentStream(WatchedDataset):
    """Documents as samples. Random draws depend on (seed, epoch, id, repeat within the epoch) alone.

    In training an epoch is a whole number of global batches; what is left over is dropped on every rank
    alike, whether the epoch was resumed or not. In evaluation every document is seen once, in order, with
    the draws of epoch 0 and the evaluation transform.

    Args:
        sources: Where the documents come from; more than one are mixed.
        train: Training or evaluation.
        epoch_size: Documents an epoch, or None for as many as the sources hold or say.
        batching_method: How sources mix in a batch: ``random``, ``stratified`` or ``per_stream``.
        shuffle: Shuffle, anew each epoch.
        shuffle_seed: Seed of the order.
        num_canonical_nodes: Pieces the order is made of; fix it to change the number of nodes in mid-run.
        batch_size: Documents a batch on this rank.
        predownload: Documents to fetch ahead; None for Streaming's default.
        cache_limit: Bytes to keep in the caches (``100gb``), or None.
        layout: What the method makes of a document.
        image_size: Side of the images in pixels.
        seed: Seed of the layout and augmentation draws.
        augmentation: What training images are varied by.
        hold_out: Share of the documents, by a hash of their id, that training leaves out.
        held_out_only: Give those alone, and not the others.
        cost: What a document costs: in training each batch of a node is dealt out over its ranks by that,
            where all sources have the sizes of their documents. None: documents go to ranks as they come.

    Raises:
        DataError: If a data set is missing, empty, too small, or not one of Documents in safe encodings.
    """

    def __init__(
        self,
        *,
        sources: Sequence[DocumentSource],
        train: bool,
        epoch_size: int | None,
        batching_method: str,
        shuffle: bool,
        shuffle_seed: int,
        num_canonical_nodes: int,
        batch_size: int,
        predownload: int | None,
        cache_limit: str | int | None,
        layout: Layout,
        image_size: int,
        seed: int,
        augmentation: Augmentation = OPEN_CLIP,
        hold_out: float = 0.0,
        held_out_only: bool = False,
        cost: DocumentCost | None = None,
    ) -> None:
        self._key = "data.train" if train else "data.eval"
        mend_numbers()
        super().__init__(
            streams=sources,
            epoch_size=epoch_size,
            batching_method=batching_method,
            shuffle=shuffle,
            shuffle_algo="py1e",
            shuffle_block_size=_SHUFFLE_BLOCK,
            shuffle_seed=shuffle_seed,
            num_canonical_nodes=num_canonical_nodes,
            batch_size=batch_size,
            predownload=predownload,
            cache_limit=cache_limit,
        )
        self.spanner = ShardIndex(self.samples_per_shard)  # pyright: ignore[reportAttributeAccessIssue]
        self.layout = layout
        self.image_size = image_size
        self.augmentation = augmentation
        self.features: FeatureViews | None = (
            None  # stand for pixels where they are set before the first epoch
        )
        self._hold_out, self._held_out_only = hold_out, held_out_only
        self._sources = [source.source for source in sources]
        self._train = train
        self.seed = seed
        self._epoch = 0
        self._ranks = self._parallel_rank_world.num_ranks
        self._doubted: set[int] = set()
        self._check_nodes(num_canonical_nodes)
        if train:
            self._batches = self._count_batches(num_canonical_nodes)
            self.length = self._batches * batch_size  # Streaming's own count ignores its padding
        self._cost = cost
        self._sizes: list[NDArray[np.uint32]] = []  # of each source, where they are dealt by
        world = World.detect()
        if train and cost is not None and world.is_local_leader and world.ranks_per_node > 1:
            self._sizes = self._read_sizes(sources)

    def _read_sizes(self, sources: Sequence[DocumentSource]) -> list[NDArray[np.uint32]]:
        """Return the sizes of each source's documents; of none, said in the log, where one lacks them."""
        found = []
        for number, source in enumerate(sources):
            first = self.shard_offset_per_stream[number]
            shards = self.samples_per_shard[first : first + self.shards_per_stream[number]]
            sizes = source.sizes(int(shards.sum()))
            if sizes is None:
                where = (source.source.key, SIZES_FILE, source.folder)
                log.warning("%s: no %s in %s ('lcl sizes' writes it): ranks wait for the longest", *where)
                return []
            found.append(sizes)
        log.info("%s: each batch is dealt out over the ranks of a node by its documents' sizes", self._key)
        return found

    def _costs(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs [N] of samples by their numbers [N]; 0 for one that is passed over."""
        assert self._cost is not None
        indices, costs = numbers % self.num_samples, np.zeros(len(numbers))
        for number, (sizes, source) in enumerate(zip(self._sizes, self._sources, strict=True)):
            first = self.sample_offset_per_stream[number]
            own = (indices >= first) & (indices < first + len(sizes))
            of_own = np.asarray(sizes[indices[own] - first])
            costs[own] = self._cost.of(of_own, source.max_images) * (of_own[:, 1] >= source.min_images)
        return costs

    def _share_work(self, sample_ids: NDArray[np.int64]) -> Any:
        """Deal this node's part of an epoch out, where documents' sizes are known, and share it as ever.

        Args:
            sample_ids: [nodes, ranks a node, workers, batches, n], which is changed in place.
        """
        if self._sizes:
            node = self._parallel_worker_world.node
            sample_ids[node] = deal(sample_ids[node], self._costs)
        return super()._share_work(sample_ids)

    def _check_nodes(self, canonical: int) -> None:
        nodes = self._parallel_rank_world.num_nodes
        if max(nodes, canonical) % min(nodes, canonical):
            raise DataError(
                f"{self._key}.num_canonical_nodes is {canonical}, the job has {nodes} nodes: one must be a "
                "multiple of the other"
            )

    def _count_batches(self, nodes: int) -> int:
        """Return the whole global batches of an epoch, the same on any number of ranks."""
        assert isinstance(self.batch_size, int)
        size = self.batch_size * self._ranks
        if self.batching_method == "per_stream":
            for stream in self.streams:
                stream.choose = trim_to_batches(int(stream.choose), nodes, size)
            self.epoch_size = sum(stream.choose for stream in self.streams)
        chosen = [int(stream.choose) for stream in self.streams]
        short = [source.key for source, c in zip(self._sources, chosen, strict=True) if not c]
        if self.batching_method == "stratified":
            parts = batch_parts(chosen, size)
            short = [source.key for source, part in zip(self._sources, parts, strict=True) if part <= 0]
        batches = whole_batches(chosen, nodes, size, self.batching_method)
        if not batches or (short and self.batching_method != "random"):
            raise DataError(
                f"{short[0] if short else self._key}: {self.epoch_size} documents do not fill one global "
                f"batch of {size}; lower global_train_batch_size or add documents"
            )
        return batches

    def resample_streams(
        self, epoch: int, stream_id: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the runs of samples in one shard each, and the samples of an epoch, run by run.

        A sample that comes for the n-th time has n - 1 times the number of all documents added.
        """
        runs, numbers = [], []
        for i in range(self.num_streams) if stream_id is None else [stream_id]:
            first = self.shard_offset_per_stream[i]
            sizes = self.samples_per_shard[first : first + self.shards_per_stream[i]]
            rng = np.random.default_rng([self.shuffle_seed, epoch if self.shuffle else 0, i])
            run, drawn = draw_samples(sizes, int(self.streams[i].choose), rng, self.num_samples)
            runs.append(run)
            numbers.append(drawn + self.sample_offset_per_stream[i])
        return np.concatenate(runs), np.concatenate(numbers)

    def document(self, index: int) -> Document:
        """Return a document as it was written, by its place in the shards.

        Raises:
            DataError: If its record does not add up.
        """
        try:
            return Document.from_record(super().get_item(int(index)))
        except (ValueError, RecursionError) as error:
            raise DataError(str(error)) from error

    def __getitem__(self, at: Any) -> Any:
        """Return a sample; a repeat's number, beyond the number of documents, is as good as any."""
        return self.get_item(int(at)) if isinstance(at, int | np.integer) else super().__getitem__(at)

    def keeps_any(self) -> bool:
        """Whether there is a document that ``hold_out`` keeps, looked for as far as one is likely.

        Of a share s the first 30 / s ids are read: that none of so many is kept has a chance of e**-30.
        """
        most = min(self.num_samples, math.ceil(30 / max(self._hold_out, 1e-12)))
        return any(
            share_of(super(DocumentStream, self).get_item(n)["id"]) < self._hold_out for n in range(most)
        )

    def get_item(self, sample_id: int, retry: int = 7) -> Sample:
        """Return the sample of a document by its place in the shards; a bad one is empty and says why."""
        self.raise_failure()
        sample = self._try_item(sample_id, retry)
        if sample["problem"] and self._mend_shard(sample_id):
            sample = self._try_item(sample_id, retry)
        return sample

    def _try_item(self, sample_id: int, retry: int) -> Sample:
        repeat, index = divmod(int(sample_id), self.num_samples)
        if repeat >= _BLANK:
            return self._bad("", "")
        name, where, shard = f"sample {index}", "an MDS record", self.spanner[index][0]
        try:
            record = super().get_item(index, retry)
            name, where = record["id"], record["source"]
            return self._to_sample(
                Document.from_record(record), repeat, self._sources[self.stream_per_shard[shard]]
            )
        except (DataError, ValueError, LookupError, TypeError, RecursionError) as error:
            return self._bad(name, f"{error} (source {where})")

    def _bad(self, name: str, problem: str) -> Sample:
        return bad_sample(name, problem, self.image_size, self.features.empty if self.features else None)

    def _to_sample(self, document: Document, repeat: int, source: ShardSet) -> Sample:
        kept = filter_document(document, source)
        passed_over = self._hold_out and (share_of(document.id) < self._hold_out) != self._held_out_only
        if kept is None or passed_over:
            return self._bad(document.id, "")
        rng = self._rng(document, repeat, "layout")
        layout = self.layout(kept, rng)
        if not len(layout.tokens):
            raise DataError(f"document {document.id!r}: nothing to learn from, it has no text")
        return make_sample(document.id, layout, self._pixels(kept, layout, repeat))

    def _rng(self, document: Document, repeat: int, purpose: str) -> np.random.Generator:
        purpose = f"{purpose}, repeat {repeat}" if repeat else purpose
        return sample_rng(self.seed, self._epoch, document.id, purpose)

    def _pixels(self, document: Document, layout: TokenLayout, repeat: int) -> Tensor:
        """Return the pixels of the images that the layout uses, uint8 [I, 3, H, W], or their features."""
        if self.features is not None:
            return self.features.rows(document.id, layout.images.tolist(), self._epoch + repeat)
        images = document.images
        pixels = torch.empty(len(layout.images), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for row, index in zip(pixels, layout.images.tolist(), strict=True):
            where = f"document {document.id!r}, image {index}"
            rng = self._rng(document, repeat, f"augment {index}") if self._train else None
            row.copy_(view_of(images[index].data, where, self.image_size, rng, self.augmentation))
        return pixels

    def _mend_shard(self, sample_id: int) -> bool:
        """Check the shard of a sample that cannot be read, once; fetch it again if it is damaged."""
        shard_id, _ = self.spanner[sample_id]
        stream = self.streams[self.stream_per_shard[shard_id]]
        assert isinstance(stream, DocumentSource)
        if shard_id in self._doubted or not (problem := stream.damage(self.shards[shard_id].raw_data)):
            self._doubted.add(shard_id)
            return False
        self._doubted.add(shard_id)
        if not stream.can_fetch:
            log.warning("%s: %s; copy or convert it anew", stream.source.key, problem)
            return False
        log.warning("%s; fetching it again", problem)
        self.evict_shard(shard_id)
        self.prepare_shard(shard_id)
        return True

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        """Return this worker's samples; called in the worker at the start of each epoch.

        Streaming ends an epoch with short batches, on some ranks only, and after a resume with more batches
        than ``len`` says. Batches are dealt to workers in turn, so the number of each follows from its place.
        """
        if not self._train:
            return self._held_out_work()
        self._epoch = epoch
        work = super()._get_work(epoch, sample_in_epoch)
        assert isinstance(self.batch_size, int)
        world = self._parallel_worker_world
        rows = work.reshape(-1, self.batch_size)
        seen = -(-sample_in_epoch // (self.batch_size * self._ranks))  # by batches of another size, perhaps
        number = seen + np.arange(len(rows)) * world.workers_per_rank + world.worker_of_rank
        return rows[number < self._batches].reshape(-1)

    def _held_out_work(self) -> NDArray[np.int64]:
        """Return this worker's held-out samples; Streaming would repeat some to give ranks equally many.

        The batches are those that it would make for one rank, without repeats.
        """
        assert isinstance(self.batch_size, int)
        of_rank, self.batch_size = self.batch_size, self.batch_size * self._ranks
        try:
            order = generate_work(self.batching_method, self, World(1, 1, 1, 0), 0, 0).reshape(-1)
        finally:
            self.batch_size = of_rank
        order = order[order >= 0]
        order = order[np.sort(np.unique(order, return_index=True)[1])]
        world = self._parallel_worker_world
        blank = int(order[-1]) % self.num_samples + _BLANK * self.num_samples
        workers = (world.worker_of_rank, world.workers_per_rank)
        return deal_held_out(order, of_rank * self._ranks, (world.rank, self._ranks), workers, blank)

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
