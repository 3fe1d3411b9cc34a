"""Gauges under the names of TensorRT-LLM's backend, so that dashboards and tests read either engine."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb


class Metrics:
    """Setting a gauge is a message to the server, so only changes are sent."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._values: dict[tuple[str, str], float] = {}
        self._gauges: dict[tuple[str, str], Any] = {}
        self._families = {
            "request_type": self._family("nv_trt_llm_request_metrics", "TRT LLM request metrics"),
            "kv_cache_block_type": self._family("nv_trt_llm_kv_cache_block_metrics", "TRT LLM KV cache block metrics"),
        }

    def requests(self, *, active: int, scheduled: int, waiting: int, limit: int) -> None:
        """Sequences accepted and not ended, those the engine holds, those that wait for a place, and the places."""
        values = {"active": active, "scheduled": scheduled, "waiting": waiting, "max": limit}
        for label, value in values.items():
            self._set("request_type", label, value)

    def cache(self, *, blocks: int, used_percent: float, tokens_per_block: int) -> None:
        """KV cache blocks."""
        used = round(blocks * used_percent / 100)
        values = {"max": blocks, "used": used, "free": blocks - used, "tokens_per": tokens_per_block}
        for label, value in values.items():
            self._set("kv_cache_block_type", label, value)

    def _family(self, name: str, description: str) -> Any:
        return pb.MetricFamily(name=name, description=description, kind=pb.MetricFamily.GAUGE)

    def _set(self, family: str, label: str, value: float) -> None:
        key = (family, label)
        if self._values.get(key) == value:
            return
        if key not in self._gauges:
            self._gauges[key] = self._families[family].Metric(labels={family: label, **self._labels})
        self._gauges[key].set(value)
        self._values[key] = value
