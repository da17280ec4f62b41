"""Classification by prompts: the class whose texts lie nearest to the image; nothing is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Subset

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.image import eval_transform
from lcl_composer.data.interleave import Layout
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.evaluation import Evaluation, Row
from lcl_composer.evaluation.features import LabelledImages, names_of_images, open_image_folder
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.metrics import cosines
from lcl_composer.evaluation.outcomes import Outcomes, Tally, write_outcomes
from lcl_composer.evaluation.quiet import device_of, undisturbed
from lcl_composer.evaluation.texts import check_sides, text_batches, text_features
from lcl_composer.methods.method import Method, contrast_of
from lcl_composer.models.finite import check_finite

if TYPE_CHECKING:
    from collections.abc import Mapping

#: ``openai``: the 80 of CLIP for ImageNet; ``simple``: 7 of them, the best of a search.
TemplateSet = Literal["openai", "simple"]

#: Class names that are not the folders' own: those of ImageNet's thousand, in the order of its folders.
NameSet = Literal["imagenet"]

#: Stands for the class name in a template.
_NAME = "{}"


def templates_of(templates: TemplateSet | Sequence[str]) -> list[Callable[[str], str]]:
    """Functions from a class name to a prompt.

    Args:
        templates: A set of OpenCLIP's (``open_clip.zero_shot_metadata``), or texts with ``{}`` in place of
            the name.

    Raises:
        ConfigError: If there is none, or one has no ``{}``.
    """
    if templates in ("openai", "simple"):
        from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

        chosen = OPENAI_IMAGENET_TEMPLATES if templates == "openai" else SIMPLE_IMAGENET_TEMPLATES
        return list(chosen)
    without = [template for template in templates if _NAME not in template]
    if without or not templates:
        raise ConfigError(
            f"zero_shot.templates: {without[0] if without else 'none'!r}: needs {_NAME} for the class name"
        )
    return [partial(str.replace, template, _NAME) for template in templates]


def names_of(folders: Sequence[str], names: NameSet | Mapping[str, str]) -> list[str]:
    """What each class folder is called in a prompt: its own name with blanks for ``_``, unless named.

    Args:
        folders: Class folders, sorted.
        names: ``imagenet``, or names by folder.

    Raises:
        ConfigError: If there are fewer than two folders, not a thousand for ImageNet's names, one that is
            named is not there, or two are called alike, or one nothing.
    """
    if len(folders) < 2:
        raise ConfigError(f"zero_shot.images: {len(folders)} class folders; it needs two at least")
    if names == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES

        if len(folders) != len(IMAGENET_CLASSNAMES):
            raise ConfigError(
                f"zero_shot.names: imagenet has {len(IMAGENET_CLASSNAMES)} classes, the folder {len(folders)}"
            )
        return list(IMAGENET_CLASSNAMES)
    assert not isinstance(names, str), "the registry checks it"
    if strange := sorted(set(names) - set(folders)):
        raise ConfigError(f"zero_shot.names: there is no class folder {strange[0]!r}")
    called = [names.get(folder, folder.replace("_", " ")).strip() for folder in folders]
    for folder, name in zip(folders, called, strict=True):
        first = folders[called.index(name)]
        if not name or first != folder:
            what = f"called {name!r} as {first!r} is" if name else "called nothing"
            raise ConfigError(f"zero_shot.names: the class folder {folder!r} is {what}; name it")
    return called


def class_features(
    model: Method,
    layout: Layout,
    names: Sequence[str],
    templates: Sequence[Callable[[str], str]],
    batch_size: int = 256,
) -> Tensor:
    """The mean direction of each class's prompts, as ``open_clip.build_zero_shot_classifier`` makes it.

    Each rank reads every W-th class; all ranks must call this together.

    Args:
        model: In eval mode.
        layout: The method's.
        names: What C classes are called.
        templates: From a name to a prompt.
        batch_size: Prompts a forward.

    Returns:
        [C, E] float32 on the CPU, each of length 1.
    """
    rank, size = world()
    mine = range(rank, len(names), size)
    prompts = [template(names[i]) for i in mine for template in templates]
    found: dict[int, Tensor] = {}
    if prompts:
        features_NE = normalize(text_features(model, layout, prompts, batch_size), dim=-1)
        means_ME = normalize(features_NE.unflatten(0, (-1, len(templates))).mean(1), dim=-1)
        found = dict(zip(mine, means_ME, strict=True))
    every = {number: feature for part in gather_objects(found) for number, feature in part.items()}
    return torch.stack([every[number] for number in range(len(names))])


def image_logits(model: Method, images: LabelledImages, classes: Tensor, batch_size: int = 64) -> Tensor:
    """Logits [N, C] of every image, in the folder's order: the scale of the contrast times the cosine.

    Each rank reads every W-th image; all ranks must call this together and all get the whole result.

    Args:
        model: In eval mode.
        images: N images.
        classes: What :func:`class_features` returns, [C, E].
        batch_size: Images a forward.

    Raises:
        DataError: If a feature is not finite.
    """
    rank, size = world()
    _, contrast = contrast_of(model, "zero_shot")
    scale = float(contrast.logit_scale.exp())
    logits = [classes.new_zeros(0, len(classes))]
    for pixels, _ in DataLoader(Subset(images, range(rank, len(images), size)), batch_size):
        features = model.image_features(pixels.to(device_of(model))).float().cpu()
        check_finite(f"features of {images.root}", {"images": features})
        logits.append(scale * cosines(features, classes))
    parts = gather_objects(torch.cat(logits))
    whole = parts[0].new_empty(len(images), len(classes))
    for number, part in enumerate(parts):
        whole[number::size] = part
    return whole


@dataclass(frozen=True)
class ZeroShotResult:
    """How images were classified.

    Attributes:
        labels: [N] int64.
        ranks: [N] int64, classes that lie before the right one, 0 where it is the first; ties are before it.
        predicted: [N] int64; the right one where its rank is 0, and another elsewhere.
        classes: C.
    """

    labels: Tensor
    ranks: Tensor
    predicted: Tensor
    classes: int

    @property
    def numbers(self) -> dict[str, float]:
        """``top1``, ``top5``, the mean over classes of top-1, and ``chance``; all in 0..1."""
        right = (self.ranks == 0).float()
        per_class = [float(right[self.labels == label].mean()) for label in self.labels.unique()]
        return {
            "top1": float(right.mean()),
            "top5": float((self.ranks < 5).float().mean()),
            "mean_top1": sum(per_class) / len(per_class),
            "chance": 1 / self.classes,
        }


def ranked(logits: Tensor, labels: Tensor) -> ZeroShotResult:
    """Where the right class [N] stands among the logits [N, C]; a tie counts against us."""
    right = logits.gather(1, labels[:, None])
    ranks = (logits >= right).sum(1) - 1
    others = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    return ZeroShotResult(labels, ranks, torch.where(ranks == 0, labels, others), logits.shape[1])


class Prompted:
    """A folder of labelled images, and the prompts of its classes.

    Args:
        images: ``folder/<class>/*.png|jpg|...``, or shards of labelled images.
        image_size: Side of the images in pixels.
        layout: The method's.
        templates: As in :func:`templates_of`.
        names: As in :func:`names_of`.
        batch_size: Images a forward.

    Raises:
        ConfigError: If templates or names do not fit, or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        images: str,
        image_size: int,
        layout: Layout,
        templates: TemplateSet | Sequence[str],
        names: NameSet | Mapping[str, str],
        batch_size: int,
    ):
        if batch_size < 1:
            raise ConfigError(f"zero_shot.batch_size: is {batch_size}, must be at least 1")
        self._place, self._size, self.layout = images, image_size, layout
        self._names: NameSet | Mapping[str, str] = names
        self.templates, self.batch_size = templates_of(templates), batch_size

    @cached_property
    def images(self) -> LabelledImages:
        """The images; raises DataError if the folder is missing or holds none in class folders."""
        return open_image_folder(self._place, partial(eval_transform, size=self._size))

    @cached_property
    def names(self) -> list[str]:
        """What the classes are called."""
        return names_of(self.images.classes, self._names)

    def check(self) -> None:
        """Read what :meth:`measure` will need: names and labels, and the shortest prompt of each class.

        Raises:
            ConfigError: If names do not fit.
            DataError: If the images cannot be read, or a prompt has no feature.
        """
        shortest = min(self.templates, key=lambda template: len(template("")))
        for _ in text_batches(self.layout, [shortest(name) for name in self.names], 256):
            pass
        assert len(self.images.targets)

    def measure(self, model: Method) -> ZeroShotResult:
        """Classify every image; all ranks call it together."""
        with undisturbed(model):
            classes = class_features(model, self.layout, self.names, self.templates)
            logits = image_logits(model, self.images, classes, self.batch_size)
        return ranked(logits, torch.tensor(self.images.targets))


class ZeroShot(Evaluation):
    """Zero-shot classification (CLIP, arXiv 2103.00020, section 3.1.4), by OpenCLIP's templates.

    An image goes to the class whose prompts' mean feature has the greatest cosine with its own.

    Args:
        images: ``folder/<class>/*.png|jpg|...``, or shards of labelled images.
        image_size: Side of the images in pixels.
        layout: The method's.
        templates: ``openai`` (80), ``simple`` (7), or texts with ``{}`` in place of the class name.
        names: Class names by folder, ``imagenet`` for its thousand; a folder that is not named is called as
            it is, with blanks for ``_``.
        batch_size: Images a forward.

    Raises:
        ConfigError: If templates or names do not fit, or ``batch_size`` is below 1.
        DataError: If the folder is missing or holds no images in class folders, an image cannot be read, or a
            prompt has no feature.
    """

    def __init__(
        self,
        images: str,
        image_size: int,
        layout: Layout,
        templates: TemplateSet | list[str] = "openai",
        names: NameSet | dict[str, str] = {},  # noqa: B006 (read only; a YAML shows it)
        batch_size: int = 64,
    ):
        self.prompted = Prompted(images, image_size, layout, templates, names, batch_size)
        self.prompted.check()

    def start(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts no images with texts."""
        check_sides(model, "evaluation.zero_shot")

    def measure(
        self, model: Method, held_out: Iterable[PackedBatch] | None, folder: Path
    ) -> dict[str, Any] | None:
        """Top-1, top-5 and chance, 0..1; outcomes go to the run folder."""
        found = self.prompted.measure(model)
        if world()[0] == 0:
            tallies = {f"top{k}": Tally((found.ranks < k).float().tolist()) for k in (1, 5)}
            share = 1 / torch.bincount(found.labels)[found.labels]  # of an image in its class
            tallies["mean_top1"] = Tally(((found.ranks == 0) * share).tolist(), share.tolist())
            images = names_of_images(self.prompted.images)
            labels, predicted = found.labels.tolist(), found.predicted.tolist()
            outcomes = Outcomes(images, tallies, self.prompted.names, labels, predicted)
            write_outcomes(outcomes, folder, "zero_shot")
        return {
            **found.numbers,
            "images": len(found.labels),
            "classes": found.classes,
            "templates": len(self.prompted.templates),
        }

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """Top-1 and top-5."""
        chance = result["chance"]
        factor = f"{result['top1'] / chance:.1f} x chance"
        return [
            Row("Zero-shot top-1", f"{chance:.2%} by chance", f"{result['top1']:.2%}", factor),
            Row("Zero-shot top-5", "", f"{result['top5']:.2%}", ""),
        ]

    def note(self, result: dict[str, Any]) -> str:
        """What was classified, by how many prompts."""
        return (
            f"Zero-shot: {result['images']:,} images of {result['classes']} classes, {result['templates']} "
            "prompts a class"
        )
