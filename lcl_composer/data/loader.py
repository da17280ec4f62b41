"""The data loader of a run: a Document stream, its workers, and what Composer has to know about batches."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.queues import Queue
from typing import Any

import torch
from composer.core import DataSpec
from streaming import StreamingDataLoader

from lcl_composer.config.schema import StreamConfig
from lcl_composer.data.balance import DocumentCost
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import (
    Sample,
    collate,
    num_samples,
    num_tokens,
    split_batch,
    split_by_tokens,
    token_bounds,
)
from lcl_composer.data.image import OPEN_CLIP, Augmentation
from lcl_composer.data.interleave import Layout
from lcl_composer.data.sources import DocumentSource, ShardSet
from lcl_composer.data.stream import DocumentStream
from lcl_composer.errors import DataError, one_line, printable
from lcl_composer.nodes import most_over_ranks

log = logging.getLogger(__name__)

#: Samples to see before the share of bad ones is judged.
_LEAST_SEEN = 100

#: Bad samples named one by one; a broken data set would otherwise fill the log.
_MOST_NAMED = 100


class DocumentLoader(StreamingDataLoader):
    """Yields packed batches, names and counts bad samples, and stops the run when they are too many.

    Attributes:
        seen: Samples of this rank so far.
        bad_samples: Those of them that were skipped.

    Args:
        stream: The documents.
        max_bad_fraction: Largest share of bad samples, judged once 100 were seen.
        num_workers: Worker processes; 0 loads in the training process.
        pin_memory: Copy batches to pinned memory (for CUDA).
        seed: Seed of the workers' own generators, which no sample draws from.
        drop_last: Leave out a last, smaller batch.
        microbatch_tokens: Tokens that a rank takes at once; None: as many documents as it is told.
    """

    def __init__(
        self,
        stream: DocumentStream,
        *,
        max_bad_fraction: float,
        num_workers: int,
        pin_memory: bool,
        seed: int,
        drop_last: bool,
        microbatch_tokens: int | None = None,
    ) -> None:
        # Forked workers start at once and share the tokenizer; PyTorch limits each to one thread, which keeps
        # them clear of the parent's OpenMP threads. Without a generator of its own a loader draws from the
        # global one, and dropout after a resume would differ.
        can_fork = num_workers > 0 and "fork" in multiprocessing.get_all_start_methods()
        super().__init__(
            stream,
            batch_size=stream.batch_size,
            num_workers=num_workers,
            collate_fn=_collate_with_problems,
            pin_memory=pin_memory,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(seed),
            persistent_workers=num_workers > 0,
            multiprocessing_context="fork" if can_fork else None,
            worker_init_fn=_begin_worker if can_fork else None,
        )
        self._max_bad_fraction = max_bad_fraction
        self.seen = 0
        self.bad_samples = 0
        self._microbatch_tokens = microbatch_tokens

    def split(self, batch: PackedBatch, microbatch_size: int | float) -> list[PackedBatch]:
        """Microbatches of a batch, by documents or by tokens; by tokens all ranks make equally many."""
        if self._microbatch_tokens is None:
            return split_batch(batch, microbatch_size)
        pieces = most_over_ranks(len(token_bounds(batch["lengths"], self._microbatch_tokens)))
        return split_by_tokens(batch, self._microbatch_tokens, pieces)

    def _get_batch_size(self, batch: Any) -> int:
        return num_samples(batch[0])

    def __iter__(self) -> Iterator[PackedBatch]:
        """Yield each batch of an epoch.

        Raises:
            DataError: If more than ``max_bad_fraction`` of the samples seen are bad.
            OSError: If a worker ended because shared memory is full.
        """
        try:
            for batch, problems in super().__iter__():
                self._count(num_samples(batch), problems)
                yield batch
        except DataError as error:
            # One that a worker process raised carries its traceback; the last line is the message.
            reason = str(error).strip().splitlines()[-1]
            raise DataError(reason.removeprefix(f"{DataError.__module__}.DataError: ")) from error
        except RuntimeError as error:
            # torch says how a worker ended only where SIGCHLD tells it, not where it finds it gone.
            workers = getattr(self._iterator, "_workers", ())
            if any(worker.exitcode == errno.ENOSPC for worker in workers):
                raise OSError(errno.ENOSPC, one_line(error), "/dev/shm") from error
            raise

    def close(self) -> None:
        """End the worker processes. Left to the garbage collector, this may wait five seconds for each."""
        if self._iterator is not None and self.num_workers > 0:
            self._iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
            self._iterator = None

    def _count(self, seen: int, problems: Sequence[str]) -> None:
        for number, problem in enumerate(problems, start=self.bad_samples + 1):
            if number <= _MOST_NAMED:
                log.warning("skipped %s", printable(problem))
            if number == _MOST_NAMED:
                log.warning("further bad samples are counted but not named")
        self.seen += seen
        self.bad_samples += len(problems)
        if self.seen >= _LEAST_SEEN and self.bad_samples > self._max_bad_fraction * self.seen:
            raise DataError(
                f"{self.bad_samples} of {self.seen} samples are bad, more than data.max_bad_fraction = "
                f"{self._max_bad_fraction}; the last one: {problems[-1] if problems else 'see the log'}"
            )


def _begin_worker(worker: int) -> None:
    """Set up a worker process."""
    _leave_end_to_parent(worker)
    Queue._on_queue_feeder_error = staticmethod(_end_for_lost_batch)  # pyright: ignore


def _end_for_lost_batch(error: BaseException, batch: Any) -> None:
    """End a worker whose batch cannot be handed over.

    Python prints a trace and goes on without the batch, for which the training process waits for ever. The
    exit code is what it learns: ENOSPC where shared memory is full.
    """
    del batch
    print(f"a batch could not be handed over: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    os._exit(errno.ENOSPC if full else 1)


def _leave_end_to_parent(worker: int) -> None:
    """Let SIGTERM end this worker only where its own process sends it, and no other signal to stop.

    A job's manager or a terminal sends them to all processes at once; the training process then finishes its
    batch for a checkpoint, and needs its workers until then. They end with it, as they watch for its death.
    """
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads started later inherit this

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _collate_with_problems(samples: Sequence[Sample]) -> tuple[PackedBatch, list[str]]:
    """Collate in the worker; the reasons travel beside the batch, for the training process to log."""
    return collate(samples), [s["problem"] for s in samples if s["problem"]]


#: Settings that the stream takes under the same name.
_SAME = (
    "batching_method", "cache_limit", "epoch_size", "hold_out", "num_canonical_nodes", "predownload",
    "shuffle", "shuffle_seed",
)  # fmt: skip


def build_loader(
    settings: StreamConfig,
    *,
    train: bool,
    layout: Layout,
    image_size: int,
    batch_size: int,
    seed: int,
    max_bad_fraction: float,
    pin_memory: bool,
    augmentation: Augmentation = OPEN_CLIP,
    held_out_only: bool = False,
    microbatch_tokens: int | None = None,
    cost: DocumentCost | None = None,
) -> DataSpec:
    """The loader of one data set, or of several mixed, for Composer's Trainer.

    Args:
        settings: ``data.train`` or ``data.eval`` of a config.
        train: Which of the two.
        layout: What the method makes of a document.
        image_size: Side of the images in pixels.
        batch_size: Documents a batch on this rank.
        seed: Seed of the layout and augmentation draws.
        max_bad_fraction: Largest share of bad samples.
        pin_memory: Copy batches to pinned memory (for CUDA).
        augmentation: What training images are varied by.
        held_out_only: The documents that ``data.train.hold_out`` keeps from training, and no others.
        microbatch_tokens: Tokens that a rank takes at once; None: a number of documents.
        cost: See :class:`DocumentStream`.

    Raises:
        DataError: If a data set is missing, empty, too small for one batch, or not one of Documents.
    """
    stream = DocumentStream(
        sources=sources_of("data.train" if train else "data.eval", settings),
        train=train,
        batch_size=batch_size,
        **{name: getattr(settings, name) for name in _SAME},
        layout=layout,
        image_size=image_size,
        seed=seed,
        augmentation=augmentation,
        held_out_only=held_out_only,
        cost=cost,
    )
    loader = DocumentLoader(
        stream,
        max_bad_fraction=max_bad_fraction,
        num_workers=settings.num_workers,
        pin_memory=pin_memory,
        seed=seed,
        drop_last=train,
        microbatch_tokens=microbatch_tokens,
    )
    return _data_spec(loader)


def _data_spec(loader: DocumentLoader) -> DataSpec:
    """What Composer has to know; its defaults would pair documents with other documents' images."""
    return DataSpec(
        loader,
        split_batch=loader.split,  # pyright: ignore[reportArgumentType]
        get_num_samples_in_batch=num_samples,
        get_num_tokens_in_batch=num_tokens,
    )


def sources_of(key: str, settings: StreamConfig) -> list[DocumentSource]:
    """The sets of shards that ``data.train`` or ``data.eval``, the ``key``, names."""
    if settings.streams is None:
        assert settings.local is not None, "StreamConfig checks it"
        sets = [ShardSet(key, settings.local, settings.remote, settings.split)]
    else:
        sets = [ShardSet(f"{key}.streams.{name}", **s.model_dump()) for name, s in settings.streams.items()]
    return [
        DocumentSource(
            shards,
            download_retry=settings.download_retry,
            download_timeout=settings.download_timeout,
            validate_hash=settings.validate_hash,
        )
        for shards in sets
    ]
