"""One policy for the encoding of every text."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcl_composer.convert.encoding import REPLACED, decode_html, decode_text, find_encoding, named_encoding
from lcl_composer.convert.images import Rejected
from lcl_composer.convert.report import ConversionReport

JAPANESE = "これは日本語の文章です。赤いカードが一枚あります。"
CHINESE = "这是一个中文句子，里面有一张红色卡片。"
TRADITIONAL = "這是一個中文句子，裡面有一張紅色卡片。"
KOREAN = "이것은 한국어 문장입니다. 빨간 카드 한 장."
RUSSIAN = "Это русская строка о красной карте."
THAI = "นี่คือประโยคภาษาไทยเกี่ยวกับการ์ดสีแดง"


def new_report() -> ConversionReport:
    return ConversionReport("test", "here", {})


def read(data: bytes) -> tuple[str, dict[str, int]]:
    report = new_report()
    return decode_text(data, "x", report), dict(report.mended)


def page(label: str, text: str, codec: str) -> bytes:
    return f'<html><head><meta charset="{label}"></head><body><p>{text}</p>'.encode(codec)


# A label as pages write it, a codec of Python that writes it, a text that only the right decoder reads.
NAMED = [
    ("Shift_JIS", "cp932", JAPANESE + "①㈱～"),
    ("x-sjis", "cp932", JAPANESE),
    ("windows-31j", "cp932", JAPANESE),
    ("EUC-JP", "euc_jp", JAPANESE),
    ("x-euc-jp", "euc_jis_2004", JAPANESE + "①"),
    ("iso-2022-jp", "iso2022_jp", JAPANESE),
    ("gb2312", "gbk", CHINESE + "朱镕基 €"[:4]),
    ("x-gbk", "gbk", CHINESE),
    ("gb18030", "gb18030", CHINESE + "𠀀"),
    ("big5", "big5", TRADITIONAL),
    ("Big5-HKSCS", "big5hkscs", TRADITIONAL + "㗎"),
    ("euc-kr", "cp949", KOREAN + "똠방각하"),
    ("ks_c_5601-1987", "cp949", KOREAN),
    ("windows-874", "cp874", THAI),
    ("tis-620", "cp874", THAI),
    ("cp1251", "cp1251", RUSSIAN),
    ("koi8-r", "koi8-r", RUSSIAN),
    ("iso-8859-5", "iso8859-5", RUSSIAN),
    ("cp866", "cp866", RUSSIAN),
    ("latin2", "iso8859-2", "Žluťoučký kůň"),
    ("iso-8859-1", "cp1252", "“café” – 5 €"),
    ("us-ascii", "cp1252", "“café”"),
    ("iso-8859-9", "cp1254", "kırmızı güneş €"),
    ("macintosh", "mac-roman", "café – “œuvre”"),
    ("windows-1255", "cp1255", "זה כרטיס אדום"),
    ("unicode-1-1-utf-8", "utf-8", RUSSIAN),
    ("latin1", "utf-8", "Un café"),
    ("gbk", "utf-8", CHINESE),
    ("utf-16", "utf-8", RUSSIAN),
    ("no-such-charset", "utf-8", RUSSIAN),
]


@pytest.mark.parametrize(("label", "codec", "text"), NAMED)
def test_a_page_reads_as_in_a_browser(label, codec, text):
    report = new_report()
    assert text in decode_html(page(label, text, codec), "x", report)
    assert not report.mended


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-8"])
@pytest.mark.parametrize("text", ["A red card, café", f"<p>{CHINESE}</p>\n", "plain"])
def test_unicode_needs_no_name_and_no_mark(codec, text):
    assert read(text.encode(codec)) == (text, {})
    big_endian = codecs.BOM_UTF16_BE + text.encode("utf-16-be")
    assert read(big_endian) == (text, {})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (f"{RUSSIAN}".encode() + b" \xff end", f"{RUSSIAN} \ufffd end"),
        ("Der Fluß fließt über".encode() + b" l\xc3", "Der Fluß fließt über l\ufffd"),
        (b"caf\xc3", "caf\ufffd"),
        (JAPANESE.encode()[:-2], JAPANESE[:-1] + "\ufffd"),
    ],
)
def test_utf8_with_a_stray_or_cut_byte_stays_utf8(data, text):
    assert read(data) == (text, {REPLACED: 1})


def test_a_bad_byte_leaves_a_named_encoding_as_it_is():
    report = new_report()
    text = decode_html(page("gbk", CHINESE, "gbk") + b"\xff<p>" + CHINESE.encode("gbk"), "p.html", report)
    assert text.count(CHINESE) == 2
    assert "\ufffd" in text
    assert report.named == {REPLACED: ["p.html"]}


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        ("Un café.", "cp1252", "windows-1252"),
        ("The “best” card – ever", "cp1252", "windows-1252"),
        (JAPANESE, "cp932", "shift_jis"),
        (JAPANESE, "euc_jp", "euc-jp"),
        (JAPANESE, "iso2022_jp", "iso-2022-jp"),
        (CHINESE, "gbk", "gb18030"),
        (TRADITIONAL, "big5", "big5"),
        (KOREAN, "cp949", "euc-kr"),
        (RUSSIAN, "cp1251", "windows-1251"),
        ("czerwona kartka, żółć", "cp1250", "windows-1250"),
    ],
)
def test_what_names_nothing_is_guessed_and_counted(text, codec, name):
    assert read(text.encode(codec)) == (text, {f"encoding guessed: {name}": 1})
    mislabelled = page("utf-8", text, codec)  # a page that says UTF-8 and is not
    assert text in decode_html(mislabelled, "x", new_report())


@pytest.mark.parametrize(
    ("label", "codec"), [("UTF-7", "utf-7"), ("hz-gb-2312", "hz"), ("iso-2022-kr", "iso2022_kr")]
)
def test_what_nobody_reads_is_refused_and_not_taken_for_ascii(label, codec):
    text = {"utf-7": RUSSIAN, "hz": CHINESE, "iso2022_kr": KOREAN}[codec]
    with pytest.raises(Rejected, match=f"encoding that is not read: {label.lower()}"):
        decode_html(page(label, text, codec), "x", new_report())
    assert "plain" in decode_html(page(label, "plain", "ascii"), "x", new_report())
    assert text in decode_html(page(label, text, "utf-8"), "x", new_report())


def test_a_text_in_pieces_is_judged_as_one():
    data = ("A" * 999 + RUSSIAN).encode("utf-16-le")
    pieces = [data[i : i + 101] for i in range(0, len(data), 101)]
    assert find_encoding(pieces) == ("utf-16-le", "")
    data = (RUSSIAN * 20).encode() + b"\xff"
    assert find_encoding([data[i : i + 7] for i in range(0, len(data), 7)]) == ("utf-8", "")


def test_where_a_page_may_name_its_encoding():
    assert named_encoding(b"<?xml version='1.0' encoding='EUC-JP'?><html>") == "EUC-JP"
    assert named_encoding(b"<META CONTENT='text/html;charset=koi8-r' HTTP-EQUIV='Content-Type'>") == "koi8-r"
    assert named_encoding(b"<!-- <meta charset=gbk> --><meta charset = big5 />") == "big5"
    assert named_encoding(b'<meta name="description" content="use charset=gbk">') == ""
    assert named_encoding(b"<meta charset='\xff'>") == "\ufffd"


@given(
    st.binary(max_size=60), st.sampled_from(["", "gbk", "utf-16", "hz-gb-2312", "x-user-defined", "\ufffd"])
)
def test_any_bytes_become_text(data, label):
    assert isinstance(decode_text(data, "x", new_report(), label), str)
