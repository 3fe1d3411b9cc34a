"""An option that a release does not heed is told: nothing else would."""

from __future__ import annotations

from tests.checks.examples import Example, Examples

EXAMPLES: Examples = {
    "option-heeded": [
        Example(
            {"release": "0.12.0", "serving": "{ multi_block_mode = true }"},
            {"release": "0.15.0", "serving": "{ multi_block_mode = true }"},
            "models.m.serving.multi_block_mode: does nothing in 0.12.0\n    why  it reads multiBlockMode instead",
            "leave it out",
        ),
        Example(
            {"release": "0.19.0", "serving": '{ triton_backend = "python", num_nodes = 2 }'},
            {"release": "0.19.0", "serving": "{ num_nodes = 2 }"},
            "models.m.serving.num_nodes: does nothing in 0.19.0\n    why  the Python model",
            "leave it out",
        ),
    ],
    "gpu-lists-understood": [
        Example(
            {"release": "0.11.0", "serving": '{ gpu_device_ids = "0,1;2,3" }'},
            {"release": "0.12.0", "serving": '{ gpu_device_ids = "0,1;2,3" }'},
            "models.m.serving.gpu_device_ids: 0.11.0 takes one list",
            "write 0,1",
        ),
        Example(
            {"release": "0.12.0", "serving": '{ gpu_device_ids = "0;1", triton_backend = "python" }'},
            {"release": "0.12.0", "serving": '{ gpu_device_ids = "0,1", triton_backend = "python" }'},
            "models.m.serving.gpu_device_ids: the Python model takes one list",
            "write 0,1",
        ),
    ],
    "bls-instances-for-batch": [
        Example(
            {"serving": "{ bls_instance_count = 2 }"},
            {"serving": "{ bls_instance_count = 8 }"},
            "models.m.serving.bls_instance_count: 2 requests at a time of a batch of 8",
            "write 8",
        )
    ],
    "accumulation-of-one-beam": [
        Example(
            {"serving": "{ accumulate_tokens = true }", "build": "{ max_beam_width = 4 }"},
            {"serving": "{ accumulate_tokens = true }"},
            "models.m.serving.accumulate_tokens: not with 4 beams",
            "leave it out",
        )
    ],
    "batching-in-flight": [
        Example(
            {"serving": '{ batching_strategy = "V1", enable_chunked_context = true }'},
            {"serving": '{ batching_strategy = "V1" }'},
            "models.m.serving.batching_strategy: V1 does not heed enable_chunked_context",
            "leave it out",
        )
    ],
}
