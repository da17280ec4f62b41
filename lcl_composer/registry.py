"""Components by name: what may stand behind ``name:`` in a YAML, and how its parameters are checked.

A table holds ``name -> "module:attribute"`` and imports the module when the component is used, so that
listing names costs nothing. A component's parameters are those of its constructor: they are declared
there and nowhere else.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lcl_composer.dropins import DropIns, place_of
from lcl_composer.errors import ConfigError, LCLError, did_you_mean, one_line
from lcl_composer.signatures import check_value, convert, own_parameters

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a component: ``key`` is the parameter ("" for the component as a whole)."""

    key: str
    message: str


class Registry(Generic[T]):
    """The components of one kind.

    Args:
        kind: What an entry is called in messages, such as ``"encoder"``.
        entries: Name to ``"module:attribute"``.
        dropins: A top-level package whose module ``<name>.py`` is imported for a name in no table.
        injected: Constructor parameters that the program sets itself and a YAML must not.
        base: ``"module:Class"`` that a drop-in must be a subclass of.
    """

    def __init__(
        self,
        kind: str,
        entries: dict[str, str],
        dropins: str | None = None,
        injected: tuple[str, ...] = (),
        base: str | None = None,
    ) -> None:
        self.kind = kind
        self.entries = entries
        self.dropins = DropIns(dropins, kind, base) if dropins else None
        self.injected = frozenset(injected)

    def names(self) -> list[str]:
        """Return every known name, drop-ins included, sorted; imports nothing."""
        return sorted({*self.entries, *(self.dropins.names() if self.dropins else ())})

    def get(self, name: str) -> Callable[..., T]:
        """Import and return the component.

        Raises:
            ConfigError: The name is unknown or stands for two things, its module cannot be imported, or a
                drop-in is not what it must be.
        """
        file = self.dropins.find(name) if self.dropins else None
        if name in self.entries:
            if file:
                raise ConfigError(
                    f"{file}: the name {name!r} already is a {self.kind} of LCL-Composer; rename the file"
                )
            return self._load(name)
        if self.dropins and file:
            return self.dropins.load(name)
        raise ConfigError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self.names())}")

    def _load(self, name: str) -> Callable[..., T]:
        module, attribute = self.entries[name].split(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise ConfigError(f"{self.kind} {name!r} cannot be imported from {module}: {error}") from error

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the constructor's parameters that a YAML may set, in order."""
        own = own_parameters(self.get(name))
        return {key: parameter for key, parameter in own.items() if key not in self.injected}

    def injectable(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the constructor's parameters that the program sets."""
        own = own_parameters(self.get(name))
        return {key: parameter for key, parameter in own.items() if key in self.injected}

    def settings(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of ``{"name": ..., **parameters}`` with the defaults filled in."""
        defaults = {key: p.default for key, p in self.parameters(spec["name"]).items()}
        return defaults | {key: value for key, value in spec.items() if key != "name"}

    def describe(self, name: str) -> str:
        """Return the first line of the component's docstring, its markup removed."""
        line = (inspect.getdoc(self.get(name)) or "").strip().split("\n")[0]
        return re.sub(r"(?::\w+:)?`+[~.]*([^`<]+?)(?: *<[^>]*>)?`+_*", r"\1", line)

    def problems(self, spec: Mapping[str, Any]) -> list[Problem]:
        """Check ``{"name": ..., **parameters}`` against the constructor: unknown, missing, wrong type."""
        try:
            component = self.get(str(spec.get("name")))
            allowed = self.parameters(str(spec.get("name")))
        except ConfigError as error:
            return [Problem("name", str(error))]
        label = f"{self.kind} {spec['name']!r}"
        found = []
        for key, value in spec.items():
            if key in self.injected:
                found.append(Problem(key, f"is set by the program for every {self.kind}; remove it"))
            elif key != "name" and key not in allowed:
                found.append(Problem(key, f"unknown parameter of {label}; {did_you_mean(key, allowed)}"))
            elif key != "name" and (complaint := check_value(component, allowed[key], value)):
                found.append(Problem(key, f"{label} {complaint}"))
        missing = [k for k, p in allowed.items() if p.default is inspect.Parameter.empty and k not in spec]
        return found + [Problem(key, f"missing; {label} needs it") for key in missing]

    def build(self, spec: Mapping[str, Any], **injected: Any) -> T:
        """Construct ``{"name": ..., **parameters}``.

        Args:
            spec: As in the YAML.
            injected: Values on offer from the program. The constructor gets those it has a parameter
                for; the YAML's own value wins, except over a parameter that is the program's alone.

        Raises:
            ConfigError: A parameter is unknown, missing or of the wrong type, or the constructor fails.
        """
        if found := self.problems(spec):
            raise ConfigError("; ".join(f"{p.key}: {p.message}" for p in found))
        component = self.get(spec["name"])
        own = own_parameters(component)
        values = {key: value for key, value in injected.items() if key in own}
        values |= {key: convert(component, own[key], v) for key, v in spec.items() if key != "name"}
        try:
            return component(**values)
        except LCLError:
            raise
        except Exception as error:  # of any library, or a drop-in
            raise ConfigError(self.failure(spec["name"], error)) from error

    def called(self, name: str, error: Exception | None = None) -> str:
        """What a component is called in messages: a drop-in with its file, and the line of an error in it."""
        file = self.dropins.find(name) if self.dropins else None
        where = f"{place_of(error, file) if error else file}: " if file else ""
        return f"{where}{self.kind} {name!r}"

    def failure(self, name: str, error: Exception) -> str:
        """What to say, on one line, of an error in a component's code."""
        refusal = isinstance(error, ValueError | TypeError | ImportError) and str(error)
        text = one_line(error) if refusal else f"{type(error).__name__}: {one_line(error)}"
        return f"{self.called(name, error)}: {text.removesuffix(': ')}"


encoders: Registry[Any] = Registry(
    "encoder",
    {
        "exported": "lcl_composer.models.exported:exported_encoder",
        "open_clip": "lcl_composer.models.open_clip_encoder:OpenCLIPEncoder",
        "timm": "lcl_composer.models.encoder:TimmEncoder",
        "transformers": "lcl_composer.models.transformers_encoder:TransformersEncoder",
    },
)
methods: Registry[Any] = Registry(
    "method",
    {
        "blip2": "lcl_composer.methods.blip2:BLIP2",
        "caption": "lcl_composer.methods.caption:Caption",
        "classify": "lcl_composer.methods.classify:Classify",
        "clip": "lcl_composer.methods.clip:CLIP",
        "coca": "lcl_composer.methods.coca:CoCa",
        "emu": "lcl_composer.methods.emu:Emu",
        "flamingo": "lcl_composer.methods.flamingo:Flamingo",
        "lcl": "lcl_composer.methods.lcl:LCL",
        "masked": "lcl_composer.methods.masked:Masked",
        "retrieve": "lcl_composer.methods.retrieve:Retrieve",
        "vqa": "lcl_composer.methods.caption:VQA",
    },
    dropins="methods",
    injected=("encoder", "pooler", "language_model", "target_encoder", "vocab_size", "classes"),
    base="lcl_composer.methods.method:Method",
)
poolers: Registry[Any] = Registry(
    "pooler", {"attentive": "lcl_composer.models.pooler:AttentivePooler"}, injected=("width", "embed_dim")
)
language_models: Registry[Any] = Registry(
    "language model",
    {
        "text_encoder": "lcl_composer.models.text_encoder:TextEncoder",
        "transformers": "lcl_composer.models.language_model:TransformersLM",
    },
    injected=("vocab_size",),
)
tokenizers: Registry[Any] = Registry(
    "tokenizer",
    {
        "bpe": "lcl_composer.data.tokenizer:BPETokenizer",
        "clip": "lcl_composer.data.tokenizer:CLIPTokenizer",
        "transformers": "lcl_composer.data.pretrained_tokenizer:TransformersTokenizer",
    },
)
optimizers: Registry[Any] = Registry(
    "optimizer",
    {
        "adam": "torch.optim:Adam",
        "adamw": "torch.optim:AdamW",
        "decoupled_adamw": "composer.optim:DecoupledAdamW",
        "sgd": "torch.optim:SGD",
    },
    injected=("params",),
)
schedulers: Registry[Any] = Registry(
    "scheduler",
    {
        "constant": "composer.optim:ConstantScheduler",
        "constant_with_warmup": "composer.optim:ConstantWithWarmupScheduler",
        "cosine": "composer.optim:CosineAnnealingScheduler",
        "cosine_with_warmup": "composer.optim:CosineAnnealingWithWarmupScheduler",
        "linear": "composer.optim:LinearScheduler",
        "linear_with_warmup": "composer.optim:LinearWithWarmupScheduler",
        "polynomial_with_warmup": "composer.optim:PolynomialWithWarmupScheduler",
    },
)
algorithms: Registry[Any] = Registry(
    "algorithm",
    {
        "contrastive_temperature": "lcl_composer.algorithms.contrastive_temperature:ContrastiveTemperature",
        "contrastive_weight": "lcl_composer.algorithms.contrastive_weight:ContrastiveWeight",
        "ema": "lcl_composer.algorithms.ema:EMA",
        "grad_cache": "lcl_composer.algorithms.grad_cache:GradCache",
        "feature_cache": "lcl_composer.algorithms.feature_cache:FeatureCache",
        "gradient_clipping": "lcl_composer.algorithms.gradient_clipping:GradientClipping",
        "image_resolution": "lcl_composer.algorithms.image_resolution:ImageResolution",
        "layer_freezing": "lcl_composer.algorithms.layer_freezing:LayerFreezing",
        "low_precision_layernorm": "composer.algorithms:LowPrecisionLayerNorm",
        "patch_dropout": "lcl_composer.algorithms.patch_dropout:PatchDropout",
        "stop_gradient": "lcl_composer.algorithms.stop_gradient:StopGradient",
    },
)
callbacks: Registry[Any] = Registry(
    "callback",
    {
        "data_wait": "lcl_composer.callbacks.data_wait:DataWait",
        "early_stopper": "lcl_composer.callbacks.stoppers:EarlyStopper",
        "export_encoder": "lcl_composer.callbacks.export_encoder:ExportAtCheckpoints",
        "gradient_norms": "lcl_composer.callbacks.gradient_norms:GradientNorms",
        "host_memory": "lcl_composer.callbacks.host_memory:HostMemory",
        "knn": "lcl_composer.callbacks.knn:KNN",
        "linear_probe": "lcl_composer.callbacks.linear_probe:LinearProbe",
        "loss_guard": "lcl_composer.callbacks.loss_guard:LossGuard",
        "lr_monitor": "composer.callbacks:LRMonitor",
        "memory_monitor": "composer.callbacks:MemoryMonitor",
        "memory_snapshot": "lcl_composer.callbacks.memory_traces:MemorySnapshot",
        "notify": "lcl_composer.callbacks.notify:Notify",
        "oom_observer": "lcl_composer.callbacks.memory_traces:OOMObserver",
        "optimizer_monitor": "composer.callbacks:OptimizerMonitor",
        "retrieval": "lcl_composer.callbacks.retrieval:Retrieval",
        "runtime_estimator": "composer.callbacks:RuntimeEstimator",
        "speed_monitor": "composer.callbacks:SpeedMonitor",
        "system_metrics_monitor": "composer.callbacks:SystemMetricsMonitor",
        "threshold_stopper": "lcl_composer.callbacks.stoppers:ThresholdStopper",
        "zero_shot": "lcl_composer.callbacks.zero_shot:ZeroShot",
    },
    dropins="callbacks",
    injected=("layout",),
    base="composer:Callback",
)
loggers: Registry[Any] = Registry(
    "logger",
    {
        "mlflow": "lcl_composer.callbacks.mlflow_logger:MLFlowLogger",
        "tensorboard": "lcl_composer.callbacks.tensorboard_logger:TensorboardLogger",
        "wandb": "lcl_composer.callbacks.wandb_logger:WandBLogger",
    },
)
generators: Registry[Any] = Registry(
    "data generator",
    {
        "shapes": "lcl_composer.synthetic.shapes:ShapesGenerator",
        "shapes_classes": "lcl_composer.synthetic.classes:ShapesClasses",
    },
)
converters: Registry[Any] = Registry(
    "converter",
    {
        "captions": "lcl_composer.convert.captions:Captions",
        "coco": "lcl_composer.convert.karpathy:Coco",
        "flickr30k": "lcl_composer.convert.karpathy:Flickr30k",
        "html": "lcl_composer.convert.html:HTML",
        "imagefolder": "lcl_composer.convert.imagefolder:ImageFolder",
        "img2dataset": "lcl_composer.convert.img2dataset:Img2Dataset",
        "mmc4": "lcl_composer.convert.mmc4:MMC4",
        "mmc4-pairs": "lcl_composer.convert.mmc4:MMC4Pairs",
        "nocaps": "lcl_composer.convert.nocaps:NoCaps",
        "obelics": "lcl_composer.convert.obelics:Obelics",
        "omnicorpus": "lcl_composer.convert.obelics:OmniCorpus",
        "pairs": "lcl_composer.convert.document_pairs:DocumentPairs",
        "table": "lcl_composer.convert.table:Table",
    },
)
evaluations: Registry[Any] = Registry(
    "evaluation",
    {
        "caption_retrieval": "lcl_composer.evaluation.caption_retrieval:CaptionRetrieval",
        "captioning": "lcl_composer.evaluation.captioning:Captioning",
        "classification": "lcl_composer.evaluation.classification:Classification",
        "probe": "lcl_composer.evaluation.probe_trained:FrozenProbe",
        "retrieval": "lcl_composer.evaluation.held_out:HeldOutRetrieval",
        "vqa": "lcl_composer.evaluation.answering:Answering",
        "zero_shot": "lcl_composer.evaluation.zero_shot:ZeroShot",
    },
    injected=("image_size", "layout", "tokenizer"),
)

#: Every table, by the name that `lcl list` takes.
REGISTRIES: dict[str, Registry[Any]] = {
    "methods": methods,
    "encoders": encoders,
    "poolers": poolers,
    "language_models": language_models,
    "tokenizers": tokenizers,
    "optimizers": optimizers,
    "schedulers": schedulers,
    "algorithms": algorithms,
    "callbacks": callbacks,
    "loggers": loggers,
    "evaluations": evaluations,
    "generators": generators,
    "converters": converters,
}
