"""What an evaluation measures on, tried before training: at its end it would be hours too late."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.shards import spread
from lcl_composer.data.stream import DocumentStream
from lcl_composer.errors import DataError

#: Documents that are tried, spread over the data set.
TRIED = 64

#: A stream and the number of a document to what keeps it from being measured on: "" for nothing, None where a
#: filter passes it over.
Fits = Callable[[DocumentStream, int], str | None]


def stream_of(batches: Iterable[PackedBatch] | None) -> DocumentStream | None:
    """The stream behind a loader; None where batches come from elsewhere."""
    stream = getattr(batches, "dataset", None)
    return stream if isinstance(stream, DocumentStream) else None


def laid_out(stream: DocumentStream, number: int) -> str | None:
    """What keeps the method's layout from taking a document, or its images from being read."""
    sample = stream.get_item(number)
    return sample["problem"] or (None if not len(sample["tokens"]) else "")


def check_documents(batches: Iterable[PackedBatch], asks: str, fits: Fits = laid_out) -> None:
    """Look for a document of ``data.eval`` that can be measured on, among some spread over all.

    Args:
        batches: The held-out loader; batches from elsewhere are not looked at.
        asks: The evaluation, for the message.
        fits: What a document must be.

    Raises:
        DataError: If none of those that are not passed over is one.
    """
    if (stream := stream_of(batches)) is None:
        return
    found = [fits(stream, number) for number in spread(stream.num_samples, TRIED)]
    problems = [problem for problem in found if problem]
    if "" in found or (not problems and len(found) < stream.num_samples):
        return
    why = f"the first: {problems[0]}" if problems else "all are passed over, see data.eval's filters"
    raise DataError(
        f"evaluation.{asks}: none of {len(found)} documents of data.eval ({stream.num_samples:,} in all) can "
        f"be measured on; {why}"
    )
