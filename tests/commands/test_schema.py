"""`doit schema`."""

from __future__ import annotations

import json

from rules import backend
from rules.commands.schema import whole
from tests.space import Space


def test_doit_schema_prints_the_schema_as_json(workspace: Space) -> None:
    assert json.loads(workspace.build("schema")) == whole()


def test_the_schema_needs_no_models_toml(workspace: Space) -> None:
    (workspace.root / "models.toml").unlink()
    assert workspace.run("schema").rc == 0


def test_each_backends_options_are_described() -> None:
    definitions = whole()["$defs"]
    for name in backend.names():
        assert set(definitions[f"options_{name}"]["properties"]) == {"build", "serving"}


def test_every_key_of_a_model_is_there_and_no_other_is_allowed() -> None:
    model = whole()["$defs"]["Model"]
    assert model["additionalProperties"] is False
    assert set(model["required"]) == {"source", "toolchain", "precisions", "shapes"}
