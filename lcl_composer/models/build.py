"""RunConfig to the model: tokenizer, networks, and the method that joins them."""

from __future__ import annotations
