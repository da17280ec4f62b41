"""Links in a folder that was handed over."""

from __future__ import annotations

import pytest

from lcl_composer.errors import DataError
from lcl_composer.links import leads_out, links_out, refuse_links


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "given/inner"
    inner.mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (inner / "own").write_text("o")
    (tmp_path / "given/latest").symlink_to("inner/own")
    (tmp_path / "given/loop").symlink_to("loop")
    (inner / "bad").symlink_to(tmp_path / "secret")
    (tmp_path / "given/away").symlink_to(tmp_path)
    return tmp_path / "given"


def test_a_link_may_lead_where_its_folder_is(folder, tmp_path):
    ways = {"latest": False, "inner/own": False, "inner/bad": True, "away": True, "away/secret": True}
    assert {name: leads_out(folder / name, folder) for name in ways} == ways
    (tmp_path / "linked").symlink_to(folder)
    assert not leads_out(tmp_path / "linked/latest", tmp_path / "linked")
    assert leads_out(folder / "x", folder.with_name("giv")), "a folder whose name begins alike is another"


def test_a_snapshot_of_the_hugging_face_cache(tmp_path):
    snapshot = tmp_path / "models--a/snapshots/0"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a/blobs").mkdir()
    (tmp_path / "models--a/blobs/x").write_text("x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/x")
    (snapshot / "config.json").symlink_to(tmp_path)
    refuse_links(snapshot, [snapshot / "model.safetensors"])
    assert list(links_out(snapshot)) == [snapshot / "config.json"]


def test_those_that_lead_out_are_found_and_refused(folder, tmp_path):
    assert list(links_out(folder)) == [folder / "away", folder / "inner/bad"]
    refuse_links(folder, [folder / "latest", folder / "absent"])
    with pytest.raises(DataError, match=r"inner/bad: a link that leads out of .*given, to .*secret; if that"):
        refuse_links(folder, [folder / "latest", folder / "inner/bad"])
