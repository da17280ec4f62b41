"""`lcl check`: what a run would be, without its data and without memory for its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lcl_composer.commands.terminal import console, folding_table
from lcl_composer.config import ComposedConfig, RunConfig, check_batch_divides, compose
from lcl_composer.config.checks import effective_negatives
from lcl_composer.config.reach import reach
from lcl_composer.config.trial import Device, this_device
from lcl_composer.data.sizes import SIZES_FILE
from lcl_composer.dotted import leaves
from lcl_composer.errors import printable


def print_check(path: Path, overrides: list[str], ranks: int, device: Device | None) -> None:
    """Print the resolved settings with their sources, parameters a part, and what a batch holds.

    Args:
        path: The experiment's YAML.
        overrides: ``a.b=c`` settings laid over it.
        ranks: Devices that the run will have.
        device: Their kind; None: as on this machine.

    Raises:
        ConfigError: Anything about the settings is wrong.
    """
    composed = compose(path, overrides, device or this_device())
    check_batch_divides(composed.run, ranks)
    with composed.located():
        sizes, _, images, left_out = model_sizes(composed.run)
    out = console()
    out.print(_settings(composed))
    for note in composed.notes:
        out.print(f"note: {escape(note)}")
    out.print(_reach(composed))
    out.print(_sizes(sizes, left_out))
    out.print(_batch(composed.run, ranks, images))


def model_sizes(run: RunConfig) -> tuple[dict[str, int], int, int | None, str]:
    """Build the model on the meta device, try what works on it, and count.

    Returns:
        Parameters by part, tokens an image, images of a document at most (None: its layout does not say), and
        what the counts leave out ("" for nothing).
    """
    from lcl_composer.data.interleave import most_images
    from lcl_composer.methods.build import model_on_meta
    from lcl_composer.model_trial import try_on_model

    model, tokenizer, note = model_on_meta(run)
    layout = try_on_model(run, model, tokenizer)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts.items()}
    sizes["heads"] = sum(p.numel() for p in model.parameters()) - sum(sizes.values())
    tokens_per_image: Any = model.encoder.tokens_per_image
    return sizes, tokens_per_image, most_images(layout), note


def _settings(composed: ComposedConfig) -> Table:
    table = folding_table("setting", "value", "source", title="Settings")
    for key, value in leaves(composed.run.model_dump(mode="json")):
        source = composed.source(key)
        table.add_row(
            escape(printable(key)),
            escape(printable(_yaml(value))),
            escape(source),
            style="dim" if source == "default" else "",
        )
    return table


def _reach(composed: ComposedConfig) -> Table:
    table = folding_table("the run", "", title="Beyond its settings")
    for what, place in reach(composed):
        table.add_row(what, escape(printable(place)))
    return table


def _yaml(value: Any) -> str:
    words: dict[Any, str] = {None: "null", True: "true", False: "false"}
    return words.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def _sizes(sizes: dict[str, int], note: str) -> Table:
    table = folding_table("part", "parameters", title="Model")
    table.caption = escape(note)
    for name, count in {**sizes, "total": sum(sizes.values())}.items():
        table.add_row(name, f"{count:,}")
    return table


def _batch(run: RunConfig, ranks: int, images: int | None) -> Table:
    documents, micro = run.global_train_batch_size, run.device_train_microbatch_size
    table = folding_table("a batch", "", title=f"Batch on {ranks} rank{'s'[: ranks > 1]}")
    table.add_row("documents", f"{documents:,} ({documents // ranks:,} a rank)")
    table.add_row("tokens, at most", f"{documents * run.data.max_tokens:,}")
    most = "not known: the method's layout has no full_document()"
    most = most if images is None else f"{documents * images:,} ({images:,} a document)"
    table.add_row("images, at most", most)
    if run.device_train_microbatch_tokens is not None:
        table.add_row("a microbatch", f"at most {run.device_train_microbatch_tokens:,} tokens a rank")
    if ranks > 1:
        table.add_row("work of the ranks", escape(_work(run)))
    negatives = effective_negatives(run, ranks)
    how = f"microbatch {micro} x {ranks} ranks" if negatives < documents else "the whole batch"
    if negatives:
        table.add_row("effective negatives", f"the images of {negatives:,} documents ({how})")
    else:
        table.add_row("effective negatives", "none (the method contrasts nothing, or with weight 0)")
    return table


def _work(run: RunConfig) -> str:
    """How documents go to the ranks of a node."""
    train = run.data.train
    sources = list(train.streams.values()) if train.streams else [train]
    folders = [Path(source.local or "", source.split or "") for source in sources]
    lacking = [str(folder) for folder in folders if not (folder / SIZES_FILE).is_file()]
    if not lacking:
        return "each batch is dealt out over a node by its documents' sizes"
    return f"documents as they come: no {SIZES_FILE} in {', '.join(lacking)} (lcl sizes)"
