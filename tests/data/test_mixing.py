"""Several streams in one loader: shares, repeats, filters, and the same batches however dealt out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from streaming.base.batching import generate_work
from streaming.base.world import World

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.filters import filter_document
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.data.sampling import batch_parts
from lcl_composer.data.sources import ShardSet
from lcl_composer.data.stream import DocumentStream
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset, example, png
from tests.data.loaders import loader_of

_made: list[DocumentLoader] = []


@pytest.fixture(autouse=True)
def _close_loaders() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


@pytest.fixture
def folders(make_dataset: MakeDataset) -> tuple[Path, Path]:
    """23 pairs and 14 pages."""
    pairs = [Document(f"pair-{i}", "test", example(i).segments) for i in range(23)]
    pages = [Document(f"page-{i}", "test", example(100 + i).segments) for i in range(14)]
    return make_dataset(pairs, name="pairs"), make_dataset(pages, name="pages")


def mixed(folders: tuple[Path, Path], pairs: Any = None, pages: Any = None, **changes: Any) -> DocumentLoader:
    options: dict[str, Any] = {
        "streams": {
            "pairs": {"local": str(folders[0]), **(pairs or {})},
            "pages": {"local": str(folders[1]), **(pages or {})},
        },
        "batch_size": 4,
        "max_bad_fraction": 0.01,
    }
    _made.append(cast(DocumentLoader, loader_of(**{**options, **changes}).dataloader))
    return _made[-1]


def kinds(names: list[str]) -> Counter[str]:
    return Counter(name.split("-")[0] for name in names)


def epoch(made: DocumentLoader) -> list[list[str]]:
    return [batch["ids"] for batch in made]


def test_without_weights_each_document_comes_once(folders: tuple[Path, Path]):
    names = [name for batch in epoch(mixed(folders)) for name in batch]
    assert len(set(names)) == len(names) == 36  # 37 documents make 9 batches of 4
    assert kinds(names).keys() == {"pair", "page"}


def test_repeat_and_choose(folders: tuple[Path, Path]):
    made = mixed(folders, pairs={"choose": 8}, pages={"repeat": 2.0})
    first, second = ([name for batch in epoch(made) for name in batch] for _ in range(2))
    assert kinds(first) == kinds(second) == {"pair": 8, "page": 28}
    assert set(Counter(n for n in first if n.startswith("page")).values()) == {2}
    chosen = [{n for n in names if n.startswith("pair")} for names in (first, second)]
    assert len(chosen[0]) == 8
    assert chosen[0] != chosen[1]  # drawn anew each epoch


def test_proportions_set_the_shares_of_an_epoch(folders: tuple[Path, Path]):
    made = mixed(folders, {"proportion": 1.0}, {"proportion": 3.0}, epoch_size=40)
    assert kinds([name for batch in epoch(made) for name in batch]) == {"pair": 10, "page": 30}


def test_a_repeated_document_is_drawn_anew(folders: tuple[Path, Path]):
    made = mixed(folders, {"choose": 4}, {"repeat": 3.0}, num_workers=2)
    pixels: dict[str, set[bytes]] = {}
    for batch in made:
        ends = batch["images_per_document"].cumsum(0).tolist()
        for name, end in zip(batch["ids"], ends, strict=True):
            pixels.setdefault(name, set()).add(batch["pixel_values"][end - 1].numpy().tobytes())
    assert sum(len(found) for name, found in pixels.items() if name.startswith("page")) > 30


def test_stratified_batches_have_equal_shares(folders: tuple[Path, Path]):
    batches = epoch(mixed(folders, {"proportion": 3.0}, {"proportion": 1.0}, batching_method="stratified"))
    assert len(batches) == 9
    assert all(kinds(batch) == {"pair": 3, "page": 1} for batch in batches)


def test_per_stream_batches_come_from_one_stream(folders: tuple[Path, Path]):
    batches = epoch(mixed(folders, batching_method="per_stream"))
    assert [len(kinds(batch)) for batch in batches] == [1] * 8
    assert kinds([batch[0] for batch in batches]) == {"pair": 5, "page": 3}
    names = [name for batch in batches for name in batch]
    assert len(set(names)) == len(names)


METHODS = ["random", "stratified", "per_stream"]
WEIGHTS: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}), ({"repeat": 1.5}, {"choose": 18})]


def global_batches(stream: DocumentStream, world: World, seen: int) -> list[list[int]]:
    """The documents of each batch over all ranks, by Streaming and cut as ``_get_work`` cuts."""
    size = cast(int, stream.batch_size)
    stream.batch_size = size // world.num_ranks
    work = generate_work(stream.batching_method, stream, world, 1, seen)
    stream.batch_size = size
    in_turn = work.transpose(3, 2, 0, 1, 4).reshape(-1, size)
    return [sorted(row) for row in in_turn[: stream._batches - seen // size].tolist()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", WEIGHTS, ids=["whole", "resampled"])
@pytest.mark.parametrize("canonical", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_batches_are_the_same_on_any_number_of_ranks_workers_and_nodes(
    folders: tuple[Path, Path], method: str, weights: Any, canonical: int, batch_size: int
):
    made = mixed(
        folders, *weights, batching_method=method, num_canonical_nodes=canonical, batch_size=batch_size
    )
    stream = cast(DocumentStream, made.dataset)
    stream._resume(World(1, 1, 1, 0), 0)
    expected = global_batches(stream, World(1, 1, 1, 0), 0)
    samples = [sample for batch in expected for sample in batch]
    assert len(expected) == stream._batches
    assert -1 not in samples
    assert len(set(samples)) == len(samples)
    for nodes, ranks, workers in [(1, 2, 1), (1, 4, 2), (1, 1, 3), (2, 1, 1), (2, 2, 2), (4, 1, 1)]:
        for seen in (0, batch_size):
            found = global_batches(stream, World(nodes, ranks, workers, 0), seen)
            assert found == expected[seen // batch_size :], (nodes, ranks, workers, seen)


@pytest.mark.parametrize("method", METHODS)
def test_workers_and_resume_change_nothing(folders: tuple[Path, Path], method: str):
    def pixels(made: DocumentLoader) -> list[tuple[list[str], bytes]]:
        return [(batch["ids"], batch["pixel_values"].numpy().tobytes()) for batch in made]

    weights = WEIGHTS[1]
    made = mixed(folders, *weights, batching_method=method)
    whole = [*pixels(made), *pixels(made)]
    other = mixed(folders, *weights, batching_method=method, num_workers=2)
    assert [*pixels(other), *pixels(other)] == whole
    per_epoch = len(whole) // 2
    state = cast(DocumentStream, made.dataset).state_dict(8, True)
    resumed = mixed(folders, *weights, batching_method=method, num_workers=2)
    cast(DocumentStream, resumed.dataset).load_state_dict({**state, "epoch": 1})
    assert pixels(resumed) == whole[per_epoch + 2 :]


def test_filters(folders: tuple[Path, Path]):
    """Of the pairs only the odd ones have two images; what is passed over still counts as consumed."""
    made = mixed(folders, {"min_images": 2}, {"max_images": 1})
    batches = list(made)
    assert [len(batch["ids"]) for batch in batches] == [4] * 9
    for batch in batches:
        lengths = np.diff(batch["cu_seqlens"].numpy())
        for name, images, length in zip(
            batch["ids"], batch["images_per_document"].tolist(), lengths, strict=True
        ):
            kind, number = name.split("-")
            passed_over = kind == "pair" and int(number) % 2 == 0
            assert (length == 0) == passed_over
            assert images == (0 if passed_over else 2 if kind == "pair" else 1)
    assert made.bad_samples == 0


def test_filter_document():
    document = Document("a", "x", (Text("one two"), Image(png(1)), Text("three"), Image(png(2), floats=True)))
    assert filter_document(document, ShardSet("", "", min_words=3, min_images=2)) is document
    assert filter_document(document, ShardSet("", "", min_words=4)) is None
    assert filter_document(document, ShardSet("", "", min_images=3)) is None
    kept = filter_document(document, ShardSet("", "", max_images=1))
    assert kept == Document("a", "x", document.segments[:3])
    chinese = Document("b", "x", (Text("渔船回家。"), Image(png(1))))
    assert filter_document(chinese, ShardSet("", "", min_words=4)) is chinese
    assert filter_document(chinese, ShardSet("", "", min_words=5)) is None


def test_messages_name_the_stream(folders: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.train\.streams\.pages\.local: no data set in .*nowhere"):
        mixed((folders[0], tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data\.train\.streams\.pages: .* do not fill one global batch of 4"):
        mixed(folders, {}, {"choose": 3}, batching_method="per_stream")
    with pytest.raises(DataError, match=r"data\.train\.streams\.pages: .* do not fill one global batch"):
        mixed(folders, {"proportion": 99.0}, {"proportion": 1.0}, batching_method="stratified")
    stream = cast(DocumentStream, mixed(folders).dataset)
    stream._parallel_rank_world = World(2, 1, 1, 0)
    with pytest.raises(DataError, match=r"num_canonical_nodes is 3, the job has 2 nodes"):
        stream._check_nodes(3)


def test_stratified_parts_are_streamings(folders: tuple[Path, Path]):
    made = mixed(folders, {"repeat": 1.0}, {"repeat": 0.7}, batching_method="stratified", batch_size=7)
    stream = cast(DocumentStream, made.dataset)
    parts = batch_parts([s.choose for s in stream.streams], 7)
    assert all(kinds(batch) == {"pair": parts[0], "page": parts[1]} for batch in epoch(made))
