"""Which files an image element of a web page may mean: lazy loading, ``srcset``, ``<picture>``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from selectolax.lexbor import LexborNode

Attributes = dict[str, str | None]

#: Elements that may show an image.
IMAGE_TAGS = frozenset({"img", "amp-img", "image", "picture", "object", "embed", "video"})

#: Attributes that a script turns into ``src`` once the image is scrolled to; so are most that hold "src".
_LAZY = re.compile(r"data-(original|lazy|lazyload|echo|ks-lazyload|flickity-lazyload)|(?!src$).*src.*")
#: Attributes that name a lesser picture than the one to be shown, or what stands in for it.
_LESSER = re.compile(r"low|lqip|thumb|placeholder|blur|error|fallback|small|tiny|preview")
#: Those that name another picture: under the mouse, of the back, of the next one, in the dark.
_OTHER = re.compile(
    r"hover|roll-?over|mouse-?over|oversrc|"
    r"(?<![a-z])(alt|over|swap|flip|back|second(ary)?|next|prev|dark|night)(?![a-z])"
)
_STAND_IN = re.compile(
    r"placeholder|blank|spacer|transparent|lazy|dummy|(?<![a-z])(loading|loader|pixel|grey|gray|1x1)(?![a-z])",
    re.I,
)
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|avif|bmp|tiff?|jfif)(?=$|[?#])", re.I)
_SRCSET = re.compile(r"(\S*[^\s,])(?:\s+([\d.]+)[xw])?(?:\s+[\d.]+h)?\s*(?:,|$)")
#: Sources for small or dark screens and for paper.
_OTHER_MEDIA = re.compile(r"max-(device-)?width|prefers-color-scheme:\s*dark|print", re.I)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image in its place among the text.

    Attributes:
        urls: What it may mean, best first.
        stand_ins: What the page shows until a script has loaded the image; where ``urls`` is empty, it
            may be the image itself.
        lazy: A script loads it; a ``<noscript>`` beside it may hold a copy.
        copy: It stands in a ``<noscript>``.
    """

    urls: tuple[str, ...]
    stand_ins: tuple[str, ...] = ()
    lazy: bool = False
    copy: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return next(iter(self.urls + self.stand_ins), "")


def image_reference(node: LexborNode) -> ImageReference | None:
    """Return the image that an element shows, None if it shows none.

    A ``<picture>`` and an ``<object>`` that show one stand for all that is inside.
    """
    tag, attributes = node.tag, node.attributes
    if tag in ("img", "amp-img", "image"):
        return _of_image(attributes)
    if tag == "picture":
        return _of_picture(node)
    if tag == "object" and _is_image(attributes.get("data"), attributes.get("type")):
        inside = (_of_image(image.attributes) for image in node.css("img"))
        return ImageReference(
            _unique((*_given(attributes, "data"), *(url for i in inside for url in i.urls)))
        )
    if tag == "embed" and _is_image(attributes.get("src"), attributes.get("type")):
        return ImageReference(_given(attributes, "src"))
    if tag == "video" and attributes.get("poster"):
        return ImageReference(_given(attributes, "poster"))
    return None


def without_copy(one: ImageReference, other: ImageReference) -> ImageReference | None:
    """Return two neighbours as one if one of them is the ``<noscript>`` copy of the other, else None."""
    if one.copy == other.copy:
        return None
    copy, shown = (one, other) if one.copy else (other, one)
    names = {_file_name(url) for url in copy.urls} - {""}
    same = tuple(url for url in shown.stand_ins if _file_name(url) in names)
    if not (shown.lazy or same or any(_file_name(url) in names for url in shown.urls)):
        return None
    others = tuple(url for url in shown.stand_ins if url not in same)
    return ImageReference(_unique((*shown.urls, *copy.urls, *same)), others)


def is_stand_in(url: str) -> bool:
    """Say whether a URL is one that pages show in place of an image, by the name of its file."""
    return _STAND_IN.search(_file_name(url)) is not None


def _of_image(attributes: Attributes) -> ImageReference:
    source = _given(attributes, "src") or _given(attributes, "href") or _given(attributes, "xlink:href")
    shown = _unique((*_largest_first(_srcset(attributes.get("srcset"))), *source))
    empty = all(url.startswith("data:") or is_stand_in(url) for url in shown)
    lazy = _unique(_lazy_urls(attributes))
    if empty and not lazy:
        lazy = _unique(_files_named(attributes))
    waits = empty or bool(lazy) or "lazy" in (attributes.get("class") or "").lower()
    names = {_file_name(url) for url in lazy} - {""}
    real = tuple(url for url in shown if not waits or _file_name(url) in names)
    stand_ins = tuple(url for url in shown if url not in real)
    return ImageReference((*lazy, *(url for url in real if url not in lazy)), stand_ins, waits)


def _of_picture(node: LexborNode) -> ImageReference:
    images = [_of_image(image.attributes) for image in node.css("img")]
    sized: list[tuple[float, str]] = []
    last: list[str] = []
    for source in node.css("source"):
        found = [*_srcset(source.attributes.get("srcset"))]
        for key, value in source.attributes.items():
            if key != "srcset" and "srcset" in key:
                found.extend(_srcset(value))
        if _OTHER_MEDIA.search(source.attributes.get("media") or ""):
            last.extend(_largest_first(found))
        else:
            sized.extend(found)
    best = [url for url in _largest_first(sized) if not url.startswith("data:")]
    urls = _unique((*best, *(url for image in images for url in image.urls), *last))
    stand_ins = _unique(url for image in images for url in image.stand_ins)
    lazy = any(image.lazy for image in images) or not urls
    return ImageReference(urls, tuple(url for url in stand_ins if url not in urls), lazy)


def _lazy_urls(attributes: Attributes) -> Iterator[str]:
    sized: list[tuple[float, str]] = []
    plain: list[str] = []
    for key, value in attributes.items():
        if key == "srcset" or not value or not _LAZY.fullmatch(key):
            continue
        if _LESSER.search(key) or _OTHER.search(key):
            continue
        if "srcset" in key:
            sized.extend(_srcset(value))
        elif _IMAGE_SUFFIX.search(value) or ("/" in value and "src" in key and "{" not in value):
            plain.append(value.strip())
    return iter((*_largest_first(sized), *plain))


def _files_named(attributes: Attributes) -> Iterator[str]:
    """Yield the image files that attributes of any name hold."""
    for key, value in attributes.items():
        named = key.startswith("data-") and not _OTHER.search(key)
        if value and named and _IMAGE_SUFFIX.search(value) and "{" not in value:
            yield value.strip()


def _srcset(value: str | None) -> Iterator[tuple[float, str]]:
    """Yield the URLs of a ``srcset`` with their width or density; 1 if it has none."""
    for url, size in _SRCSET.findall(value or ""):
        yield float(size) if size.replace(".", "", 1).isdigit() else 1.0, url


def _largest_first(sized: Iterable[tuple[float, str]]) -> list[str]:
    return [url for _, url in sorted(sized, key=lambda item: -item[0])]


def _is_image(url: str | None, kind: str | None) -> bool:
    return (kind or "").startswith("image/") or bool(url and _IMAGE_SUFFIX.search(url))


def _given(attributes: Attributes, key: str) -> tuple[str, ...]:
    url = (attributes.get(key) or "").strip()
    return (url,) if url else ()


def _file_name(url: str) -> str:
    return "" if url.startswith("data:") else re.split(r"[?#]", url)[0].replace("\\", "/").rpartition("/")[2]


def _unique(urls: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(urls))
