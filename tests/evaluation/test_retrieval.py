from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lcl_composer.evaluation.gather import gather_objects
from lcl_composer.evaluation.retrieval import _merge, anchored_keys, collect_features, evaluate_retrieval
from tests.evaluation.batches import make_batch
from tests.evaluation.fakes import FakeLCL


def test_features_are_those_of_eval_mode_and_in_order() -> None:
    model = FakeLCL(dropout=0.5).train()
    batches = [make_batch(3, seed=1), make_batch(3, seed=2)]
    metrics = evaluate_retrieval(model, batches)
    model.eval()
    with torch.no_grad():
        features = collect_features(model, batches, None)
        first = model(batches[0])
    assert metrics["candidates"] == 6
    assert torch.equal(features.images[:3], first["image_features"])
    assert torch.equal(features.contexts[:3], first["context_features"])  # dropout off
    assert features.keys[3] == ("doc2-0", 0)


def test_training_is_left_as_it_was() -> None:
    model = FakeLCL().train()
    model.encoder.eval()  # a frozen part
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    loader = DataLoader(
        [make_batch(4)], batch_size=None, shuffle=True
    )  # shuffling draws from torch's generator
    evaluate_retrieval(model, loader)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert model.training
    assert not model.encoder.training
    assert all(p.grad is None for p in model.parameters())


def test_modes_come_back_when_the_loader_fails() -> None:
    def broken():
        yield make_batch(2)
        raise OSError("disk")

    model = FakeLCL().train()
    with pytest.raises(OSError, match="disk"):
        evaluate_retrieval(model, broken())
    assert model.training
    assert torch.is_grad_enabled()


def test_stops_at_max_images_without_reading_on() -> None:
    read = []

    def batches():
        for seed in range(10):
            read.append(seed)
            yield make_batch(4, seed=seed)

    assert evaluate_retrieval(FakeLCL(), batches(), max_images=6)["candidates"] == 6
    assert read == [0, 1]


def test_unanchored_images_take_no_part() -> None:
    batch = make_batch(3)
    batch["anchors"][1] = -1
    assert anchored_keys(batch) == [("doc0-0", 0), ("doc0-2", 0)]
    assert evaluate_retrieval(FakeLCL(), [batch])["candidates"] == 2


def test_documents_that_a_sharded_loader_repeats_count_once() -> None:
    batch = make_batch(3)
    assert evaluate_retrieval(FakeLCL(), [batch, batch])["candidates"] == 3


def test_parts_of_ranks_are_joined_and_cut() -> None:
    first = ([("a", 0), ("b", 0)], [torch.eye(3)[:2]], [torch.eye(3)[:2]])
    second = ([("b", 0), ("c", 0)], [torch.eye(3)[1:]], [torch.eye(3)[1:]])
    features = _merge([first, ([], [], []), second], None)
    assert features.keys == [("a", 0), ("b", 0), ("c", 0)]
    assert torch.equal(features.images, torch.eye(3))
    assert _merge([first, second], 2).keys == [("a", 0), ("b", 0)]
    assert gather_objects("alone") == ["alone"]


def test_a_trained_model_beats_chance_on_documents_it_never_saw() -> None:
    torch.manual_seed(0)
    model = FakeLCL(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    held_out = [make_batch(8, seed=900 + s, prefix="held") for s in range(8)]
    before = evaluate_retrieval(model, held_out)
    for step in range(100):
        batch = make_batch(32, seed=step)
        optimizer.zero_grad()
        model.loss(model(batch), batch)["contrastive"].backward()
        optimizer.step()
    after = evaluate_retrieval(model, held_out)
    # the text names one of 8 colours; images of one colour cannot be told apart by it, and their contexts tie
    assert after["image_to_text/recall@10"] > 2 * before["image_to_text/recall@10"]
    assert after["text_to_image/recall@10"] > 3 * after["chance/recall@10"]
