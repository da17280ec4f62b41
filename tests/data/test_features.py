from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lcl_composer.data.features import FeatureFolder, FeatureViews, key_of
from lcl_composer.errors import DataError

DESCRIBES = {"encoder": "a", "documents": "b"}


def folder_of(root: Path, **changes: str) -> FeatureFolder:
    return FeatureFolder(root, DESCRIBES | changes, (2, 3), "float16", parts=3)


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def keys(*names: str) -> list[int]:
    return [key_of(name, 0) for name in names]


@pytest.fixture
def filled(tmp_path: Path) -> FeatureFolder:
    """Documents a to e in two parts, and a part of which no image could be decoded."""
    folder = folder_of(tmp_path)
    folder.write(0, features(3, 0), keys("a", "b", "c"))
    folder.write(1, features(0, 1), [])
    folder.write(2, features(2, 2), keys("d", "e"))
    return folder


def test_rows_are_found_by_document_and_image(filled: FeatureFolder) -> None:
    assert filled.missing() == ([], [])
    rows = filled.open()
    assert len(rows) == 5
    for name, expected in zip("abcde", torch.cat([features(3, 0), features(2, 2)]), strict=True):
        assert np.array_equal(rows.row(name, 0), expected.half().numpy())
    with pytest.raises(DataError, match="document 'a', image 1: no features in"):
        rows.row("a", 1)


def test_views_take_turns(filled: FeatureFolder, tmp_path: Path) -> None:
    other = folder_of(tmp_path, view="1")
    for part in range(3):
        other.write(part, features(2, 5 + part), keys(*("ab", "cd", "ef")[part]))
    views = FeatureViews([filled.open(), other.open()])
    for epoch, expected in enumerate([features(3, 0)[1], features(2, 5)[1]] * 2):
        assert torch.equal(views.rows("b", [0], epoch), expected.half()[None])
    assert views.rows("b", [], 0).shape == views.empty.shape == (0, 2, 3)
    assert views.empty.dtype == torch.float16


def test_what_the_rows_depend_on_names_the_folder(filled: FeatureFolder, tmp_path: Path) -> None:
    assert folder_of(tmp_path).folder == filled.folder
    for other in ({"encoder": "c"}, {"documents": "c"}, {"view": "1"}):
        assert folder_of(tmp_path, **other).missing() == ([0, 1, 2], [])


@pytest.mark.parametrize("part", [0, 2])
def test_a_part_cut_short_is_missing_and_named(filled: FeatureFolder, part: int) -> None:
    path = filled.folder / f"{part:06d}.npy"
    path.write_bytes(path.read_bytes()[:-1])
    absent, damaged = filled.missing()
    assert absent == [part]
    assert f"{path.name}: truncated or damaged" in damaged[0]
    with pytest.raises(DataError, match="truncated or damaged"):
        filled.open()
    (filled.folder / f"{part:06d}.keys.npy").unlink()
    assert filled.missing() == ([part], [])


@pytest.mark.parametrize("name", ["000002.npy", "000002.keys.npy"])
def test_a_number_that_changed_is_found(filled: FeatureFolder, name: str) -> None:
    """The array is whole and its numbers are finite: only the checksum says it; it is written anew."""
    path = filled.folder / name
    array = np.load(path)
    array.flat[-2] += 1
    np.save(path, array)
    absent, damaged = filled.missing()
    assert absent == [2]
    assert "000002.npy: its numbers are not those that were written" in damaged[0]
    assert [filled.missing(rank, 2)[0] for rank in range(2)] == [[2], []]
    filled.write(2, features(2, 2), keys("d", "e"))
    assert filled.missing() == ([], [])


def test_parts_without_a_checksum_are_written_anew(filled: FeatureFolder) -> None:
    """As older versions left them."""
    for part in (0, 1):
        path = filled.folder / f"{part:06d}.keys.npy"
        np.save(path, np.load(path)[:-1])
    assert filled.missing()[0] == [0, 1]


@pytest.mark.parametrize("place", ["file/cache", "/proc/nowhere"])
def test_a_place_where_nothing_can_be_written_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    folder = folder_of(tmp_path / place)
    assert folder.missing() == ([0, 1, 2], [])
    for write in (folder.create, lambda: folder.write(0, features(1, 0), keys("a"))):
        with pytest.raises(DataError, match=r"features cannot be written: .*feature_cache\.folder") as caught:
            write()
        assert "\n" not in str(caught.value)


def test_a_part_of_another_shape_is_missing(filled: FeatureFolder) -> None:
    np.save(filled.folder / "000000.npy", np.zeros((3, 2, 4), np.float16))
    assert filled.missing()[0] == [0]


def test_what_the_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not finite in float16; set .*dtype to float32"):
        folder_of(tmp_path).write(0, 1e6 * features(3, 0), keys("a", "b", "c"))


def test_two_documents_of_one_id_are_refused(filled: FeatureFolder) -> None:
    filled.write(1, features(1, 0), keys("a"))
    with pytest.raises(DataError, match="two documents have one id"):
        filled.open()
