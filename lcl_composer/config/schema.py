"""What a run's YAML may say: one class a section, every key with its type, default and meaning.

Trainer settings bear the names of Composer's Trainer arguments, data settings those of
StreamingDataset's. Components (``name`` and parameters) are open here: their parameters are checked
against the constructor by the registries.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

#: Endings of what Composer would unpack before it reads a checkpoint.
_ARCHIVES = {".tar", ".tgz", ".gz", ".bz2", ".lz4", ".lzma", ".lzo", ".xz", ".zst"}

_WHOLE = r"0*[1-9]\d*"
_DURATION = rf"^{_WHOLE}(ep|ba|sp|tok)$"
_INTERVAL = rf"^({_WHOLE}(ep|ba|sp|tok|sec)|(0?\.\d*[1-9]\d*|1|1\.0*)dur)$"


def _text_of(pattern: str, examples: str) -> Any:
    """A string of a pattern, which is said in words."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or not re.match(pattern, value) or value.endswith("\n"):
            raise ValueError(f"should be {examples}, got {value!r}")
        return value

    return Annotated[str, BeforeValidator(check), Field(json_schema_extra={"pattern": pattern})]


if TYPE_CHECKING:
    Bytes = Duration = Interval = Name = str
else:
    #: Of a run, and of its folder.
    Name = _text_of(
        r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$",
        "a text of letters from a to z, digits, '.', '_' and '-', first a letter or a digit, 200 at most",
    )
    #: Of a disk, as Streaming reads it.
    Bytes = _text_of(r"^\d*\.?\d+ *[kmgtpezyKMGTPEZY]?[bB]$", "a number of bytes such as 100gb")
    #: How long: a whole number of epochs, batches, samples or tokens.
    Duration = _text_of(_DURATION, "a whole number of ep, ba, sp or tok, such as 3ep or 2000ba")
    #: How often: that, or seconds, or a share of the run.
    Interval = _text_of(_INTERVAL, "a whole number of ep, ba, sp, tok or sec, or a share such as 0.1dur")
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
#: Components by name, such as ``{speed_monitor: {window_size: 10}}``.
Table = dict[str, dict[str, Any]]


class Section(BaseModel):
    """A part of the YAML: unknown keys, NaN and infinity are errors, and nothing changes after the check."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Component(Section):
    """A component: its name in the registry and the parameters of its constructor."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str
    """Name in the registry; `lcl list` prints them."""

    def spec(self) -> dict[str, Any]:
        """Return ``{"name": ..., **parameters}``, as Registry.build takes it."""
        return self.model_dump()


class ModelConfig(Section):
    """The networks that the method joins."""

    encoder: Component
    """The vision encoder, trained from scratch: images to patch tokens."""
    pooler: Component | None = None
    """Patch tokens to the image's latent, and to the tokens that the language model reads."""
    language_model: Component | None = None
    """The causal language model."""
    target_encoder: Component | None = None
    """A frozen encoder whose features a method predicts; it is never trained."""


class SourceConfig(Section):
    """One of several sets of shards, how much of it an epoch takes, and which of its documents."""

    local: str
    """Folder of the shards: where they are, or are cached from `remote`."""
    remote: str | None = None
    """Where the shards are copied from (s3://, gs://, hf://, a path); null: they are in `local`."""
    split: str | None = None
    """Subfolder of `local` and `remote`."""
    proportion: PositiveFloat | None = None
    """Share of an epoch, relative to the other streams' proportions; give it to all of them or to none."""
    repeat: PositiveFloat | None = None
    """How often an epoch goes through the shards, such as 2 or 0.5; 1 unless set."""
    choose: PositiveInt | None = None
    """Documents of it an epoch, drawn anew each time."""
    max_images: PositiveInt | None = None
    """Images of a document beyond this number are left out."""
    min_images: Annotated[int, Field(ge=0)] = 0
    """A document with fewer images is passed over (its place in the batch stays empty)."""
    min_words: Annotated[int, Field(ge=0)] = 0
    """A document with fewer words is passed over (its place in the batch stays empty)."""

    @model_validator(mode="after")
    def _one_weight(self) -> SourceConfig:
        given = [name for name in ("proportion", "repeat", "choose") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"has {' and '.join(given)}; give one of them")
        return self


class StreamConfig(Section):
    """MDS shards of Documents and how they are read: one set (`local`) or several, mixed (`streams`)."""

    local: str | None = None
    """Folder of the shards: where they are, are generated, or are cached from `remote`."""
    remote: str | None = None
    """Where the shards are copied from (s3://, gs://, hf://, a path); null: they are in `local`."""
    split: str | None = None
    """Subfolder of `local` and `remote`."""
    streams: dict[str, SourceConfig] | None = None
    """Several sets of shards by name, instead of `local`."""
    batching_method: Literal["random", "stratified", "per_stream"] = "random"
    """How streams mix: at random, in the same shares in each batch, or a batch from one stream at a time."""
    epoch_size: PositiveInt | None = None
    """Documents an epoch; null: as many as there are. Not with `repeat` or `choose`."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the documents, by a hash of their id, that is not trained on but kept to choose by."""
    shuffle: bool = False
    """Another order in each epoch."""
    shuffle_seed: Annotated[int, Field(ge=0)] = 17
    """Seed of that order."""
    num_canonical_nodes: PositiveInt = 1
    """Partition of the samples; the same value gives the same order on any number of ranks."""
    predownload: PositiveInt | None = None
    """Samples to fetch ahead a worker; null: StreamingDataset's default."""
    cache_limit: PositiveInt | Bytes | None = None
    """Disk space for the caches, in bytes or such as 100gb; null: no limit."""
    download_retry: Annotated[int, Field(ge=0)] = 12
    """Further attempts at a shard that cannot be fetched or arrives damaged, each after a longer pause."""
    download_timeout: PositiveFloat = 120.0
    """Seconds that a shard may take to arrive, all attempts together."""
    validate_hash: str | None = "xxh64"
    """Hash that fetched shards are held to, where the index has it; null: only their size is compared."""
    num_workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes a rank; 0: load in the main process. The data do not depend on it."""
    generate: Component | None = None
    """Generator that fills `local` when it is empty; null: the data must be there."""

    @model_validator(mode="after")
    def _one_or_several(self) -> StreamConfig:
        if self.streams is None and self.local is None:
            raise ValueError("has neither local nor streams; give one of them")
        if self.streams is not None:
            given = [n for n in ("local", "remote", "split", "generate") if getattr(self, n) is not None]
            if given:
                raise ValueError(f"has streams and {given[0]}; remove {given[0]} or move it into a stream")
            if problem := _mixing_problem(self.streams, self.epoch_size):
                raise ValueError(problem)
        return self


def _mixing_problem(streams: dict[str, SourceConfig], epoch_size: int | None) -> str:
    """What is wrong with streams taken together, empty if nothing is."""
    if not streams:
        return "streams is empty; give at least one, or local"
    shares = [name for name, source in streams.items() if source.proportion is not None]
    amounts = [name for name, s in streams.items() if s.repeat is not None or s.choose is not None]
    if shares and amounts:
        return (
            f"streams.{shares[0]} has a proportion, streams.{amounts[0]} repeat or choose; shares and "
            "amounts do not mix: use the one or the other in all streams"
        )
    if shares and len(shares) < len(streams):
        missing = next(name for name in streams if name not in shares)
        return f"streams.{missing} has no proportion, streams.{shares[0]} has; give one to all streams"
    if amounts and epoch_size is not None:
        return (
            f"epoch_size does not go with streams.{amounts[0]}'s repeat or choose, which set it; remove one"
        )
    places: dict[tuple[str, str | None], str] = {}
    for name, source in streams.items():
        other = places.setdefault((source.local, source.split), name)
        if other != name:
            return f"streams.{name} and streams.{other} have the same local folder; give each its own"
    return ""


class DataConfig(Section):
    """Documents and their layout as tokens."""

    train: StreamConfig
    """What to train on."""
    eval: StreamConfig | None = None
    """Held-out documents; null: no evaluation while training."""
    image_size: PositiveInt
    """Side of the square that images are brought to, in pixels; the encoder's."""
    max_tokens: PositiveInt
    """A document is cut here, its images' tokens included."""
    image_first_probability: Fraction = 0.5
    """Probability that a floating image (pairs, MMC4) stands before its sentence, drawn each epoch."""
    min_context_tokens: Annotated[int, Field(ge=0)] = 1
    """An image with fewer text tokens before it takes no part in L_con."""
    crop_scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    """Smallest and largest share of an image's area that a training crop takes (OpenCLIP's unless set)."""
    flip_probability: Fraction = 0.0
    """Probability that a training crop is mirrored left to right; not for texts that tell left from right."""
    max_bad_fraction: Fraction = 0.01
    """Bad samples are skipped and counted; a larger share than this ends the run."""

    @field_validator("crop_scale")
    @classmethod
    def _crop_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"takes the smallest share, above 0, and the largest, got {list(value)}")
        return value


class FSDPConfig(Section):
    """Weights, gradients and optimizer states cut over the ranks (FSDP2); on one rank nothing is cut."""

    reshard_after_forward: bool = True
    """Free a block's whole weights after its forward and gather them again in the backward; saves memory."""
    param_dtype: Literal["fp32", "bf16"] = "fp32"
    """In which weights are gathered and kept for a forward; bf16 halves both and rounds norms, too."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """In which gradients are summed over the ranks."""


class ParallelismConfig(Section):
    """How the ranks share the model, besides the data."""

    fsdp: FSDPConfig | None = None
    """Cut the model over the ranks; null: each has all of it (DDP)."""


class CompileConfig(Section):
    """torch.compile, block by block, for any number of tokens and images."""

    parts: Annotated[list[str], Field(min_length=1)]
    """Parts of the method whose blocks are compiled, such as [encoder, language_model]."""
    backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    """torch's backend; the last two compile nothing and are for finding faults."""


class ActivationCheckpointingConfig(Section):
    """Blocks that keep only their inputs in the forward and run again in the backward."""

    parts: Annotated[list[str], Field(min_length=1)]
    """Parts of the method, such as [encoder, language_model]."""
    every: PositiveInt = 1
    """Every n-th block of each part; 1: all of them."""


class RunConfig(Section):
    """One training run, complete and checked."""

    run_name: Name
    """Name of the run; its files go to runs/<run_name>."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
    """Seed of the weights, the data's random draws and the layout."""
    model: ModelConfig
    tokenizer: Component
    """Text to token ids."""
    method: Component
    """What is trained for: the losses and their weights."""
    data: DataConfig
    optimizer: Component
    """The optimizer; weight decay applies to matrices only (two dimensions or more)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of a layer of the encoder, as a share of that of the layer after it; null: all alike."""
    scheduler: Component
    """The learning-rate schedule, stepped every batch."""
    global_train_batch_size: PositiveInt
    """Documents in a batch over all ranks."""
    device_train_microbatch_size: PositiveInt | Literal["auto"] | None = None
    """Documents a rank takes at once; null: its whole batch. Fewer give L_con fewer negatives."""
    device_train_microbatch_tokens: PositiveInt | None = None
    """Tokens a rank takes at once, its images' included, in place of a number of documents."""
    max_duration: Duration
    """When training ends."""
    eval_interval: Interval = "1ep"
    """How often `data.eval` is evaluated."""
    precision: Literal["fp32", "amp_bf16", "amp_fp16"] | None = None
    """null: fp32 on CPU, amp_bf16 on GPU."""
    tf32: bool = False
    """Let a GPU multiply what is left in fp32 with ten bits; never with precision fp32."""
    parallelism: ParallelismConfig = ParallelismConfig()
    """How the ranks share the model."""
    compile: CompileConfig | None = None
    """What is compiled; null: nothing."""
    activation_checkpointing: ActivationCheckpointingConfig | None = None
    """What is computed twice to save memory; null: nothing."""
    algorithms: Table = {}
    """What changes training, by name."""
    callbacks: Table = {}
    """What observes training, by name; also the files of callbacks/."""
    loggers: Table = {}
    """Where metrics go besides runs/<run_name>/metrics.jsonl, by name."""
    save_folder: str = Field(default_factory=lambda values: f"runs/{values.get('run_name')}/checkpoints")
    """Where checkpoints go; runs/<run_name>/checkpoints unless set; `{run_name}` in it is the name."""
    save_interval: Interval = "1ep"
    """How often a checkpoint is written."""
    save_num_checkpoints_to_keep: PositiveInt | Literal[-1] = 3
    """The oldest checkpoints beyond this number are deleted; -1 keeps all."""
    autoresume: bool = True
    """Continue from the latest checkpoint in `save_folder`."""
    dist_timeout: PositiveFloat = 300.0
    """Seconds that a rank waits for the others, in a step or at a checkpoint, before the job is given up."""
    load_path: str | None = None
    """Checkpoint to start from when there is nothing to resume."""
    progress_bar: bool = True
    """Show a progress bar, or, where the output is a file, a line a minute (losses, images/s, time left)."""
    log_to_console: bool = False
    """Print metrics as lines, for logs of cluster jobs."""
    evaluation: Table = {}
    """What the table at the end of the run measures, by name."""

    @field_validator("load_path")
    @classmethod
    def _no_archive(cls, value: str | None) -> str | None:
        """Composer unpacks archives of any content, wherever their members say."""
        if value is not None and Path(value).suffix in _ARCHIVES:
            raise ValueError(f"takes a .pt file, or the folder of a sharded checkpoint, got {value!r}")
        return value

    @field_validator("save_folder")
    @classmethod
    def _with_run_name(cls, value: str, info: ValidationInfo) -> str:
        folder = value.replace("{run_name}", str(info.data.get("run_name")))
        if "{" in folder or "}" in folder:
            raise ValueError(f"takes {{run_name}} and no other braces, got {value!r}")
        if not folder.strip():
            raise ValueError("is empty; name a folder, or null for runs/NAME/checkpoints")
        return folder


def with_all_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings with those at their defaults that its version did not have; another's as they are."""
    try:
        return RunConfig.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return copy.deepcopy(dict(settings))
