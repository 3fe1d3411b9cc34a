"""The model repository as a server sees it: links, with configs that name the places where it sees them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any


def lay_out(layout: dict[str, Any]) -> list[str]:
    """Makes the repository of links; returns the models, `<model>__<variant>` when it holds several variants."""
    target, several = Path(layout["target"]), len(layout["sources"]) > 1
    served: list[str] = []
    for variant, source in layout["sources"].items():
        models = sorted(path.parent.name for path in Path(source).glob("*/config.pbtxt"))
        names = {name: f"{name}__{variant}" if several else name for name in models}
        for name in models:
            copy = os.symlink if layout["seen"] == layout["target"] else link
            shutil.copytree(Path(source, name).resolve(), target / names[name], copy_function=copy)
            (rewrite if several else replace_root)(target / names[name] / "config.pbtxt", names, layout, variant)
        served += names.values()
    return served


def link(source: str, target: str) -> None:
    """A hard link, which a container sees as the file itself; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_root(path: Path, _names: dict[str, str], layout: dict[str, Any], _variant: str) -> None:
    """Gives a config the places where the server sees its files, with no more than Python has in every image."""
    text = path.read_text().replace(f'"{layout["root"]}/', f'"{layout["seen"]}/')
    path.unlink()  # a link to the artifact
    path.write_text(text)


def rewrite(path: Path, names: dict[str, str], layout: dict[str, Any], variant: str) -> None:
    """Gives a config the new names, the places where the server sees its files, and its engine the variant's GPUs."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.name = path.parent.name
    for step in config.ensemble_scheduling.step:
        step.model_name = names.get(step.model_name, step.model_name)
    for key, parameter in config.parameters.items():
        below = parameter.string_value.removeprefix(f"{layout['root']}/")
        if below != parameter.string_value:
            model, _, rest = below.partition("/")
            parameter.string_value = f"{layout['seen']}/{names[model]}/{rest}"
        elif key == "tensorrt_llm_model_name":
            parameter.string_value = names.get(parameter.string_value, parameter.string_value)
    if "gpu_device_ids" in config.parameters and layout["devices"].get(variant):
        config.parameters["gpu_device_ids"].string_value = layout["devices"][variant]
    path.unlink()
    path.write_text(text_format.MessageToString(config))
