"""The page shows what a run gets: the loader and the page draw alike."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch

from lcl_composer.data.image import OPEN_CLIP, Augmentation
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.inspect.pictures import model_view
from lcl_composer.inspect.view import Viewer
from tests.data.conftest import example
from tests.data.layouts import NumberTokenizer
from tests.data.loaders import loader_of


@pytest.mark.parametrize("augmentation", [OPEN_CLIP, Augmentation((0.1, 0.5), 0.5)])
def test_tokens_targets_anchors_and_pixels_are_those_of_the_loader(tmp_path, augmentation):
    documents, rules = [example(index) for index in range(8)], LayoutRules(2, 14)
    with DocumentWriter(tmp_path / "set") as writer:
        for document in documents:
            writer.write(document)
    spec = loader_of(
        local=str(tmp_path / "set"), shuffle=False, rules=rules, batch_size=8, augmentation=augmentation
    )
    loader = cast(DocumentLoader, spec.dataloader)
    moved = set()
    for epoch in range(2):
        (batch,) = list(loader)
        assert batch["ids"] == [document.id for document in documents]
        viewer = Viewer(NumberTokenizer(), rules, 5, epoch, augmentation)
        views = [viewer.view(document) for document in documents]
        layouts = [view.layout for view in views]
        assert batch["tokens"].tolist() == np.concatenate([layout.tokens for layout in layouts]).tolist()
        assert batch["targets"].tolist() == np.concatenate([layout.targets for layout in layouts]).tolist()
        starts = np.repeat(batch["cu_seqlens"][:-1], batch["images_per_document"])
        anchors = np.concatenate([layout.anchors for layout in layouts])
        assert batch["anchors"].tolist() == np.where(anchors < 0, -1, anchors + starts.numpy()).tolist()
        pixels = [
            model_view(document.images[index].data, 8, viewer, document.id, index)
            for document, layout in zip(documents, layouts, strict=True)
            for index in layout.images.tolist()
        ]
        assert torch.equal(batch["pixel_values"].permute(0, 2, 3, 1), torch.from_numpy(np.stack(pixels)))
        moved.add(tuple(batch["tokens"].tolist()))
    assert len(moved) == 2
    loader.close()
    clean_shared_memory()
