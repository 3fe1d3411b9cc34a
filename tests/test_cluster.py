"""What is asked of a cluster: read strictly, an entry over the whole file's, and what cannot be is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules import plan
from rules.cluster import Kubernetes, merged
from rules.errors import Misconfigured
from tests.lane import toml


def test_an_entry_says_only_what_differs() -> None:
    base = Kubernetes(namespace="serving", replicas=2)
    assert merged(base, None) is base
    asked = merged(base, Kubernetes(replicas=1, claim="other"))
    assert (asked.namespace, asked.replicas, asked.claim) == ("serving", 1, "other")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("replica = 2", "k8s.replica: unknown key"),
        ('kinds = ["deploy"]', "k8s.kinds[0]: must be 'deployment', 'kserve' or 't9k'"),
        ('namespace = "Serving_1"', "k8s.namespace: "),
        ('folder = "../other"', "k8s.folder: "),
        ('folder = "/absolute"', "k8s.folder: "),
        ("cpu = 0", "k8s.cpu: must be at least 1"),
    ],
)
@pytest.mark.parametrize("table", [True, False])
def test_mistakes_are_told_with_their_path(tmp_path: Path, written: str, told: str, *, table: bool) -> None:
    text = f"[k8s]\n{written}\n" + toml() if table else toml(k8s=f"{{ {written} }}")
    with pytest.raises(Misconfigured) as wrong:
        plan.load(text, tmp_path)
    where = "" if table else "models.m."
    assert f"{where}{told}" in str(wrong.value)


def test_an_engine_for_several_nodes_is_built_on_one(tmp_path: Path) -> None:
    nodes = toml(parallelism='["tp8pp2"]').replace("gpus = 8", "gpus = 8\nnodes = 2")
    assert plan.load(nodes, tmp_path).actions["engine:m_tp8pp2_fp16_isl2048_osl1024_bs8"].gpus == 8
