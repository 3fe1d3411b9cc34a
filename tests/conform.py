"""Whether a manifest is what a schema of tests/schemas says, as far as those use JSON Schema; all mistakes at once.

The files say where they are from. A field that they do not name is a mistake: an API server would drop it silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "mistakes"]

_FOLDER = Path(__file__).with_name("schemas")
_FILES = [json.loads(path.read_text("utf-8")) for path in sorted(_FOLDER.glob("*.json"))]
_DEFINITIONS: Mapping[str, Any] = {name: one for file in _FILES for name, one in file["definitions"].items()}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}
KINDS = (
    "Deployment",
    "InferenceService",
    "LeaderWorkerSet",
    "MLService",
    "MLServiceRuntime",
    "PersistentVolumeClaim",
    "Service",
)


def mistakes(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a manifest, each with its path."""
    return list(_wrong(document, _DEFINITIONS[document["kind"]], document["kind"]))


def _wrong(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if "$ref" in schema:
        yield from _wrong(value, _DEFINITIONS[schema["$ref"]], path)
    elif "oneOf" in schema:
        if all(list(_wrong(value, one, path)) for one in schema["oneOf"]):
            yield f"{path}: {value!r} is none of those it may be"
    elif "type" in schema and (not isinstance(value, _TYPES[schema["type"]]) or _is_flag(value, schema["type"])):
        yield f"{path}: {value!r} is no {schema['type']}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    elif isinstance(value, dict):
        yield from _wrong_fields(value, schema, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _wrong(item, schema.get("items", {}), f"{path}[{index}]")


def _is_flag(value: Any, kind: str) -> bool:
    return isinstance(value, bool) and kind != "boolean"


def _wrong_fields(value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: is missing"
    for name, item in value.items():
        if name in fields:
            yield from _wrong(item, fields[name], f"{path}.{name}")
        elif others is False:
            yield f"{path}.{name}: there is no such field"
        elif isinstance(others, dict):
            yield from _wrong(item, others, f"{path}.{name}")
