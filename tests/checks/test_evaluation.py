"""A gate that nothing measures, and an evaluation that cannot be run, are told before anything is built."""

from __future__ import annotations

from tests.checks.examples import CPU, Example, Examples

EVAL = '{ data = "file:there/config.json", metrics = ["rouge_l"], reference = "int8_wo" }'
DROP = "{ ttft_p99_ms = 400, rouge_l_drop = 0.02 }"
GOOD = {**CPU, "eval": EVAL}

EXAMPLES: Examples = {
    "gates-known": [
        Example(
            {**CPU, "gates": "{ ttft_p98_ms = 400 }"},
            {**GOOD, "gates": DROP},
            "models.m.gates.ttft_p98_ms: unknown gate",
            "ttft_p9",
        ),
        Example(
            {**CPU, "gates": DROP},
            {**GOOD, "gates": DROP},
            "models.m.gates.rouge_l_drop: needs a reference precision",
            "reference",
        ),
    ],
    "evaluation-possible": [
        Example(
            {**CPU, "eval": EVAL.replace('"int8_wo"', '"int8wo"')},
            GOOD,
            "models.m.eval.reference: 'int8wo' is not a precision of this entry",
            "mean 'int8_wo'?",
        ),
        Example(
            {**CPU, "eval": '{ data = "file:no.jsonl", reference = "int8_wo" }'},
            GOOD,
            "models.m.eval.data: {root}/no.jsonl does not exist",
            ".jsonl",
        ),
        Example(
            {**CPU, "eval": '{ data = "file:there/config.json" }'},
            GOOD,
            "models.m.eval: measures nothing",
            "name metrics",
        ),
    ],
}
