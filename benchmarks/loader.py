"""How many images and documents a core brings from shards to packed batches, against the authors' way.

    python benchmarks/loader.py [--rounds 3] [--documents 10000000]   # needs webdataset, of the extra bench

JPEGs of 512 px (longest side) become 224 px, once as pairs and once as documents with as many images and
words as those of gimp-help-en. Ours and the rivals' (``benchmarks/rivals.py``) take turns in one process;
rates are by CPU time, so that other work on the machine does not count. Then: which step saves what, how far
pixels are from OpenCLIP's, and the time of a first batch after a resume with a made-up index.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import rivals  # noqa: E402
from lcl_composer.config.schema import StreamConfig  # noqa: E402
from lcl_composer.data.document import Document, Image, Text  # noqa: E402
from lcl_composer.data.image import (  # noqa: E402
    decode_image,
    decode_train_crop,
    draw_crop,
    train_transform,
)
from lcl_composer.data.interleave import Interleaved, LayoutRules  # noqa: E402
from lcl_composer.data.loader import build_loader  # noqa: E402
from lcl_composer.data.tokenizer import CLIPTokenizer  # noqa: E402
from lcl_composer.data.writer import DocumentWriter  # noqa: E402

SIZE, MAX_TOKENS, MAX_IMAGES = rivals.IMAGE_SIZE, 2048, 6
_SIDES = [(512, 512), (512, 384), (384, 512), (512, 341), (341, 512)]
_WORDS = [
    "the",
    "a",
    "of",
    "image",
    "tool",
    "layer",
    "menu",
    "select",
    "colour",
    "window",
    "photograph",
    "dialog",
    "with",
    "and",
    "this",
    "brush",
    "path",
]


def photograph(width: int, height: int, rng: np.random.Generator) -> bytes:
    """A JPEG of noise whose amplitude falls with frequency as that of photographs does: 50 to 80 kB."""
    spectrum = np.fft.rfft2(rng.normal(size=(height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(width, height)
    pixels = np.fft.irfft2(spectrum / frequency[..., None] ** 1.3, s=(height, width), axes=(0, 1))
    pixels = (pixels - pixels.mean()) / pixels.std() * 45 + 128
    buffer = io.BytesIO()
    PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def sentence(rng: np.random.Generator, words: int) -> str:
    """A text of English-like words, some of them rare."""
    return " ".join(
        f"word{rng.integers(5000)}" if rng.random() < 0.1 else rng.choice(_WORDS) for _ in range(words)
    )


def page(number: int, images: list[bytes], rng: np.random.Generator) -> Document:
    """A document as long as gimp-help-en's: 2 images in the median and 3.7 on average, 268 and 475 words."""
    count = int(np.clip(round(2 * np.exp(1.11 * rng.normal())), 1, 20))
    words = int(np.clip(268 * np.exp(1.07 * rng.normal()), 20, 4000))
    sentences = [sentence(rng, 18) for _ in range(max(words // 18, count))]
    pictured = set(rng.choice(len(sentences), count, replace=False).tolist())
    segments: list[Text | Image] = []
    for index, text in enumerate(sentences):
        if index in pictured:
            segments.append(Image(images[int(rng.integers(len(images)))], floats=True))
        segments.append(Text(text))
    return Document(f"page-{number}", "made up", tuple(segments))


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU time of this process for one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def ours(folder: Path, batch_size: int, **changes: Any) -> Any:
    """Our loader of a folder, in this process."""
    settings: dict[str, Any] = {
        "streams": {"it": {"local": str(folder), "max_images": MAX_IMAGES}},
        "shuffle": True,
        "num_workers": 0,
    }
    rules = LayoutRules(tokens_per_image=rivals.TOKENS_PER_IMAGE, max_tokens=MAX_TOKENS)
    return build_loader(
        StreamConfig.model_validate(settings | changes),
        train=True,
        layout=Interleaved(CLIPTokenizer(), rules),
        image_size=SIZE,
        batch_size=batch_size,
        seed=1,
        max_bad_fraction=0.0,
        pin_memory=False,
    ).dataloader


def race(name: str, rows: dict[str, Callable[[], Iterable[Any]]], rounds: int, documents: int) -> None:
    """Let loaders take turns; print the median rate of each."""
    images = {who: [] for who in rows}
    seconds = {who: [] for who in rows}
    for turn in range(rounds + 1):
        for who, make in rows.items():
            start, count = time.process_time(), 0
            for batch in make():
                count += len(batch["pixel_values"] if isinstance(batch, dict) else batch[0])
            if turn:  # the first one warms up
                seconds[who].append(time.process_time() - start)
                images[who].append(count)
    rates = {w: float(np.median(np.array(images[w]) / np.array(seconds[w]))) for w in rows}
    for who, rate in rates.items():
        ratio = rate / rates["theirs"]
        pace = documents / float(np.median(seconds[who]))
        print(f"| {name} | {who} | {rate:.0f} | {pace:.0f} | {ratio:.2f} |", flush=True)


def images_table(images: list[bytes], transform: Any, rounds: int) -> None:
    """Print what each step of decoding and resizing saves, and how far pixels are from OpenCLIP's."""

    def openclips(data: bytes, seed: int) -> np.ndarray:
        image = decode_image(data, "")
        left, top, w, h = draw_crop(image.width, image.height, np.random.default_rng(seed))
        crop = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), PILImage.Resampling.BICUBIC)
        return np.asarray(crop).transpose(2, 0, 1)

    steps: dict[str, Callable[[bytes, int], Any]] = {
        "theirs: whole image, crop, bicubic, float, normalised": lambda d, _: transform(decode_image(d, "")),
        "bytes: normalised on the device": lambda d, s: torch.from_numpy(openclips(d, s).copy()),
        "+ resized from a box, averaged by whole factors first": lambda d, s: train_transform(
            decode_image(d, ""), SIZE, np.random.default_rng(s)
        ),
        "+ JPEG decoded at 1/2 where the crop allows": lambda d, s: decode_train_crop(
            d, "", SIZE, np.random.default_rng(s)
        ),
    }
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(cpu_seconds(lambda step=step: [step(d, i) for i, d in enumerate(images)]))
    print("\n| an image | ms | mean difference from OpenCLIP's, levels of 255 |\n| --- | --- | --- |")
    for name, step in steps.items():
        pixels = [(step(d, i), openclips(d, i)) for i, d in enumerate(images)]
        off = np.mean([np.abs(np.asarray(a).astype(int) - b.astype(int)).mean() for a, b in pixels])
        off = "0 (the same filter)" if name.startswith("theirs") else f"{off:.2f}"
        print(f"| {name} | {1e3 * min(times[name]) / len(images):.2f} | {off} |")


def tokens_table(pages: list[Document], encode: Callable[[str], list[int]]) -> None:
    """Print the time of both tokenizers; they must agree."""
    texts = [s.text for document in pages for s in document.segments if isinstance(s, Text)]
    tokenizer = CLIPTokenizer()
    assert all(tokenizer.encode(text) == encode(text) for text in texts)
    words = sum(len(text.split()) for text in texts)
    print("\n| tokenizer | microseconds a word |\n| --- | --- |")
    for name, function in (("OpenCLIP's", encode), ("ours, the same ids", tokenizer.encode)):
        seconds = min(cpu_seconds(lambda f=function: [f(text) for text in texts]) for _ in range(3))
        print(f"| {name} | {1e6 * seconds / words:.2f} |")


def resume_table(folder: Path, documents: int, examples: list[Document]) -> None:
    """Print the time from nothing to the first batch after a resume, with an index of so many documents."""
    with DocumentWriter(folder / "one", compression=None, size_limit=1 << 31) as writer:
        for number in range(640):
            writer.write(Document(f"{number}", "made up", examples[number % len(examples)].segments))
    shard = json.loads((folder / "one/index.json").read_text())["shards"][0]
    (folder / "many").mkdir()
    shards = []
    for number in range(documents // 640):
        name = f"shard.{number:06}.mds"
        os.link(folder / "one/shard.00000.mds", folder / "many" / name)
        shards.append({**shard, "raw_data": {**shard["raw_data"], "basename": name}})
    (folder / "many/index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    print(f"\n| {documents // 640 * 640:,} documents in {len(shards):,} shards | s |\n| --- | --- |")
    start = time.monotonic()
    loader = ours(folder / "many", 64)
    built = time.monotonic()
    state = loader.dataset.state_dict(0, True)
    middle = len(loader) // 2 * 64
    loader.dataset.load_state_dict({**state, "epoch": 3, "sample_in_epoch": middle})
    next(iter(loader))
    print(f"| index read, loader built | {built - start:.2f} |")
    print(f"| order of the epoch made, first batch of 64 | {time.monotonic() - built:.2f} |")
    print(f"| both | {time.monotonic() - start:.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=3, help="passes of each loader (default: 3)")
    parser.add_argument("--documents", type=int, default=10_000_000, help="of the made-up index")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from open_clip import SimpleTokenizer
    from open_clip.transform import image_transform

    rng = np.random.default_rng(0)
    random.seed(0)
    images = [photograph(*_SIDES[i % len(_SIDES)], rng) for i in range(40)]
    pairs = [rivals.as_pair(i, sentence(rng, 12), images[i % len(images)]) for i in range(320)]
    pages = [page(i, images, rng) for i in range(96)]
    transform, tokenizer = image_transform(SIZE, is_train=True), SimpleTokenizer()
    print("| data | loader | images/s a core | documents/s a core | ratio |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, documents in (("pairs", pairs), ("pages", pages)):
            with DocumentWriter(folder / kind) as writer:
                for document in documents:
                    writer.write(document)
        rivals.write_tar(pairs, folder / "pairs.tar")
        rivals.write_mmc4(pages, folder)
        our_pairs, our_pages = ours(folder / "pairs", 64), ours(folder / "pages", 16)
        theirs = rivals.DocumentsLoader(folder, transform, tokenizer.encode, MAX_TOKENS, MAX_IMAGES, 16)
        tar = folder / "pairs.tar"
        race(
            "pairs",
            {"theirs": lambda: rivals.pairs_loader(tar, transform, tokenizer, 64), "ours": lambda: our_pairs},
            arguments.rounds,
            len(pairs),
        )
        race("pages", {"theirs": lambda: theirs, "ours": lambda: our_pages}, arguments.rounds, len(pages))
        images_table(images, transform, arguments.rounds)
        tokens_table(pages, tokenizer.encode)
        resume_table(folder, arguments.documents, pairs)


if __name__ == "__main__":
    main()
