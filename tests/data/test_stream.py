from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from streaming import CSVWriter, MDSWriter, StreamingDataset
from streaming.base.partition import get_partitions
from streaming.base.world import World
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.data.sampling import whole_batches
from lcl_composer.data.stream import DocumentStream
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset, example
from tests.data.loaders import loader_of

_made: list[DocumentLoader] = []
RULES = LayoutRules(tokens_per_image=2, max_tokens=40)


def loader(folder: Path, **changes: Any) -> DocumentLoader:
    options: dict[str, Any] = {
        "local": str(folder),
        "batch_size": 3,
        "max_bad_fraction": 0.01,
    }
    _made.append(cast(DocumentLoader, loader_of(**{**options, **changes}).dataloader))
    return _made[-1]


@pytest.fixture(autouse=True)
def _close_loaders() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


def stream_of(made: DocumentLoader) -> DocumentStream:
    return cast(DocumentStream, made.dataset)


def digest(batch: PackedBatch) -> tuple[tuple[str, ...], str]:
    content = hashlib.sha256()
    for key, value in batch.items():
        if key != "ids":
            content.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return tuple(batch["ids"]), content.hexdigest()


def epochs(made: DocumentLoader, count: int) -> list[list[tuple[tuple[str, ...], str]]]:
    return [[digest(batch) for batch in made] for _ in range(count)]


def test_epochs_shuffle_and_draw_anew(make_dataset: MakeDataset):
    first, second = epochs(loader(make_dataset(21)), 2)
    ids = [sorted(i for names, _ in epoch for i in names) for epoch in (first, second)]
    assert ids[0] == ids[1] == [f"doc-{i:03}" for i in range(21)]
    assert [names for names, _ in first] != [names for names, _ in second]


def test_augmentation_differs_between_epochs(make_dataset: MakeDataset):
    made = loader(make_dataset(3), shuffle=False)
    (first,), (second,) = epochs(made, 2)
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_same_batches_with_any_number_of_workers(make_dataset: MakeDataset):
    folder = make_dataset(20)
    expected = epochs(loader(folder), 2)
    assert [len(epoch) for epoch in expected] == [6, 6]
    for workers in (1, 2):
        assert epochs(loader(folder, num_workers=workers), 2) == expected


def test_another_seed_gives_other_batches(make_dataset: MakeDataset):
    folder = make_dataset(12)
    plain = epochs(loader(folder), 1)[0]
    assert epochs(loader(folder), 1)[0] == plain
    reordered = epochs(loader(folder, shuffle_seed=4), 1)[0]
    assert [names for names, _ in reordered] != [names for names, _ in plain]
    redrawn = epochs(loader(folder, seed=6), 1)[0]
    assert [names for names, _ in redrawn] == [names for names, _ in plain]
    assert redrawn != plain


def endless(made: DocumentLoader) -> Iterator[PackedBatch]:
    while True:
        yield from made


def state_after(made: DocumentLoader, batches: int, per_epoch: int) -> tuple[list[Any], dict[str, Any]]:
    """Digests of ``batches`` batches, and the state as Composer takes it behind them."""
    done = [digest(batch) for batch in islice(endless(made), batches)]
    # Composer counts documents from the start of the epoch, and 0 at its end.
    return done, stream_of(made).state_dict(batches % per_epoch * 3, True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 6, 8, 12])
def test_resume_continues_where_it_stopped(make_dataset: MakeDataset, workers: int, stop: int):
    """20 documents by 3 are 6 batches an epoch: stops in mid-epoch, at epoch ends, in the second epoch."""
    folder = make_dataset(20)
    whole = [batch for epoch in epochs(loader(folder, num_workers=workers), 4) for batch in epoch]
    before, state = state_after(loader(folder, num_workers=workers), stop, 6)
    resumed = loader(folder, num_workers=workers)
    stream_of(resumed).load_state_dict(json.loads(json.dumps(state)))
    after = [digest(batch) for batch in islice(endless(resumed), 24 - stop)]
    assert before + after == whole


def test_resume_at_the_last_batch_of_an_epoch(make_dataset: MakeDataset):
    """A batch checkpoint that falls on the last batch, before Composer ends the epoch."""
    folder = make_dataset(20)
    whole = epochs(loader(folder), 2)
    made = loader(folder)
    list(made)
    state = stream_of(made).state_dict(18, True)
    resumed = loader(folder)
    stream_of(resumed).load_state_dict(state)
    assert epochs(resumed, 2) == [[], whole[1]]


def test_state_before_the_first_batch(make_dataset: MakeDataset):
    made = loader(make_dataset(6))
    state = stream_of(made).state_dict(0, True)
    assert (state["epoch"], state["sample_in_epoch"]) == (0, 0)


def test_state_of_a_resumed_run_that_has_not_started(make_dataset: MakeDataset):
    made = loader(make_dataset(6))
    list(made)
    state = stream_of(made).state_dict(0, True)
    resumed = loader(make_dataset(6, name="other"))
    stream_of(resumed).load_state_dict(state)
    assert stream_of(resumed).state_dict(0, True) == state
    assert state["epoch"] == 1


@pytest.mark.parametrize(("documents", "nodes"), [(20, 1), (22, 4), (23, 8)])
def test_a_resumed_epoch_is_as_long_as_any(make_dataset: MakeDataset, documents: int, nodes: int):
    folder = make_dataset(documents)
    made = loader(folder, num_canonical_nodes=nodes)
    whole = epochs(made, 1)[0]
    assert len(made) == len(whole) == documents // nodes * nodes // 3
    seen = [name for names, _ in whole for name in names]
    assert len(set(seen)) == len(seen)
    resumed = loader(folder, num_canonical_nodes=nodes)
    stream_of(resumed).load_state_dict({**stream_of(made).state_dict(6, True), "epoch": 0})
    assert epochs(resumed, 1)[0] == whole[2:]


@pytest.mark.parametrize("size", [2, 4, 5])
def test_an_epoch_goes_on_with_batches_of_another_size(make_dataset: MakeDataset, size: int):
    """After two batches of three: what follows, in order, in as many whole batches as are left."""
    folder = make_dataset(20)
    made = loader(folder)
    order = [name for names, _ in epochs(made, 1)[0] for name in names]
    resumed = loader(folder, batch_size=size)
    stream_of(resumed).load_state_dict({**stream_of(made).state_dict(6, True), "epoch": 0})
    batches = [names for names, _ in epochs(resumed, 1)[0]]
    assert {len(names) for names in batches} == {size}
    assert len(batches) == (20 // size * size - 6) // size
    found = [name for names in batches for name in names]
    assert found[: 18 - 6] == order[6 : 6 + len(found)]


@pytest.mark.parametrize(("samples", "nodes", "ranks"), [(21, 1, 2), (30, 4, 2), (29, 8, 4), (24, 1, 1)])
def test_the_batches_kept_are_whole_on_every_rank(samples: int, nodes: int, ranks: int):
    """What ``_get_work`` relies on: Streaming's first batches hold no -1, and no sample twice."""
    work = get_partitions("relaxed", samples, nodes, 1, ranks, 2, 3, 0, None)
    in_turn = work.transpose(3, 2, 0, 1, 4).reshape(-1, ranks * 3)
    batches = whole_batches([samples], nodes, ranks * 3, "random")
    assert len(set(in_turn[:batches].ravel().tolist()) - {-1}) == batches * ranks * 3


def test_a_batch_that_another_rank_cannot_fill_is_dropped(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
):
    """23 documents on 2 ranks: Streaming gives the first rank 12, a batch more than the other."""
    stream = stream_of(loader(make_dataset(3)))
    monkeypatch.setattr(StreamingDataset, "_get_work", lambda self, epoch, seen: np.arange(seen // 2, 12))
    monkeypatch.setattr(stream, "_ranks", 2)
    monkeypatch.setattr(stream, "_batches", 23 // 6)
    stream._parallel_worker_world = World.detect()
    assert stream._get_work(0, 0).tolist() == list(range(9))
    assert stream._get_work(0, 6).tolist() == list(range(3, 9))


def test_evaluation_sees_every_document_the_same_way_each_time(make_dataset: MakeDataset):
    made = loader(make_dataset(7), train=False, shuffle=False)
    first, second = epochs(made, 2)
    assert first == second
    assert [i for names, _ in first for i in names] == [f"doc-{i:03}" for i in range(7)]


def test_document_gives_back_what_was_written(make_dataset: MakeDataset):
    assert stream_of(loader(make_dataset(6))).document(4) == example(4)


def broken(count: int, total: int) -> list[Document]:
    image = Image(b"this is no image")
    bad = [Document(f"bad-{i}", "page.html", (Text("1"), image, Text("2"))) for i in range(count)]
    return bad + [example(i) for i in range(total - count)]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_skipped_named_and_counted(
    make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture, workers: int
):
    rows = [*broken(1, 5), Document("empty", "page.html", ())]
    made = loader(make_dataset(rows), shuffle=False, num_workers=workers)
    batches = list(made)
    assert [len(batch["ids"]) for batch in batches] == [3, 3]
    assert batches[0]["cu_seqlens"][1] == 0
    assert batches[0]["images_per_document"][0] == 0
    assert (made.seen, made.bad_samples) == (6, 2)
    assert "document 'bad-0', image 0: cannot decode" in caplog.text
    assert "page.html" in caplog.text
    assert "document 'empty': nothing to learn from" in caplog.text


def test_too_many_bad_samples_stop_the_run(make_dataset: MakeDataset):
    made = loader(make_dataset(broken(3, 120)), max_bad_fraction=0.02)
    with pytest.raises(
        DataError, match=r"3 of 1\d\d samples are bad, more than data.max_bad_fraction = 0.02"
    ):
        epochs(made, 1)
    assert (
        len(epochs(loader(make_dataset(broken(3, 120), name="lenient"), max_bad_fraction=0.04), 1)[0]) == 40
    )


def test_batch_size_counts_documents_not_tokens(make_dataset: MakeDataset):
    made = loader(make_dataset(9))
    for _ in made:
        pass
    assert made.num_samples_yielded == 9


def test_missing_folder_says_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.train\.local: no data set in .*nowhere.*lcl convert"):
        loader(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.eval\.local"):
        loader(tmp_path / "nowhere", train=False)


def test_too_few_documents_for_a_batch(make_dataset: MakeDataset):
    with pytest.raises(DataError, match="2 documents do not fill one global batch of 3"):
        loader(make_dataset(2))


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ({"id": "str", "blob": "pkl"}, {"id": "a", "blob": {}}, "'blob' is a pickle"),
        ({"id": "str"}, {"id": "a"}, "'images' is missing, not bytes"),
        ({"id": "int"}, {"id": 1}, "'id' is int, not str"),
    ],
)
def test_other_columns_are_refused(
    tmp_path: Path, columns: dict[str, str], row: dict[str, Any], message: str
):
    with MDSWriter(out=str(tmp_path / "odd"), columns=columns) as writer:
        writer.write(row)
    with pytest.raises(DataError, match=message):
        loader(tmp_path / "odd")


@pytest.mark.parametrize(("text", "message"), [("{", "not an MDS index"), ('{"shards": []}', "empty")])
def test_damaged_index(tmp_path: Path, text: str, message: str):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=message):
        loader(tmp_path)


def test_an_index_of_another_format_is_refused(tmp_path: Path):
    with CSVWriter(out=str(tmp_path / "table"), columns={"id": "str"}) as writer:
        writer.write({"id": "a"})
    with pytest.raises(DataError, match="not an index of MDS, version 2"):
        loader(tmp_path / "table")


def test_remote_is_fetched_into_local(make_dataset: MakeDataset, tmp_path: Path):
    remote = make_dataset(6)
    assert epochs(loader(tmp_path / "cache", remote=str(remote)), 1) == epochs(loader(remote), 1)
