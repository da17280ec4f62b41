"""From what a page or a table calls an image to its bytes."""

from __future__ import annotations

import base64
import io
import unicodedata
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from lcl_composer.convert.html import HTML
from lcl_composer.convert.images import ImageRules, Rejected
from lcl_composer.convert.pictures import _names, is_blank, meant_files, read_picture
from lcl_composer.convert.urls import image_of
from tests.convert.samples import picture, run, shown

RULES = ImageRules(1, None, False)
REAL, SMALL, GREY = picture(300, "red"), picture(100, "blue"), picture(200, "#808080")
EMPTY_GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
EMBEDDED = "data:image/png;base64," + base64.b64encode(SMALL).decode()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("a/p.png", "a/p.png"),
        ("a b.png", "a%20b.png"),
        ("a b.png", " a b.png\n"),
        ("a%20b.png", "a%20b.png"),
        ("a/p.png", "a\\p.png"),
        ("a/p.png", "/a/p.png"),
        ("p.png?w=640", "p.png?w=640"),
        ("p.png", "p.png?w=640#top"),
        ("p#1.png", "p#1.png"),
        ("100%.png", "100%.png"),
        (unicodedata.normalize("NFD", "Café.png"), unicodedata.normalize("NFC", "Café.png")),
        (unicodedata.normalize("NFC", "Café.png"), quote(unicodedata.normalize("NFD", "Café.png"))),
    ],
)
def test_one_file_by_many_references(tree, name, reference):
    root = tree({name: REAL})
    assert read_picture(reference, root, RULES) == REAL
    if not reference.startswith("/"):
        assert image_of(reference.strip(), root, RULES) == REAL


def test_a_file_url_is_a_path_in_the_folder(tree):
    root = tree({"a b/p.png": REAL})
    assert image_of("file:///a%20b/p.png", root, RULES) == REAL
    assert image_of(f"file://{root}/a b/p.png", root, RULES) == REAL
    with pytest.raises(Rejected, match="climbs out"):
        image_of("file:///../p.png", root, RULES)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("write", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_base64_of_a_picture_is_the_picture(tree, kind, write):
    data = picture(70, "red", kind)
    assert image_of(write(data).decode(), None, RULES) == data
    assert image_of({"bytes": write(data).decode().rstrip("=\n"), "path": None}, None, RULES) == data


def test_the_name_with_its_query_comes_first(tree):
    root = tree({"p.png?v=1": REAL, "p.png": SMALL})
    assert read_picture("p.png?v=1", root, RULES) == REAL
    assert read_picture("p.png?v=2", root, RULES) == SMALL


def test_paths_from_the_root_of_a_site_in_a_folder_of_its_own(tree):
    root = tree({"example.org/i/p.png": REAL, "example.org/blog/p.html": "x"})
    assert read_picture("/i/p.png", root, RULES, [root / "example.org" / "blog"]) == REAL


def test_urls_of_a_site_that_is_there(tree):
    root = tree({"example.org/i/p.png": REAL, "cdn.example.org/p.png?v=1": SMALL, "p.png": b"x"})
    for start in ("http:", "https:", ""):
        assert read_picture(f"{start}//example.org/i/p.png", root, RULES, [root / "blog"]) == REAL
        assert read_picture(f"{start}//cdn.example.org/p.png?v=1", root, RULES) == SMALL
    assert read_picture("http://example.org/i/p.png", root / "example.org", RULES) == REAL
    assert "example.org/i/p.png" in meant_files("http://example.org/i/p.png", root, root)
    for url, reason in (
        ("http://example.org/p.png", "file missing"),
        ("http://other.org/p.png", "not a local file"),
        ("ftp://example.org/i/p.png", "not a local file"),
        ("http://../secret.png", "path climbs out of the folder"),
    ):
        with pytest.raises(Rejected, match=reason):
            read_picture(url, root, RULES)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("data:image/png;base64,%%%", "file empty"),
        ("data:image/svg+xml;utf8,<svg/>", "vector graphics (SVG)"),
        ("data:image/png", "data: URL without data"),
        ("https://example.org/p.png", "not a local file"),
        ("gone.png?x=1", "file missing"),
        ("x" * 5000 + ".png", "file unreadable (File name too long)"),
        ("../p.png", "path climbs out of the folder"),
        ("#top", "no src"),
        ("p\0.png", "no src"),
    ],
)
def test_references_that_mean_no_picture(tree, reference, reason):
    with pytest.raises(Rejected, match=reason.replace("(", r"\(").replace(")", r"\)")):
        read_picture(reference, tree({"p.png": b"x"}), RULES)


def test_embedded_pictures_are_decoded(tree):
    for reference in (EMBEDDED, "data:image/png," + quote(SMALL)):
        assert read_picture(reference, tree({"p.html": ""}), RULES) == SMALL
    assert image_of(EMBEDDED, None, RULES) == SMALL


def transparent() -> bytes:
    """A picture whose colours nobody sees."""
    image = Image.open(io.BytesIO(gradient())).convert("RGBA")
    image.putalpha(0)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def gradient() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_blank():
    assert is_blank(GREY)
    assert is_blank(transparent())
    assert not is_blank(gradient())
    assert not is_blank(b"no image")


LOADED = {
    "data-src, no src": "<img data-src=real.png>",
    "data-original": "<img src=grey.png data-original=real.png>",
    "data-lazy-src": f"<img src='{EMPTY_GIF}' data-lazy-src=real.png>",
    "data-lazy-srcset": "<img src=placeholder.png data-lazy-srcset='small.png 100w, real.png 300w'>",
    "an attribute of any name": f"<img src='{EMPTY_GIF}' data-hd='real.png?x=1'>",
    "the lazy one is gone, the same is there": "<img src=saved/real.png data-src=https://x.org/a/real.png>",
    "srcset": "<img srcset='small.png 1x, real.png 2x'>",
    "srcset with commas": "<img srcset='w_1,h_2/small.png 100w,real.png 300w' src=small.png>",
    "largest that is there": "<img srcset='gone.png 900w, real.png 300w, small.png 100w' src=small.png>",
    "picture": "<picture><source srcset=gone.avif><source srcset=real.png><img src=small.png></picture>",
    "picture, phones": "<picture><source media='(max-width:9em)' srcset=small.png>"
    "<img src=real.png></picture>",
    "picture, dark": "<picture><source media='(prefers-color-scheme: dark)' srcset=small.png>"
    "<img src=real.png></picture>",
    "picture, lazy": f"<picture><source data-srcset=real.png><img src='{EMPTY_GIF}'></picture>",
    "noscript after": "<img class=lazy src=grey.png><noscript><img src=real.png></noscript>",
    "noscript before": f"<noscript><img src=real.png></noscript><img src='{EMPTY_GIF}' data-src=real.png>",
    "noscript alone": "<div class=lazy></div><noscript><img src=real.png></noscript>",
    "noscript, figure": "<figure><div><img class=lazy></div><noscript><img src=real.png></noscript></figure>",
    "object": "<object data=real.png type=image/png><img src=small.png></object>",
    "object, gone": "<object data=gone.png><img src=real.png></object>",
    "object of another kind": "<object data=film.swf><img src=real.png></object>",
    "embed": "<embed src=real.png>",
    "svg image": "<svg><image xlink:href=real.png /></svg>",
    "svg image, new": "<svg><image href=real.png /></svg>",
    "amp": "<amp-img src=real.png width=3></amp-img>",
    "poster": "<video poster=real.png>no video</video>",
    "another under the mouse": "<img src=real.png data-hover-src=small.png data-src-dark=small.png>",
    "a thumbnail is better than nothing": f"<img src='{EMPTY_GIF}' data-thumb=real.png>",
    "hidden until it is loaded": "<img data-cfsrc=real.png style='display:none'>",
    "base": "<base href='saved/'><img src=real.png>",
    "base on another host": "<base href='https://x.org/y/'><img src=real.png>",
}


@pytest.mark.parametrize("way", LOADED)
def test_every_way_to_load_a_picture_gives_it_once(tree, tmp_path, way):
    files = {
        "real.png": REAL,
        "saved/real.png": REAL,
        "small.png": SMALL,
        "grey.png": GREY,
        "placeholder.png": GREY,
    }
    page = f"<body>{'word ' * 20}{LOADED[way]}end"
    _, documents = run(HTML(tree({"p.html": page, **files}), min_side=2), tmp_path)
    assert [part for part in shown(documents["p.html"]) if isinstance(part, bytes)] == [REAL]


@pytest.mark.parametrize(
    "image",
    [
        "<img src=grey.png data-src=gone.png>",
        "<img src=placeholder.png data-src=https://x.org/real.png>",
        f"<img src='{EMBEDDED}' data-src=gone.png>",
        "<img class=lazy src=grey.png><noscript><img src=gone.png></noscript>",
        "<img class=lazy src=placeholder.png>",
        f"<img class=lazy src='{EMBEDDED}'>",
        "<img class=lazyload src=plain.png data-id=7>",
    ],
)
def test_a_placeholder_is_never_kept(tree, tmp_path, image):
    files = {"grey.png": GREY, "placeholder.png": GREY, "plain.png": GREY, "good.png": SMALL}
    page = f"<body>{'word ' * 20}<img src=good.png>{image}"
    report, documents = run(HTML(tree({"p.html": page, **files}), min_side=2), tmp_path)
    assert shown(documents["p.html"])[1:] == [SMALL]
    assert report.dropped_images.total() == 1


def test_an_icon_that_is_left_out_does_not_break_its_sentence(tree, tmp_path):
    page = f"<body><p>{'word ' * 20}Press <img src=i.png> OK or <img src=i.png>Esc</p><img src=p.png>"
    _, documents = run(HTML(tree({"p.html": page, "i.png": picture(8), "p.png": picture()})), tmp_path)
    assert shown(documents["p.html"])[0].endswith("word Press OK or Esc")


def test_a_neighbour_that_is_no_copy_stays(tree, tmp_path):
    page = f"<body>{'word ' * 20}<img src=a.png><noscript><img src=b.png></noscript><img src=a.png>"
    _, documents = run(HTML(tree({"p.html": page, "a.png": REAL, "b.png": SMALL})), tmp_path)
    assert shown(documents["p.html"])[1:] == [REAL, SMALL, REAL]


def test_half_a_character_in_a_reference_is_a_name_like_another():
    assert "\ud800%41.png" in list(_names(urlsplit("\ud800%41.png")))


def test_a_picture_of_an_odd_name_is_not_exchanged_for_the_next(tree, tmp_path):
    page = f"<body>{'word ' * 20}<img src=gray-whale.png data-next=next.png>"
    files = {"p.html": page, "gray-whale.png": gradient(), "next.png": REAL}
    _, documents = run(HTML(tree(files)), tmp_path)
    assert shown(documents["p.html"])[1:] == [gradient()]


def test_a_picture_saved_into_a_lazy_page_is_no_placeholder(tree, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    page = f"<body>{'word ' * 20}<img class=lazyload data-src=https://x.org/p.png src='{url}'>"
    meant_files.cache_clear()
    _, documents = run(HTML(tree({"p.html": page})), tmp_path)
    assert shown(documents["p.html"])[1:] == [buffer.getvalue()]
    assert meant_files.cache_info().currsize == 1  # not of the picture, which would stay in memory
