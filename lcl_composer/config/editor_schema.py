"""The JSON schema that editors check YAMLs against while one types.

It is looser than the check of a run: a file may leave out what another one sets, ``null`` removes, and
``${...}`` may stand for any value.
"""

from __future__ import annotations

import json
from typing import Any

from lcl_composer.config.diagnose import COMPONENTS, TABLES
from lcl_composer.config.schema import RunConfig
from lcl_composer.config.yaml_file import Key
from lcl_composer.registry import Registry

_INTERPOLATION = {"type": "string", "pattern": r"^\$\{.*\}$|^\?\?\?$"}


def editor_schema() -> dict[str, Any]:
    """Return the JSON schema of a YAML under yamls/, with the names of the built-in components."""
    raw = RunConfig.model_json_schema(mode="validation")
    schema = _expand(raw, raw.pop("$defs"), ())
    files = {"type": "array", "items": {"type": "string"}}
    extends = files | {"description": "Files this one is laid over, left to right; relative to it."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _expand(node: dict[str, Any], definitions: dict[str, Any], key: Key) -> dict[str, Any]:
    """Inline the definitions, and loosen and enrich every property."""
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]] | {k: v for k, v in node.items() if k != "$ref"}
    node = {k: v for k, v in node.items() if k not in ("required", "title", "default")}
    if "anyOf" in node:
        node["anyOf"] = [_expand(member, definitions, key) for member in node["anyOf"]]
        return node
    properties = {k: _expand(v, definitions, (*key, k)) for k, v in node.get("properties", {}).items()}
    if key in COMPONENTS and "name" in properties:
        properties["name"]["enum"] = sorted(COMPONENTS[key].entries)
    elif key in TABLES:
        properties = _entries(TABLES[key])
    if isinstance(node.get("additionalProperties"), dict) and key not in TABLES:
        node["additionalProperties"] = _loose(_expand(node["additionalProperties"], definitions, key))
    if properties:
        node["properties"] = {k: _loose(v) for k, v in properties.items()}
    return node


def _entries(table: Registry[Any]) -> dict[str, Any]:
    return {name: {"type": "object"} for name in sorted(table.entries)}


def _loose(node: dict[str, Any]) -> dict[str, Any]:
    described = {"description": node.pop("description")} if "description" in node else {}
    members = node.pop("anyOf", None) or [node]
    extra = [m for m in ({"type": "null"}, _INTERPOLATION) if m not in members]
    return described | {"anyOf": [*members, *extra]}


def schema_text() -> str:
    """Return the schema as the text of yamls/schema.json."""
    return json.dumps(editor_schema(), indent=2) + "\n"
