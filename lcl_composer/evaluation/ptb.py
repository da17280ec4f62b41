"""Words as the Penn Treebank counts them, in the way of the tokenizer that caption scores are defined on.

COCO's scores (arXiv 1504.00325, section 4) are of words as Stanford's PTBTokenizer 3.4.1 gives them, in lower
case and without punctuation. Where Java is, pycocoevalcap's copy of that program makes them; elsewhere the
rules below do. They were written from what the program does with texts put to it, and are held to its output
on thousands of captions; texts full of code, links and markup may come out otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import regex

#: Abbreviations that keep their full stop wherever they stand.
_ABBREVIATIONS = r"""mr mrs ms dr prof sen rep gov gen capt lt col sgt rev hon pres maj cpl pvt adm
cmdr supt asst assoc messrs msgr st ste mt ft cf vs dept ave natl mfg adj adv drs insp treas govs sens
reps profs mlle mme atty attys sr jr esq al etc est tel ext univ assn bros co corp inc ltd plc cos jan
feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri blvd rd sq ct bldg calif fla
ariz colo conn dak ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo ala
intl seq ph\.d ph cont'd"""
#: Those that are words in lower case.
_CAPITAL_ABBREVIATIONS = "Miss Tex Mass Wash Ark Del Ill La Ore Pa"
#: Abbreviations before a number.
_COUNTED = "figs? nos? pp art ca op"
#: Words that begin a sentence, so that a single letter before is no initial.
_STARTERS = r"""About According Additionally After An A As At But Earlier He Her Here However If In It
Last Many More Mr\. Ms\. Now Once One Other Our She Since So Some Such That The Their Then There These
They This We What When While Yet You"""
#: One word in writing, two in the Treebank.
_SPLIT = "can|not gon|na got|ta wan|na gim|me lem|me 't|is 't|was more|'n"
_SUFFIXES = "d ll m re s ve"

_LETTER, _SIGN = r"[\p{L}\p{M}]", r"[\p{L}\p{M}\p{Nd}]"
_JOINED = rf"(?:\d*(?:[.,]\d+)+|{_SIGN}+)(?:[-‐‑_/]{_SIGN}+)*"
_APOSTROPHE, _END = "['’]", rf"(?!{_SIGN})"
_ATTRIBUTE = r"""\s+[a-z][\w:-]*(?:\s*=\s*(?:"[^"]*"|'[^']*'))?"""


def _any(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


def _patterns() -> Iterator[str]:
    """Yield what a token may be: group 1 is the token (else all), all of it its length where they compete."""
    for word in _SPLIT.split():
        yield "({}){}".format(*word.split("|")) + _END
    # Markup, links, names of accounts.
    yield rf"</?[a-z][a-z0-9]*(?:{_ATTRIBUTE})*\s*/?>|<!--.*?-->|&#\d+;"
    yield r"(?:https?|ftp)://[^\s<>\"]*[^\s<>\"'.,;:!?()\[\]{}]"
    yield rf"(?:[a-z0-9-]+\.)+(?:com|net|org|edu|gov)(?:/[^\s<>\"]*[\w/])?{_END}|www\.[a-z0-9-]+\.[a-z]+"
    yield r"[\w.%+-]+@[\w-]+(?:\.[\w-]+)*|@[a-z_]\w*|#\p{L}+"
    # Numbers.
    yield r"(?:\(\d{3}\)[ -]?|\d{3}[ .-])\d{3}[ .-]\d{4}"
    yield r"\d{1,4}[- ]\d{1,4}/\d{1,4}(?!\d)"
    yield r"[+-]?(?:\d*(?:[.:,]\d+)+|\d+)|(?-i:[A-Z]{1,2}\$)"
    # The word before a contraction, and what follows it.
    yield rf"({_LETTER}+?)n{_APOSTROPHE}t{_END}"
    yield rf"n{_APOSTROPHE}t{_END}"
    yield rf"({_JOINED}){_APOSTROPHE}{_any(_SUFFIXES)}{_END}"
    yield rf"{_APOSTROPHE}{_any(_SUFFIXES)}{_END}"
    # Words with an apostrophe of their own.
    yield rf"(?:[dlo]|(?-i:[A-HJ-XZ])){_APOSTROPHE}{_LETTER}{{2,}}"
    yield rf"{_LETTER}*[aeiou]{_APOSTROPHE}[aeiou]{_LETTER}*"
    yield rf"y{_APOSTROPHE}(?=\p{{L}})|ol{_APOSTROPHE}|{_APOSTROPHE}n(?:{_APOSTROPHE}|{_END})"
    yield rf"{_APOSTROPHE}(?:em|till?|cause|[2-9]0s){_END}"
    # Abbreviations, acronyms, initials.
    yield rf"{_any(_ABBREVIATIONS)}\.|(?-i:{_any(_CAPITAL_ABBREVIATIONS)})\."
    yield rf"({_any(_COUNTED)}\.)\s*\d"
    yield rf"(\p{{L}})\.\s+(?-i:{_any(_STARTERS)})(?:\s|$)"
    yield r"\p{L}(?:\.\p{L})*\.(?:-\p{L}+(?:\.\p{L}+)*\.?)?"
    yield r"(?-i:[A-Z]+(?:(?:&amp;|&)[A-Z]+)+)|c\+\+|[cf]#"
    # Words.
    yield _JOINED
    yield rf"{_LETTER}{_SIGN}*(?:\.{_LETTER}{_SIGN}*)+|(?:{_SIGN}|-)+\.(?:txt|html?|pdf|png|gif|jpe?g)\b"
    yield rf"{_LETTER}+[!?]{_LETTER}{_SIGN}*"
    # Smileys and punctuation.
    yield rf">?[:;=]['-]?[()\[\]|DP3@]{_END}|-_-|\^_\^|>_<"
    yield r"\.\.\.+|\. \. \.|-{2,}|[!?]+|``|''|\*+|_+|&(?:amp|lt|gt|quot|apos|nbsp);"
    yield r"[\x21-\uffff]"


#: Of those that match equally far the first one counts.
_TOKENS = [regex.compile(pattern, regex.IGNORECASE) for pattern in _patterns()]
#: How tokens are written that are not themselves; "" for what is taken away with the punctuation.
_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "£": "#", "€": "$", "₹": "", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "", "&apos;": "", "&nbsp;": "",
    **dict.fromkeys(["'", '"', "`", "''", "``", *"“”‘’‛«»‹›.?!,:-–—…;"], ""),
}  # fmt: skip
_TAKEN_AWAY = regex.compile(r"\.\.\.+|\. \. \.|-{2,}")
#: Most words of captions are these, and need no rule.
_PLAIN = regex.compile(r"([a-z]+)(?=[ \n][a-z]|$)")
_PLAIN_BUT = frozenset(word.replace("|", "") for word in _SPLIT.split())


def ptb_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, in lower case, without punctuation.

    Args:
        texts: Each on one line. As in Stanford's program, which reads one file of them all, whether a letter
            and a full stop at the end of a text are an initial depends on the word that the next one begins
            with.
    """
    whole, at = "\n".join(texts), 0
    words: list[list[str]] = [[]]
    while at < len(whole):
        if whole[at].isspace():
            if whole[at] == "\n":
                words.append([])
            at += 1
            continue
        plain = _PLAIN.match(whole, at)
        if plain and plain[1] not in _PLAIN_BUT:
            words[-1].append(plain[1])
            at = plain.end(1)
            continue
        token, at = _longest(whole, at)
        if word := _write(token):
            words[-1].append(word)
    return words[: len(texts)]


def _longest(text: str, at: int) -> tuple[str, int]:
    """The token at a place, and where the next one begins; a character of no kind is no token."""
    token, furthest, following = "", at, at + 1
    for pattern in _TOKENS:
        match = pattern.match(text, at)
        if match and match.end() > furthest:
            group = 1 if pattern.groups and match[1] is not None else 0
            token, furthest, following = match[group], match.end(), match.end(group)
    return token, following


def _write(token: str) -> str:
    """A token as the Treebank writes it; "" for punctuation."""
    if token in _WRITTEN:
        return _WRITTEN[token]
    if _TAKEN_AWAY.fullmatch(token):
        return ""
    if token[:1] == "’" and token[1:].lower() in _SUFFIXES.split():
        token = f"'{token[1:]}"
    for written, meant in (("(", "-lrb-"), (")", "-rrb-"), (" ", "\xa0"), ("&amp;", "&"), ("n’t", "n't")):
        token = token.replace(written, meant)
    return token.lower()
