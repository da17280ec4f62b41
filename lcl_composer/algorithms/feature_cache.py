"""Compute a frozen encoder's patch tokens once, keep them on disk, and train on them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from composer.core import Algorithm, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lcl_composer.data.features import FeatureFolder, FeatureViews, key_of
from lcl_composer.data.image import view_of
from lcl_composer.data.rng import sample_rng
from lcl_composer.data.shards import open_shards, read_places
from lcl_composer.data.stream import DocumentStream
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.gather import gather_objects
from lcl_composer.evaluation.quiet import device_of, undisturbed
from lcl_composer.methods.method import Method, method_of
from lcl_composer.models.weights import digest_of_weights

#: Documents of a part: what is computed, written and found whole or not at all.
_PART_DOCUMENTS = 256


#: More views than this would be epochs that nobody trains.
MOST_VIEWS = 10_000


class FeatureCache(Algorithm):
    """Patch tokens from disk in place of images, for any method on a wholly frozen encoder.

    Before training the encoder runs once over all images of ``data.train`` and ``data.eval``; what is there
    already, of the same weights, documents, views and precision, is found by a digest of these and not
    computed again, a part that is damaged is computed anew and said. From then on nothing is decoded, and
    the encoder does not run. A folder serves any number of runs and encoders; ranks on several nodes must
    all see it.

    View v of a training image is what epoch v would have drawn: with as many views as epochs training is that
    without a cache, with fewer the views come in turn.

    Args:
        folder: Where the features lie.
        views: Views of each training image; held-out images have one.
        dtype: ``float16`` halves the disk; training computes in float32 either way.
        batch_size: Images a forward.

    Raises:
        ConfigError: If ``views`` or ``batch_size`` is out of range, or ``folder`` leads through a file.
    """

    def __init__(
        self,
        folder: str,
        views: int = 1,
        dtype: Literal["float16", "float32"] = "float16",
        batch_size: int = 64,
    ) -> None:
        for name, value, most in (("views", views, MOST_VIEWS), ("batch_size", batch_size, None)):
            if value < 1 or (most is not None and value > most):
                wanted = f"from 1 to {most}" if most is not None else "at least 1"
                raise ConfigError(f"algorithms.feature_cache.{name}: is {value}, must be {wanted}")
        place = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), None)
        if place is not None and not place.is_dir():
            raise ConfigError(f"algorithms.feature_cache.folder: {place} is a file; name a folder")
        self.folder, self.views, self.dtype, self.batch_size = Path(folder), views, dtype, batch_size

    def match(self, event: Event, state: State) -> bool:
        """Once a checkpoint is loaded, before the loaders' first epoch."""
        return event == Event.AFTER_LOAD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Find or compute the features, and give them to the streams.

        Raises:
            ConfigError: If something of the encoder is trained.
            DataError: If documents are missing, or features are not finite.
        """
        model = method_of(state)
        if trained := [name for name, p in model.encoder.named_parameters() if p.requires_grad]:
            raise ConfigError(
                f"algorithms.feature_cache: the encoder's {trained[0]} is trained; freeze it for the whole "
                "run (algorithms.layer_freezing: {parts: [encoder]})"
            )
        told = {"recipe": model.encoder.recipe, "pixels": model.encoder.normalize.settings}
        encoder = {**told, "weights": digest_of_weights(model.encoder), "precision": str(state.precision)}
        loaders: dict[str, Any] = {"data.train": state.train_dataloader}
        if state.evaluators:
            loaders["data.eval"] = state.evaluators[0].dataloader.dataloader
        with undisturbed(model), get_precision_context(state.precision, state.precision_config):
            for name, loader in loaders.items():
                views = range(self.views if name == "data.train" else 1)
                rows = [self._view(model, name, loader, encoder, view) for view in views]
                loader.dataset.features = FeatureViews(rows)

    def _view(self, model: Method, name: str, loader: Any, encoder: dict[str, Any], view: int) -> Any:
        """The rows of one view of a set of documents; all ranks compute what is missing."""
        started = time.monotonic()
        images = _Parts(loader.dataset, name == "data.train", view)
        shape = (model.encoder.tokens_per_image, model.encoder.width)
        cache = FeatureFolder(self.folder, {**encoder, **images.describe()}, shape, self.dtype, len(images))
        # All ranks look before one of them writes.
        looked = gather_objects(cache.missing(dist.get_global_rank(), dist.get_world_size()))
        missing = sorted(part for absent, _ in looked for part in absent)
        damaged = [problem for _, problems in looked for problem in problems]
        if missing:
            cache.create()
        self._compute(model, images, cache, missing[dist.get_global_rank() :: dist.get_world_size()], loader)
        dist.barrier()
        rows = cache.open()
        if dist.get_global_rank() == 0:
            for problem in damaged:
                print(f"note: {problem}; computed anew")
            how = f"computed in {time.monotonic() - started:.0f} s" if missing else "found"
            print(f"features of {name}, view {view}: {len(rows):,} images, {how}; {cache.folder}", flush=True)
        return rows

    def _compute(
        self, model: Method, images: _Parts, cache: FeatureFolder, parts: Sequence[int], loader: Any
    ) -> None:
        """Run the encoder over these parts and write them."""
        if not parts:
            return
        device = device_of(model)
        reader = DataLoader(
            images, batch_size=None, sampler=parts, num_workers=loader.num_workers, collate_fn=_as_it_is
        )
        for part, (pixels, keys) in zip(parts, reader, strict=True):
            chunks = pixels.split(self.batch_size) if len(pixels) else ()
            features = [model.encoder(chunk.to(device)).float().cpu() for chunk in chunks]
            cache.write(part, torch.cat([torch.zeros(0, *cache.shape), *features]), keys)


class _Place(NamedTuple):
    """Documents ``first`` to ``last`` of a shard."""

    folder: Path
    shard: dict[str, Any]
    first: int
    last: int


class _Parts(Dataset[tuple[Tensor, list[int]]]):
    """The images of a stream's documents, a part at a time, in one view."""

    def __init__(self, stream: DocumentStream, train: bool, view: int) -> None:
        self.stream, self.train, self.view = stream, train, view
        sources: Any = stream.streams
        self.folders: list[Path] = [source.folder for source in sources]
        self.places: list[_Place] = []
        for folder in self.folders:
            shards = open_shards(folder)
            shards.check_whole()
            for shard in shards.present:
                count = shard["samples"]
                self.places += [
                    _Place(folder, shard, first, min(first + _PART_DOCUMENTS, count))
                    for first in range(0, count, _PART_DOCUMENTS)
                ]

    def describe(self) -> dict[str, Any]:
        """What the images depend on, as JSON values."""
        digest = hashlib.sha256()
        for folder in self.folders:
            digest.update((folder / "index.json").read_bytes())
        view: dict[str, Any] = {"image_size": self.stream.image_size, "transform": "eval"}
        if self.train:
            drawn = {"seed": self.stream.seed, "number": self.view, **asdict(self.stream.augmentation)}
            view |= {"transform": "train", **drawn}
        return {"documents": digest.hexdigest(), "view": view}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, part: int) -> tuple[Tensor, list[int]]:
        """Pixels uint8 [n, 3, H, W] and keys [n] of all images of a part that can be decoded."""
        place, side = self.places[part], self.stream.image_size
        pixels, keys = [torch.zeros(0, 3, side, side, dtype=torch.uint8)], []
        for document in read_places(place.folder, place.shard, range(place.first, place.last)):
            if isinstance(document, DataError):
                continue
            for number, image in enumerate(document.images):
                with suppress(DataError):  # the stream finds, names and counts it
                    pixels.append(self._pixels(document.id, number, image.data)[None])
                    keys.append(key_of(document.id, number))
        return torch.cat(pixels), keys

    def _pixels(self, document_id: str, number: int, data: bytes) -> Tensor:
        """What the stream would give of an image in epoch ``view``, uint8 [3, H, W]."""
        where, stream = f"document {document_id!r}, image {number}", self.stream
        rng = sample_rng(stream.seed, self.view, document_id, f"augment {number}") if self.train else None
        return view_of(data, where, stream.image_size, rng, stream.augmentation)


def _as_it_is(part: Any) -> Any:
    return part
