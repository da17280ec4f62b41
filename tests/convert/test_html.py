"""Web pages -> Documents."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lcl_composer.convert.engine import convert as run
from lcl_composer.convert.html import HTML
from lcl_composer.data.document import Image, Text
from lcl_composer.errors import ConfigError, DataError
from tests.convert.samples import bomb, picture, read_all

PROSE = "<p>" + "word " * 25 + "</p>"


def convert(source, tmp_path, **options):
    out = tmp_path / "out"
    report = run(HTML(source, **options), str(out), progress=False)
    return report, read_all(out)


def shown(document) -> list[str | bytes]:
    return [s.text if isinstance(s, Text) else s.data for s in document.segments]


def test_text_and_images_in_reading_order_with_captions_in_place(tree, tmp_path):
    red, blue = picture(colour="red"), picture(colour="blue", kind="JPEG")
    page = """<html><body><h1>Of  birds</h1><p>A <b>red</b>
      one:</p><figure><img src="i/red.png"><figcaption>Fig. 1: it sits</figcaption></figure>
      <p>Then<img src='i/blue.jpg'>it<br>flew.</p></body></html>"""
    source = tree({"a/page.html": page, "a/i/red.png": red, "a/i/blue.jpg": blue})
    report, documents = convert(source, tmp_path, min_words=3)
    assert shown(documents["a/page.html"]) == [
        "Of birds\n\nA red one:",
        red,
        "Fig. 1: it sits\n\nThen",
        blue,
        "it flew.",
    ]
    assert documents["a/page.html"].source == "source/a/page.html"
    assert not any(image.floats for image in documents["a/page.html"].images)
    assert (report.read, report.documents, report.images.total, report.words.total) == (1, 1, 2, 12)
    assert report.image_bytes == len(red) + len(blue)


@pytest.mark.parametrize(
    "furniture",
    [
        "<nav><ul><li>{}</li></ul></nav>",
        "<div class='page navheader'><table><tr><td><div>{}</div></td></tr></table></div>",
        "<div class='top-menu'><nav><div>{}</div></nav></div>",
        "<div role='navigation'><p>{}</p></div>",
        "<div id='sidebar'>{}</div>",
        "<header><h1>{}</h1></header>",
        "<footer>{}</footer>",
        "<script>var x = '{}'</script>",
        "<style>.{} {{ }}</style>",
        "<pre><code>{}</code></pre>",
        "<p hidden>{}</p>",
        "<noscript>{}</noscript>",
        "<select><option>{}</option></select>",
        "<!-- {} -->",
    ],
)
def test_what_is_not_content_is_left_out_images_too(tree, tmp_path, furniture):
    inside = furniture.format("FURNITURE <img src='p.png'>" if "script" not in furniture else "FURNITURE")
    page = f"<body>{inside}<main>{PROSE}<img src='p.png'></main>{inside}<p>end</p></body>"
    report, documents = convert(tree({"p.html": page, "p.png": picture()}), tmp_path)
    text = "".join(s for s in shown(documents["p.html"]) if isinstance(s, str))
    assert "FURNITURE" not in text
    assert text.endswith("end")
    assert len(documents["p.html"].images) == 1
    assert not report.dropped_images


def test_what_was_cut_is_counted_and_named(tree, tmp_path):
    page = f"<body><nav><a href=x>Home page</a><img src=logo.png></nav>{PROSE}<img src=p.png>"
    report, _ = convert(tree({"p.html": page, "p.png": picture(), "logo.png": picture()}), tmp_path)
    assert (dict(report.cut_words), dict(report.cut_images)) == ({"navigation": 2}, {"navigation": 1})
    assert report.named["cut as no content: navigation"] == ["p.html: logo.png"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table())
    assert "2 words, 1 images" in console.export_text()


def test_what_only_looks_like_furniture_is_kept(tree, tmp_path):
    page = f"""<body class="has-sidebar"><article><header><h1>TITLE</h1></header>
      <p>Choose <span class="guimenu">FILTERS</span>, type <code>ls</code>.</p>{PROSE}<img src="p.png">
      <section id="gimp-edit-menu"><p>LAST</p></section></article></body>"""
    _, documents = convert(tree({"p.html": page, "p.png": picture()}), tmp_path)
    text = " ".join(s for s in shown(documents["p.html"]) if isinstance(s, str))
    assert all(word in text for word in ("TITLE", "FILTERS", "ls", "LAST"))


def test_image_paths_are_those_of_urls(tree, tmp_path):
    spaced, rooted, queried = picture(colour="red"), picture(colour="green"), picture(colour="blue")
    images = "<img src='my%20pic.png'><img src='/img/r.png'><img src='../img/q.png?v=2#top'>"
    page = f"<body>{PROSE}{images}</body>"
    files = {"d/p.html": page, "d/my pic.png": spaced, "img/r.png": rooted, "img/q.png": queried}
    _, documents = convert(tree(files), tmp_path)
    assert shown(documents["d/p.html"])[1:] == [spaced, rooted, queried]


def test_the_same_image_twice_is_kept_twice(tree, tmp_path):
    page = f"<body>{PROSE}<img src='p.png'><img src='p.png'></body>"
    report, _ = convert(tree({"p.html": page, "p.png": picture()}), tmp_path)
    assert report.images.total == 2


BAD_IMAGES = {
    "../../secret.png": "path climbs out of the folder",
    "%2e%2e/%2e%2e/secret.png": "path climbs out of the folder",
    "link.png": "path climbs out of the folder",
    "gone.png": "file missing",
    "p.html/x.png": "file missing",
    "drawing.svg": "vector graphics (SVG)",
    "https://example.org/a.png": "not a local file",
    "//example.org/a.png": "not a local file",
    "http://[broken/a.png": "src is no URL",
    "data:image/png;base64,AAAA": "not a known image format",
    "": "no src",
    "page.png": "not a known image format",
    "empty.png": "file empty",
    "icon.png": "a side under 64 px",
    "bomb.png": "more than 89,478,485 pixels",
    "cut.png": "broken or cut off",
}


@pytest.mark.parametrize(("src", "reason"), BAD_IMAGES.items())
def test_a_bad_image_is_counted_and_named_and_the_page_kept(tree, tmp_path, src, reason):
    page = f"<body>{PROSE}<img src='good.png'><p>middle</p><img src='{src}'><p>end</p></body>"
    good = picture(colour="green")
    files = {"d/p.html": page, "d/good.png": good, "d/page.png": "<html>404</html>", "d/empty.png": b""}
    files |= {"d/icon.png": picture(200, height=63), "d/cut.png": picture(300)[:-40], "d/bomb.png": bomb()}
    source = tree(files)
    (tmp_path / "secret.png").write_bytes(picture())
    (source / "d" / "link.png").symlink_to(tmp_path / "secret.png")
    report, documents = convert(source, tmp_path, verify=True)
    assert dict(report.dropped_images) == {reason: 1}
    assert report.named[reason] == [f"d/p.html: {src}"]
    assert shown(documents["d/p.html"]) == ["word " * 24 + "word", good, "middle\n\nend"]


def test_without_verify_a_cut_off_image_passes_by_its_header(tree, tmp_path):
    page = f"<body>{PROSE}<img src='cut.png'></body>"
    report, _ = convert(tree({"p.html": page, "cut.png": picture(300)[:-40]}), tmp_path)
    assert report.images.total == 1


def test_pages_without_images_or_with_few_words_are_dropped(tree, tmp_path):
    files = {
        "good.html": f"<body>{PROSE}<img src='p.png'></body>",
        "plain.html": f"<body>{PROSE}</body>",
        "short.htm": "<body>four words are few<img src='p.png'></body>",
        "empty.html": b"",
        "p.png": picture(),
    }
    report, documents = convert(tree(files), tmp_path)
    assert list(documents) == ["good.html"]
    assert dict(report.dropped) == {"no image": 2, "under 20 words": 1}
    assert report.named["no image"] == ["empty.html", "plain.html"]
    assert report.read == 4


@pytest.mark.parametrize(
    "text", ["渔船每天早上都从海上回家，" * 2, "市場で魚を買う人がいる。" * 2, "ตลาดอยู่ใกล้โบสถ์" * 2]
)
def test_words_are_counted_in_scripts_without_spaces(tree, tmp_path, text):
    source = tree({"p.html": f"<meta charset=utf-8><p>{text}</p><img src='p.png'>", "p.png": picture()})
    report, _ = convert(source, tmp_path)
    assert report.documents == 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("<p>naïve café</p>".encode("cp1252"), "naïve café"),
        ("<meta charset=iso-8859-2><p>żółw</p>".encode("iso-8859-2"), "żółw"),
        ("<meta charset=utf-8><p>“żółw”</p>".encode(), "“żółw”"),
        ("<p>żółw</p>".encode("utf-16"), "żółw"),
        (b"\xef\xbb\xbf<p>bom</p>", "bom"),
        (b"<meta charset=unicode_escape><p>a\\u0041</p>", "a\\u0041"),
        ("<meta charset=big5><p>żółw</p>".encode(), "żółw"),
    ],
)
def test_pages_in_other_encodings(tree, tmp_path, data, expected):
    end = "<img src='p.png'>"
    data += end.encode("utf-16-le") if data.startswith(b"\xff\xfe") else end.encode()
    _, documents = convert(tree({"p.html": data, "p.png": picture()}), tmp_path, min_words=0)
    assert shown(documents["p.html"])[0] == expected


def test_deep_nesting_does_not_end_the_conversion(tree, tmp_path):
    page = "<body>" + "<div>" * 20_000 + PROSE + "<img src='p.png'>"
    report, _ = convert(tree({"p.html": page, "p.png": picture()}), tmp_path)
    assert report.documents == 1


def test_held_out_pages_are_a_fixed_share(tree, tmp_path):
    files = {f"{i:02d}.html": f"<body>{PROSE}<img src='p.png'></body>" for i in range(40)}
    source = tree({**files, "p.png": picture()})
    split = []
    for name in ("one", "two"):
        report = run(HTML(source), str(tmp_path / name), held_out=0.25, progress=False)
        train, held_out = read_all(tmp_path / name / "train"), read_all(tmp_path / name / "held_out")
        assert dict(report.kept) == {"train": len(train), "held_out": len(held_out)}
        assert not set(train) & set(held_out)
        assert len(train) + len(held_out) == 40
        split.append(set(held_out))
    assert split[0] == split[1]
    assert 3 <= len(split[0]) <= 18


def test_the_report_lies_beside_the_shards(tree, tmp_path):
    source = tree({"p.html": f"<body>{PROSE}<img src='p.png'></body>", "p.png": picture()})
    convert(source, tmp_path, min_side=10)
    facts = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (facts["kind"], facts["read"], facts["kept"]) == ("html", 1, {"all": 1})
    assert facts["options"]["min_side"] == 10


def test_a_killed_conversion_leaves_no_output_and_the_next_one_works(tree, tmp_path, monkeypatch):
    source = tree({"p.html": f"<body>{PROSE}<img src='p.png'></body>", "p.png": picture()})

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lcl_composer.convert.html.WebPage", die)
        with pytest.raises(KeyboardInterrupt):
            run(HTML(source), str(tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()
    _, documents = convert(source, tmp_path)
    assert len(documents) == 1
    assert not (tmp_path / "out.partial").exists()


def test_wrong_folders_are_refused(tree, tmp_path):
    source = tree({"p.html": f"<body>{PROSE}</body>"})
    with pytest.raises(DataError, match="no such folder"):
        run(HTML(tmp_path / "nowhere"), str(tmp_path / "out"), progress=False)
    with pytest.raises(DataError, match=r"none of 1 documents kept: no image \(1\)"):
        run(HTML(source), str(tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="exists already"):
        run(HTML(source), str(source), progress=False)
    assert (source / "p.html").exists()
    with pytest.raises(DataError, match="local folder"):
        run(HTML(source), "s3://bucket/x", progress=False)
    with pytest.raises(ConfigError, match="held_out"):
        run(HTML(source), str(tmp_path / "out"), held_out=1.5, progress=False)
    for out in ("", ".", "..", "/"):
        with pytest.raises(ConfigError, match="names no new folder"):
            run(HTML(source), out, progress=False)


def test_images_are_fixed(tree, tmp_path):
    source = tree({"p.html": f"<body>{PROSE}<img src='p.png'></body>", "p.png": picture()})
    _, documents = convert(source, tmp_path)
    assert documents["p.html"].segments[1] == Image(picture())


def test_images_that_no_page_shows_are_counted(tree, tmp_path):
    page = f"""<nav><img src="menu.png"></nav>{PROSE}<img src="a%20b.png?v=2"><img src="tiny.gif">
      <img srcset="s.png 1x, l.png 2x" src="/site/root.png"><img data-src="late.png" src="grey.png">
      <img src="http://elsewhere/far.png"><a href="linked.png">see</a>"""
    shown = ["menu", "a b", "s", "l", "root", "late", "grey"]
    files = {f"site/{name}.png": picture() for name in [*shown, "alone", "linked", "far"]}
    files |= {"site/p.html": page, "site/tiny.gif": picture(2, kind="GIF"), "site/sub/menu.png": picture()}
    report, _ = convert(tree(files | {"site/lone.jpg": picture(kind="JPEG")}), tmp_path)
    assert report.passed_over == {".png images that no page shows": 4, ".jpg images that no page shows": 1}
    assert report.examples[".png images that no page shows"] == [
        "site/alone.png",
        "site/far.png",
        "site/linked.png",
        "site/sub/menu.png",
    ]


def test_pages_of_all_parts_show_images(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("lcl_composer.convert.html._PART_PAGES", 1)
    files = {f"{i}.html": f"{PROSE}<img src='{i}.png'>" for i in range(3)}
    files |= {f"{i}.png": picture() for i in range(4)}
    report, _ = convert(tree(files), tmp_path)
    assert report.passed_over == {".png images that no page shows": 1}


def test_the_folder_that_one_stands_in(tree, tmp_path, monkeypatch):
    files = {"x.org/p.html": f"{PROSE}<img src='http://x.org/p.png'>", "x.org/p.png": picture()}
    monkeypatch.chdir(tree(files) / "x.org")
    _, documents = convert(Path(), tmp_path)
    assert [document.source for document in documents.values()] == ["x.org/p.html"]
