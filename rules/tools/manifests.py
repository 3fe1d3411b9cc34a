"""Write Kubernetes manifests from templates and values.

    manifests.py --templates DIR --kind deployment|kserve|t9k ... --set NAME=JSON ... --out DIR

Every value is used and none is missing, or nothing is written. Strings are quoted as JSON, which is YAML too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

VOLUME = "volume.yaml"
KINDS = {  # a folder each, since only one of them is applied
    "deployment": ("deployment.yaml", "service.yaml"),
    "kserve": ("inferenceservice.yaml",),
    "t9k": ("mlservice-runtime.yaml", "mlservice.yaml"),
}
SEVERAL = {"deployment.yaml": "leaderworkerset.yaml"}


def main() -> int:
    """Exit 1 with one message when values and templates do not fit."""
    args = arguments()
    import jinja2

    values = dict(args.settings)
    try:
        texts = {name: rendered(args.templates, name, values) for name in files(args.kind, values)}
    except jinja2.TemplateError as reason:
        print(f"error: the templates do not fit the values\n    reason  {reason}", file=sys.stderr)
        return 1
    for name, text in texts.items():
        (args.out / name).parent.mkdir(exist_ok=True)
        (args.out / name).write_text(text, encoding="utf-8")
    (args.out / "summary.txt").write_text(summary(args.kind, values), encoding="utf-8")
    print(f"wrote {', '.join(texts)}", flush=True)
    return 0


def files(kinds: list[str], values: dict[str, Any]) -> list[str]:
    """The files to write, the volume first: what the others need."""
    several = SEVERAL if values["nodes"] > 1 else {}
    return [VOLUME, *(f"{kind}/{several.get(name, name)}" for kind in kinds for name in KINDS[kind])]


def rendered(templates: Path, name: str, values: dict[str, Any]) -> str:
    """One file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  YAML, not HTML: `q` quotes
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["q"] = quote
    environment.filters["blocks"] = blocks
    return environment.get_template(f"{Path(name).name}.j2").render(**values)


def quote(value: Any) -> str:
    """A scalar as JSON, which YAML takes."""
    return json.dumps(value, ensure_ascii=False)


def blocks(words: list[str]) -> list[str]:
    """A line of what mpirun is told first, and one for each rank, whose block of words ends with a colon."""
    start = words.index("-n")
    lines: list[list[str]] = [words[:start], []]
    for word in words[start:]:
        lines[-1].append(word)
        if word == ":":
            lines.append([])
    return [", ".join(map(quote, line)) for line in lines if line]


def summary(kinds: list[str], values: dict[str, Any]) -> str:
    """What the user reads: the order in which they are applied."""
    place = f"{values['folder']} of the claim {values['claim']}"
    lines = [f"kubectl apply -f {VOLUME}", f"# copy the model repository into {place}: docs/kubernetes.md"]
    return "\n".join([*lines, " or ".join(f"kubectl apply -f {kind}/" for kind in kinds)]) + "\n"


def setting(text: str) -> tuple[str, Any]:
    """NAME=JSON."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="write Kubernetes manifests")
    parser.add_argument("--templates", type=Path, required=True, metavar="DIR")
    parser.add_argument("--kind", choices=KINDS, action="append", required=True)
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=JSON", dest="settings")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
