"""A tiny pretrained language model and its own tokenizer, in a folder as save_pretrained writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,  # pyright: ignore[reportPrivateImportUsage]
)

END = "</s>"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def save_tokenizer(folder: Path, texts: list[str], **special: str) -> int:
    """Train a byte-level BPE that keeps the case of letters; return its number of ids."""
    tokenizer: Any = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {"vocab_size": 280, "special_tokens": [END], "initial_alphabet": alphabet}
    options["show_progress"] = False
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options))
    tokenizer.enable_truncation(3)  # as some tokenizer.json say
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_language_model(folder: Path, texts: list[str], model_type: str = "opt", **special: str) -> Path:
    """Write tokenizer and weights; by default one token begins and ends a text, as OPT's and GPT-2's do."""
    vocab_size = save_tokenizer(folder, texts, **(special or {"bos_token": END, "eos_token": END}))
    torch.manual_seed(3)
    fields = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "llama": {"intermediate_size": 64}}
    config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **SIZES, **fields[model_type])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
