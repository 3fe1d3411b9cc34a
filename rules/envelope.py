"""What every measurement says beside its figures: of which variant, with which keys and versions, where and when.

A run is a folder `artifacts/<kind>/<variant>/<UTC>-<id>/` with a summary.json, written once and never overwritten:
what was seen on one machine at one moment is an observation, not a result that could be cached.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rules import gpu, tree
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["begin", "finish", "of", "unknown"]

_CPUINFO = Path("/proc/cpuinfo")


def begin(root: Path, kind: str, variant: str) -> Path:
    """The place of a new run of `kind` below artifacts' `root`; a run that begins in the same second has another id."""
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return root / kind / variant / f"{moment}-{secrets.token_hex(3)}"


def of(space: Workspace, variant: Variant, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run that begins now, without figures. Durations are in seconds, sizes in bytes."""
    smoke = space.plan.actions[f"smoke:{variant.name}"]
    summary = unknown(space, variant.name, kind, settings)
    keys = {stage: _key(space, f"{stage}:{variant.name}") for stage in ("engine", "build")}
    versions = {**summary["versions"], **dict(smoke.toolchain)}
    return {**summary, "axes": axes(space, variant), "keys": keys, "versions": versions}


def unknown(space: Workspace, name: str, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what is none of our variants, such as a server that somebody else runs."""
    gpus = _gpus(space.executor.gpus().devices)
    return {
        "version": 1,
        "kind": kind,
        "variant": name,
        "axes": None,
        "keys": {"engine": None, "build": None},
        "url": None,
        "revision": space.executor.revision(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "finished": False,
        "host": platform.node(),
        "cpu": _cpu(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
        "versions": {"python": platform.python_version(), **({"driver": gpu.driver()} if gpus else {})},
        "settings": dict(settings),
        "points": [],
        "gates": [],
    }


def axes(space: Workspace, variant: Variant) -> dict[str, Any]:
    """Where the variant lies on each axis."""
    return {
        "model": variant.model,
        "precision": variant.precision,
        "parallelism": str(variant.parallelism),
        "tp": variant.parallelism.tp,
        "pp": variant.parallelism.pp,
        "toolchain": variant.toolchain,
        "backend": space.plan.spec.toolchains[variant.toolchain].backend,
        "platform": variant.entry.platform,
        "shape": variant.shape.model_dump(),
    }


def finish(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json with the time it took; who sees the file sees all of it."""
    began = datetime.fromisoformat(summary["started"])
    seconds = (datetime.now(timezone.utc) - began).total_seconds()
    text = json.dumps({**summary, "seconds": round(seconds, 1), "finished": True}, indent=1)
    tree.write(folder / "summary.json", text + "\n")


def _key(space: Workspace, action: str) -> str | None:
    record = space.executor.artifacts.record(action)
    return record.key if record else None


def _gpus(devices: tuple[str, ...]) -> list[str]:
    """Each kind of GPU and how many: figures of two kinds are not compared. Numbers where the driver tells no names."""
    kinds = Counter(card.name for card in gpu.cards()) if devices else Counter()
    return [f"{name} x {count}" for name, count in kinds.items()] or list(devices)


def _cpu() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]} x {os.cpu_count()}"
