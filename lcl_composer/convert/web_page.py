"""The content of a web page in reading order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from selectolax.lexbor import LexborHTMLParser, LexborNode

from lcl_composer.convert.text import one_line

# fmt: off
#: Elements that hold no prose: code, controls, menus, embedded things.
_SKIPPED = frozenset({
    "audio", "button", "canvas", "dialog", "embed", "footer", "head", "iframe", "input", "map", "math", "nav",
    "noscript", "object", "pre", "script", "select", "style", "svg", "template", "textarea", "video",
})
_SKIPPED_ROLES = frozenset({
    "banner", "contentinfo", "dialog", "menu", "menubar", "navigation", "search", "toolbar",
})
#: Words of a class name, or whole ids, that say what is not content.
_SKIPPED_CLASSES = frozenset({
    "breadcrumb", "breadcrumbs", "cookie", "footer", "headerlink", "menu", "nav", "navbar", "navfooter",
    "navheader", "navigation", "pagination", "sidebar", "sidenav", "skiplink", "toc", "toctree",
})
_INLINE = frozenset({
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "br", "cite", "code", "data", "del", "dfn", "em",
    "font", "i", "img", "ins", "kbd", "label", "mark", "picture", "q", "s", "samp", "small", "source", "span",
    "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
})
# fmt: on
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An ``<img>`` in its place among the text; ``src`` is empty if it names no file."""

    src: str


class Heading(str):
    """A block of text that is a heading."""


def page_content(html: str) -> Iterator[str | ImageReference]:
    """Yield the page's blocks of text, white space collapsed, and its images, in reading order.

    Left out: navigation, page headers and footers, menus, scripts, styles, forms, code listings, and
    what is hidden.
    """
    body = LexborHTMLParser(html).body
    words: list[str] = []
    in_heading = False
    for event in _walk(body) if body is not None else ():
        if isinstance(event, str):
            words.append(event)
            continue
        if event is not None and event.tag != "img":
            in_heading = in_heading or event.tag in _HEADINGS
            continue  # an inline element changes nothing
        if text := one_line("".join(words)):
            yield Heading(text) if in_heading else text
        words.clear()
        if event is None:
            in_heading = False
        else:
            yield ImageReference((event.attributes.get("src") or "").strip())


def page_language(html: str) -> str:
    """Return the language that the page says it is in (``en-GB``), or an empty string."""
    root = LexborHTMLParser(html).root
    return ((root.attributes.get("lang") or root.attributes.get("xml:lang") or "") if root else "").strip()


def _walk(root: LexborNode) -> Iterator[str | LexborNode | None]:
    """Yield text as it stands, elements as they open, and None at the edges of blocks.

    With a stack of our own: a page may be nested deeper than Python's.
    """
    stack: list[LexborNode | None] = [root]
    while stack:
        node = stack.pop()
        if node is None:
            yield None
        elif node.is_text_node:
            yield node.text_content or ""
        elif node.is_element_node and not _is_skipped(node):
            if node.tag not in _INLINE:
                yield None
                stack.append(None)
            yield " " if node.tag == "br" else node
            stack.extend(reversed(list(node.iter(include_text=True))))


def _is_skipped(node: LexborNode) -> bool:
    tag, attributes = node.tag, node.attributes
    if tag in _SKIPPED or (attributes.get("role") or "") in _SKIPPED_ROLES:
        return True
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return True
    if tag == "header":  # an article's header is its title, a page's its menu
        return node.parent is not None and node.parent.tag == "body"
    if tag in ("body", "article", "main", "html"):
        return False  # their classes speak of the layout around them
    names = set(re.split(r"[\s_-]+", (attributes.get("class") or "").lower()))
    return bool(names & _SKIPPED_CLASSES) or (attributes.get("id") or "").lower() in _SKIPPED_CLASSES
