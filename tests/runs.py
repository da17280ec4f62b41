"""Whole runs of a tiny model, in a folder of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image as PILImage

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.tokenizer import train_bpe
from lcl_composer.data.writer import DocumentWriter
from tests.forked import Forked, ranks_of, script

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("red", "green", "blue", "round", "square", "large", "small", "left", "right", "above", "below")


def settings(folder: Path, /, **changes: Any) -> dict[str, Any]:
    """The experiment: 2 layers, 32 wide, 16 pixels, 4 documents a batch; ``changes`` replace whole keys."""
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return {
        "run_name": "tiny",
        "model": {
            "encoder": {
                "name": "timm",
                "model_name": "vit_base_patch32_clip_224",
                "image_size": 16,
                "model_args": vit,
            },
            "pooler": {"name": "attentive", "num_heads": 2},
            "language_model": {
                "name": "transformers",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
            },
        },
        "method": {"name": "lcl"},
        "tokenizer": {"name": "bpe", "path": str(folder / "tokenizer.json")},
        "data": {
            "image_size": 16,
            "max_tokens": 64,
            "train": {"local": str(folder / "train"), "shuffle": True, "num_workers": 0},
        },
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.2},
        "scheduler": {"name": "cosine_with_warmup", "t_warmup": "2ba"},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "global_train_batch_size": 4,
        "max_duration": "20ba",
        "save_interval": "5ba",
        "save_num_checkpoints_to_keep": -1,
        "progress_bar": False,
        **changes,
    }


def write_yaml(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def picture(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def made_up(index: int, images: bool = True) -> Document:
    """Text of random words with 0 to 2 images in it, one of them floating."""
    rng = np.random.default_rng([1, index])
    segments: list[Text | Image] = []
    for number in range(rng.integers(1, 4)):
        if number and images:
            segments.append(Image(picture(rng), floats=number == 2))
        segments.append(Text(" ".join(rng.choice(WORDS, rng.integers(2, 9)))))
    return Document(f"doc-{index:03}", "made up", tuple(segments))


def write_data(folder: Path, documents: list[Document]) -> Path:
    """``folder/train`` in MDS, and a tokenizer beside it."""
    with DocumentWriter(folder / "train", size_limit=1 << 12) as writer:
        for document in documents:
            writer.write(document)
    train_bpe([" ".join(WORDS)], 300, folder / "tokenizer.json")
    return folder


def launch(folder: Path, path: Path, ranks: int, *overrides: str) -> Forked:
    """Train in ``folder`` as ``composer -n RANKS train.py`` does; without importing anything."""
    return Forked(folder, ranks_of, ranks, ROOT / "train.py", str(path), *overrides)


def run_alone(folder: Path, path: Path, *overrides: str) -> Forked:
    """Train in ``folder`` as ``python train.py`` does."""
    return Forked(folder, script, ROOT / "train.py", str(path), *overrides)


_OF_LAUNCHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"}
_OF_LAUNCHERS |= {"MASTER_ADDR", "MASTER_PORT"}


def from_the_shell(folder: Path, *command: str) -> tuple[int, str]:
    """Exit code and output of ``python COMMAND``; it imports everything anew, in every rank."""
    # Composer leaves a launcher's variables in a process that has had a Trainer.
    own = {name: value for name, value in os.environ.items() if name not in _OF_LAUNCHERS}
    environment = {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
    return done.returncode, done.stdout


def read_metrics(folder: Path, name: str = "tiny") -> dict[int, dict[str, float]]:
    """Losses by batch, from ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], {k: v for k, v in row.items() if k.startswith("loss/")}) for row in lines]
    return {step: values for step, values in losses if values}
