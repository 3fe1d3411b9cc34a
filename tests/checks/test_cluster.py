"""What is asked of a cluster is refused where a pod would be killed, or where its kind has one node."""

from __future__ import annotations

from tests.checks.examples import Example, Examples

TWO = "[platforms.two]\nsm = 90\nmemory_gib = 80\ngpus = 8\nnodes = 2"
NODES = {"head": TWO, "platform": '"two"', "parallelism": '["tp8pp2"]'}

EXAMPLES: Examples = {
    "shm-within-memory": [
        Example(
            {"k8s": "{ shm_gib = 64 }"},
            {"k8s": "{ shm_gib = 64 }", "parallelism": '["tp2"]'},  # memory is for each GPU
            "models.m.k8s.shm_gib: leaves no memory\n    shm_gib            64\n    memory of the pod  64 GiB",
            "lower shm_gib",
        ),
        Example(
            {"head": "[k8s]\nmemory_gib = 32"},
            {"head": "[k8s]\nmemory_gib = 32", "k8s": "{ shm_gib = 16 }"},
            "k8s.shm_gib: leaves no memory",
            "lower shm_gib",
        ),
    ],
    "kinds-have-nodes": [
        Example(
            {**NODES, "k8s": '{ kinds = ["deployment", "kserve"] }'},
            {**NODES, "k8s": '{ kinds = ["deployment"] }'},
            "models.m.k8s.kinds: kserve has no several nodes, and 2 are needed",
            "LeaderWorkerSet",
        ),
        Example(
            {**NODES, "k8s": '{ kinds = ["t9k"] }'},
            {**NODES, "k8s": '{ kinds = ["t9k"] }', "parallelism": '["tp8"]'},
            "models.m.k8s.kinds: t9k has no several nodes, and 2 are needed",
            "LeaderWorkerSet",
        ),
    ],
}
