"""Which text of a page is read, in which pieces, and what is cut."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from lcl_composer.convert.page_images import ImageReference
from lcl_composer.convert.web_page import Cut, TextRun, WebPage

PROSE = "<p>" + "word " * 40 + "</p>"


def text_of(page: str, name: str = "p.html") -> str:
    """The page's text as a document joins it, an image as its URL in brackets."""
    out = ""
    for part in WebPage(page, name).content():
        if isinstance(part, TextRun):
            out += (part.joint if out and not out.endswith("]") else "") + part.text
        elif isinstance(part, ImageReference):
            out += f"[{part.label}]"
    return out


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<p>one <x-term>two</x-term> <nobr>three</nobr> <blink>four</blink></p>", "one two three four"),
        ("<p>その<ruby>言葉<rp>（</rp><rt>ことば</rt><rp>）</rp></ruby>が</p>", "その言葉が"),
        ("<p>Donau&shy;dampf&#8203;schiff a&#8288;b \ufeffc d\u200ce</p>", "Donaudampfschiff ab c d\u200ce"),
        ("<p>a<wbr>b c<br>d</p>", "ab c d"),
        ("<p>up <button>Copy</button>to <svg><text>x</text></svg>date</p>", "up to date"),
        ("<div>a<div>b</div>c</div><ul><li>d<li>e</ul>", "a\n\nb\n\nc\n\nd\n\ne"),
        ("<details><summary>s</summary>d</details>", "s\n\nd"),
        ("<h2>Title<a class=headerlink href='#t'>¶</a></h2>", "Title"),
        ("<p>see <a href='#fn1'>[1]</a></p>", "see [1]"),
        ("<xmp>a</xmp><center>b</center>c", "a\n\nb\n\nc"),
    ],
)
def test_pieces_of_text(page, expected):
    assert text_of(page) == expected


HIDDEN = [
    "<p hidden>{}</p>",
    "<p style='color:red; DISPLAY : none'>{}</p>",
    "<span style='visibility:hidden'>{}</span>",
    "<span class='screen-reader-text'>{}</span>",
    "<template>{}</template>",
    "<dialog>{}</dialog>",
    "<i aria-hidden=true>{}</i>",
]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_text_is_cut(hidden):
    assert text_of(f"<body>{PROSE}{hidden.format('SECRET')}<p>end</p>").endswith("word\n\nend")


def test_a_decorative_link_keeps_its_picture():
    page = f"<a class=post-thumbnail aria-hidden=true><img src=p.png>text</a>{PROSE}"
    assert text_of(page).startswith("[p.png]word")


#: What the same words mean elsewhere.
LOOKS_LIKE_FURNITURE = [
    "<div class='wy-nav-content has-sidebar'>{}</div>",
    "<div class='no-sidebar'>{}</div>",
    "<div class='post category-cookie'>{}</div>",
    "<section class='menu-card'>{}</section>",
    "<div class='with-toc'>{}</div>",
    "<div id='sidebar'>{}</div>",  # a name that holds for the whole page holds for nothing
    "<nav>{}",
    "<footer>{}</footer>",
    "<div aria-hidden=true>{}</div>",
    "<div style='display:none'>{}</div>",
    "<pre>{}</pre>",
    "<aside>{}</aside>",
    "<menu>{}</menu>",
]


@pytest.mark.parametrize("around", LOOKS_LIKE_FURNITURE)
def test_no_guess_takes_the_page(around):
    page = f"<body>{around.format(f'<h1>Title</h1>{PROSE}<img src=p.png>{PROSE}')}</body>"
    text = text_of(page)
    assert text.startswith("Title")
    assert text.count("word") == 80
    assert "[p.png]" in text


def test_many_small_parts_of_a_common_name_are_the_page():
    cards = "".join(
        f"<div class=widget><p>a card about ship {i}</p><img src={i}.png></div>" for i in range(9)
    )
    assert text_of(f"<body>{cards}").count("card") == 9


def test_an_aside_with_prose_is_content_and_a_list_of_links_is_not():
    links = "<ul>" + "<li><a href=x.html>another page of this site</a>" * 9 + "</ul>"
    note = "<p>" + "note " * 20 + "</p>"
    page = f"<body>{PROSE}{PROSE}<div class=sidebar>{note}</div><div class=sidebar><h3>More</h3>{links}</div>"
    assert "note note" in text_of(page)
    assert "another" not in text_of(page)


MENU = "<ul>" + "<li><a href=x.html>Home and more</a>" * 5 + "</ul>"
SITES = {
    "Read the Docs": """<nav class=wy-nav-side>{menu}</nav><section class=wy-nav-content-wrap>
        <div class=wy-nav-content><div role=navigation>{menu}</div><main>{text}</main></div></section>""",
    "alabaster": """<div class=document><div class=body role=main>{text}</div></div>
        <div class=sphinxsidebar role=navigation>{menu}</div><div class=footer>©2022 Home and more</div>""",
    "WordPress": """<body class="single has-sidebar"><header class=site-header><a href=/>Home</a></header>
        <main><article class="post category-menu">{text}<footer>Home <a href=x>a</a></footer>
        </article></main><div id=secondary class=widget-area>{menu}</div>""",
    "Blogger": """<div id=header-wrapper><h1>Home</h1></div><div class="main section">{text}
        <div class=blog-pager>Home</div></div><div id=sidebar-wrapper>{menu}</div>""",
    "MediaWiki": """<div id=content class=mw-body role=main>{text}<div id=toc class=toc>{menu}</div>
        <span class=mw-editsection>[Home]</span></div><div id=mw-navigation>{menu}</div>""",
    "Doxygen": """<div id=top><div id=titlearea>Home<img src=logo.png></div></div>
        <div id=nav-path class=navpath>{menu}</div><div class=header>T</div><div>{text}</div>""",
    "javadoc": """<header role=banner><nav>{menu}</nav></header><main role=main>{text}</main>
        <footer role=contentinfo><nav>{menu}</nav></footer>""",
    "DocBook": """<div class=navheader>{menu}</div><div class=chapter><div class=toc>{menu}</div>{text}</div>
        <div class=navfooter>{menu}</div>""",
    "LaTeX2HTML": """<div class=navigation>{menu}</div><ul class=ChildLinks>{menu}</ul><hr>{text}""",
    "ASP.NET": "<form><div class=navbar>{menu}</div><table><tr><td>{text}</table></form>",
}


@pytest.mark.parametrize("site", SITES)
def test_pages_of_well_known_makers(site):
    text = f"<h1>Title</h1>{PROSE}<figure><img src=p.png><figcaption>Caption</figcaption></figure>{PROSE}"
    seen = text_of(SITES[site].format(menu=MENU, text=text))
    assert "Home" not in seen
    assert "[p.png]Caption" in seen
    assert seen.count("word") == 80
    assert "Title" in seen
    assert "logo.png" not in seen


def test_what_was_cut_is_told_by_reason():
    page = f"<body><nav><a href=x>one two</a><img src=logo.png></nav>{PROSE}<pre><code>a = 1</code></pre>"
    cuts = [part for part in WebPage(page, "p.html").content() if isinstance(part, Cut)]
    words: Counter[str] = Counter()
    for cut in cuts:
        words[cut.reason] += cut.words
    assert words == {"navigation": 2, "code listings": 2}
    assert [(cut.reason, cut.image.label) for cut in cuts if cut.image] == [("navigation", "logo.png")]


@pytest.mark.parametrize(
    "element", ["<div>", "<b>", "<ul><li>", "<span><p>", "<pre><span>", "<table><tr><td>"]
)
def test_deep_nesting_takes_no_time(element):
    start = time.process_time()
    assert text_of("<body>" + element * 30_000 + "deep") == "deep"
    assert time.process_time() - start < 8


MANY = "<i></i>" * 5000


@pytest.mark.parametrize(
    "before",
    [
        "<p><svg><path d='M0'/><use href='#x'/></svg>icon</p>" * 600,
        "<table>" + "<tr><td><font size=2><b>cell</td>" * 600 + "</table>",
        "<SCRIPT>'<div><div>'</SCRIPT><!-- <div> -->" * 600,
    ],
)
def test_a_long_page_is_read_as_a_short_one(before):
    after = (
        f"<script>x = LEAK</script><nav><a href=x>LEAK</a></nav><pre><code>LEAK</code></pre><h2>H</h2>{PROSE}"
    )
    text = text_of(f"<body>{MANY}{before}{after}<textarea>LEAK</textarea>")
    assert "LEAK" not in text
    assert "H\n\nword" in text


def test_a_picture_of_a_character_is_the_character():
    page = (
        f"<p>Well <img class='emoji wp-x' alt='😀' src=1f600.png> done <img class=emoji src=x.png></p>{PROSE}"
    )
    assert text_of(page).startswith("Well 😀 done[x.png]word")


@pytest.mark.parametrize("style", ["display:none;visibility:hidden;", "visibility: hidden"])
def test_a_picture_that_a_script_shows_is_not_hidden(style):
    image = f"<img data-cfsrc=p.png style='{style}'><noscript><img src=p.png></noscript>"
    assert text_of(f"<body>{PROSE}{image}<img src=plain.png style='{style}'>end").endswith("word[p.png]end")


def test_what_a_page_says_of_itself():
    page = WebPage("<html lang=de-AT><head><base href='../x/'></head><body>", "p.html")
    assert (page.language, page.base) == ("de-AT", "../x/")
