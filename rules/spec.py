"""models.toml as typed values, read strictly: unknown keys, wrong types and impossible values are all reported at once.

This module knows the file's shape; what a precision or an option means is its backend's business (`check`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

import tomli
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from rules import locked as lockfile
from rules.cluster import Kubernetes
from rules.errors import Problem, nearest
from rules.gates import LIMITS
from rules.loads import Bench, Slo
from rules.locked import Locked

__all__ = [
    "LOAD_SECONDS",
    "Cache",
    "Calibration",
    "Eval",
    "Model",
    "Parallelism",
    "Platform",
    "Serve",
    "Shape",
    "Spec",
    "Toolchain",
    "read",
    "schema",
    "strict_problems",
]

LOAD_SECONDS = 3600.0  # 100 GB of engine from a file system of 30 MB/s
_NAME = re.compile(r"[a-z][a-z0-9_]*[a-z0-9]|[a-z]")
_PARALLELISM = re.compile(r"(?:tp(?P<tp>[1-9][0-9]*))?(?:pp(?P<pp>[1-9][0-9]*))?")

Count = Annotated[int, Field(ge=1, le=1 << 24)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Metric = Literal["exact_match", "contains", "regex", "numeric", "rouge_l", "chrf", "bleu"]
Names = Annotated[list[str], Field(min_length=1)]
NameOrNames = Annotated[
    Names,
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | Names),
]
# What pydantic finds, in the words of a TOML file: what is wrong, and how it is written. {ge} and {le} are the bounds.
_WORDING: Mapping[str, tuple[str, str]] = {
    "model_type": ("must be a table", "write a [table] of its own or {{ key = value }}"),
    "dict_type": ("must be a table", "write a [table] of its own or {{ key = value }}"),
    "list_type": ("must be a list", "write it in [ ]"),
    "tuple_type": ("must be a list", "write it in [ ]"),
    "string_type": ("must be a string", "write it in quotes"),
    "int_type": ("must be a whole number", "write it without quotes and point"),
    "bool_type": ("must be true or false", "write it without quotes"),
    "too_short": ("is empty", "name at least one"),
    "greater_than_equal": ("must be at least {ge}", "raise it"),
    "less_than_equal": ("must be at most {le}", "lower it"),
    "less_than": ("must be less than {lt}", "lower it"),
    "float_type": ("must be a number", "write it without quotes"),
    "finite_number": ("must be a finite number", "leave the key out for no limit"),
    "greater_than": ("must be more than {gt:g}", "raise it"),
    "literal_error": ("must be {expected}", "write one of these"),
    "missing": ("is missing", "this key has no default"),
}
_PATTERNS: Mapping[str, tuple[str, str]] = {  # the same for what must look like something
    "^file:.": ("must be file:PATH", "write file: before the path"),
    "^[0-9a-f]{64}$": ("must be 64 hexadecimal digits", "docs/cache.md says how a key is made"),
    r"^[\w-]+(,[\w-]+)*$": ("must be a list of GPUs in one string", 'as in "0,1"'),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shape(_Strict):
    """The limits one engine is built for: sequences in a batch, and tokens in and out of a request."""

    batch: Count
    isl: Count
    osl: Count


class Toolchain(_Strict):
    """What builds and runs an engine; `backend` names a file in rules/backends/.

    `release` is TensorRT-LLM's. `runner` is where commands run: here, or in a container of `image` (a tag or, better, a
    digest; the release's own when left out). `upstream` is the folder there that holds the release's `examples/`.
    """

    backend: str
    release: str | None = None
    runner: Literal["local", "docker", "podman"] = "local"
    image: str | None = None
    upstream: str = "/app"


class Platform(_Strict):
    """The machine that engines are built for: compute capability x 10 (90 is Hopper), GiB per GPU, GPUs.

    An engine of more ranks is built on one machine and served on several: `nodes` of its kind.

    `price_per_hour` is of the whole machine, in any one currency: `doit recommend` then compares cost.
    """

    sm: Count
    memory_gib: Count
    gpus: Count
    nodes: Count = 1
    price_per_hour: Annotated[float, Field(gt=0)] | None = None


class Cache(_Strict):
    """Where results are kept.

    Checkouts that name one `dir` share it. `remote` is a URL (s3, gs, az, file, http, https) without credentials, and
    `trusted` are the ed25519 public keys, 64 hexadecimal digits, of which one must have signed what comes from there.
    """

    dir: str = "artifacts/store"
    remote: str | None = None
    trusted: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = []


class Serve(_Strict):
    """`default`: what `doit serve` starts when no name is given. `gpus`: for a variant or a group, the GPUs of each of
    its servers, as in ["0,1", "2,3"] for two; others take what is idle. On GPUs a server that is not ready after
    `load_timeout_s` is given up, wherever it is started.
    """

    default: tuple[str, ...] = Field(default=(), strict=False)
    gpus: dict[str, Annotated[list[Annotated[str, Field(pattern=r"^[\w-]+(,[\w-]+)*$")]], Field(min_length=1)]] = {}
    load_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)] = LOAD_SECONDS


class Calibration(_Strict):
    """The texts that a quantizer measures activations on.

    `data` is `file:PATH` of a .jsonl or .parquet file or of a folder with such; `column` names the text in each row.
    The first `size` rows are taken, `length` tokens of each.
    """

    data: Annotated[str, Field(pattern="^file:.")]
    column: str = "text"
    size: Count = 512
    length: Count = 512


class Eval(_Strict):
    """The user's own questions, and how answers are scored: docs/evaluation.md.

    `data` is `file:PATH` of a .jsonl; `column` names the prompt in each row (else the first of input, text_input, text,
    prompt) and `expected` the right answer (else the first of expected, output). The first `size` rows are asked, all
    without it, for `max_tokens` or the row's own or the shape's osl. `reference` is one of the entry's precisions:
    agreement with it is measured, and what is lost to it. With `likelihood` the expected answers are measured too.
    """

    data: Annotated[str, Field(pattern="^file:.")]
    column: str | None = None
    expected: str | None = None
    metrics: list[Metric] = []
    reference: str | None = None
    likelihood: bool = False
    size: Count | None = None
    max_tokens: Count | None = None
    concurrency: Count = 8


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Tensor parallel ranks x pipeline parallel stages."""

    tp: int
    pp: int

    @property
    def world_size(self) -> int:
        """Ranks in all, one GPU each."""
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"tp{self.tp}" + (f"pp{self.pp}" if self.pp > 1 else "")

    @staticmethod
    def parse(text: str) -> Parallelism:
        """Reads `tp4`, `pp2` or `tp4pp2`. Raises ValueError on anything else."""
        match = _PARALLELISM.fullmatch(text) if text else None
        if match is None:
            raise ValueError(f"{text!r} is not of the form tp4, pp2 or tp4pp2")
        return Parallelism(tp=int(match["tp"] or 1), pp=int(match["pp"] or 1))


class Model(_Strict):
    """One entry: a model with its precisions, parallelisms and shapes. `build` and `serving` are the backend's; the
    names that `gates` may hold, what a measurement must reach, are those of rules/gates.py. `k8s` goes over [k8s].
    `include` and `exclude` are patterns of the source's files: see rules/taken.py.
    """

    source: str
    toolchain: NameOrNames
    platform: str | None = None
    precisions: Names
    parallelism: Names = ["tp1"]
    shapes: Annotated[list[Shape], Field(min_length=1)]
    include: list[str] = []
    exclude: list[str] = []
    allow_pickle: bool = False
    trust_remote_code: bool = False
    calibration: Calibration | None = None
    bench: Bench = Bench()
    eval: Eval | None = None
    gates: Annotated[dict[str, Finite], Field(json_schema_extra={"propertyNames": {"enum": [*LIMITS]}})] = {}
    build: dict[str, Any] = {}
    serving: dict[str, Any] = {}
    k8s: Kubernetes | None = None

    def toolchains(self) -> list[str]:
        """The toolchains' names, one or several."""
        return self.toolchain

    def parallelisms(self) -> Iterator[Parallelism]:
        """The parallelisms that parse; of the others a rule tells."""
        for text in self.parallelism:
            with suppress(ValueError):
                yield Parallelism.parse(text)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The whole file. `default` are the groups that `doit` without arguments builds; () is all of them. `locked` is
    what models.lock says beside it. `torn` are the entries, as in `models.NAME`, that are there and not well formed:
    nobody is told that they are missing.
    """

    default: tuple[str, ...] = ()
    torn: frozenset[str] = frozenset()
    locked: Mapping[str, Locked] = field(default_factory=dict)
    cache: Cache
    serve: Serve
    toolchains: Mapping[str, Toolchain]
    platforms: Mapping[str, Platform]
    models: Mapping[str, Model]
    k8s: Kubernetes = field(default_factory=Kubernetes)


_TABLES: Mapping[str, type[_Strict]] = {"toolchains": Toolchain, "platforms": Platform, "models": Model}
_SINGLES: Mapping[str, type[BaseModel]] = {"cache": Cache, "serve": Serve, "k8s": Kubernetes}
_NESTED: Mapping[str, type[BaseModel]] = {
    "slo": Slo,
    "bench": Bench,
    "shapes": Shape,
    "calibration": Calibration,
    "eval": Eval,
    "k8s": Kubernetes,
}
_KEYS = (*_TABLES, *_SINGLES, "default")
_LOOSE = frozenset(("bench", "eval", "gates", "k8s"))  # of an entry: what is wrong in them says nothing of its engines
_Entry = TypeVar("_Entry", bound=BaseModel)


def read(text: str, lock: str = "") -> tuple[Spec, list[Problem]]:
    """`text` of a models.toml, and of the models.lock beside it -> the entries that are well formed, and every problem
    of the others.
    """
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        empty = Spec(cache=Cache(), serve=Serve(), toolchains={}, platforms={}, models={})
        return empty, [Problem(what=f"models.toml is not TOML: {error}", hint="strings need quotes, tables [brackets]")]
    locked, unreadable = lockfile.read(lock)
    problems = [_unknown_table(name) for name in data if name not in _KEYS]
    spec = Spec(
        locked=locked,
        torn=frozenset(f"{table}.{name}" for table in _TABLES for name in _named(data, table)),
        default=_default(data, problems),
        cache=_single("cache", Cache, data, problems) or Cache(),
        serve=_single("serve", Serve, data, problems) or Serve(),
        toolchains=_entries("toolchains", Toolchain, data, problems),
        platforms=_entries("platforms", Platform, data, problems),
        models=_entries("models", Model, data, problems),
        k8s=_single("k8s", Kubernetes, data, problems) or Kubernetes(),
    )
    whole = {f"{table}.{name}" for table in _TABLES for name in getattr(spec, table)}
    return replace(spec, torn=spec.torn - whole), problems + unreadable


def schema() -> dict[str, Any]:
    """The JSON Schema of models.toml, without the backends' options."""
    singles: dict[str, Any] = {name: (kind, kind()) for name, kind in _SINGLES.items()}
    tables: dict[str, Any] = {name: (dict[str, kind], {}) for name, kind in _TABLES.items()}  # type: ignore[valid-type]
    default: Any = (list[str], [])
    return create_model("models.toml", __base__=_Strict, default=default, **singles, **tables).model_json_schema()


def strict_problems(path: str, error: ValidationError, known: Sequence[str]) -> list[Problem]:
    """Pydantic's findings as ours: the path in models.toml, what is wrong, the nearest of the `known` keys."""
    return [_problem(path, detail, known) for detail in error.errors(include_url=False)]


def _named(data: Mapping[str, Any], table: str) -> list[str]:
    entries = data.get(table, {})
    return list(entries) if isinstance(entries, dict) else []


def _default(data: Mapping[str, Any], problems: list[Problem]) -> tuple[str, ...]:
    told: list[Problem] = []
    found = _parse("serve", Serve, {"default": data.get("default", [])}, told)
    problems += [replace(problem, what=problem.what.removeprefix("serve.")) for problem in told]
    return found.default if found else ()


def _single(name: str, kind: type[_Entry], data: Mapping[str, Any], problems: list[Problem]) -> _Entry | None:
    return _parse(name, kind, data[name], problems) if name in data else None


def _entries(table: str, kind: type[_Entry], data: Mapping[str, Any], problems: list[Problem]) -> dict[str, _Entry]:
    entries = data.get(table, {})
    if not isinstance(entries, dict):
        problems.append(Problem(what=f"{table}: is not a table", hint=f"write [{table}.NAME]"))
        return {}
    problems += [_bad_name(table, name) for name in entries if not _NAME.fullmatch(name)]
    parsed = {name: _parse(f"{table}.{name}", kind, entries[name], problems) for name in entries}
    return {name: entry for name, entry in parsed.items() if entry is not None and _NAME.fullmatch(name)}


def _parse(path: str, kind: type[_Entry], value: object, problems: list[Problem]) -> _Entry | None:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems += strict_problems(path, error, tuple(kind.model_fields))
        return _without(kind, value, {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]})


def _without(kind: type[_Entry], value: object, wrong: set[str]) -> _Entry | None:
    """The entry without the keys that are `wrong`, where the others can be judged without them: so its other mistakes
    are told at once, too. Of its gates, which are about what `eval` and `bench` say, misspelt ones stay.
    """
    known = set(kind.model_fields) - _LOOSE
    loose = all(key not in known and not difflib.get_close_matches(key, known) for key in wrong)
    if kind is not Model or not isinstance(value, dict) or not wrong or not loose:
        return None
    rest = {key: it for key, it in value.items() if key not in wrong}
    if "gates" in rest:
        rest["gates"] = {name: limit for name, limit in rest["gates"].items() if name not in LIMITS}
    return kind.model_validate(rest)


def _problem(path: str, detail: ErrorDetails, known: Sequence[str]) -> Problem:
    where = path + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        word = str(detail["loc"][-1])
        words = next(
            (tuple(_NESTED[str(part)].model_fields) for part in reversed(detail["loc"][:-1]) if part in _NESTED), known
        )
        return Problem(what=f"{where}: unknown key", hint=nearest(word, words))
    facts = () if detail["type"] == "missing" else (("got", repr(detail["input"])[:80]),)
    wording = _PATTERNS if detail["type"] == "string_pattern_mismatch" else _WORDING
    word = detail.get("ctx", {}).get("pattern", detail["type"])
    if word not in wording:
        return Problem(what=f"{where}: {detail['msg']}", facts=facts, hint="doit schema prints what may stand here")
    what, hint = (text.format(**detail.get("ctx", {})) for text in wording[word])
    return Problem(what=f"{where}: {what}", facts=facts, hint=hint)


def _unknown_table(name: str) -> Problem:
    return Problem(what=f"{name}: unknown table", hint=nearest(name, _KEYS))


def _bad_name(table: str, name: str) -> Problem:
    hint = "lower case letters, digits and _, beginning with a letter: it becomes part of task names"
    return Problem(what=f"{table}.{name}: is not a name", hint=hint)
