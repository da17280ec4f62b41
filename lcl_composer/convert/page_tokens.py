"""A web page as one row of tokens in reading order: pieces of text, images, edges of blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

from selectolax.lexbor import LexborHTMLParser, LexborNode

from lcl_composer.convert.furniture import Page, Place, Proof, Region, may_be_region, region_of, sign_of
from lcl_composer.convert.page_images import IMAGE_TAGS, ImageReference, image_reference, without_copy
from lcl_composer.data.words import count_words

# fmt: off
#: Elements that stand on lines of their own; every other one, known or not, runs on in its line.
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog",
    "dir", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "frameset", "h1",
    "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "html", "legend", "li", "listing", "main",
    "menu", "nav", "ol", "p", "pre", "search", "section", "summary", "table", "tbody", "td", "tfoot",
    "th", "thead", "tr", "ul", "xmp",
})
#: Elements whose text is not for readers, or not shown where the element works.
_UNREAD = frozenset({
    "applet", "area", "audio", "canvas", "head", "iframe", "link", "meta", "noembed", "noframes", "param",
    "script", "style", "template", "title",
})
_SECTIONS = frozenset({"article", "aside", "blockquote", "figure", "main", "nav", "section"})
#: Elements that end by themselves, or have no end.
_ENDLESS = frozenset({
    "a", "area", "base", "br", "col", "colgroup", "dd", "dt", "embed", "hr", "img", "input", "li", "link",
    "meta", "option", "p", "param", "source", "tbody", "td", "tfoot", "th", "thead", "tr", "track", "wbr",
})
#: Elements that old pages leave open by the hundred, and of which none says what is in it.
_LOOKS = frozenset({
    "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "span", "strike", "strong", "tt", "u",
})
# fmt: on
_DRAWINGS = frozenset({"svg", "math"})
#: Elements in which a parser looks for nothing but their end.
_RAW = {
    tag: re.compile(f"</{tag}", re.I)
    for tag in ("iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp")
}
#: Elements that say nothing unless an attribute does.
_PLAIN = frozenset(
    {
        "b",
        "br",
        "code",
        "dd",
        "div",
        "dl",
        "dt",
        "em",
        "i",
        "li",
        "ol",
        "p",
        "small",
        "span",
        "strong",
        "sub",
        "sup",
        "table",
        "tbody",
        "td",
        "th",
        "thead",
        "tr",
        "tt",
        "u",
        "ul",
    }
)  # fmt: skip
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
#: Deeper elements are read as if they stood side by side, as in Chromium.
_MAX_DEPTH = 512
_FEW_TAGS = 8192
#: Characters of a text that is likely to be met again.
_SHORT = 48
_TAG = re.compile(r"<!--|<(/?)([a-z][\w:-]*)[^<>]*>", re.I)
#: Soft hyphens, zero-width spaces, word joiners and byte-order marks: marks for breaking lines, no text.
_INVISIBLE = str.maketrans("", "", "\u00ad\u200b\u2060\ufeff")
_IMAGE_LINK = re.compile(r"\.(jpe?g|png|gif|webp|svg|avif)($|[?#])", re.I)


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a block begins or ends, and whether a heading begins here."""

    heading: bool = False


Token = str | ImageReference | Edge

#: What a token may stand in that has a say in what is read.
_INSIDES = ("main", "section", "quote", "link", "noscript", "pre", "unread")
#: Elements that are one of these by their own name.
_HOLDERS = _SECTIONS | {"noscript", "pre"}
_IMAGES = ", ".join(sorted(IMAGE_TAGS))
_EDGE, _HEADING = Edge(), Edge(heading=True)


class PageTokens:
    """What stands on a page, and what of it may be no content.

    Args:
        html: The page.

    Attributes:
        language: What the page says it is in (``en-GB``), or an empty string.
        base: What relative URLs start from, or an empty string.
        row: The tokens in reading order.
        words: The words in each of them.
        regions: Parts that may be no content, in the order in which they begin.
    """

    def __init__(self, html: str) -> None:
        parser = LexborHTMLParser(_flattened(html))
        root, base = parser.root, parser.css_first("base[href]")
        attributes = root.attributes if root is not None else {}
        self.language = (attributes.get("lang") or attributes.get("xml:lang") or "").strip()
        self.base = ((base.attributes.get("href") or "") if base is not None else "").strip()
        self.row: list[Token] = []
        self.words: list[int] = []
        self.regions: list[Region] = []
        self._prose: list[int] = []
        self._images: list[int] = []
        self._mains: list[int] = []
        self._titles: list[int] = []
        self._inside: dict[str, int] = dict.fromkeys(_INSIDES, 0)
        if parser.body is not None:
            self._read(parser.body)

    def page(self) -> Page:
        """Return what is needed to judge the regions."""
        edges = [i for i, token in enumerate(self.row) if isinstance(token, Edge)]
        prose, images = (list(accumulate(values, initial=0)) for values in (self._prose, self._images))
        return Page(prose, images, edges, self._mains, self._titles)

    def _read(self, root: LexborNode) -> None:
        """Read a tree with a stack of our own: a page may be nested deeper than Python's."""
        stack: list[LexborNode | Region | Edge | str] = [root]
        while stack:
            item = stack.pop()
            if isinstance(item, LexborNode):
                if item.is_text_node:
                    self._text(item.text_content or "")
                elif item.is_element_node and not _is_unread(item, tag := item.tag or ""):
                    stack.extend(self._enter(item, tag))
                    if tag == "pre" and self._inside["unread"] and item.css_first(_IMAGES) is None:
                        self._text(item.text(separator="\n"))  # in coloured code each sign is an element
                    elif tag not in IMAGE_TAGS or not self._image(item, tag):
                        stack.extend(reversed(list(item.iter(include_text=True))))
            elif isinstance(item, str):
                self._inside[item] -= 1
            elif isinstance(item, Edge):
                self._edge(item)
            else:
                item.end = len(self.row)

    def _enter(self, node: LexborNode, tag: str) -> list[Region | Edge | str]:
        """Note that an element begins; return what is to be done at its end, last thing first."""
        attributes = node.attributes
        leave: list[Region | Edge | str] = []
        if tag in _BLOCKS:
            self._edge(_HEADING if tag in _HEADINGS else _EDGE)
            leave.append(_EDGE)
        elif tag == "br":
            self._add(" ")
        if not attributes and tag in _PLAIN:
            return leave
        inside = self._inside
        region = None
        if may_be_region(tag, attributes) and not inside["pre"]:
            place = Place(inside["main"] > 0, inside["section"] > 0, inside["quote"] > 0)
            region = region_of(tag, attributes, node, place)
            if tag in IMAGE_TAGS and (image := image_reference(node)) is not None and image.lazy:
                region = None  # the script that loads it shows it
        if region is not None:
            region.start = len(self.row)
            self.regions.append(region)
            leave.append(region)
        is_main = tag in ("main", "article") or attributes.get("role") in ("main", "article")
        if is_main:
            self._mains.append(len(self.row))
        elif tag == "h1":
            self._titles.append(len(self.row))
        if tag == "a" and not _IMAGE_LINK.search(attributes.get("href") or ""):
            inside["link"] += 1
            leave.append("link")
        if not (is_main or region is not None or tag in _HOLDERS):
            return leave
        for name, holds in (
            ("main", is_main),
            ("section", is_main or tag in _SECTIONS),
            ("quote", tag in ("blockquote", "figure")),
            ("noscript", tag == "noscript"),
            ("pre", tag == "pre"),
            ("unread", region is not None and region.proof is Proof.ELEMENT),
        ):
            if holds:
                inside[name] += 1
                leave.append(name)
        return leave

    def _edge(self, edge: Edge) -> None:
        if not self.row or self.row[-1] is not edge:  # two of a kind are one
            self._add(edge)

    def _text(self, text: str) -> None:
        if text.isspace() and self.row and isinstance(self.row[-1], Edge):
            return
        if not text.isascii():
            text = text.translate(_INVISIBLE)
        self._add(text, _words(text) if len(text) <= _SHORT else count_words(text))

    def _image(self, node: LexborNode, tag: str) -> bool:
        """Add the image that an element shows; say whether nothing else is in the element."""
        image = image_reference(node)
        if image is None:
            return tag in ("embed", "video")
        if sign := sign_of(node):
            self.regions.append(Region("pictures of signs", Proof.ELEMENT, len(self.row), len(self.row) + 1))
            self._add(image)
            self._text(sign)
            return True
        if self._inside["noscript"]:
            image = replace(image, copy=True)
        before = next((i for i in reversed(range(len(self.row))) if not _is_gap(self.row[i])), None)
        last = self.row[before] if before is not None else None
        if before is not None and isinstance(last, ImageReference) and (one := without_copy(last, image)):
            self.row[before] = one
        else:
            self._add(image)
        return True

    def _add(self, token: Token, words: int = 0) -> None:
        content = not (self._inside["unread"] or self._inside["link"])
        self.row.append(token)
        self.words.append(words)
        self._prose.append(words if content else 0)
        self._images.append(int(content and isinstance(token, ImageReference)))


@lru_cache(maxsize=1 << 14)  # the pages of a site have the same menus and signs
def _words(text: str) -> int:
    return count_words(text)


def _is_gap(token: Token) -> bool:
    return isinstance(token, Edge) or (isinstance(token, str) and not token.strip())


def _is_unread(node: LexborNode, tag: str) -> bool:
    """Say whether an element holds nothing for readers, like the sign that links to its own heading."""
    if tag != "a" or not (node.attributes.get("href") or "").startswith("#"):
        return tag in _UNREAD
    return not any(map(str.isalnum, node.text())) and node.css_first("img, picture, svg") is None


def _flattened(html: str) -> str:
    """Return a page whose elements are nested less deeply: a parser's time grows with depth times length."""
    if html.count("<") < _FEW_TAGS:
        return html
    flattener, pieces, at = _Flattener(), [], 0
    while (found := _TAG.search(html, at)) is not None:
        end = _end_of_raw(html, found)
        pieces += [html[at : found.start()], flattener.written(found), html[found.end() : end]]
        at = end
    return "".join((*pieces, html[at:]))


def _end_of_raw(html: str, found: re.Match[str]) -> int:
    """Return where the next tag may begin: behind this one, or at the end of a comment or a script."""
    if found[2] is None:
        place = html.find("-->", found.end())
        return place if place >= 0 else len(html)
    raw = None if found[1] else _RAW.get(found[2].lower())
    if raw is None:
        return found.end()
    end = raw.search(html, found.end())
    return end.start() if end is not None else len(html)


class _Flattener:
    """Follows how deep the elements of a page are nested.

    Those that only say how text looks are counted apart: a page that leaves five hundred of them open keeps
    its menus, listings and headings.
    """

    def __init__(self) -> None:
        self._depths = {True: 0, False: 0}
        self._drawing = False

    def written(self, found: re.Match[str]) -> str:
        """Return what is to stand in place of a tag."""
        tag, ends, shut = (found[2] or "").lower(), bool(found[1]), found[0].endswith("/>")
        if not tag or tag in _ENDLESS or tag in _RAW:
            return found[0]
        if tag in _BLOCKS:
            self._drawing = False  # it ends a drawing, also one that is not closed
        elif shut and (self._drawing or tag in _DRAWINGS):  # elsewhere the slash means nothing
            return found[0]
        elif tag in _DRAWINGS:
            self._drawing = not ends
        looks = tag in _LOOKS
        depth = self._depths[looks] = max(0, self._depths[looks] + (-1 if ends else 1))
        if depth + ends <= _MAX_DEPTH:
            return found[0]
        return "<hr>" if tag in _BLOCKS else ""
