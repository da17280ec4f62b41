"""What must be equal on all nodes: versions, source, settings, GPUs; and what each node says of itself."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.cuda import nccl
from torch.version import cuda

from lcl_composer.config import ComposedConfig
from lcl_composer.dotted import leaves
from lcl_composer.preflight.finding import Finding, Line, fail, lines_of, numbers, ok, size, warn
from lcl_composer.report.environment import git_state
from lcl_composer.versions import PACKAGE, source_digest, versions_of

#: What to say of what is equal, from the values of one node.
Said = Callable[[dict[str, Any]], str]
#: Distributions whose code takes part in a step.
_PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "transformers", "timm", "numpy", "tokenizers")
_ADVICE = {
    "versions": "make the same environment on all nodes",
    "source": "copy the same code and drop-ins to all nodes",
    "GPUs are equal": "take nodes of one kind; is a driver missing?",
}
#: Folders of drop-ins, in the working directory.
_DROP_INS = (Path("callbacks"), Path("methods"))
#: Settings that may name another place on each node.
_PLACES = (".local",)
#: Seconds between clocks from which on logs mislead, and from which on object stores refuse requests.
_SKEW, _REFUSED = 2.0, 300.0


def facts(composed: ComposedConfig) -> dict[str, Any]:
    """What this node is, fit for JSON: versions, source, settings, GPUs."""
    git, _ = git_state()
    return {
        "versions": versions(),
        "source": source_digest(PACKAGE, *_DROP_INS),
        "commit": f"{git['commit'][:10]}{' with changes' * git['dirty']}" if git else "no repository",
        "settings": dict(leaves(composed.run.model_dump(mode="json"))),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def versions() -> dict[str, str]:
    """Version by name of all that computes a step; ``none`` where it is not installed."""
    found = {"python": platform.python_version(), "cuda": cuda or "none"}
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, nccl.version()))
    return found | {name: found or "none" for name, found in versions_of(_PACKAGES).items()}


def compare(nodes: Mapping[int, dict[str, Any]], clocks: Mapping[int, float], of: int) -> Iterator[Line]:
    """Yield the lines about what must be equal.

    Args:
        nodes: Node to its :func:`facts`.
        clocks: Node to the seconds that its clock is ahead of node 0's.
        of: Nodes of the job.
    """
    yield from _line("versions", {n: f["versions"] for n, f in nodes.items()}, of, _said_of_versions)
    yield from _line(
        "source", {n: {"code": f["source"]} for n, f in nodes.items()}, of, _said_of_source(nodes)
    )
    yield from _settings({n: f["settings"] for n, f in nodes.items()}, of)
    gpus = {n: _numbered(f["gpus"]) for n, f in nodes.items()}
    yield from _line("GPUs are equal", gpus, of, lambda first: f"{len(first) - 1} on each node")
    yield from lines_of("clocks", {node: _clock(ahead) for node, ahead in clocks.items()}, of)


def _line(check: str, values: Mapping[int, dict[str, Any]], of: int, said: Said) -> Iterator[Line]:
    """A line that all nodes are equal, or one for each key in which some differ from most."""
    different = list(_differences(values))
    for key, most, others in different:
        for value, nodes in others.items():
            message = f"{key} is {value}, elsewhere {most}; {_ADVICE[check]}"
            yield Line(check, numbers(nodes, of), fail(message))
    if not different:
        first = next(iter(values.values()))
        yield Line(check, "all", ok(said(first)))


def _differences(
    values: Mapping[int, dict[str, Any]],
) -> Iterator[tuple[str, Any, dict[str, list[int]]]]:
    """Yield (key, what most nodes have, what others have and where)."""
    for key in dict.fromkeys(key for some in values.values() for key in some):
        by_node = {node: str(some.get(key, "not there")) for node, some in values.items()}
        most = Counter(by_node.values()).most_common(1)[0][0]
        others: dict[str, list[int]] = {}
        for node, value in by_node.items():
            if value != most:
                others.setdefault(value, []).append(node)
        if others:
            yield key, most, others


def _settings(settings: Mapping[int, dict[str, Any]], of: int) -> Iterator[Line]:
    found: list[Line] = []
    for key, most, others in _differences(settings):
        for value, nodes in others.items():
            said = f"{key} is {value}, elsewhere {most}"
            is_place = key.endswith(_PLACES)
            advice = "its data must be the same" if is_place else "give all nodes the same YAML and overrides"
            finding = (warn if is_place else fail)(f"{said}; {advice}")
            found.append(Line("settings", numbers(nodes, of), finding))
    yield from found or [Line("settings", "all", ok(f"{len(next(iter(settings.values())))} settings, equal"))]


def _numbered(gpus: list[str]) -> dict[str, Any]:
    return {"the number of GPUs": len(gpus)} | {f"GPU {i}": gpu for i, gpu in enumerate(gpus)}


def _said_of_versions(first: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in first.items() if value != "none")


def _said_of_source(nodes: Mapping[int, dict[str, Any]]) -> Said:
    commit = next(iter(nodes.values()))["commit"]
    return lambda first: f"digest {first['code']}, commit {commit}"


def _clock(ahead: float) -> Finding:
    if abs(ahead) < _SKEW:
        return ok(f"within {abs(ahead):.2g} s of node 0")
    said = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} node 0; let NTP (chrony) set it"
    return (fail if abs(ahead) > _REFUSED else warn)(said)


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, {size(properties.total_memory)}, sm_{properties.major}{properties.minor}"
