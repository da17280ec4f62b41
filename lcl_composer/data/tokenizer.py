"""Tokenizers: CLIP's BPE with LCL's three image tokens, and a small BPE trained on the data."""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import ftfy
import regex
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from lcl_composer.errors import DataError

START_OF_TEXT = "<start_of_text>"
END_OF_TEXT = "<end_of_text>"
IMAGE_PLACEHOLDER = "<img_placehold>"
START_OF_IMAGE = "<start_of_img>"
END_OF_IMAGE = "<end_of_img>"

#: In the order of their ids in the released vocabulary.
SPECIAL_TOKENS = (START_OF_TEXT, END_OF_TEXT, IMAGE_PLACEHOLDER, START_OF_IMAGE, END_OF_IMAGE)


class Tokenizer(Protocol):
    """What the token layout needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special tokens' included."""
        ...

    @property
    def start_of_text(self) -> int:
        """Id of ``<start_of_text>``."""
        ...

    @property
    def end_of_text(self) -> int:
        """Id of ``<end_of_text>``."""
        ...

    @property
    def image_placeholder(self) -> int:
        """Id of ``<img_placehold>``, the image slot."""
        ...

    @property
    def start_of_image(self) -> int:
        """Id of ``<start_of_img>``."""
        ...

    @property
    def end_of_image(self) -> int:
        """Id of ``<end_of_img>``."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with no special token added; a special token spelled out gets its id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        ...


def structural_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids that only the layout may place, never a text."""
    return frozenset(
        (
            tokenizer.start_of_text,
            tokenizer.end_of_text,
            tokenizer.image_placeholder,
            tokenizer.start_of_image,
            tokenizer.end_of_image,
        )
    )


class CLIPTokenizer:
    """CLIP's BPE (49,408 ids) with ``<img_placehold>``, ``<start_of_img>``, ``<end_of_img>``: 49,411 ids.

    Gives the ids of ``open_clip.tokenizer.SimpleTokenizer`` with those three as additional special tokens.
    Words are split by the same regular expression; the merges run in the Rust BPE of ``tokenizers``. A whole
    Rust pipeline would not be exact: it takes special tokens out before it splits words, and its regular
    expressions know another version of Unicode. The merges ship inside open_clip_torch, so that nothing is
    downloaded. Pickles as its class alone; each process loads the merges once.
    """

    vocab_size = 49411
    start_of_text = 49406
    end_of_text = 49407
    image_placeholder = 49408
    start_of_image = 49409
    end_of_image = 49410

    def __init__(self) -> None:
        words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self._words = regex.compile("|".join((*SPECIAL_TOKENS, words)), regex.IGNORECASE)
        alphabet = _byte_alphabet()
        self._bytes_as_text = dict(alphabet)
        merges = _read_merges()
        characters = [character for _, character in alphabet]
        names = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges)]
        vocabulary = {name: i for i, name in enumerate(names)}
        self._bpe = BPE(vocabulary, merges, end_of_word_suffix="</w>")
        self._ids_of_word = lru_cache(maxsize=1 << 16)(self._split_word)

    def __reduce__(self) -> tuple[type[CLIPTokenizer], tuple[()]]:
        return (CLIPTokenizer, ())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, cleaned as OpenCLIP cleans it and in lower case."""
        clean = _clean(text)
        words = _ASCII_WORDS if clean.isascii() and "<" not in clean else self._words
        return [i for word in words.findall(clean) for i in self._ids_of_word(word)]

    def _split_word(self, word: str) -> tuple[int, ...]:
        if word in SPECIAL_TOKENS:
            return (self.start_of_text + SPECIAL_TOKENS.index(word),)
        mapped = word.encode("utf-8").decode("latin-1").translate(self._bytes_as_text)
        return tuple(token.id for token in self._bpe.tokenize(mapped))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, words set apart by single blanks."""
        return b"".join(self._token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each id, a blank at a word's end."""
        as_byte = {character: bytes([byte]) for byte, character in self._bytes_as_text.items()}
        names = [self._bpe.id_to_token(i) or "" for i in range(self.start_of_text)]
        pieces = []
        for name in names:
            stem = name.removesuffix("</w>")
            pieces.append(b"".join(as_byte[c] for c in stem) + b" " * (stem != name))
        return [*pieces, *(token.encode() for token in SPECIAL_TOKENS)]


def _byte_alphabet() -> list[tuple[int, str]]:
    """Return ``(byte, character)`` in vocabulary order: GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return [(b, chr(b)) for b in printable] + [(b, chr(256 + i)) for i, b in enumerate(others)]


def _read_merges() -> list[tuple[str, str]]:
    """Read CLIP's merges from the installed open_clip package, without the ten seconds of importing it.

    Raises:
        DataError: If open_clip_torch is not installed or ships no merges.
    """
    spec = importlib.util.find_spec("open_clip")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    path = folder / "bpe_simple_vocab_16e6.txt.gz" if folder is not None else None
    if path is None or not path.is_file():
        raise DataError(
            "tokenizer clip: no merges file in the open_clip package; pip install open_clip_torch"
        )
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    # The first line is a header; CLIP's vocabulary leaves out the rarest of the merges in the file.
    count = CLIPTokenizer.start_of_text - 2 * 256
    pairs = (line.split() for line in lines[1 : 1 + count])
    return [(left, right) for left, right in pairs]


#: CLIP's words in lower-case ASCII without special tokens, faster.
_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
#: Characters of a line whose mended form is remembered.
_SHORT = 1 << 12
#: ASCII that ftfy and html.unescape leave alone (no control characters, no entities).
_PLAIN = re.compile(r"[\x20-\x25\x27-\x7e\t\n\r]*")


def _clean(text: str) -> str:
    """Return the text as OpenCLIP cleans it: encoding mended, entities resolved twice, lower case."""
    if _PLAIN.fullmatch(text) is None:
        text = "".join(_cleaned_lines(text))
    return " ".join(text.split()).lower()


def _cleaned_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text, mended; ftfy too goes line by line, and what is plain needs none of it.

    From the first line with a ``<`` on ftfy resolves no entities.
    """
    marked = False
    for line in _LINE.findall(text):
        if _PLAIN.fullmatch(line) is not None:
            yield line
        else:
            yield (_mended if len(line) <= _SHORT else _mended.__wrapped__)(line, marked)
        marked = marked or "<" in line


@lru_cache(maxsize=1 << 12)  # converters count the tokens of a long document, of its paragraphs and pieces
def _mended(line: str, marked: bool) -> str:
    fixed = ftfy.fix_text(line, unescape_html=False if marked else "auto")
    return html.unescape(html.unescape(fixed))


class BPETokenizer:
    """A byte-level BPE from a ``tokenizers`` JSON file, as :func:`train_bpe` writes it.

    Args:
        path: The JSON file.

    Raises:
        DataError: If the file is missing, not a tokenizer, or lacks one of the five special tokens.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(
                f"tokenizer bpe: no file {self.path}; train one with train_bpe or mend tokenizer.path"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception as error:  # tokenizers raises plain Exception
            raise DataError(f"tokenizer bpe: {self.path} is not a tokenizers JSON file: {error}") from error
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.start_of_text = self._special(START_OF_TEXT)
        self.end_of_text = self._special(END_OF_TEXT)
        self.image_placeholder = self._special(IMAGE_PLACEHOLDER)
        self.start_of_image = self._special(START_OF_IMAGE)
        self.end_of_image = self._special(END_OF_IMAGE)

    def _special(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise DataError(
                f"tokenizer bpe: {self.path} has no token {token}; it needs {', '.join(SPECIAL_TOKENS)}"
            )
        return index

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in lower case."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


@cache
def loaded_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer ``clip``, or that of a JSON file; loaded once a process.

    Raises:
        DataError: If the file cannot be read.
    """
    return CLIPTokenizer() if name == "clip" else BPETokenizer(name)


def train_bpe(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train a byte-level BPE and write it as a ``tokenizers`` JSON file; the same texts give the same file.

    Args:
        texts: Texts to train on.
        vocab_size: Ids wanted, the 5 special tokens and 256 bytes included; fewer come out when the texts
            hold too few different words.
        path: File to write; its folder is made.

    Raises:
        DataError: If ``vocab_size`` is below 261.
    """
    least = len(SPECIAL_TOKENS) + 256
    if vocab_size < least:
        raise DataError(
            f"tokenizer bpe: vocab_size = {vocab_size} holds no words; set it to more than {least}"
        )
    tokenizer: Any = tokenizers.Tokenizer(BPE())  # the stubs know no setters
    steps = [normalizers.NFC(), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportCallIssue]
    # The prefix blank makes a text's first word the same token as that word further on.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,  # pyright: ignore[reportCallIssue]
        special_tokens=list(SPECIAL_TOKENS),  # pyright: ignore[reportCallIssue]
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # pyright: ignore[reportCallIssue]
        show_progress=False,  # pyright: ignore[reportCallIssue]
    )
    tokenizer.train_from_iterator(texts, trainer)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
