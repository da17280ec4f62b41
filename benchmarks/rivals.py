"""Loaders that do what the authors' do, to measure ours against: OpenCLIP's pipeline, and MMC4 from a zip.

``pairs_loader`` is OpenCLIP's webdataset pipeline. ``DocumentsLoader`` reads MMC4 as released code does:
lines of JSON from a zip, images from a folder one file each, texts through OpenCLIP's tokenizer, padded.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from PIL import Image as PILImage

from lcl_composer.data.document import Document, Image, Text

IMAGE_SIZE = 224
TOKENS_PER_IMAGE = 49
_SPECIAL = {"<img>": 49408, "<start>": 49409, "<end>": 49410}


def write_tar(documents: Sequence[Document], path: Path) -> None:
    """Write pairs as img2dataset does."""
    with tarfile.open(path, "w") as tar:
        for number, document in enumerate(documents):
            caption = next(s.text for s in document.segments if isinstance(s, Text))
            parts = {"jpg": document.images[0].data, "txt": caption.encode(), "json": b"{}"}
            for ending, data in parts.items():
                entry = tarfile.TarInfo(f"{number:09}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def write_mmc4(documents: Sequence[Document], folder: Path) -> None:
    """Write documents as an MMC4 shard and a folder of images."""
    (folder / "images").mkdir()
    lines = []
    for document in documents:
        texts = [s.text for s in document.segments if isinstance(s, Text)]
        infos, at = [], 0
        for segment in document.segments:
            if isinstance(segment, Text):
                at += 1
                continue
            name = f"{document.id}-{len(infos)}.jpg"
            (folder / "images" / name).write_bytes(segment.data)
            infos.append({"image_name": name, "matched_text_index": at, "matched_sim": 0.3})
        lines.append(json.dumps({"text_list": texts, "image_info": infos}))
    with zipfile.ZipFile(folder / "docs_shard_0_v2.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docs_shard_0_v2.jsonl", "\n".join(lines))


def pairs_loader(tar: Path, transform: Any, tokenizer: Any, batch_size: int) -> Any:
    """OpenCLIP's pipeline for training, without the shuffle buffer."""
    return wds.DataPipeline(  # pyright: ignore[reportAttributeAccessIssue]
        wds.SimpleShardList([str(tar)]),  # pyright: ignore[reportAttributeAccessIssue]
        wds.tarfile_to_samples(),  # pyright: ignore[reportAttributeAccessIssue]
        wds.decode("pilrgb"),  # pyright: ignore[reportAttributeAccessIssue]
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),  # pyright: ignore[reportAttributeAccessIssue]
        wds.map_dict(image=transform, text=lambda text: tokenizer(text)[0]),  # pyright: ignore
        wds.to_tuple("image", "text"),  # pyright: ignore[reportAttributeAccessIssue]
        wds.batched(batch_size, partial=False),  # pyright: ignore[reportAttributeAccessIssue]
    )


class DocumentsLoader:
    """Documents of an MMC4 shard in batches, padded to ``max_tokens``.

    Args:
        folder: Of ``write_mmc4``.
        transform: PIL image to float tensor.
        encode: Text to token ids.
        max_tokens: Length of a sequence.
        max_images: Images of a document, drawn at random if it has more.
        batch_size: Documents a batch.
    """

    def __init__(
        self, folder: Path, transform: Any, encode: Any, max_tokens: int, max_images: int, batch_size: int
    ) -> None:
        self.folder, self.transform, self.encode = folder, transform, encode
        self.max_tokens, self.max_images, self.batch_size = max_tokens, max_images, batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images [I, 3, H, W] and tokens [D, max_tokens]."""
        with zipfile.ZipFile(self.folder / "docs_shard_0_v2.jsonl.zip") as archive:
            lines = archive.read("docs_shard_0_v2.jsonl").decode().splitlines()
        samples = []
        for line in lines:
            samples.append(self._sample(json.loads(line)))
            if len(samples) == self.batch_size:
                yield torch.cat([s[0] for s in samples]), torch.stack([s[1] for s in samples])
                samples = []

    def _sample(self, info: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [i for i in info["image_info"] if i["matched_sim"] >= 0.24]
        chosen = sorted(
            random.sample(chosen, min(self.max_images, len(chosen))), key=lambda i: i["matched_text_index"]
        )
        images, before = [], {}
        for image in chosen:
            picture = PILImage.open(self.folder / "images" / image["image_name"]).convert("RGB")
            images.append(self.transform(picture))
            before.setdefault(image["matched_text_index"], []).append(random.random() < 0.5)
        slots = [_SPECIAL["<start>"], *[_SPECIAL["<img>"]] * TOKENS_PER_IMAGE, _SPECIAL["<end>"]]
        tokens = [49406]
        for index, text in enumerate(info["text_list"]):
            here = before.get(index, [])
            tokens += slots * sum(here)
            tokens += self.encode(text)
            tokens += slots * (len(here) - sum(here))
        padded = torch.zeros(self.max_tokens, dtype=torch.long)
        cut = torch.tensor([*tokens, 49407][: self.max_tokens])
        padded[: len(cut)] = cut
        return torch.stack(images), padded


def as_pair(number: int, caption: str, data: bytes) -> Document:
    """An image that floats around its caption, as LAION's."""
    return Document(f"pair-{number}", "made up", (Image(data, floats=True), Text(caption)))
