"""The actions that every engine family shares: fetching the source, rendering the repository, the smoke test.

Reads only files that are in git: the tools and the templates, whose bytes are part of the keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from rules import digest
from rules.action import Action, Files, Input, Local, Output, Pinned
from rules.errors import Misconfigured, Problem
from rules.locked import Locked
from rules.pins import pins
from rules.source import ELSEWHERE, Source
from rules.spec import LOAD_SECONDS, Eval
from rules.taken import Choice, taken
from rules.variant import Variant

__all__ = [
    "CONFIG",
    "INSTALLED",
    "PLATFORM",
    "TOKENIZER",
    "WEIGHTS",
    "Rendering",
    "action",
    "ask",
    "file",
    "launched",
    "release",
    "repository",
    "score",
    "served",
    "smoke",
    "source",
    "templates",
    "tool",
    "without_engine",
]

HERE = Path(__file__).parent
PLATFORM = "linux-x86_64"
CONFIG = ("config.json", "generation_config.json")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*")
TINY_SEED = 20
# Who we are to a hub or a bucket, and the way there.
LOGINS = (
    *("HOME", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("MODELSCOPE_API_TOKEN", "MODELSCOPE_ENDPOINT", "AWS_*", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
# Where an image has its programs and libraries, for what runs inside it with runner = "local".
INSTALLED = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "OPAL_PREFIX")


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What a model repository is rendered from: template folders over the shared ones, in order, the value of each
    placeholder, the release whose contract it is, the folder where the server sees it (relative when ""), and the
    command that starts that server where it is not serve.py's.
    """

    overlays: tuple[str, ...]
    values: Mapping[str, object]
    contract: str = "main"
    root: str = ""
    server: tuple[str, ...] = ()


def source(model: str, where: Source, root: Path, wanted: Choice, locked: Mapping[str, Locked]) -> Action:
    """Brings the checkpoint of `model` here: made for `tiny:`, verified and taken over for `file:` (below `root`),
    downloaded and verified for what lies elsewhere and is `locked`.
    """
    if where.scheme in ELSEWHERE:
        return _download(model, where, wanted, locked.get(where.name))
    if where.scheme == "tiny":
        return action(
            f"source:{model}",
            "tiny",
            {"architecture": where.where, "seed": TINY_SEED},
            outputs=("config.json", "model.safetensors", "tokenizer.json"),
            packages=("torch", "transformers", "tokenizers", "safetensors", "numpy"),
        )
    return action(
        f"source:{model}",
        "fetch",
        {"source": "{checkpoint}"},
        *wanted.arguments(),
        inputs=(("checkpoint", Local(path=str(root / where.where))),),
        outputs=("config.json",) if wanted.allow_pickle else ("config.json", "*.safetensors"),
    )


def _download(model: str, where: Source, wanted: Choice, held: Locked | None) -> Action:
    """Keyed by the SHA-256 of the files alone: the hub they come from and the program that brings them are not."""
    members: tuple[tuple[str, int, str], ...] = ()
    if held:
        paths = set(taken(wanted, (file.path for file in held.files)))
        members = tuple((file.path, file.size, file.sha256) for file in held.files if file.path in paths)
    place = replace(where, revision=held.commit or where.revision).name if held else where.name
    return Action(
        name=f"source:{model}",
        stage="source",
        argv=(
            *("{python}", "-I", "{tool}", "--files={files}", "--places={places}"),
            *("--partial={warm}", "--digests={digests}", "--out={out}"),
        ),
        inputs=(
            ("files", Pinned(place=place, members=members)),
            *((name, replace(tool(program), members=())) for name, program in (("tool", "hub"), ("places", "places"))),
        ),
        outputs=("config.json",),
        platform=PLATFORM,
        warm="downloads",
        passes=LOGINS,
    )


def repository(name: str, model: str, engine: str, rendering: Rendering) -> Action:
    """Renders the Triton model repository of variant `name`: the shared templates, then overlays over them."""
    folders = tuple((f"templates_{overlay}", templates(overlay)) for overlay in ("triton", *rendering.overlays))
    return action(
        f"build:{name}",
        "render",
        {"contract": "{contract}", "engine": "{engine}", "tokenizer": "{tokenizer}"},
        *((f"--root={rendering.root}",) if rendering.root else ()),
        *(f"--templates={{{key}}}" for key, _ in folders),
        *(f"--set={key}={_word(value)}" for key, value in sorted(rendering.values.items())),
        inputs=(
            ("contract", release(rendering.contract)),
            ("engine", Output(action=engine)),
            ("tokenizer", Output(action=f"source:{model}", only=TOKENIZER)),
            *folders,
        ),
        outputs=("ensemble/config.pbtxt", "tensorrt_llm/config.pbtxt"),
        packages=("jinja2", "tritonclient"),
    )


def without_engine(build: Action, *, engine_dir: str, tokenizer: bool) -> Action:
    """The same rendering before there is an engine: its configs name `engine_dir`, or where the engine would lie.

    `tokenizer` says whether the tokenizer is there to be put in.
    """
    gone = {"engine"} if tokenizer else {"engine", "tokenizer"}
    argv = tuple(word for word in build.argv if not any(word == f"--{name}={{{name}}}" for name in gone))
    return replace(
        build,
        name=build.name.replace("build:", "render:", 1),
        argv=(*argv, f"--set=engine_dir={engine_dir}") if engine_dir else argv,
        inputs=tuple(pair for pair in build.inputs if pair[0] not in gone),
        sharing="never",
    )


def smoke(name: str, model: str) -> Action:
    """Serves variant `name` with the real Triton server and asserts what a user relies on."""
    return action(
        f"smoke:{name}",
        "probe",
        {"repository": "{repository}", "source": "{source}", "server": "{server}"},
        inputs=(
            ("server", tool("serve")),
            ("repository", Output(action=f"build:{name}")),
            ("source", Output(action=f"source:{model}", only=(*TOKENIZER, "questions.jsonl", *CONFIG))),
        ),
        outputs=("transcript.jsonl",),
        packages=("nvidia-pytriton", "openvino-genai", "tritonclient", "tokenizers", "numpy"),
    )


def launched(made: Action, command: Sequence[str], load_seconds: float = LOAD_SECONDS) -> Action:
    """`made`, with a server that `command` starts in the place of serve.py's; its repository and ports are replaced.

    It is given up when it is not ready after `load_seconds`, which are keyed only where they are not the default.
    """
    inputs = tuple((name, tool("serve_engine") if name == "server" else of) for name, of in made.inputs)
    env: tuple[tuple[str, str], ...] = (
        ("ENGINES_LAUNCHER", "{launcher}/launch.py"),
        ("ENGINES_SERVER", json.dumps(list(command))),
    )
    if load_seconds != LOAD_SECONDS:
        env = (*env, ("ENGINES_LOAD_SECONDS", f"{load_seconds:g}"))
    return replace(made, inputs=(*inputs, ("launcher", tool("launch"))), env=(*made.env, *env))


def served(made: Action, smoke: Action) -> Action:
    """`made` with the server that `smoke` starts, and all that this is told."""
    server = tuple((name, of) for name, of in smoke.inputs if name in ("server", "launcher"))
    return replace(made, inputs=(*server, *(pair for pair in made.inputs if pair[0] != "server")), env=smoke.env)


def ask(variant: Variant, asked: Eval, root: Path, url: str = "") -> Action:
    """Serves `variant` and asks it the user's questions, whose file is below `root`.

    With a `url`, HOST:PORT of Triton's HTTP, a server that somebody else started is asked.
    """
    data = root / asked.data.removeprefix("file:")
    options = {"column": asked.column, "expected": asked.expected, "size": asked.size}
    server = (("server", tool("serve")), ("repository", Output(action=f"build:{variant.name}")))
    return action(
        f"eval:{variant.name}",
        "ask",
        {"url": url} if url else {"repository": "{repository}", "server": "{server}"},
        "--data={data}",
        *(f"--{name}={value}" for name, value in options.items() if value is not None),
        f"--max-tokens={asked.max_tokens or variant.shape.osl}",
        f"--concurrency={asked.concurrency}",
        *(("--answered",) if asked.metrics or asked.likelihood else ()),
        *(("--likelihood",) if asked.likelihood else ()),
        inputs=(*(() if url else server), ("data", file(data))),
        outputs=("answers.jsonl",),
    )


def score(name: str, metrics: Sequence[str], answers: Path, reference: Path | None) -> Action:
    """Scores the answers of variant `name`, against the same questions' answers at a reference precision too."""
    files = {"answers": answers, **({"reference": reference} if reference else {})}
    return action(
        f"eval:{name}",
        "score",
        {key: f"{{{key}}}" for key in files},
        f"--metrics={','.join(metrics)}",
        inputs=tuple((key, file(path)) for key, path in files.items()),
        outputs=("scores.json", "scores.jsonl"),
        packages=("sacrebleu", "torchmetrics"),
    )


def action(
    name: str,
    program: str,
    arguments: Mapping[str, object],
    *more: str,
    inputs: tuple[tuple[str, Input], ...] = (),
    outputs: tuple[str, ...],
    packages: tuple[str, ...] = (),
) -> Action:
    """An action that runs one of our tools: isolated Python, the tool, `--some-argument=value` in the order given."""
    named = (f"--{key.replace('_', '-')}={value}" for key, value in arguments.items())
    return Action(
        name=name,
        stage=name.partition(":")[0],
        argv=("{python}", "-I", "{tool}", *named, *more, "--out={out}"),
        inputs=(("tool", tool(program)), *inputs),
        outputs=outputs,
        toolchain=pins(*packages),
        platform=PLATFORM,
    )


@cache
def tool(name: str) -> Files:
    """rules/tools/<name>.py or the folder <name>, which imports nothing of ours and so is its own complete digest."""
    place = HERE / "tools" / name
    return folder(place) if place.is_dir() else file(place.with_suffix(".py"))


@cache
def release(name: str) -> Files:
    """rules/releases/<name>.json."""
    return file(HERE / "releases" / f"{name}.json")


@cache
def templates(name: str) -> Files:
    """Every file of templates/<name>; in a wheel the templates lie inside this package."""
    inside = HERE / "templates"
    return folder((inside if inside.is_dir() else HERE.parent / "templates") / name)


def folder(root: Path) -> Files:
    """Every file below `root`, but what Python keeps there."""
    paths = sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    members = tuple((path.relative_to(root).as_posix(), digest.of_file(path)) for path in paths)
    return Files(root=str(root), members=members)


def file(path: Path) -> Files:
    """One file, keyed by its bytes as they are now. Raises Misconfigured when it cannot be read."""
    try:
        return Files(root=str(path), members=(("", digest.of_file(path)),))
    except OSError as error:
        problem = Problem(what=f"{path} cannot be read", facts=(("reason", str(error.strerror)),))
        raise Misconfigured(problem) from error


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
