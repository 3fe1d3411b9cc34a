"""The texts that scales are measured on are there, enough of them, and in a form that the quantizer reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rules.case import Case, about
from rules.errors import Problem
from rules.rule import Rule, error
from rules.spec import Calibration
from rules.translate import measured
from rules.variant import Setting

__all__ = ["RULES", "TEXT_FILES"]

TEXT_FILES = (".jsonl", ".parquet")


@error("write `calibration`: a file of texts that is there", "TRT-LLM#5247", "TRT-LLM#1351", "TRT-LLM#14930")
@about
def calibration_given(of: Case) -> Iterator[Problem]:
    """Scales are measured on texts that are declared, there, and in a form that the quantizer reads."""
    calibrated = [name for name in of.precisions if measured(name, of.kv_cache_dtype)]
    if not calibrated:
        return
    given, path = of.setting.entry.calibration, f"{of.path}.calibration"
    if of.upstream and "calib_dataset" not in of.release.flags("quantize"):
        what = f"{of.path}.build.quantizer: quantize.py of {of.release.version} takes its texts from a hub only"
        yield Problem(what=what, hint='write quantizer = "modelopt"')
        return
    if given is None:
        cache = "" if of.kv_cache_dtype == "auto" else f" with a KV cache in {of.kv_cache_dtype}"
        what = f"{path}: is missing, and {', '.join(calibrated)}{cache} is measured on texts"
        yield Problem(what=what, hint='write calibration = { data = "file:PATH", column = "text", size = 512 }')
        return
    file = of.setting.root / given.data.removeprefix("file:")
    if not (file.is_file() if file.suffix in TEXT_FILES else file.is_dir()):
        what = f"{path}.data: {file} {'cannot be read as texts' if file.exists() else 'does not exist'}"
        yield Problem(what=what, hint="a .jsonl or .parquet file, or a folder of them")
    if of.upstream and (file.suffix in TEXT_FILES or given.column != "text"):
        what = f"{path}: upstream's quantize.py reads a folder with a column `text`"
        yield Problem(what=what, hint='write quantizer = "modelopt" for anything else')


@error("write the column, size and length that the texts and the model have", "TRT-LLM#5247")
@about
def texts_suffice(of: Case) -> Iterator[Problem]:
    """There are as many texts as are to be measured on, and none is cut off beyond the model's positions.

    Counted in a .jsonl file, as far as needed. What is in others is told when they are read, before the weights are.
    """
    given, path = of.setting.entry.calibration, f"{of.path}.calibration"
    if given is None or not any(measured(name, of.kv_cache_dtype) for name in of.precisions):
        return
    positions = of.setting.dims.max_positions if of.setting.dims else 0
    if 0 < positions < given.length:
        facts = (("max_position_embeddings", str(positions)),)
        yield Problem(what=f"{path}.length: is more than the model's positions", facts=facts, hint="lower it")
    file = of.setting.root / given.data.removeprefix("file:")
    if file.suffix == ".jsonl" and file.is_file():
        try:
            yield from _miscounted(path, file, given)
        except (OSError, UnicodeDecodeError) as error:
            hint = "the quantizer reads it as UTF-8"
            yield Problem(what=f"{path}.data: {file.name} cannot be read", facts=(("reason", str(error)),), hint=hint)


def _miscounted(path: str, file: Path, given: Calibration) -> Iterator[Problem]:
    found = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = _text(line, given.column)
            if line.strip() and text is None:
                what = f"{path}.column: line {number} of {file.name} has no text {given.column!r}"
                yield Problem(what=what, facts=(("line", line.strip()[:80]),), hint="name the column of the texts")
                return
            found += bool(text and text.strip())
            if found == given.size:
                return
    facts = (("asked for", str(given.size)), ("there are", str(found)))
    yield Problem(what=f"{path}.size: {file.name} has too few texts", facts=facts, hint=f"write size = {found}")


def _text(line: str, column: str) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    text = row.get(column) if isinstance(row, dict) else None
    return text if isinstance(text, str) else None


RULES: tuple[Rule[Setting], ...] = (calibration_given, texts_suffice)
