"""What a server's log says about its end, in the words of whoever can mend it.

The patterns are what OpenMPI, Triton, TensorRT and TensorRT-LLM write (0.7 to 0.16, as users quote it in their issues).
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Server = dict[str, Any]

SHOWN, WIDE = 8, 300  # lines of a log, and their characters
VERSIONS = "the engine was built by another TensorRT-LLM or TensorRT: build it with the image that serves it"
MEMORY = "see who else is on the GPU; lower kv_cache_free_gpu_mem_fraction or the batch, or use more ranks"
CACHE = "raise kv_cache_free_gpu_mem_fraction, free the GPU, or build for shorter requests"
HOST = "engines are read through host memory: dmesg tells; a container's limit holds its /dev/shm too"
NCCL = "NCCL_DEBUG=INFO says why; it needs /dev/shm and peer access between the GPUs"
SHARED = "docker: --shm-size=32g; here: remount /dev/shm larger, or remove regions that nobody uses"
FAILURES = (  # in a server's log, the most telling first: pattern, what it is, hint
    (r".*(?:expecting library version|Version tag does not match).*", "the engine is of another version", VERSIONS),
    (r"^(?!.*WARNING).*(?:[Oo]ut of memory|cudaErrorMemoryAllocation|OutOfMemory).*", "GPU memory ended", MEMORY),
    (r".*maxTokensInPagedKvCache.*must be large enough.*", "the KV cache has no room for one full request", CACHE),
    (r".*(?:exited on signal 9|std::bad_alloc|[Cc]annot allocate memory).*", "host memory ended", HOST),
    (r".*NCCL (?:error|failure).*", "the ranks could not reach one another", NCCL),
    (r".*[Nn]ot enough slots.*", "mpirun has fewer slots than ranks", "OpenMPI counts cores: give the machine more"),
    (r".*(?:No space left on device|unable to (?:create|initialize) shared memory).*", "shared memory ended", SHARED),
    (r".*(?:orte_init|ompi_mpi_init).*", "MPI could not start", "is OpenMPI whole, and may it write to TMPDIR?"),
    (r"^E.*?failed to load '[^']+' version \d+: .*", "a model failed to load", ""),
    (r"^E.*?Poll failed for model directory .*", "a model's folder is wrong", ""),
    (r"^E.*?[Ff]ailed to start .*", "tritonserver could not start", ""),
)


class Refused(Exception):
    """Something the user can mend: what happened, the facts as (name, value), a hint."""

    def __init__(self, what: str, facts: Sequence[tuple[str, object]] = (), hint: str = "") -> None:
        width = max((len(name) for name, _ in facts), default=0)
        lines = [f"error: {what}", *(f"    {name.ljust(width)}  {value}" for name, value in facts)]
        super().__init__("\n".join(lines + ([f"    hint: {hint}"] if hint else [])))


def died(server: Server, status: int) -> Refused:
    """What the log says about the end: the first line that is known to tell it, or the last lines."""
    text = Path(server["log"]).read_text(errors="replace")
    for pattern, what, hint in FAILURES:
        if found := re.search(pattern, text, re.MULTILINE):
            facts = [("said", found[0].strip()[:WIDE]), ("log", server["log"])]
            return Refused(f"{server['name']}: {what}", facts, hint)
    killed = {-signal.SIGKILL: HOST, 137: HOST}.get(status, "")  # 137: the same, of a container
    return Refused(f"{server['name']} ended before it was ready", [("status", status), *last(server)], killed)


def last(server: Server) -> list[tuple[str, object]]:
    """The end of the log, and where it is."""
    lines = [line for line in Path(server["log"]).read_text(errors="replace").splitlines() if line.strip()]
    return [*(("", line[:WIDE]) for line in lines[-SHOWN:]), ("log", server["log"])]
