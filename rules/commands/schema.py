"""`doit schema`: the JSON Schema of models.toml, for editors and CI."""

from __future__ import annotations

import json
from typing import Any

from rules import backend, spec
from rules.commands import EngineCommand

__all__ = ["Schema", "whole"]


class Schema(EngineCommand):
    """The command."""

    name = "schema"
    doc_purpose = "print the JSON Schema of models.toml"
    doc_usage = ""
    doc_description = "The tables `build` and `serving` of a model are described once per backend, under $defs."

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:  # noqa: ARG002
        """Prints it."""
        print(json.dumps(whole(), indent=2))
        return 0


def whole() -> dict[str, Any]:
    """The schema, with each backend's options as `$defs/options_<backend>`."""
    schema = spec.schema()
    for name in backend.names():
        schema["$defs"][f"options_{name}"] = backend.find(name).Options.model_json_schema()
    return schema
