"""XHTML -> HTML."""

from __future__ import annotations

import pytest

from lcl_composer.convert.page_images import ImageReference
from lcl_composer.convert.web_page import TextRun, WebPage
from lcl_composer.convert.xhtml import is_xhtml, xhtml_to_html

HEAD = '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml">'


def seen(page: str, name: str = "p.xhtml") -> list[str]:
    return [
        part.text if isinstance(part, TextRun) else part.label
        for part in WebPage(page, name).content()
        if isinstance(part, TextRun | ImageReference)
    ]


@pytest.mark.parametrize(
    "shut",
    ["<title/>", "<script src='x'/>", "<style/>", "<iframe src='x'/>", "<div class='nav'/>", "<textarea/>"],
)
@pytest.mark.parametrize("broken", ["", "<p>Fish & chips<br></p>"])
def test_an_element_closed_where_it_opens_swallows_nothing(shut, broken):
    page = f"{HEAD}<body>{shut}{broken}<p>The page</p><img src='p.png'/></body></html>"
    assert seen(page) == (["Fish & chips", "The page", "p.png"] if broken else ["The page", "p.png"])


def test_prefixes_entities_and_cdata():
    doctype = (
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">'
    )
    body = (
        "<h:p>caf&eacute;&nbsp;&#8212; &lt;b&gt; <![CDATA[A < B & C]]></h:p><h:img src='caf&eacute;.png'/>"
        "<svg xmlns='http://www.w3.org/2000/svg'><image xlink:href='cover.jpg'/></svg>"
    )
    spaces = "xmlns:h='http://www.w3.org/1999/xhtml' xmlns:xlink='http://www.w3.org/1999/xlink'"
    page = f"{doctype}<h:html {spaces}><h:body>{body}</h:body></h:html>"
    assert seen(page) == ["café — <b> A < B & C", "café.png", "cover.jpg"]


@pytest.mark.parametrize(
    ("body", "as_it_is"),
    [
        ("<p>a<br />b<img src='p.png' alt='1 &lt; 2' />&eacute;</p>", True),
        ("<?php echo 1 > 0 ?><p>text</p>", False),
        ("<p>one<br></br>two</p>", False),
        ("<p><a title='a > b' name='x'/>all of it</p>", False),
        ("<x:p xmlns:x='http://www.w3.org/1999/xhtml'>two</x:p>", False),
    ],
)
def test_a_page_stays_as_it_is_only_where_html_reads_it_alike(body, as_it_is, monkeypatch):
    page = f"{HEAD}<body>{body}</body></html>"
    found = seen(page)
    assert found
    assert (xhtml_to_html(page) == page) is as_it_is
    monkeypatch.setattr("lcl_composer.convert.xhtml._is_html_too", lambda text: False)
    assert seen(page) == found


def test_no_file_is_read_and_no_entity_explodes():
    outside = '<!DOCTYPE html [<!ENTITY x SYSTEM "file:///etc/passwd">]><html><body>a&x;b</body></html>'
    assert seen(outside) == ["ab"]
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 20}">' for i in range(1, 9))
    bomb = f'<!DOCTYPE html [<!ENTITY l0 "ha">{laughs}]><html><body><p>&l8;</p></body></html>'
    assert len(xhtml_to_html(bomb)) < 10_000


@pytest.mark.parametrize(
    ("page", "name", "expected"),
    [
        ("<html><body>", "p.xhtml", True),
        ("<html><body>", "p.html", False),
        ("<!doctype html><html lang=en>", "p.html", False),
        (HEAD, "p.html", True),
        ('<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x"><html>', "p.htm", True),
    ],
)
def test_what_is_xhtml(page, name, expected):
    assert is_xhtml(page, name) is expected


def test_html_keeps_its_own_rules():
    """In HTML ``<div/>`` opens, and an unquoted URL may end with a slash."""
    page = "<body>three words stay <a href=http://x/>link</a><div hidden/>gone"
    assert seen(page, "p.html") == ["three words stay link"]


def test_characters_that_only_html_names():
    doctype = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/xhtml1.dtd">'
    body = "<body><div/><p>&check; 5&dollar; &mdash; &x;</p></body>"
    assert seen(f"{doctype}<html xmlns='http://www.w3.org/1999/xhtml'>{body}</html>") == ["✓ 5$ — &x;"]
