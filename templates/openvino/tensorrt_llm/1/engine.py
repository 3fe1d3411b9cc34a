"""OpenVINO GenAI's continuous batching over an engine directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from settings import Settings


class Engine:
    """Loads pipelines; importing openvino_genai takes a second, so it is done here and nowhere else."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        import openvino
        import openvino_genai

        self.openvino: Any = openvino
        self.genai: Any = openvino_genai
        self._folder = folder
        self._settings = settings

    def load(self) -> Any:
        """A pipeline with an empty KV cache. Raises RuntimeError when the engine cannot be loaded."""
        return self.genai.ContinuousBatchingPipeline(str(self._folder), self._scheduler(), "CPU", properties())

    def forward(self) -> Callable[[Any], Any]:
        """The plain IR: int32 [n] -> logits float32 [n, vocabulary]. Holds the weights in memory once more.

        Raises RuntimeError when the IR cannot be compiled, or is not of text alone.
        """
        model = self.openvino.Core().compile_model(self._folder / "openvino_model.xml", "CPU", properties())
        request, names = model.create_infer_request(), [port.any_name for port in model.inputs]
        unknown = sorted(set(names) - set(inputs(np.zeros(1))))
        if unknown:
            raise RuntimeError(f"the engine's IR wants {', '.join(unknown)}, which a prompt of text does not give")

        def run(prompt: Any) -> Any:
            request.reset_state()
            given = inputs(prompt)
            request.infer({name: given[name] for name in names})
            return request.get_tensor("logits").data[0].copy()

        return run

    def _scheduler(self) -> Any:
        settings = self._settings
        scheduler = self.genai.SchedulerConfig()
        scheduler.max_num_seqs = max(settings.max_batch_size, settings.max_beam_width)
        scheduler.max_num_batched_tokens = settings.max_num_tokens
        scheduler.num_kv_blocks = settings.kv_blocks
        scheduler.enable_prefix_caching = settings.prefix_caching
        scheduler.dynamic_split_fuse = settings.chunked_context
        return scheduler


def properties() -> dict[str, object]:
    """How the CPU plugin is to compute: for the next token, with every core that this process may use."""
    return {"INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)), "PERFORMANCE_HINT": "LATENCY"}


def inputs(prompt: Any) -> dict[str, Any]:
    """What optimum's decoders without a cache of the past may ask for."""
    count = len(prompt)
    return {
        "input_ids": prompt.astype(np.int64).reshape(1, count),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64).reshape(1, count),
        "beam_idx": np.zeros(1, np.int32),
    }
