"""Layers of settings: each laid over those before it, with the source of every value kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from lcl_composer.config.yaml_file import Key


@dataclass(frozen=True)
class Null:
    """A ``null`` in a layer: where it stands, and whether there was something for it to remove."""

    where: str
    removed: bool


@dataclass
class Layers:
    """The merged settings. Mappings merge, lists and scalars replace, ``null`` removes.

    Where a layer gives a component another ``name``, the parameters from the layers below are dropped: they
    are the old one's. ``dropped`` says so, a line each. ``empty`` has the ``{}`` that were laid over a
    mapping with something in it, and their sources.
    """

    components: Collection[Key] = ()
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Key, str] = field(default_factory=dict)
    nulls: dict[Key, Null] = field(default_factory=dict)
    empty: dict[Key, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def add(self, content: dict[str, Any], where: Callable[[Key], str]) -> None:
        """Lay a layer over what is there; ``where`` tells the source of its keys."""
        for name, value in content.items():
            self._put(self.values, (str(name),), value, where)

    def source(self, key: Key) -> str | None:
        """Return the source of a key, or of the nearest one above it."""
        while key and key not in self.sources:
            key = key[:-1]
        return self.sources.get(key)

    def _put(self, target: dict[str, Any], key: Key, value: Any, where: Callable[[Key], str]) -> None:
        name = key[-1]
        if value is None:
            removed = target.pop(name, None) is not None
            self._forget(key)
            self.nulls[key] = Null(where(key), removed)
        elif isinstance(value, dict):
            self._put_mapping(target, key, value, where)
        else:
            self._forget(key)
            target[name] = value
            self.sources[key] = where(key)

    def _put_mapping(
        self, target: dict[str, Any], key: Key, value: dict[Any, Any], where: Callable[[Key], str]
    ) -> None:
        name = key[-1]
        before = target.get(name)
        if not isinstance(before, dict):
            self._forget(key)
            target[name] = {}
        elif before and not value:
            self.empty[key] = where(key)
        elif key in self.components and value.get("name", before.get("name")) != before.get("name"):
            self._drop_parameters(before, key, value)
        self.sources[key] = where(key)
        self.nulls.pop(key, None)
        for inner, item in value.items():
            self._put(target[name], (*key, str(inner)), item, where)

    def _drop_parameters(self, before: dict[str, Any], key: Key, value: dict[Any, Any]) -> None:
        """Drop all parameters but those that the layer itself removes by ``null``."""
        old = before.get("name")
        gone = [name for name in before if name != "name" and value.get(name, "") is not None]
        for name in gone:
            del before[name]
            self._forget((*key, name))
        if old and (lost := [name for name in gone if name not in value]):
            change = f"{'.'.join(key)} is {value['name']!r} now and drops what was set for {old!r}"
            self.dropped.append(f"{change}: {', '.join(lost)}")

    def _forget(self, key: Key) -> None:
        for known in (self.sources, self.nulls):
            for gone in [k for k in known if k[: len(key)] == key]:
                del known[gone]
