"""Files of a source."""

from __future__ import annotations

import io
import os

import pytest

from lcl_composer.convert import files
from lcl_composer.convert.files import inside, parse_json, read_lines, scan, suffix_of, walk
from lcl_composer.convert.images import Rejected, read_file


def test_files_come_in_a_fixed_order_and_links_to_folders_are_not_followed(tree):
    source = tree(dict.fromkeys(("b/x.PNG", "a/z.png", "a/b/y.png", "c.png", "a.txt", "a-b/x.png"), ""))
    (source / "loop").symlink_to(source)
    assert list(walk(source, frozenset({".png"}))) == [
        "c.png",
        "a/z.png",
        "a/b/y.png",
        "a-b/x.png",
        "b/x.PNG",
    ]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.JPG", ".jpg"),
        ("d.x/a", ""),
        ("a.csv.gz", ".csv.gz"),
        ("a.gz", ".gz"),
        ("a.jpg?w=640&v=1.2", ".jpg"),
        ("a.jpg?w", ".jpg?w"),
        ("why?.jpg", ".jpg"),
        ("1 ?= 2.png", ".png"),
    ],
)
def test_the_suffix_of_a_name(name, suffix):
    assert suffix_of(name) == suffix


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "out/x", "a/out2"])
def test_no_name_leads_out(tmp_path, name):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "a" / "out2").symlink_to("/etc/passwd")
    with pytest.raises(Rejected, match="path climbs out of the folder"):
        inside(root, name)


def test_links_may_lead_where_one_says_and_nowhere_else(tmp_path):
    for folder in ("root/real", "store/cat", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("store/cat/1.png", "elsewhere/2.png", "root/real/3.png"):
        (tmp_path / name).write_bytes(b"x")
    root, store = tmp_path / "root", tmp_path / "store"
    (root / "cat").symlink_to(store / "cat")
    (root / "one.png").symlink_to(store / "cat/1.png")
    (root / "two.png").symlink_to(tmp_path / "elsewhere/2.png")
    (root / "others").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(tmp_path)
    found = ["one.png", "cat/1.png", "real/3.png"]
    assert list(walk(root, frozenset({".png"}), store)) == found
    assert inside(root, "one.png", links_into=store) == store / "cat/1.png"
    assert inside(root, "cat/1.png", links_into=store) == store / "cat/1.png"
    for name in ("two.png", "../store/cat/1.png", str(store / "cat/1.png"), "others/2.png"):
        with pytest.raises(Rejected, match="climbs out"):
            inside(root, name, links_into=store)
    assert list(walk(root, frozenset({".png"}), tmp_path))[-1] == "real/3.png"  # a loop ends


def test_links_of_a_hugging_face_snapshot_lead_into_its_blobs(tmp_path):
    snapshot = tmp_path / "datasets--user--cards/snapshots/abc123"
    blobs = tmp_path / "datasets--user--cards/blobs"
    for folder in (snapshot / "pairs", blobs):
        folder.mkdir(parents=True)
    (blobs / "0bbd").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    (snapshot / "pairs/a.jpg").symlink_to("../../../blobs/0bbd")
    (snapshot / "pairs/b.jpg").symlink_to(tmp_path / "secret")
    for root, name in ((snapshot, "pairs/a.jpg"), (snapshot / "pairs", "a.jpg")):
        assert inside(root, name) == blobs / "0bbd"
    for name in ("pairs/b.jpg", "../../blobs/0bbd"):
        with pytest.raises(Rejected, match="climbs out"):
            inside(snapshot, name)


@pytest.mark.parametrize("name", [None, "", 7, "a\0b"])
def test_what_is_no_name_is_rejected(tmp_path, name):
    with pytest.raises(Rejected, match="no file name"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800.png"])
def test_names_too_long_or_of_half_characters_are_no_files(tmp_path, name):
    with pytest.raises(Rejected, match="file"):
        read_file(inside(tmp_path, name))


def test_long_lines_are_passed_over(monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 8)
    lines = list(read_lines(io.BytesIO(b"short\n\n" + b"x" * 50 + b"\n1234567\nend")))
    assert [(n, str(line) if isinstance(line, Rejected) else line) for n, line in lines] == [
        (1, b"short\n"),
        (3, "line over 0 MiB"),
        (4, b"1234567\n"),
        (5, b"end"),
    ]


@pytest.mark.parametrize("line", [b'{"a": ', b"\xff", b"[" * 100_000, b"[]", b"9" * 9999])
def test_what_is_no_json_object_is_rejected(line):
    with pytest.raises(Rejected, match="JSON"):
        parse_json(line)


def test_a_folder_that_may_not_be_read_is_passed_over(tree, monkeypatch):
    source = tree(dict.fromkeys(("a/x.png", "lost+found/x.png", "z/x.png"), ""))
    list_folder = os.scandir

    def refuse(folder):
        if folder.name == "lost+found":
            raise PermissionError
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(scan(source)) == [
        ("a/x.png", None),
        ("lost+found", "folders that may not be read"),
        ("z/x.png", None),
    ]


def test_caches_of_datasets_are_no_further_files(tree):
    names = (
        "data-00000-of-00001.arrow",
        "cache-0123456789abcdef.arrow",
        "cache-0123456789abcdef_00000_of_00002.arrow",
    )
    source = tree(dict.fromkeys((*(f"a/{name}" for name in names), f"b/{names[1]}", "c/cache-me.arrow"), ""))
    found = walk(source, frozenset({".arrow"}))
    assert list(found) == [f"a/{names[0]}", f"b/{names[1]}", "c/cache-me.arrow"]
