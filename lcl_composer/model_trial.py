"""Settings tried on the model: right in form, and yet `lcl train` would refuse them once it is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from lcl_composer import registry
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.errors import ConfigError, DataError, LCLError
from lcl_composer.methods.build import layout_rules
from lcl_composer.methods.fast import named_blocks

if TYPE_CHECKING:
    from lcl_composer.config import RunConfig
    from lcl_composer.data.batch import PackedBatch
    from lcl_composer.data.interleave import Layout
    from lcl_composer.data.tokenizer import Tokenizer
    from lcl_composer.methods.method import Method, Outputs


def try_on_model(run: RunConfig, model: Method, tokenizer: Tokenizer) -> Layout:
    """Lay out a document, show the model to all that works on it, and run it once.

    Algorithms and callbacks may have a ``check(model)`` that raises a ConfigError; evaluations have
    ``start``. Data that the run may yet make need not be there.

    Args:
        run: The run.
        model: On the meta device.
        tokenizer: The run's.

    Returns:
        The layout.

    Raises:
        ConfigError: What is wrong, a problem a line.
    """
    named_blocks(run, model)
    try:
        layout = model.layout(tokenizer, layout_rules(run, model.encoder.tokens_per_image))
    except LCLError:
        raise
    except Exception as error:  # of a drop-in
        raise ConfigError(registry.methods.failure(run.method.name, error)) from error
    offered = {"image_size": run.data.image_size, "tokenizer": tokenizer, "layout": layout}
    if problems := [*_refusals(run, model, offered), *_forward_problems(run, model, layout)]:
        raise ConfigError("\n".join(problems))
    return layout


def _refusals(run: RunConfig, model: Method, offered: dict[str, Any]) -> Iterator[str]:
    """What algorithms, callbacks and evaluations say to the model."""
    tables = {
        "algorithms": (registry.algorithms, "check"),
        "callbacks": (registry.callbacks, "check"),
        "evaluation": (registry.evaluations, "start"),
    }
    for section, (table, question) in tables.items():
        for name, parameters in getattr(run, section).items():
            try:
                component = table.build({**parameters, "name": name}, **offered)
                if hasattr(component, question):
                    getattr(component, question)(model)
                continue
            except DataError:  # the run may yet make them
                continue
            except LCLError as error:
                problem = str(error)
            except Exception as error:  # of a drop-in
                problem = table.failure(name, error)
            yield problem if problem.startswith(f"{section}.") else f"{section}.{name}: {problem}"


def _forward_problems(run: RunConfig, model: Method, layout: Layout) -> Iterator[str]:
    """What a forward says that no constructor could, and what losses read and it does not return."""
    document = Document("trial", "", (Image(b""), Text("what is it?"), Text("word " * run.data.max_tokens)))
    try:
        placed = layout(document, np.random.default_rng(0))
    except DataError:  # a method of documents of another kind
        return
    side = run.data.image_size
    pixels = torch.zeros(len(placed.images), 3, side, side, dtype=torch.uint8)
    batch = collate([make_sample("trial", placed, pixels)])
    for forward in (_on_meta, _as_on_cpu):
        try:
            with torch.no_grad():
                outputs = forward(model, batch)
            for term in model.terms.values():
                term.read(outputs, batch)
            return
        except LCLError as error:
            yield str(error)
            return
        except Exception:  # without numbers in its tensors a forward may fail that else would not
            continue


def _on_meta(model: Method, batch: PackedBatch) -> Outputs:
    """Outputs on the meta device, where transformers' rotary positions fail."""
    moved: Any = {
        name: value.to("meta") if isinstance(value, Tensor) else value for name, value in batch.items()
    }
    return model(moved)


def _as_on_cpu(model: Method, batch: PackedBatch) -> Outputs:
    """Outputs of tensors that say that they are on the CPU, where OPT's look at its mask fails."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = [*model.named_parameters(), *model.named_buffers()]
        weights = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") for name, tensor in held}
        return functional_call(model, weights, (batch,))
