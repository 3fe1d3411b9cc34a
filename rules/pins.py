"""The versions that the embedded lane's actions run with, which are part of their keys.

They equal pyproject.toml's pins (tests/test_pins.py); the local runner refuses to run on any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

__all__ = ["PINS", "pins"]

PINS: Mapping[str, str] = {
    "jinja2": "3.1.6",
    "nncf": "3.4.0",
    "numpy": "1.26.4",
    "nvidia-pytriton": "0.7.0",
    "openvino": "2026.4.1",
    "openvino-genai": "2026.4.1.0",
    "optimum-intel": "2.2.0",
    "sacrebleu": "2.6.0",
    "safetensors": "0.8.0",
    "tokenizers": "0.22.2",
    "torch": "2.13.0+cpu",
    "torchmetrics": "1.9.0",
    "transformers": "5.5.4",
    "tritonclient": "2.73.0",
}


@cache
def pins(*names: str) -> tuple[tuple[str, str], ...]:
    """The (package, version) pairs of `names`, for `Action.toolchain`."""
    return tuple((name, PINS[name]) for name in names)
