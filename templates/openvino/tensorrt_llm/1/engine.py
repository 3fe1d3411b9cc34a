"""OpenVINO GenAI's continuous batching over an engine directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
        threads = len(os.sched_getaffinity(0))
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        return self.genai.ContinuousBatchingPipeline(str(self._folder), self._scheduler(), "CPU", properties)

    def _scheduler(self) -> Any:
        settings = self._settings
        scheduler = self.genai.SchedulerConfig()
        scheduler.max_num_seqs = max(settings.max_batch_size, settings.max_beam_width)
        scheduler.max_num_batched_tokens = settings.max_num_tokens
        scheduler.num_kv_blocks = settings.kv_blocks
        scheduler.enable_prefix_caching = settings.prefix_caching
        scheduler.dynamic_split_fuse = settings.chunked_context
        return scheduler
