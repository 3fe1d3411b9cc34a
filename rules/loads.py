"""What load a served variant is put under: the table `bench` of a model, read strictly. docs/measuring.md.

The definitions of what is measured are rules/tools/load/measures.py's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Bench", "Slo"]

Count = Annotated[int, Field(ge=1, le=1 << 24)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Slo(_Strict):
    """What a request must keep to be counted in the goodput, in milliseconds."""

    ttft_ms: Positive | None = None
    itl_ms: Positive | None = None
    latency_ms: Positive | None = None


class Bench(_Strict):
    """The load points of a model, and what is sent.

    `prompts` is `file:PATH` of a .jsonl; without it prompts are made up, `isl` and `osl` tokens long (normally
    distributed with the stddevs; the shape's, without them). `fixed` lengths are kept by a minimum length; without it
    an answer may end by itself. Default: fixed for made-up prompts, natural for the user's.

    Tokens of answers are counted with the model's tokenizer, or by the server where it says (`counting`).

    Each load point sends `requests` (default 4 x its value, at least 16) or lasts `seconds`, after `warmup` requests
    that are not measured, and is measured `repeats` times. `gate_at` are the values of the load points that the gates
    are judged at, all without it. `baseline` is `file:PATH` of a folder with committed results, against which no figure
    may be worse than by `tolerance` (a part) and by more than the repeats differ.
    """

    prompts: Annotated[str, Field(pattern="^file:.")] | None = None
    column: str | None = None
    size: Count | None = None
    isl: Count | None = None
    isl_stddev: Annotated[int, Field(ge=0)] = 0
    osl: Count | None = None
    osl_stddev: Annotated[int, Field(ge=0)] = 0
    fixed: bool | None = None
    concurrency: list[Count] | None = None
    request_rate: list[Positive] = []
    arrival: Literal["poisson", "constant"] = "poisson"
    requests: Count | None = None
    seconds: Positive | None = None
    warmup: Annotated[int, Field(ge=0, le=1 << 20)] = 8
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    model: str = "ensemble"
    endpoint: Literal["grpc", "http"] = "grpc"
    stream: bool | None = None
    counting: Literal["tokenizer", "server"] = "tokenizer"
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    timeout_s: Positive = 300.0
    seed: int = 0
    slo: Slo = Slo()
    gate_at: list[Positive] = []
    baseline: Annotated[str, Field(pattern="^file:.")] | None = None
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
