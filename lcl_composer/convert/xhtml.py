"""XHTML -> HTML that says the same, since an HTML parser reads ``<title/>`` as the start of a title."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from html.entities import html5, name2codepoint
from pathlib import PurePosixPath
from xml.parsers import expat

_SUFFIXES = frozenset({".xhtml", ".xht"})
_DECLARED = re.compile(
    r"\s*<\?xml\b|<!DOCTYPE[^>]{0,100}//DTD\s+XHTML|<(?:\w+:)?html\b[^>]{0,500}w3\.org/1999/xhtml", re.I
)
#: How much of a page is searched for what it declares.
_HEAD = 4096

# fmt: off
_VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
})
# fmt: on
#: Their text is written for machines, and HTML has other rules of escaping in them.
_UNREAD = frozenset({"script", "style"})
#: XHTML's own DTD is not fetched; what pages need of it are the names of characters.
_CHARACTERS = "".join(f'<!ENTITY {name} "&#{code};">' for name, code in name2codepoint.items() if code > 127)

_NAMED = re.compile(r"&(?!amp;|lt;|gt;|quot;|apos;)[A-Za-z]")
_SPECIAL = re.compile("[&<>\"']")
_OPEN_AND_SHUT = re.compile(r"""<([a-zA-Z][\w:-]*)((?:\s[^<>]*[\s"'])?)/>""")
_PREFIXED = re.compile(r"(</?)(?:h|html|xhtml):(?=[a-z])")
_VOID_SHUT = re.compile(rf"<(?:{'|'.join(sorted(_VOID))})(?:\s[^<>]*)?/>", re.I)
#: What HTML has not or reads otherwise: CDATA, an entity's declaration, instructions, ``</br>``, prefixes.
_XML_ONLY = re.compile(r"<!\[CDATA\[|<!ENTITY|<\?(?!xml\s)|</br|</?[\w.-]+:", re.I)
_DOCTYPE = "<!DOCTYPE html>"


def is_xhtml(text: str, name: str) -> bool:
    """Say whether a page is XHTML: by the suffix of its file, or by what it declares."""
    return PurePosixPath(name).suffix.lower() in _SUFFIXES or _DECLARED.search(text[:_HEAD]) is not None


def xhtml_to_html(text: str) -> str:
    """Return an XHTML page as HTML: every element closed, prefixes gone, CDATA and entities as text.

    A page that is no well-formed XML, as many that say they are XHTML, stays HTML but for its elements
    that are closed where they open. One that HTML reads alike, as most pages of manuals, stays as it is.
    """
    if _is_html_too(text):
        return text if "<!doctype" in text[:_HEAD].lower() else _DOCTYPE + text
    try:
        return _Rewriter().rewrite(text)
    except (expat.ExpatError, ValueError):
        return _OPEN_AND_SHUT.sub(_open_and_shut, _PREFIXED.sub(r"\1", text))


def _is_html_too(text: str) -> bool:
    """Say whether only void elements are closed where they open, and nothing is XML's alone."""
    return text.count("/>") == len(_VOID_SHUT.findall(text)) and _XML_ONLY.search(text) is None


def _open_and_shut(found: re.Match[str]) -> str:
    name, attributes = found[1], found[2]
    return found[0] if name.lower() in _VOID else f"<{name}{attributes}></{name}>"


class _Rewriter:
    """Writes the events of an XML parser as HTML; no recursion, so that nesting may be deep."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._unread = 0
        self._named = False
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.ExternalEntityRefHandler = self._entity
        self._parser.SkippedEntityHandler = self._unknown
        self._parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_UNLESS_STANDALONE)
        self._parser.UseForeignDTD(True)

    def rewrite(self, text: str) -> str:
        """Return the page as HTML.

        Raises:
            expat.ExpatError: If it is not well-formed.
            ValueError: If it holds characters that cannot be encoded.
        """
        # The text is decoded already; what it says of its encoding no longer holds.
        self._named = _NAMED.search(text) is not None
        undeclared = re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff"), count=1)
        self._parser.Parse(undeclared.lstrip().encode(), True)
        return _DOCTYPE + "".join(self._out)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag, written = _local(name), ""
        for key, value in attributes.items():
            written += f' {_local(key)}="{escape(value) if _SPECIAL.search(value) else value}"'
        self._out.append(f"<{tag}{written}>")
        self._unread += tag in _UNREAD

    def _end(self, name: str) -> None:
        tag = _local(name)
        self._unread -= tag in _UNREAD
        if tag not in _VOID:
            self._out.append(f"</{tag}>")

    def _text(self, text: str) -> None:
        if not self._unread:
            self._out.append(escape(text, quote=False) if _SPECIAL.search(text) else text)

    def _unknown(self, name: str, is_parameter: bool) -> None:
        """Write a character whose name is not XHTML's but HTML's, or the name of none as it stands."""
        if not is_parameter:
            self._text(html5.get(f"{name};", f"&{name};"))

    def _entity(self, context: str | None, base: str | None, system: str | None, public: str | None) -> int:
        """Read the names of characters in place of a DTD (no context), and nothing for any other file."""
        if context is None and self._named:
            self._parser.ExternalEntityParserCreate(context).Parse(_CHARACTERS, True)
        return 1


@lru_cache(maxsize=1 << 10)
def _local(name: str) -> str:
    return name.rpartition(" ")[2].lower()
