"""Stands in for any program of rules/tools: copied under its name, it writes files that depend on all that it sees.

Steered by files in the folder `control` of the workspace: see tests/fakes.py.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

MAKES = {
    "tiny": "config.json generation_config.json model.safetensors tokenizer.json questions.jsonl",
    "openvino_convert": "openvino_model.xml openvino_model.bin config.json",
    "openvino_quantize": "openvino_model.xml openvino_model.bin config.json",
    "openvino_compile": "openvino_model.xml openvino_model.bin engine.json",
    "render": "ensemble/config.pbtxt tensorrt_llm/config.pbtxt",
    "probe": "transcript.jsonl summary.txt",
}


def main() -> None:
    tool = Path(__file__).stem
    options = [word.lstrip("-").partition("=")[::2] for word in sys.argv[1:]]
    out = Path(dict(options)["out"])
    obey(tool, out.parents[3] / "control")
    if tool == "fetch":
        for path in sorted(Path(dict(options)["source"]).iterdir()):
            (out / path.name).write_bytes(path.read_bytes())
    seen = b"".join(name.encode() + content(value) for name, value in options if name not in ("out", "server"))
    for name in MAKES.get(tool, "").split():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(f"{name} {hashlib.sha256(seen).hexdigest()}\n")


def obey(tool: str, control: Path) -> None:
    control.mkdir(exist_ok=True)
    with (control / "trace").open("a") as trace:
        trace.write(f"{tool}\n")
    print(tool, "begins", flush=True)  # noqa: T201 - progress, as the real tools print it
    if (control / "poison").exists():
        sys.exit("poisoned")
    if (control / f"{tool}.py").exists():
        exec((control / f"{tool}.py").read_text(), {})


def content(value: str) -> bytes:
    place = Path(value)
    if place.is_dir():
        return b"".join(path.name.encode() + path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file())
    return place.read_bytes() if place.is_absolute() else value.encode()


if __name__ == "__main__":
    main()
