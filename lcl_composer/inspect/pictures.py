"""Images as small data URIs, and what tells two of them apart."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from lcl_composer.data.image import decode_image, view_of
from lcl_composer.data.rng import sample_rng
from lcl_composer.inspect.view import Viewer

#: Sides in pixels: of an image as it is, and of what the model gets.
THUMBNAIL = (240, 150)
_MODEL_VIEW = 112


@dataclass(frozen=True, slots=True)
class Picture:
    """An image for the page.

    Attributes:
        thumbnail: Data URI of the image, made smaller.
        model_view: Data URI of the crop that the model gets in this epoch.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
    """

    thumbnail: str
    model_view: str
    width: int
    height: int


def picture(data: bytes, image_size: int, viewer: Viewer, sample: str, index: int) -> Picture:
    """Return an image for the page, with the view that training draws of it.

    Args:
        data: The encoded bytes.
        image_size: Side of what the model gets, in pixels.
        viewer: Seed, epoch and augmentation of the run.
        sample: Id of the document.
        index: Place of the image among the document's.

    Raises:
        DataError: If the bytes cannot be decoded.
    """
    image = decode_image(data, f"image {index}")
    seen = Image.fromarray(model_view(data, image_size, viewer, sample, index))
    return Picture(
        data_uri(image, THUMBNAIL), data_uri(seen, (_MODEL_VIEW, _MODEL_VIEW)), image.width, image.height
    )


def model_view(data: bytes, image_size: int, viewer: Viewer, sample: str, index: int) -> np.ndarray:
    """Return the pixels that training gives the model in this epoch, uint8 [image_size, image_size, 3]."""
    rng = sample_rng(viewer.seed, viewer.epoch, sample, f"augment {index}")
    crop = view_of(data, f"image {index}", image_size, rng, viewer.augmentation)
    return np.ascontiguousarray(crop.permute(1, 2, 0).numpy())


def data_uri(image: Image.Image, box: tuple[int, int]) -> str:
    """Return an image as a WebP data URI, made smaller to fit into ``box``; never larger."""
    small = image.copy()
    small.thumbnail(box)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=72, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def difference_hash(image: Image.Image) -> bytes:
    """Return which of neighbouring pixels of an 9 x 8 grey miniature is brighter: 64 bits.

    Sizes and encodings of one picture mostly give one hash. (N. Krawetz, "Kind of like that", 2013.)
    """
    grey = np.asarray(image.resize((9, 8), Image.Resampling.BOX).convert("L"), dtype=np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1] + 1).tobytes()


def miniature(image: Image.Image) -> np.ndarray:
    """Return the image as uint8 [12, 12, 3], to hold two of one difference hash against each other."""
    return np.asarray(image.resize((12, 12), Image.Resampling.BOX), dtype=np.uint8)
