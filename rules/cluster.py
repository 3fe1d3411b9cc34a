"""How a cluster is to serve a variant: the table `[k8s]` of models.toml, and `k8s = {...}` of an entry over it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Kind", "Kubernetes", "merged"]

Kind = Literal["deployment", "kserve", "t9k"]
Count = Annotated[int, Field(ge=1, le=1 << 24)]
# RFC 1123 labels, which names of objects and namespaces are.
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Kubernetes(BaseModel):
    """What `doit k8s:NAME` writes manifests with.

    `kinds`: deployment (a LeaderWorkerSet where the ranks need several nodes), kserve, t9k. `claim` is the
    PersistentVolumeClaim that holds model repositories, `folder` where this one lies in it, by default the variant's
    name. `cpu` and `memory_gib` are for each GPU, of whose memory `shm_gib` is a part. `gpu` is the resource's name.
    `ssh_secret` holds the keys of several nodes, `queue` is T9k's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    namespace: Label | None = None
    kinds: Annotated[list[Kind], Field(min_length=1)] = ["deployment"]
    replicas: Count = 1
    claim: Label = "triton-tensorrtllm"
    claim_gib: Count = 100
    storage_class: str | None = None
    folder: Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$")] | None = None
    cpu: Count = 4
    memory_gib: Count = 64
    shm_gib: Count = 32
    scratch_gib: Count = 20
    gpu: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = {}
    pull_secret: Label | None = None
    ssh_secret: Label = "triton-ssh"  # noqa: S105 - a name
    startup_minutes: Count = 30
    queue: str | None = None


def merged(base: Kubernetes, over: Kubernetes | None) -> Kubernetes:
    """`base` with what an entry says itself."""
    if over is None:
        return base
    return base.model_copy(update={name: getattr(over, name) for name in over.model_fields_set})
