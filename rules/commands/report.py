"""`doit report [NAME...]`: the measurements as one HTML page that opens without a network, or as md, csv or json."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidCommand

from rules import backend, findings, git, memory, page, picture, source, tables
from rules.commands import EngineCommand
from rules.errors import Misconfigured, Problem, nearest
from rules.findings import Findings
from rules.outlook import Outlook, look
from rules.picture import Box
from rules.source import Dims
from rules.tasks import here
from rules.translate import MAX_NUM_TOKENS
from rules.workspace import Workspace

__all__ = ["Report"]

_FORMATS = ("html", "md", "csv", "json")


class Report(EngineCommand):
    """The command."""

    name = "report"
    doc_purpose = "show what was measured: an HTML page, or md, csv, json"
    doc_usage = "[NAME...]"
    doc_description = "NAME is a variant or the beginning of several. Without one: all that was measured."
    cmd_options = (
        {"name": "format", "long": "format", "type": str, "default": "html", "help": "html, md, csv or json"},
        {
            "name": "out",
            "long": "out",
            "type": str,
            "default": "",
            "help": "file; else artifacts/report.html, or stdout",
        },
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Writes it, and says where."""
        kind, out = opt_values["format"], opt_values["out"]
        if kind not in _FORMATS:
            raise InvalidCommand(f"{kind!r} is no format: {nearest(kind, _FORMATS)}")
        space = here()
        found = findings.load(space.executor.artifacts.root)
        text = _text(space, found, _chosen(space, found, pos_args), kind)
        if kind != "html" and not out:
            print(text, end="")
            return 0
        path = Path(out) if out else space.executor.artifacts.root / "report.html"
        _write(path, text)
        for skipped, reason in found.unread:
            print(f"warning: {skipped} was left out: {reason}", file=sys.stderr)
        print(path)
        if not found.variants():
            print("nothing has been measured yet: doit bench:NAME, doit eval:NAME", file=sys.stderr)
        return 0


def _write(path: Path, text: str) -> None:
    """Raises Misconfigured where the user named a place that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = Problem(what=f"{path} cannot be written", facts=(("reason", str(error.strerror)),))
        raise Misconfigured(problem) from error


def _chosen(space: Workspace, found: Findings, names: list[str]) -> list[str]:
    """The measured variants that are one of `names` or begin with it and an axis, in the order of models.toml.

    Raises Misconfigured for a name that no measured variant has.
    """
    order = {name: place for place, name in enumerate(space.plan.variants)}
    known = sorted(found.variants(), key=lambda name: (order.get(name, len(order)), name))
    unknown = [name for name in names if not any(_under(variant, name) for variant in known)]
    if unknown:
        words = _words(space, known)
        raise Misconfigured(
            [Problem(what=f"nothing of {name!r} was measured", hint=nearest(name, words)) for name in unknown]
        )
    return [variant for variant in known if not names or any(_under(variant, name) for name in names)]


def _words(space: Workspace, names: list[str]) -> list[str]:
    """The names, and those of the groups that they are in."""
    variants = (space.plan.variants.get(name) for name in names)
    return list(dict.fromkeys([*(word for it in variants if it for word in it.prefixes()), *names]))


def _under(variant: str, name: str) -> bool:
    return variant == name or variant.startswith(f"{name}_")


def _text(space: Workspace, found: Findings, names: list[str], kind: str) -> str:
    if kind == "html":
        budgets = {name: budget for name in names if (budget := _budget(space, name))}
        made = page.content(found, names, budgets, lambda since, until: git.commits(space.root, since, until))
        return page.html(made, _drawn(space, names), f"{space.root.name}: measurements")
    points = found.current(names)
    if kind == "md":
        return tables.as_markdown(found, points)
    return tables.as_csv(points) if kind == "csv" else tables.as_json(found, points)


def _drawn(space: Workspace, names: list[str]) -> dict[str, list[Box]]:
    """The build graph of each model that these variants are of, with what an action took when it last ran."""
    seconds = {row["name"]: float(row["seconds"]) for row in space.executor.artifacts.history()}
    models = dict.fromkeys(space.plan.variants[name].model for name in names if name in space.plan.variants)
    return {model: picture.boxes(_looked(space, model), model, seconds) for model in models}


def _looked(space: Workspace, model: str) -> list[Outlook]:
    wanted = [f"smoke:{variant.name}" for variant in space.plan.variants.values() if variant.model == model]
    return look(space.executor, space.closure(wanted))


def _budget(space: Workspace, name: str) -> dict[str, int]:
    """Bytes that a full batch is expected to take on all ranks of the variant; {} where its config.json, or what its
    precision takes, is not known.
    """
    variant = space.plan.variants.get(name)
    if variant is None or not memory.known(variant.precision):
        return {}
    dims = source.dims_of(variant.entry.source, space.root, space.plan.spec.locked)
    if not isinstance(dims, Dims) or not memory.parameters(dims):
        return {}
    shape, whole = variant.shape, variant.entry.build.get("quantizer") == "upstream"
    cut = memory.Cut(precision=variant.precision, parallelism=variant.parallelism, embedding_whole=whole)
    cpu = backend.find(space.plan.spec.toolchains[variant.toolchain].backend).device == "cpu"
    cached = 1 if variant.entry.build.get("kv_cache_dtype", "auto") != "auto" else 2
    tokens = min(shape.batch * shape.isl, MAX_NUM_TOKENS)
    parts = {
        "weights": memory.exported(dims, variant.precision) if cpu else memory.weights(dims, cut),
        "KV cache": shape.batch * (shape.isl + shape.osl) * memory.cache_bytes(dims, variant.parallelism, cached),
        "activations": memory.activations(dims, cut, tokens, sequences=shape.batch),
    }
    return {part: size * variant.parallelism.world_size for part, size in parts.items()}
