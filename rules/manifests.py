"""The action that writes what a cluster serves a variant with: values for templates/k8s, none of them a machine's.

The world size is the variant's: the engine action refuses an engine of another one. So manifests can be written and
reviewed before anything is built.
"""

from __future__ import annotations

import json
from typing import Any

from rules import digest, launcher, steps
from rules.action import Action
from rules.cluster import Kubernetes
from rules.launcher import Launch
from rules.release import Release
from rules.variant import Variant

__all__ = ["label", "write"]

_LONGEST = 52  # a pod of a StatefulSet is labelled with this name, a dash and ten letters: 63 at most
_HOSTS, _SSH = "/scratch/hosts", "/ssh"
# sshd of several nodes listens beside the host's own; keys are the cluster's, so a host need not be known.
_REMOTE = f"-p 2222 -i {_SSH}/id_ed25519 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


def write(variant: Variant, release: Release, asked: Kubernetes, image: str, gpus: int, root: str) -> Action:
    """The manifests of `variant`, whose nodes have `gpus` GPUs each and whose configs say it lies in `root`."""
    given = _values(variant, release, asked, image, gpus, root)
    return steps.action(
        f"k8s:{variant.name}",
        "manifests",
        {"templates": "{templates}"},
        *(f"--kind={kind}" for kind in asked.kinds),
        *(f"--set={name}={json.dumps(value, sort_keys=True)}" for name, value in sorted(given.items())),
        inputs=(("templates", steps.templates("k8s")),),
        outputs=("volume.yaml",),
        packages=("jinja2",),
    )


def label(name: str) -> str:
    """A variant's name as the name of an object: RFC 1123, and short enough for what is made from it."""
    plain = name.replace("_", "-")
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST - 9].rstrip('-')}-{digest.of_text(name)[:8]}"


def _values(variant: Variant, release: Release, asked: Kubernetes, image: str, gpus: int, root: str) -> dict[str, Any]:
    """What the templates know."""
    ranks = variant.parallelism.world_size
    nodes = -(-ranks // gpus)
    return {
        **asked.model_dump(exclude={"kinds"}),
        "name": label(variant.name),
        "variant": variant.name,
        "release": release.version,
        "image": image,
        "pinned": "@sha256:" in image,
        "root": root,
        "folder": asked.folder or variant.name,
        "ranks": ranks,
        "nodes": nodes,
        "gpus": ranks // nodes,
        "remote": _REMOTE,
        "unbound": launcher.UNBOUND,
        "command": _command(release, ranks, nodes, root),
        "t9k_command": _command(release, ranks, nodes, "{{.MODEL_REPO_PATH}}"),
    }


def _command(release: Release, ranks: int, nodes: int, repository: str) -> list[str]:
    """As the release's launcher composes it; on several nodes with a list of hosts, which the leader writes."""
    across = (f"--hostfile={_HOSTS}", "--mca", "plm_rsh_args", _REMOTE) if nodes > 1 else ()
    return launcher.argv(release, Launch(world_size=ranks, repository=repository, across=across))
