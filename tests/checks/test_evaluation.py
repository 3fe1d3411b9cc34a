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
        Example(
            {**GOOD, "gates": "{ expected_kl = 0.01 }"},
            {**GOOD, "gates": "{ expected_kl = 0.01 }", "eval": EVAL.replace(" }", ", likelihood = true }")},
            "models.m.gates.expected_kl: needs what the engine makes of the expected answers",
            "likelihood = true",
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
            {**CPU, "eval": '{ data = "file:there/config.json", likelihood = true }'},
            "models.m.eval: measures nothing",
            "name metrics",
        ),
    ],
    "load-possible": [
        Example(
            {**CPU, "bench": '{ prompts = "file:no.jsonl" }'},
            {**CPU, "bench": '{ prompts = "file:there/config.json" }'},
            "models.m.bench.prompts: {root}/no.jsonl does not exist",
            ".jsonl",
        ),
        Example(
            {**CPU, "bench": "{ requests = 8, seconds = 2.0 }"},
            {**CPU, "bench": "{ requests = 8 }"},
            "models.m.bench: both requests and seconds",
            "after the one or the other",
        ),
        Example(
            {**CPU, "bench": "{ concurrency = [1, 4], gate_at = [8.0] }"},
            {**CPU, "bench": "{ concurrency = [1, 4], gate_at = [4.0] }"},
            "models.m.bench.gate_at: there is no load point 8",
            "1, 4",
        ),
        Example(
            {**CPU, "gates": "{ goodput_per_s = 2.0 }"},
            {**CPU, "gates": "{ goodput_per_s = 2.0 }", "bench": "{ slo = { ttft_ms = 400 } }"},
            "models.m.gates.goodput_per_s: needs limits",
            "slo",
        ),
    ],
    "load-within-shapes": [
        Example(
            {**CPU, "bench": "{ isl = 257 }"},
            {**CPU, "bench": "{ isl = 256, osl = 64 }"},
            "models.m.bench: is longer than shapes[0]",
            "lower isl",
        ),
    ],
}
