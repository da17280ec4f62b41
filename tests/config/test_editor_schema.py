from __future__ import annotations

from pathlib import Path

from lcl_composer.config.editor_schema import editor_schema, schema_text

YAMLS = Path(__file__).parents[2] / "yamls"


def test_the_committed_schema_is_current() -> None:
    current = (YAMLS / "schema.json").read_text()
    assert current == schema_text(), "run: lcl schema yamls/schema.json"


def test_every_yaml_names_the_schema() -> None:
    for path in YAMLS.rglob("*.yaml"):
        first = path.read_text().splitlines()[0]
        up = "../" * (len(path.relative_to(YAMLS).parts) - 1)
        assert first == f"# yaml-language-server: $schema={up}schema.json", path


def test_names_are_listed_and_fragments_allowed() -> None:
    schema = editor_schema()
    assert "extends" in schema["properties"]
    assert schema["additionalProperties"] is False
    assert "required" not in str(schema)
    scheduler = schema["properties"]["scheduler"]["anyOf"][0]["properties"]
    assert "cosine_with_warmup" in scheduler["name"]["anyOf"][0]["enum"]
    assert "speed_monitor" in schema["properties"]["callbacks"]["anyOf"][0]["properties"]
