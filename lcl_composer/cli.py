"""The command line, `lcl`: one verb a function, each a few lines over the library.

Verbs import what they need when they run: torch and Composer cost seconds, and most verbs do without.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from lcl_composer.commands.convert import ConvertGroup
from lcl_composer.errors import LCLError, print_to_any_terminal


class ErrorGroup(TyperGroup):
    """Prints an LCLError as its message alone and exits with 2; other errors keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        print_to_any_terminal()
        try:
            return super().invoke(ctx)
        except LCLError as error:
            typer.secho(f"error: {error}", err=True, fg="red")
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=ErrorGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-train vision encoders on images and text: convert and inspect data, check and train a YAML, "
    "compare runs, take the encoder away.",
)
app.add_typer(
    typer.Typer(cls=ConvertGroup, callback=lambda: None, no_args_is_help=True),
    name="convert",
    help="Convert a source into MDS shards of Documents.",
)

Config = Annotated[Path, typer.Argument(metavar="YAML", help="The experiment.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="a.b=c", help="Settings laid over it.")]


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Train, in this process; `composer train.py YAML` does it on every device."""
    from lcl_composer.launched import run

    sys.exit(run([str(config), *(overrides or [])]))


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Devices the run will have.")] = 1,
    device: Annotated[
        Literal["cpu", "gpu"] | None, typer.Option(help="Their kind; without: as on this machine.")
    ] = None,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight", help="Instead: try all that the run needs, on every node under a launcher."
        ),
    ] = False,
    wait: Annotated[
        float, typer.Option(min=1, help="With --preflight: seconds to wait for ranks that start later.")
    ] = 120.0,
) -> None:
    """Print a run's settings with the source of each, its model's size and what a batch holds."""
    if preflight:
        from lcl_composer.commands.preflight import preflight_and_exit

        return preflight_and_exit(config, overrides or [], wait)
    from lcl_composer.commands.check import print_check

    print_check(config, overrides or [], ranks, device)


@app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Argument(help="encoders, callbacks, ...; without: the kinds.")] = None,
) -> None:
    """Print the components of a kind: names, parameters with defaults, what they do."""
    from lcl_composer.commands.listing import print_components, print_kinds

    print_components(kind) if kind else print_kinds()


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="callback.")],
    name: Annotated[str, typer.Argument(help="Lower-case words joined by _, such as image_use.")],
) -> None:
    """Start a drop-in: write callbacks/NAME.py and its test, both of which work as they are."""
    from lcl_composer.commands.new import print_new

    print_new(kind, name)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, runs/NAME.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Compare runs on one HTML page: settings, final numbers, curves, retrieval, attention, speed."""
    from lcl_composer.commands.report import write_report

    write_report(runs, out)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Argument(help="File to write; without: standard output.")] = None,
) -> None:
    """Print the JSON schema with which editors check and complete YAMLs."""
    from lcl_composer.config.editor_schema import schema_text
    from lcl_composer.errors import ConfigError

    if out:
        try:
            out.write_text(schema_text())
        except OSError as error:
            raise ConfigError(f"schema: {out}: cannot be written: {error.strerror}") from error
    else:
        typer.echo(schema_text(), nl=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="runs/NAME, a checkpoint of it, or an exported encoder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    format: Annotated[
        str,
        typer.Option(
            help="encoder (ours), timm, hf, onnx; of the whole model open_clip (method clip) or released "
            "(the authors' state dict, method lcl)."
        ),
    ] = "encoder",
    weights: Annotated[Literal["trained", "ema"], typer.Option(help="Which weights.")] = "trained",
    license: Annotated[
        str, typer.Option(help="Of the weights, for the model card, such as mit.")
    ] = "unknown",
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload to this repository of the Hugging Face Hub.")
    ] = None,
) -> None:
    """Take the encoder away: written, read back by the library it is for, and compared."""
    from lcl_composer.export import export_run

    typer.echo(f"wrote {export_run(run, out, format, weights, license, push)}")
    if push:
        typer.echo(f"pushed to {push}")


@app.command()
def evaluate(
    encoders: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER...",
            help="Exported encoders, such as runs/NAME/encoder, or settings of model.encoder, '{name: timm, "
            "...}'; LABEL=ENCODER names it, and encoders of one label are averaged.",
        ),
    ],
    suite: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|YAML", help="Train each YAML of this folder, or this one, on each encoder."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For results; if absent, runs/transfer/SUITE[-TASK]."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Once or more; if absent, the YAML's.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="A setting laid over every task.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Devices of each training.")] = 1,
    probe: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="TRAIN VAL",
            help="Instead: a linear probe on labelled images, DIR/<class>/*.png; to runs/transfer/probe.",
        ),
    ] = None,
    features: Annotated[
        Literal["patch_mean", "pooled"], typer.Option(help="What --probe reads.")
    ] = "patch_mean",
) -> None:
    """Measure encoders, frozen: on all tasks of a suite, with one table, or by a quick linear probe."""
    from lcl_composer.commands import evaluate as command
    from lcl_composer.errors import ConfigError

    if (suite is None) == (probe is None):
        raise ConfigError("evaluate: give --suite DIR, such as yamls/transfer/tiny, or --probe TRAIN VAL")
    if probe is not None:
        command.probe(encoders, *probe, features, out)
    elif suite is not None:
        command.evaluate_suite(encoders, suite, out, seed or [], setting or [], ranks)


@app.command()
def inspect(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="MDS shards of Documents, as lcl convert writes them.")],
    html: Annotated[Path | None, typer.Option(metavar="PAGE", help="Write one offline page instead.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Take all that a run's YAML says instead of flags.")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="clip, or the path of a tokenizers JSON file.")] = "clip",
    max_tokens: Annotated[
        int | None,
        typer.Option(help="As data.max_tokens; if absent, what documents were split for, or 2048."),
    ] = None,
    tokens_per_image: Annotated[
        int | None,
        typer.Option(help="49 for B/32, 196 for B/16; if absent, what documents were split for, or 196."),
    ] = None,
    image_first_probability: Annotated[float, typer.Option(help="As data.image_first_probability.")] = 0.5,
    min_context_tokens: Annotated[int, typer.Option(help="As data.min_context_tokens.")] = 1,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images, as data.image_size.")] = 224,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 17,
    epoch: Annotated[int, typer.Option(min=0, help="Floating images move from epoch to epoch.")] = 0,
    documents: Annotated[int, typer.Option(min=1, help="Documents to show, evenly spread.")] = 12,
    sample: Annotated[int, typer.Option(min=1, help="Documents to count, evenly spread.")] = 1000,
) -> None:
    """Show documents as the model will see them, and the health of the data set."""
    from lcl_composer.commands.inspect import print_inspection, viewer_of_run
    from lcl_composer.data.interleave import LayoutRules
    from lcl_composer.data.tokenizer import loaded_tokenizer
    from lcl_composer.inspect.survey import split_limits
    from lcl_composer.inspect.view import Viewer

    shown = {"documents": documents, "sample": sample}
    if config is not None:
        flags = {name for name in context.params if _given(context, name)}
        viewer, image_size = viewer_of_run(config, flags, epoch)
        print_inspection(out, html, viewer, image_size=image_size, **shown)
        return
    split_at, split_for = split_limits(out)
    rules = LayoutRules(
        split_for if tokens_per_image is None else tokens_per_image,
        split_at if max_tokens is None else max_tokens,
        image_first_probability,
        min_context_tokens,
    )
    viewer = Viewer(loaded_tokenizer(tokenizer), rules, seed, epoch)
    print_inspection(out, html, viewer, image_size=image_size, **shown)


@app.command()
def sizes(
    out: Annotated[Path, typer.Argument(help="MDS shards of Documents, as lcl convert writes them.")],
) -> None:
    """Write how large each document is, by which ranks get equal work; lcl convert does it by itself."""
    from lcl_composer.commands.sizes import write_sizes_of

    typer.echo(write_sizes_of(out))


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
