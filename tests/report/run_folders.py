"""Made-up run folders, as training leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from lcl_composer.report.metrics_file import format_line


def config(name: str, seed: int = 17, weight: float = 0.1, **changes: Any) -> dict[str, Any]:
    return {
        "run_name": name,
        "seed": seed,
        "method": {"name": "lcl", "contrastive_weight": weight, "generation_weight": 1.0},
        "data": {"train": {"local": "data/shapes/train", "shuffle_seed": seed}, "max_tokens": 64},
        "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98]},
        "global_train_batch_size": 32,
        "max_duration": "2ep",
        "save_folder": f"runs/{name}/checkpoints",
        **changes,
    }


def write_run(
    parent: Path,
    name: str,
    *,
    seed: int = 17,
    weight: float = 0.1,
    generation: float = 2.0,
    recall: float = 0.5,
    batches: int = 20,
    finished: bool = True,
    pictures: bool = False,
    **changes: Any,
) -> Path:
    """A run whose generation loss falls to ``generation`` and whose R@1, both ways, is ``recall``."""
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(config(name, seed, weight, **changes), sort_keys=False)
    )
    lines = []
    for step in range(1, batches + 1):
        loss = generation + max(0, batches - 5 - step) / batches
        row = {"epoch": 0, "sample": 32 * step, "token": 900 * step, "seconds": 0.5 * step}
        row |= {"loss/train/generation": loss, "loss/train/contrastive": 3.0, "loss/train/total": loss + 0.3}
        lines.append(format_line(step, row | {"throughput/samples_per_sec": 64.0}))
    lines.append(format_line(batches, {"epoch": 1, "metrics/eval/generation": generation + 0.1}))
    (folder / "metrics.jsonl").write_text("".join(lines))
    environment = {
        "started": "2026-01-01T00:00:00+00:00",
        "devices": ["Card"] * 2,
        "packages": {"torch": "2.7.0"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary(name, batches, recall)))
    if pictures:
        write_pictures(folder)
    return folder


def summary(name: str, batches: int, recall: float) -> dict[str, Any]:
    recalls = {f"{way}/recall@{k}": recall for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}
    chances = {f"chance/recall@{k}": k / 256 for k in (1, 5, 10)}
    return {
        "name": name,
        "batches": batches,
        "retrieval": {"candidates": 256.0, **recalls, **chances},
        "probe": {"trained": recall, "untrained": 0.1, "chance": 0.02},
    }


def write_pictures(folder: Path) -> None:
    """Two attention maps, and a gallery of three items in which the first query is answered right."""
    (folder / "attention_maps").mkdir()
    (folder / "gallery").mkdir()
    for batch in (10, 20):
        Image.new("RGB", (64, 32), (batch, 0, 0)).save(folder / f"attention_maps/ba{batch:06d}.png")
    items = {}
    for number in range(3):
        Image.new("RGB", (16, 16), (0, 80 * number, 0)).save(folder / f"gallery/{number:03d}.jpg")
        text = f"text {number}"
        items[number] = {
            "document": "doc",
            "image": number,
            "text": text,
            "file": f"gallery/{number:03d}.jpg",
        }
    found = [
        {"item": 0, "rank": 1, "found": [[0, 0.9], [1, 0.5], [2, None]]},
        {"item": 1, "rank": 3, "found": [[0, 0.9], [2, 0.5]]},
    ]
    page = {"candidates": 3, "items": items, "text_to_image": found, "image_to_text": found}
    (folder / "gallery.json").write_text(json.dumps(page))
