"""The tokenizer of a pretrained language model, with the tokens that images need added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lcl_composer.data.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, START_OF_TEXT
from lcl_composer.errors import DataError, one_line

#: How the files of tokenizers are called in a folder that ``save_pretrained`` or a hub made.
_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")


def _missing(pretrained: str) -> str:
    """What a folder lacks, which transformers says in other words or not at all; "" for nothing."""
    folder = Path(pretrained)
    if not folder.is_dir():
        is_path = pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1
        return "no such folder" if is_path else ""
    if not any(any(folder.glob(name)) for name in _FILES):
        return "holds no tokenizer (tokenizer.json, vocab.txt or the like); copy that of the model into it"
    return ""


class TransformersTokenizer:
    """A tokenizer of transformers, and the structural tokens that it lacks.

    Its own tokens of beginning and end serve as ``<start_of_text>`` and ``<end_of_text>``, as its language
    model knows them; GPT-2 and OPT have one for both, which the layout keeps apart by place, and BERT calls
    them ``[CLS]`` and ``[SEP]``. What is missing gets the ids after its last.

    Args:
        pretrained: A hub name or a folder, mostly that of ``model.language_model.pretrained``.

    Raises:
        DataError: If there is no such tokenizer, a folder holds none, or it has no Rust form.
    """

    def __init__(self, pretrained: str) -> None:
        from transformers import AutoTokenizer

        if problem := _missing(pretrained):
            raise DataError(f"tokenizer transformers: cannot load {pretrained!r}: {problem}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(pretrained, trust_remote_code=False)
        except Exception as error:  # each kind refuses in its own way
            raise DataError(
                f"tokenizer transformers: cannot load {pretrained!r}: {one_line(error)}"
            ) from error
        if not tokenizer.is_fast:
            raise DataError(
                f"tokenizer transformers: {pretrained!r} has no tokenizer.json and cannot be made into one"
            )
        own = {
            START_OF_TEXT: tokenizer.bos_token or tokenizer.cls_token,
            END_OF_TEXT: tokenizer.eos_token or tokenizer.sep_token,
        }
        names = [own.get(token) or token for token in SPECIAL_TOKENS]
        tokenizer.add_tokens(names, special_tokens=True)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        ids = [vocabulary[name] for name in names]
        self.start_of_text, self.end_of_text = ids[:2]
        self.image_placeholder, self.start_of_image, self.end_of_image = ids[2:]

    @property
    def definition(self) -> str:
        """All that decides its ids, as JSON."""
        return self._backend.to_str()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, as the language model was trained on them."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        return self._backend.decode(list(ids), skip_special_tokens=False)
