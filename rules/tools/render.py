"""Render a Triton model repository from templates, a release's contract, settings and an engine.

    render.py --templates DIR ... --contract FILE [--root DIR] --set NAME=VALUE ... [--engine DIR] [--tokenizer DIR]
              --out DIR

A templates directory is shaped like what it becomes, `<model>/...`; `*.j2` files are rendered, others copied, and what
lies in `shared/` goes into every model of the Python backend. Later directories overlay earlier ones. A directory may
hold a `contract.json` that says how its engine differs from the release: `add`ed inputs and ensemble mappings, and
placeholders that it `fix`es (an empty value is upstream's word for unset), which `--set` may then not name.

Configs name engine and tokenizer relative to the model's own folder, so that the repository can be moved. With `--root`
they name them below that folder, where the server will see the repository: upstream's engine does not resolve paths.
Without `--engine` or `--tokenizer` the configs are as they would be, and only those files are missing.

Every `config.pbtxt` is parsed with Triton's protobuf schema before anything is written. The tool knows no models, no
precisions and no engine family.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import Any

PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
LAYOUT = {"engine_dir": "1/engine", "tokenizer_dir": "1/tokenizer"}  # relative to the model
ENGINE_USER = "tensorrt_llm"

Config = dict[str, Any]


class Refused(Exception):
    """Something the user can mend: what happened, the facts, a hint."""

    def __init__(self, what: str, facts: list[str], hint: str) -> None:
        super().__init__("\n".join([f"error: {what}", *(f"    {fact}" for fact in facts), f"    hint: {hint}"]))


def main() -> int:
    """Exit 1 with one message when the user's settings or files are wrong."""
    args = arguments()
    try:
        render(args)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.Namespace:
    """The command line of the table of tools."""
    parser = argparse.ArgumentParser(description="render a Triton model repository")
    parser.add_argument("--templates", type=Path, action="append", required=True, metavar="DIR")
    parser.add_argument("--contract", type=Path, required=True, metavar="FILE")
    parser.add_argument("--engine", type=Path, metavar="DIR")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR")
    parser.add_argument("--root", default="", metavar="DIR", help="where the server will see the repository")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


def render(args: argparse.Namespace) -> None:
    """Write the repository below `args.out`, or nothing."""
    contract: dict[str, Config] = read_json(args.contract)["triton"]
    overlays = [read_json(path) for path in (folder / "contract.json" for folder in args.templates) if path.exists()]
    fixed = {name: value for overlay in overlays for name, value in overlay.get("fixed", {}).items()}
    for overlay in overlays:
        extend(contract, overlay.get("add", {}))
    values = settings(args.settings, placeholders(contract), fixed)
    models = {name: fill(config, {**layout(args.root, name), **values}) for name, config in contract.items()}
    files = rendered_files(args.templates, models)
    check_configs(files)
    engine, tokenizer = (contents(given) if given else {} for given in (args.engine, args.tokenizer))
    write(files, args.out)
    place(engine, args.out / ENGINE_USER / LAYOUT["engine_dir"])
    for model in [name for name, config in contract.items() if "tokenizer_dir" in placeholders(config)]:
        place(tokenizer, args.out / model / LAYOUT["tokenizer_dir"])
    print(f"rendered {len(models)} models: {', '.join(models)}", flush=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as reason:
        raise Refused(f"{path.name} is not readable", [f"file    {path}", f"reason  {reason}"], "check it") from None
    return dict(value)


def extend(contract: dict[str, Config], additions: dict[str, Config]) -> None:
    """Add inputs, and mappings of ensemble steps, to the models that have them."""
    for model, addition in additions.items():
        contract[model]["input"] += addition.get("input", [])
        steps = contract[model].get("ensemble_scheduling", {}).get("step", [])
        for step in steps:
            step["input_map"].update(addition.get("step", {}).get(step["model_name"], {}).get("input_map", {}))


def placeholders(value: Any) -> set[str]:
    """Every NAME of a ${NAME} anywhere in a contract."""
    return set(PLACEHOLDER.findall(json.dumps(value)))


def settings(given: list[str], wanted: set[str], fixed: dict[str, str]) -> dict[str, str]:
    """The value of each placeholder; all mistakes are reported at once."""
    pairs = dict(setting.partition("=")[::2] for setting in given)
    free = wanted - set(fixed)
    unknown = [f"unknown   {name}{suggestion(name, free)}" for name in pairs if name not in free]
    missing = [f"unfilled  {name}" for name in sorted(free - set(pairs) - set(LAYOUT))]
    if unknown or missing:
        hint = "give each name once, --set NAME=VALUE"
        raise Refused("the settings do not fit the templates", unknown + missing, hint)
    return {**fixed, **pairs}


def layout(root: str, model: str) -> dict[str, str]:
    """What `model` calls the engine and its own tokenizer; there is one engine, that of `tensorrt_llm`."""
    if not root:
        return LAYOUT
    users = {"engine_dir": ENGINE_USER, "tokenizer_dir": model}
    return {name: f"{root}/{users[name]}/{below}" for name, below in LAYOUT.items()}


def suggestion(name: str, words: set[str]) -> str:
    """The nearest good word, as the end of a sentence."""
    near = difflib.get_close_matches(name, sorted(words), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def fill(value: Any, values: dict[str, str]) -> Any:
    """`value` with every placeholder replaced."""
    if isinstance(value, dict):
        return {key: fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, values) for item in value]
    if not isinstance(value, str):
        return value
    return PLACEHOLDER.sub(lambda match: values[match[1]], value)


def rendered_files(templates: list[Path], models: dict[str, Config]) -> dict[str, bytes]:
    """Path in the repository -> content."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(list(reversed(templates))),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  protobuf text, not HTML: `quote` escapes
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = quote
    files: dict[str, bytes] = {}
    for path, source in sources(templates, models).items():
        if path.suffix != ".j2":
            files[str(path)] = source.read_bytes()
            continue
        try:
            text = environment.get_template(str(path)).render(config=models[path.parts[0]])
        except jinja2.TemplateError as reason:
            facts = [f"template  {path}", f"reason    {reason}"]
            raise Refused("a template does not fit the contract", facts, "compare it with the contract") from None
        files[str(path.with_suffix(""))] = text.encode("utf-8")
    return files


def quote(text: str) -> str:
    """A string of protobuf's text format, which takes JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def sources(templates: list[Path], models: dict[str, Config]) -> dict[PurePosixPath, Path]:
    """Path in the repository (a template still with its .j2) -> the file it is made from."""
    found: dict[PurePosixPath, Path] = {}
    python = [name for name, config in models.items() if config.get("backend") == "python"]
    for folder in templates:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            path = PurePosixPath(file.relative_to(folder).as_posix())
            if "__pycache__" in path.parts:
                continue
            if path.parts[0] in models:
                found[path] = file
            elif path.parts[0] == "shared":
                found |= {PurePosixPath(model, *path.parts[1:]): file for model in python}
    return found


def check_configs(files: dict[str, bytes]) -> None:
    """Parse every config.pbtxt with Triton's own schema; all mistakes are reported at once."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    mistakes = []
    for path in sorted(path for path in files if path.endswith("config.pbtxt")):
        try:
            text_format.Parse(files[path], model_config_pb2.ModelConfig())
        except text_format.ParseError as reason:
            mistakes += [f"file    {path}", f"reason  {reason}", *around(files[path], reason)]
    if mistakes:
        raise Refused("a rendered config is not a Triton model config", mistakes, "check the values given with --set")


def around(text: bytes, reason: Any) -> list[str]:
    """The line that a text_format.ParseError names."""
    line = reason.GetLine()
    return [f"line    {text.decode('utf-8').splitlines()[line - 1].strip()}"] if line else []


def write(files: dict[str, bytes], out: Path) -> None:
    """Write the files; Triton also wants the version directory of a model without code."""
    for path, content in files.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path in files:
        if path.endswith("config.pbtxt"):
            version = out / PurePosixPath(path).parent / "1"
            version.mkdir(exist_ok=True)
            if not any(version.iterdir()):
                (version / ".keep").touch()  # artifacts are lists of files: an empty directory would be lost


def contents(folder: Path) -> dict[str, Path]:
    """Relative path -> file of everything below a directory."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise Refused("there is nothing to serve", [f"directory  {folder}"], "--engine and --tokenizer are directories")
    return {path.relative_to(folder).as_posix(): path.resolve() for path in files}


def place(files: dict[str, Path], target: Path) -> None:
    """Lay files out by hard link, or copy where the file system cannot."""
    for path, file in files.items():
        link = target / path
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, link)
        except OSError:
            shutil.copyfile(file, link)


if __name__ == "__main__":
    sys.exit(main())
