"""One Triton server of TensorRT-LLM engines as rules/tools/launch takes it: its command, files, ports and GPUs.

In a container it listens on Triton's own ports, which are published, and sees the repository where its configs say that
it is. Here its ports are those that were asked for, and it gets a repository of links whose configs name other places.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rules import launcher
from rules.action import Action
from rules.built import Built
from rules.launcher import Launch, Mode
from rules.release import Release, load
from rules.runners import docker
from rules.variant import Variant

__all__ = ["ROOT", "Engine", "Server", "container"]

ROOT = "/repository"  # where the configs of this lane say that the repository is
_MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A variant that can be served: its model repository, its engine, and the action that says what runs it."""

    variant: Variant
    repository: Path
    action: Action
    built: Built

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant.name

    @property
    def release(self) -> Release:
        """The one that the toolchain names; the package's own version may be a post-release of it."""
        return load(self.toolchain["tensorrt_llm"].partition(".post")[0])

    @property
    def toolchain(self) -> Mapping[str, str]:
        """Package -> version, and `image` where it runs in one."""
        return dict(self.action.toolchain)

    @property
    def contained(self) -> bool:
        """Whether it runs in a container."""
        return self.action.runner != "local"


@dataclass(frozen=True, kw_only=True)
class Server:
    """`engines` on GPUs, a list for each; several only in orchestrator mode. Its files are `folder` and FOLDER.log;
    `instance` counts the servers of one variant from 0. A port of 0 is one that is free when it is started.
    """

    engines: Sequence[Engine]
    places: Sequence[tuple[str, ...]]
    folder: Path
    host: str
    ports: tuple[int, int, int]
    mode: Mode
    verbose: bool
    instance: int = 0

    def text(self) -> dict[str, Any]:
        """The object that the launcher takes."""
        first = self.engines[0]
        return {
            "name": self.name,
            "env": {**_OFFLINE, **self._env, "CUDA_VISIBLE_DEVICES": ",".join(self.devices)},
            "argv": launcher.argv(first.release, self.launch),
            "host": self.host,
            "ports": dict(zip(("http", "grpc", "metrics"), self.ports, strict=True)),
            "models": list(_MODELS),
            "folder": str(self.folder),
            "log": f"{self.folder}.log",
            "repositories": {engine.name: str(engine.repository) for engine in self.engines},
            **({"layout": self._layout()} if self._laid_out else {}),
            **(self._contained() if first.contained else {"prefix": self.launch.prefix}),
        }

    @property
    def name(self) -> str:
        """Its variants, and which of their several servers it is."""
        return "+".join(engine.name for engine in self.engines) + (f"#{self.instance}" if self.instance else "")

    @property
    def devices(self) -> list[str]:
        """All its GPUs, in the order in which it sees them: a container's are in the driver's order."""
        found = {device for place in self.places for device in place}
        return sorted(found, key=lambda device: (len(device), device))

    @property
    def launch(self) -> Launch:
        """How it is started."""
        contained, number = self.engines[0].contained, self.folder.suffix.removeprefix(".")
        folder = docker.SCRATCH if contained else str(self.folder)
        return Launch(
            world_size=self.engines[0].built.world_size,
            repository=ROOT if contained else str(self._target),
            ports=launcher.PORTS if contained else self._listening,
            mode=self.mode,
            gpus=len(self.devices),
            log=f"{folder}/triton.log" if self.verbose else "",
            prefix="prefix" if contained else f"doit_trtllm_{{pid}}_{number}_rank",
        )

    @property
    def _listening(self) -> tuple[int | str, int | str, int | str]:
        """Its ports, with a word where the launcher finds a free one."""
        http, grpc, metrics = self.ports
        return http or "{http}", grpc or "{grpc}", metrics or "{metrics}"

    @property
    def _env(self) -> dict[str, str]:
        return launcher.environment(self.engines[0].release, self.launch)

    @property
    def _laid_out(self) -> bool:
        return len(self.engines) > 1 or not self.engines[0].contained

    @property
    def _target(self) -> Path:
        return self.folder / "repository"

    def _layout(self) -> dict[str, Any]:
        """A server counts its GPUs from 0. Only an orchestrator with several engines must be told whose is which."""
        pairs = zip(self.engines, self.places, strict=True) if len(self.engines) > 1 else ()
        return {
            "target": str(self._target),
            "seen": self.launch.repository,
            "root": ROOT,
            "sources": {engine.name: str(engine.repository) for engine in self.engines},
            "devices": {one.name: ",".join(str(self.devices.index(at)) for at in place) for one, place in pairs},
        }

    def _contained(self) -> dict[str, Any]:
        """A client of docker or podman in the place of mpirun."""
        name = f"doit-serve-{self.folder.name.replace('.', '-')}"
        call = container(
            self.engines[0],
            name=name,
            argv=launcher.argv(self.engines[0].release, self.launch),
            env=self._env,
            reads=[(ROOT, str((self._target if self._laid_out else self.engines[0].repository).absolute()))],
            writes=[(docker.SCRATCH, str(self.folder.absolute()))],
            devices=self.devices,
            ports=list(zip(self._listening, launcher.PORTS, strict=True)),
            address=self.host,
        )
        return {"argv": docker.line(call), "env": {}, "container": [call.program, name]}


def container(engine: Engine, **more: Any) -> docker.Call:
    """A call in the image of the engine's toolchain, as the user who calls."""
    assert engine.action.runner != "local"
    given = {"name": "doit-asks", "argv": (), "env": {}, "user": f"{os.getuid()}:{os.getgid()}", **more}
    return docker.Call(program=engine.action.runner, image=engine.toolchain["image"], **given)
