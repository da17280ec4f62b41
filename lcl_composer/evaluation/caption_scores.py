"""BLEU, CIDEr, ROUGE-L and METEOR of captions, by pycocoevalcap."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.ptb import ptb_words

log = logging.getLogger(__name__)

#: In the order of tables; all but METEOR are Python.
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr", "ROUGE-L", "METEOR")
#: Which tokenizer made the words, as results say it.
STANFORD, PLAIN = "PTBTokenizer 3.4.1 (Java)", "PTB rules in Python"


def check_scorers() -> None:
    """Raise ConfigError if pycocoevalcap is not installed."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ConfigError("captions are scored by pycocoevalcap; pip install 'lcl-composer[transfer]'")


def has_java() -> bool:
    """Whether a Java virtual machine is on the path."""
    return shutil.which("java") is not None


@dataclass(frozen=True)
class Words:
    """Captions as words set apart by single blanks.

    Attributes:
        captions: What was written about each of N images.
        references: What people wrote about each, one or more.
        tokenizer: What made the words.
    """

    captions: Sequence[str]
    references: Sequence[Sequence[str]]
    tokenizer: str

    @property
    def speak(self) -> bool:
        """Whether any reference has a word; marks and signs are none."""
        return any(text for texts in self.references for text in texts)

    def part(self, numbers: Iterable[int]) -> Words:
        """Some of the images."""
        numbers = list(numbers)
        captions = [self.captions[n] for n in numbers]
        return Words(captions, [self.references[n] for n in numbers], self.tokenizer)

    def turned(self) -> Words:
        """Each caption with the references of the next image: what is said whatever is seen."""
        return Words(self.captions, [*self.references[1:], *self.references[:1]], self.tokenizer)


@dataclass(frozen=True)
class Scores:
    """What captions are worth.

    Attributes:
        values: By name; METEOR is None where it was not measured.
        each: CIDEr and ROUGE-L of each image, whose means the values are.
    """

    values: dict[str, float | None]
    each: dict[str, list[float]] = field(default_factory=dict)


def to_words(captions: Sequence[str], references: Sequence[Sequence[str]], java: bool | None = None) -> Words:
    """Tokenize captions and references alike.

    Args:
        captions: One an image; "" where nothing was written.
        references: One or more an image.
        java: Whether Stanford's program makes the words, else the rules of ``ptb.py``; None: where Java is.

    Raises:
        DataError: If an image has no reference.
    """
    for number, texts in enumerate(references):
        if not texts:
            raise DataError(f"image {number} of {len(references)} has no caption to compare with")
    texts = [" ".join(text.split()) for text in [*captions, *(t for several in references for t in several)]]
    java = has_java() if java is None else java
    lines, tokenizer = _stanford_lines(texts) if java else (None, PLAIN)
    line = iter(lines or [" ".join(words) for words in ptb_words(texts)])
    return Words([next(line) for _ in captions], [[next(line) for _ in r] for r in references], tokenizer)


def _stanford_lines(texts: Sequence[str]) -> tuple[list[str] | None, str]:
    """The words of each text by pycocoevalcap's copy of PTBTokenizer, and who made them; None if it fails.

    Its own wrapper writes into the folder of the package, and takes a line for each end of line that Java
    knows; the program and the options are the same.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer  # pyright: ignore[reportMissingTypeStubs]

    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    text = "".join(f"{line}\n" for line in texts)
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input=text.encode(), capture_output=True, check=False
    )
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(lines) != len(texts):
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["lines are missing"]
        log.warning("PTBTokenizer failed (%s); captions are tokenized by rules in Python", reason[0])
        return None, PLAIN
    taken = {"", *ptbtokenizer.PUNCTUATIONS}
    return [" ".join(w for w in line.split(" ") if w not in taken) for line in lines], STANFORD


def score(words: Words, meteor: bool = True) -> Scores:
    """Score captions against their references.

    BLEU is that of the corpus. CIDEr (arXiv 1411.5726, as CIDEr-D without stems) weighs words by how few of
    these images have them: of one image it is 0. ROUGE-L and METEOR take the best reference.

    Args:
        words: Of one image or more.
        meteor: Whether to measure METEOR too, which is a Java program of some seconds.

    Raises:
        DataError: If no reference has a word.
    """
    from pycocoevalcap.bleu.bleu import Bleu  # pyright: ignore[reportMissingTypeStubs]
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingTypeStubs]
    from pycocoevalcap.rouge.rouge import Rouge  # pyright: ignore[reportMissingTypeStubs]

    if not words.speak:
        raise DataError(f"captions: of {len(words.references)} images none has a reference with a word in it")
    references = {number: list(texts) for number, texts in enumerate(words.references)}
    captions = {number: [text] for number, text in enumerate(words.captions)}
    bleu: Any = Bleu(4).compute_score(references, captions, verbose=0)[0]
    values: dict[str, float | None] = {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, 1)}
    each = {}
    for name, scorer in (("CIDEr", Cider()), ("ROUGE-L", Rouge())):
        mean, of_images = scorer.compute_score(references, captions)
        values[name], each[name] = float(mean), [float(value) for value in of_images]
    values["METEOR"] = _meteor(references, captions) if meteor and has_java() else None
    return Scores(values, each)


def _meteor(references: dict[int, list[str]], captions: dict[int, list[str]]) -> float | None:
    """METEOR 1.5; None where its program fails."""
    from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingTypeStubs]

    # Its lines are fields between these bars.
    plain = {n: [text.replace("|||", "") for text in texts] for n, texts in references.items()}
    scorer = Meteor()
    try:
        return float(scorer.compute_score(plain, captions)[0])
    except (OSError, ValueError) as error:
        log.warning("METEOR failed (%s) and is left out", error)
        return None
    finally:
        if scorer.lock.locked():  # after a failure; its end would wait for the lock for ever
            scorer.lock.release()
