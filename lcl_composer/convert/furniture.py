"""What of a web page is no content, by its elements, landmarks and well-known names.

A guess never takes the greater part of a page: what a name says is believed only of short lists and labels,
what a landmark says unless the page would be gone.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from selectolax.lexbor import LexborNode

#: A paragraph with as many words outside links is prose, whatever the element around it is called.
_PROSE_WORDS = 15
_NEARLY_ALL = 0.8

# fmt: off
_CONTROLS = frozenset({"button", "input", "select", "textarea", "datalist", "meter", "progress"})
_LANDMARK_ROLES = frozenset({"navigation", "menu", "menubar", "search", "toolbar", "dialog", "alertdialog"})
#: Elements that may be no content by their own name, and attributes by which any may be.
_TELLING = frozenset({
    *_CONTROLS, "aside", "dialog", "footer", "header", "math", "menu", "nav", "noscript", "pre", "rp", "rt",
    "rtc", "search", "svg",
})
_TELLING_ATTRIBUTES = frozenset({"aria-hidden", "hidden", "role", "style"})
_CODE_NAMES = re.compile(r"highlight|code|listing|program|screen|syntax|fragment|language-|brush|console")
_NAMED_BLOCKS = frozenset({
    "address", "aside", "center", "div", "dl", "li", "ol", "p", "section", "table", "td", "ul",
})
#: Classes and ids, whole and in lower case, that mean furniture in some pages and content in others.
_COMMON_NAMES = frozenset({
    "nav", "navbar", "navigation", "menu", "tabs", "toc", "toctree", "toctree-wrapper",
    "table-of-contents", "tableofcontents", "sidebar", "side-bar", "sidebars", "secondary", "widget",
    "widget-area", "breadcrumb", "breadcrumbs", "crumbs", "pagination", "pager", "paging", "related",
    "cookie", "post-footer", "entry-footer", "comment-respond",
})
#: Those that site generators and their themes give to menus and the like.
_MENU_NAMES = frozenset({
    "main-menu", "mainmenu", "main-nav", "mainnav", "main-navigation", "site-nav", "site-navigation",
    "sidenav", "side-nav", "topnav", "bottomnav", "subnav", "nav-links", "nav-menu", "nav-panel", "nav-path",
    "navpath", "nav_panel", "nav_table", "navrow", "navlinks", "navheader", "navfooter", "docnav",
    "prevnext", "navinextprevious", "post-navigation", "posts-navigation", "tabs2", "tabs3", "top-menu",
    "sidebar-wrapper", "sk-sidebar-wrapper", "sphinxsidebar", "wy-nav-side", "rst-versions", "md-sidebar",
    "bd-sidebar", "sidebar-drawer", "toc-drawer", "skiplink", "skip-link", "skip-links", "blog-pager",
    "page-numbers", "related-posts", "relatedposts", "jp-relatedposts", "sharedaddy", "share-buttons",
    "social-share", "addtoany_share_save_container", "mw-navigation", "mw-panel", "mw-head",
    "mw-jump-link", "jump-to-nav", "navbox", "vertical-navbox", "catlinks", "sitesub", "contentsub",
    "p-personal", "childlinks",
})
_HEADER_NAMES = frozenset({
    "site-header", "header-wrapper", "masthead", "titlearea", "md-header", "mobile-header",
})
_FOOTER_NAMES = frozenset({"footer", "site-footer", "page-footer", "footer-wrapper", "colophon", "md-footer"})
#: Names of what a reader never sees, or that can mean nothing else.
_UNSEEN_NAMES = frozenset({
    "screen-reader-text", "sr-only", "visually-hidden", "visuallyhidden", "mw-editsection", "printfooter",
    "assistive-text", "element-invisible", "screen-reader-only", "show-for-sr", "u-visually-hidden",
    "cookie-banner", "cookie-bar", "cookie-consent", "cookie-notice", "cookieconsent", "cookie-law-info-bar",
    "cc-window", "onetrust-banner-sdk", "onetrust-consent-sdk", "cybotcookiebotdialog",
})
#: Those of pictures that stand for a character in a line of text.
_SIGN_NAMES = frozenset({"emoji", "wp-smiley", "smiley", "smilies", "emoticon", "twemoji"})
# fmt: on
_ALL_NAMES = _COMMON_NAMES | _MENU_NAMES | _HEADER_NAMES | _FOOTER_NAMES | _UNSEEN_NAMES
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*(hidden|collapse)", re.I)


class Proof(Enum):
    """How sure it is that something is no content."""

    ELEMENT = auto()  # by what it is
    LANDMARK = auto()  # by what it says it is
    BANNER = auto()  # a header: a landmark, or the title of the page
    NAME = auto()  # by what it is called


@dataclass(slots=True)
class Region:
    """A part of the page that may be no content.

    Attributes:
        reason: What it is.
        proof: How sure that is.
        start: The first of the page's tokens in it.
        end: The token after its last one.
        images_stay: Only its text is no content.
    """

    reason: str
    proof: Proof
    start: int = 0
    end: int = 0
    images_stay: bool = False


class Place(NamedTuple):
    """What an element stands in.

    Attributes:
        in_main: In a ``main`` or ``article``.
        in_section: In an element that has headers and footers of its own.
        in_quote: In a quotation or a figure.
    """

    in_main: bool
    in_section: bool
    in_quote: bool


def may_be_region(tag: str, attributes: dict[str, str | None]) -> bool:
    """Say whether :func:`region_of` has to look at an element; it need not at most."""
    if tag in _TELLING or not _TELLING_ATTRIBUTES.isdisjoint(attributes):
        return True
    return bool(_known_names(attributes))


def _known_names(attributes: dict[str, str | None]) -> frozenset[str]:
    """The well-known names among an element's classes and its id."""
    names, name = _known_classes(attributes.get("class") or ""), attributes.get("id")
    return names | {name.lower()} if name and name.lower() in _ALL_NAMES else names


@lru_cache(maxsize=1 << 12)  # a site has few, and they stand on nearly every element
def _known_classes(classes: str) -> frozenset[str]:
    return _ALL_NAMES.intersection(classes.lower().split())


def region_of(tag: str, attributes: dict[str, str | None], node: LexborNode, place: Place) -> Region | None:
    """Return what an element is if it may be no content; its tokens are still to be told."""
    if attributes and (found := _hidden(attributes)):
        return found
    if tag in _CONTROLS:
        return Region("form controls", Proof.ELEMENT, images_stay=tag == "button")
    if tag in ("rt", "rp", "rtc"):
        return Region("ruby annotations", Proof.ELEMENT)
    if tag in ("svg", "math"):
        return Region("drawings and formulas", Proof.ELEMENT, images_stay=True)
    if tag == "noscript":
        return Region("noscript", Proof.ELEMENT, images_stay=True)
    if tag == "pre":
        return Region("code listings", Proof.ELEMENT if _is_code(node) else Proof.LANDMARK)
    return _landmark(tag, attributes, place) or _named(tag, attributes, place)


def sign_of(node: LexborNode) -> str:
    """Return the text that a picture stands for, as emoji are drawn; an empty string for every other."""
    attributes = node.attributes
    names = (attributes.get("class") or "").lower().split()
    return (attributes.get("alt") or "").strip() if _SIGN_NAMES.intersection(names) else ""


def _hidden(attributes: dict[str, str | None]) -> Region | None:
    style = attributes.get("style")
    if "hidden" in attributes or (style and _HIDDEN_STYLE.search(style)):
        return Region("hidden", Proof.LANDMARK)
    if attributes.get("aria-hidden") == "true":  # pictures in it are seen all the same
        return Region("hidden", Proof.LANDMARK, images_stay=True)
    return None


def _is_code(node: LexborNode) -> bool:
    parent = node.parent
    classes = [n.attributes.get("class") or "" for n in (node, parent) if n is not None]
    return (
        any(_CODE_NAMES.search(c.lower()) for c in classes) or node.css_first("code, kbd, samp") is not None
    )


def _landmark(tag: str, attributes: dict[str, str | None], place: Place) -> Region | None:
    role = (attributes.get("role") or "").lower()
    if tag in ("nav", "search") or role in _LANDMARK_ROLES:
        return Region("navigation", Proof.LANDMARK)
    if tag == "dialog":
        return Region("hidden", Proof.LANDMARK)
    if role == "banner" or (tag == "header" and not place.in_section):
        return Region("page header", Proof.BANNER)
    if role == "contentinfo" and not place.in_main:
        return Region("page footer", Proof.LANDMARK)
    if tag == "footer" and not place.in_quote:
        return Region("page footer", Proof.NAME if place.in_section else Proof.LANDMARK)
    if (tag == "aside" or role == "complementary") and not place.in_main:
        return Region("aside", Proof.NAME)
    return None


def _named(tag: str, attributes: dict[str, str | None], place: Place) -> Region | None:
    if tag in ("body", "html", "main", "article"):
        return None  # their names speak of the layout around them
    if tag == "menu":
        return Region("navigation", Proof.NAME)
    names = _known_names(attributes)
    if names & _UNSEEN_NAMES:
        return Region("hidden", Proof.LANDMARK)
    if tag not in _NAMED_BLOCKS:
        return None
    for known, reason in (
        (_MENU_NAMES, "navigation"),
        (_HEADER_NAMES, "page header"),
        (_FOOTER_NAMES, "page footer"),
    ):
        if names & known and not place.in_quote:
            return Region(reason, Proof.LANDMARK)
    if found := names & _COMMON_NAMES:
        return Region(f"named {min(found)}", Proof.NAME)
    return None


@dataclass(frozen=True)
class Page:
    """A page as one row of tokens, for judging parts of it.

    Attributes:
        prose: Words outside links before each token, and one more number for the end.
        images: Images before each token, and one more; those that are links to other pages do not count.
        edges: Tokens at which blocks begin or end.
        mains: Tokens at which a ``main`` or ``article`` begins.
        titles: Tokens at which an ``h1`` begins.
    """

    prose: Sequence[int]
    images: Sequence[int]
    edges: Sequence[int]
    mains: Sequence[int]
    titles: Sequence[int]

    def shares(self, regions: Sequence[Region]) -> tuple[float, float]:
        """Return the shares of the page's prose and of its images that regions hold together."""
        words = images = end = 0
        for region in regions:
            if region.start >= end:  # the others lie in one before
                words += self.prose[region.end] - self.prose[region.start]
                images += self.images[region.end] - self.images[region.start]
                end = region.end
        return words / max(1, self.prose[-1]), images / max(1, self.images[-1])


def no_content(regions: Sequence[Region], page: Page) -> list[Region]:
    """Return the regions that are to be left out, of all in the order in which they begin."""
    kept = [region for region in regions if _is_furniture(region, regions, page)]
    words, images = page.shares([region for region in kept if region.proof is Proof.NAME])
    if words >= 0.5 or images >= _NEARLY_ALL:
        return [region for region in kept if region.proof is not Proof.NAME]
    return kept


def _is_furniture(region: Region, regions: Sequence[Region], page: Page) -> bool:
    if region.proof is Proof.ELEMENT:
        return True
    words, images = page.shares([region])
    if region.proof is Proof.NAME:
        return max(words, images) < 0.5 and not _has_prose(region, page)
    if region.proof is Proof.BANNER and _is_title(region, regions, page):
        return False
    # A logo is often the only image, and a footer may be longer than a short page.
    return words < _NEARLY_ALL and (words < 0.5 or images < 0.5)


def _has_prose(region: Region, page: Page) -> bool:
    first, last = bisect_left(page.edges, region.start), bisect_right(page.edges, region.end)
    edges = (region.start, *page.edges[first:last], region.end)
    return any(page.prose[b] - page.prose[a] >= _PROSE_WORDS for a, b in pairwise(edges))


def _is_title(region: Region, regions: Sequence[Region], page: Page) -> bool:
    """Say whether a header holds the title of the page, and no menu, and no main part follows it."""
    if any(not region.start <= main < region.end for main in page.mains):
        return False
    menus = (r for r in regions if r.reason == "navigation" and region.start <= r.start < region.end)
    return any(region.start <= title < region.end for title in page.titles) and not any(menus)
