"""Shards that are missing, truncated or wrong: found, fetched again, or told in a line."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from streaming.base.storage.download import LocalDownloader

from lcl_composer.config.schema import StreamConfig
from lcl_composer.data import sources
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.data.stream import DocumentStream
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset, example
from tests.data.loaders import loader_of

_made: list[DocumentLoader] = []


@pytest.fixture(autouse=True)
def _close_loaders() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


@pytest.fixture
def remote(make_dataset: MakeDataset) -> Path:
    """20 documents in several compressed shards."""
    return make_dataset(20, name="remote")


def loader(local: Path, remote: Path | str | None, **changes: Any) -> DocumentLoader:
    options: dict[str, Any] = {
        "local": str(local),
        "remote": None if remote is None else str(remote),
        "download_timeout": 5.0,
        "batch_size": 4,
        "max_bad_fraction": 1.0,
    }
    _made.append(cast(DocumentLoader, loader_of(**{**options, **changes}).dataloader))
    return _made[-1]


def read(made: DocumentLoader) -> list[tuple[list[str], bytes]]:
    return [(batch["ids"], batch["pixel_values"].numpy().tobytes()) for batch in made]


def shards(folder: Path, ending: str) -> list[Path]:
    found = sorted(folder.glob(f"*{ending}"))
    assert len(found) > 2
    return found


def spoil(path: Path) -> None:
    """Other bytes, the same size."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3] + bytes(b ^ 0xFF for b in data[len(data) // 3 :]))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that downloads brought."""
    names: list[str] = []
    download = LocalDownloader._download_file_impl

    def note(self: LocalDownloader, remote: str, local: str, timeout: float) -> None:
        names.append(Path(remote).name)
        download(self, remote, local, timeout)

    monkeypatch.setattr(LocalDownloader, "_download_file_impl", note)
    return names


def test_a_shard_that_arrives_damaged_is_fetched_again(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
):
    expected = read(loader(remote, None))
    download, spoilt = LocalDownloader._download_file_impl, set[str]()

    def spoil_once(self: LocalDownloader, remote: str, local: str, timeout: float) -> None:
        download(self, remote, local, timeout)
        if local.endswith(".zstd") and local not in spoilt:
            spoilt.add(local)
            if len(spoilt) % 2:
                spoil(Path(local))
            else:
                Path(local).write_bytes(Path(local).read_bytes()[:-9])

    monkeypatch.setattr(LocalDownloader, "_download_file_impl", spoil_once)
    assert read(loader(tmp_path / "cache", remote)) == expected
    assert len(fetched) == 1 + 2 * len(shards(remote, ".zstd"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_shard_in_the_cache_is_fetched_again(
    remote: Path, tmp_path: Path, fetched: list[str], workers: int
):
    cache = tmp_path / "cache"
    expected = read(loader(cache, remote))
    _made.pop().close()
    victim = shards(cache, ".mds")[1]
    victim.write_bytes(victim.read_bytes()[:100])
    del fetched[:]
    assert read(loader(tmp_path / "cache", remote, num_workers=workers)) == expected
    assert workers or fetched == [f"{victim.name}.zstd"]


def test_a_wrong_shard_in_the_cache_is_fetched_again_when_it_cannot_be_read(
    remote: Path, tmp_path: Path, fetched: list[str], caplog: pytest.LogCaptureFixture
):
    cache = tmp_path / "cache"
    expected = read(loader(cache, remote))
    _made.pop().close()
    victim = shards(cache, ".mds")[1]
    spoil(victim)
    del fetched[:]
    made = loader(cache, remote)
    assert read(made) == expected
    assert made.bad_samples == 0
    assert fetched == [f"{victim.name}.zstd"]
    assert f"{victim} does not have the xxh64 hash that the index names; fetching it again" in caplog.text


def test_a_wrong_shard_without_a_remote_is_bad_samples(remote: Path, caplog: pytest.LogCaptureFixture):
    read(loader(remote, None))
    _made.pop().close()
    victim = shards(remote, ".mds")[1]
    spoil(victim)
    made = loader(remote, None)
    assert [len(ids) for ids, _ in read(made)] == [4] * 5
    assert 0 < made.bad_samples < 10
    assert f"data.train: {victim} does not have the xxh64 hash" in caplog.text
    assert caplog.text.count("copy or convert it anew") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_damaged_at_the_remote_ends_the_run(remote: Path, tmp_path: Path, workers: int):
    for path in shards(remote, ".zstd"):
        spoil(path)
    with pytest.raises(
        DataError, match=r"data\.train: .* hash that the index names; it is damaged at"
    ) as caught:
        read(loader(tmp_path / "cache", remote, num_workers=workers, download_retry=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_is_told_within_the_timeout(remote: Path, tmp_path: Path, workers: int):
    """Also by a worker that waits for a shard which another one failed to fetch."""
    for path in shards(remote, ".zstd"):
        path.unlink()
    made = loader(tmp_path / "cache", remote, num_workers=workers, download_retry=1)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"data\.train\.remote: cannot fetch .*zstd in 2 attempts") as caught:
        read(made)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def test_a_remote_that_comes_back_is_waited_for(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Over a minute for a shard, by the pauses alone; an index that is not there is told after seconds."""
    paused: list[float] = []
    away = tmp_path / "away"
    made = loader(tmp_path / "cache", remote)

    def pause(seconds: float) -> None:
        paused.append(seconds)
        if sum(paused) > 60:
            away.rename(remote)

    remote.rename(away)
    monkeypatch.setattr("lcl_composer.data.sources.time.sleep", pause)
    source = made.dataset.streams[0]
    source.download_retry, source.download_timeout = StreamConfig(local="x").download_retry, 1000
    assert source._download_file(shards(away, ".zstd")[0].name)
    assert sum(paused) > 60
    paused.clear()
    remote.rename(away)
    with pytest.raises(DataError, match="in 3 attempts"):
        source._download_file("index.json", "again.json")
    assert sum(paused) < 5


def test_a_missing_remote_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.train\.remote: cannot fetch .*index\.json in 1 attempts"):
        loader(tmp_path / "cache", tmp_path / "nowhere", download_retry=0)


def test_a_remote_that_does_not_answer_is_told_within_the_timeout(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    end = threading.Event()
    monkeypatch.setattr(LocalDownloader, "_download_file_impl", lambda *_: end.wait(60))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"index\.json did not arrive within 0\.5 s"):
        loader(tmp_path / "cache", remote, download_timeout=0.5)
    assert time.monotonic() - start < 5
    end.set()


def test_a_remote_that_recovers_is_no_error(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
):
    download, failures = LocalDownloader._download_file_impl, iter([True])

    def fail_once(self: LocalDownloader, remote: str, local: str, timeout: float) -> None:
        if next(failures, False):
            raise OSError("connection reset")
        download(self, remote, local, timeout)

    monkeypatch.setattr(LocalDownloader, "_download_file_impl", fail_once)
    assert len(read(loader(tmp_path / "cache", remote))) == 5


def test_a_cache_of_another_version_is_told(remote: Path, tmp_path: Path, make_dataset: MakeDataset):
    cache = tmp_path / "cache"
    cache.mkdir()
    other = make_dataset([example(i) for i in range(30, 50)], name="other")
    shutil.copy(other / "index.json", cache)
    with pytest.raises(DataError, match="of another version: delete the cache"):
        read(loader(cache, remote, download_retry=0))


def test_an_index_without_hashes_is_checked_by_size(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with DocumentWriter(tmp_path / "plain", hashes=(), compression=None) as writer:
        for i in range(8):
            writer.write(example(i))
    with caplog.at_level(logging.WARNING):
        made = loader(tmp_path / "cache", tmp_path / "plain")
    assert "holds no xxh64 hashes" in caplog.text
    assert len(read(made)) == 2
    index = json.loads((tmp_path / "plain/index.json").read_text())
    index["shards"][0]["raw_data"]["bytes"] += 1
    (tmp_path / "changed").mkdir()
    shutil.copy(tmp_path / "plain/shard.00000.mds", tmp_path / "changed")
    (tmp_path / "changed/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"has \d+ bytes, not \d+"):
        read(loader(tmp_path / "cache2", tmp_path / "changed", download_retry=0))


def test_two_jobs_decompress_a_shard_of_their_common_folder_once(
    remote: Path, monkeypatch: pytest.MonkeyPatch
):
    streams = [cast(DocumentStream, loader(remote, None).dataset) for _ in range(2)]
    done, write = [], sources.write_new

    def slowly(path: str, content: bytearray) -> None:
        time.sleep(0.3)
        write(path, content)
        done.append(path)

    monkeypatch.setattr(sources, "write_new", slowly)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(stream.prepare_shard, 0) for stream in streams]:
            future.result()
    assert len(done) == 1
    assert Path(done[0]).is_file()


def test_cache_limit_still_evicts(remote: Path, tmp_path: Path):
    expected = read(loader(remote, None))
    made = loader(tmp_path / "cache", remote, cache_limit=1 << 16)
    assert read(made) == expected
