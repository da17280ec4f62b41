"""Make what a run needs and a generator can give: documents, a tokenizer, a labelled image set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lcl_composer.data.tokenizer import train_bpe
from lcl_composer.registry import generators
from lcl_composer.synthetic.shapes import DocumentGenerator, generate_documents

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig

#: Ids of a BPE trained on generated text. CLIP's 49,408 would outweigh a model small enough for such data.
_VOCAB_SIZE = 1024


def prepare(config: RunConfig) -> None:
    """Fill what is missing from ``data.*.generate``; do nothing for real data.

    Documents go to ``data.*.local``, a BPE trained on the training documents to ``tokenizer.path``, and a
    labelled image set to the folder of ``evaluation.probe``. One process a node should call this, before
    the others look; where several runs want the same, one makes it and the others wait.

    Raises:
        DataError: If a folder holds something that no generator made.
    """
    for stream in (config.data.train, config.data.eval):
        if stream is not None and stream.generate is not None and stream.local is not None:
            out = Path(stream.local, stream.split or "")
            with _one_at_a_time(out):
                generate_documents(generators.build(stream.generate.spec()), str(out))
    if config.data.train.generate is not None:
        generator: DocumentGenerator = generators.build(config.data.train.generate.spec())
        _prepare_tokenizer(config.tokenizer.spec(), generator)
        _prepare_probe(config.evaluation.get("probe"), generator)


def _one_at_a_time(path: Path) -> FileLock:
    """Return a lock beside what is to be made; the system releases it when its process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def _prepare_tokenizer(spec: dict[str, Any], generator: DocumentGenerator) -> None:
    """Train the BPE that the config names but that is not there yet."""
    if spec["name"] != "bpe":
        return
    with _one_at_a_time(path := Path(spec["path"])):
        if not path.exists():
            train_bpe(generator.texts(), _VOCAB_SIZE, spec["path"])


def _prepare_probe(probe: dict[str, Any] | None, generator: DocumentGenerator) -> None:
    """Write the probe's image folders, ``train`` and ``val`` side by side, where they are missing."""
    if probe is None:
        return
    with _one_at_a_time(folder := Path(probe["train"]).parent):
        if not Path(probe["train"]).exists():
            generator.write_probe(str(folder))
