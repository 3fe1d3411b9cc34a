"""A machine with H100 GPUs, as far as stand-ins go, and a project on it whose engines have two ranks.

doit, the rules, the executor, the launcher and all that asks a server are the real ones. What compresses, compiles and
renders leaves a file or two, and behind rank 0 of the stand-in for tritonserver is what a test puts there: the real
Triton with canned answers, or a stub.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from tests.fakes import PROJECT
from tests.serving import SERVE
from tests.space import Space
from tests.standins import docker, triton

__all__ = ["IMAGE", "NAME", "Machine"]

IMAGE = "nvcr.io/nvidia/tritonserver:24.07-trtllm-python-py3"
NAME = "m_tp2_fp16_isl32_osl16_bs4"
MODELS = """
[toolchains.t]
backend = "trtllm"
release = "0.11.0"
runner = "{runner}"

[platforms.p]
sm = 90
memory_gib = 80
gpus = 4

[models.m]
source = "tiny:qwen2"
toolchain = "t"
platform = "p"
precisions = [{precisions}]
parallelism = ["tp2"]
shapes = [{{ batch = 4, isl = 32, osl = 16 }}]
bench = {{ prompts = "file:q.jsonl", osl = 4, concurrency = [1, 2], requests = 4, warmup = 0, counting = "server" }}
{more}
"""
QUESTIONS = '{"text": "Bees?", "expected": "Bees make honey 🐝🍯"}\n{"text": "蜜蜂？", "expected": "蜜蜂酿蜂蜜🐝"}\n'
# What the tools leave: the engine's files, and a repository of the five models with the engine in it.
OUT = """import json, shutil, sys
from pathlib import Path
given = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv)
out = Path(given["out"])
"""
MODEL = """
for name in ("config.json", "model.safetensors", "tokenizer.json"):
    (out / name).write_text("{}")
"""
ENGINE = """
model = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
model |= {"mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}, "quantization": {}}
build = {"max_batch_size": 4, "max_seq_len": 48}
config = {"version": "0.11.0", "pretrained_config": model, "build_config": build}
(out / "config.json").write_text(json.dumps(config))
for rank in range(2):
    (out / f"rank{rank}.{suffix}").write_text("0123456789")
"""
REPOSITORY = """
for model in ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls"):
    (out / model / "1").mkdir(parents=True)
    (out / model / "config.pbtxt").write_text('parameters { key: "a" value { string_value: "/repository/x" } }')
shutil.copytree(given["engine"], out / "tensorrt_llm/1/engine")
"""
REAL = ("ask", "probe", "serve_engine")  # a tool that is a folder is the real one always


class Machine:
    """`space` is the project and `standins` the folder of docker, mpirun and so on."""

    def __init__(self, folder: Path, site: Path, runner: str = "docker", gpus: int = 2) -> None:
        self.folder, self.standins, self.space = folder, folder / "standins", Space(folder / "space", site)
        for tool in REAL:
            shutil.copy(PROJECT / "rules" / "tools" / f"{tool}.py", site / "rules" / "tools")
        docker.install(self.standins, {IMAGE: {"tensorrt_llm": "0.11.0"}})
        triton.install(self.standins, self.standins / "bin", gpus=gpus)
        for program in ("mpirun", "nvidia-smi"):
            shutil.copy(self.standins / "bin" / program, self.standins / "path")
        installed = site / "tensorrt_llm-0.11.0.dist-info"
        installed.mkdir(exist_ok=True)
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 0.11.0\n")
        self._control()
        self.entry(runner)

    def _control(self) -> None:
        questions = QUESTIONS.replace("text", "text_input").replace('"Bees make', '" Bees make')
        for tool, code in (
            ("tiny", f'(out / "questions.jsonl").write_text({questions!r})\n{MODEL}'),
            ("trtllm_checkpoint", f'suffix = "safetensors"{ENGINE}'),
            ("trtllm_engine", f'suffix = "engine"{ENGINE}'),
            ("render", REPOSITORY),
        ):
            self.space.write(f"control/{tool}.py", f"{OUT}{code}\nsys.exit()\n")
        score = "figures = {'exact_match': 1.0}\nrows = (Path(given['answers']).read_text()).splitlines()\n"
        score += "scores = {'questions': len(rows), 'failed': 0, 'figures': figures, 'scores': figures}\n"
        score += "(out / 'scores.json').write_text(json.dumps({**scores, 'standard_errors': {}}))\n"
        self.space.write("control/score.py", f"{OUT}{score}(out / 'scores.jsonl').write_text('')\n")

    def entry(self, runner: str = "docker", more: str = "", precisions: str = '"fp16"') -> None:
        """Writes models.toml, with `more` of the model."""
        self.space.write("models.toml", MODELS.format(runner=runner, more=more, precisions=precisions))
        self.space.write("q.jsonl", QUESTIONS)

    def triton(self, repository: Path) -> None:
        """The real Triton answers, with `repository`."""
        files = [f"--{name}={self.folder / 'behind-{pid}'}.{name}" for name in ("log", "state")]
        self._behind([sys.executable, "-I", str(SERVE), f"--repository=canned={repository}", *files])

    def stub(self, *arguments: str) -> None:
        """A server without a model answers."""
        self._behind([sys.executable, str(PROJECT / "benchmarks" / "stub.py"), *arguments])

    def _behind(self, argv: list[str]) -> None:
        (self.standins / "behind").write_text(json.dumps(argv))

    @property
    def env(self) -> dict[str, str]:
        """What a doit on this machine sees."""
        tmp = self.folder / "tmp"
        tmp.mkdir(exist_ok=True)
        return {"PATH": f"{self.standins / 'path'}:{os.environ['PATH']}", "TMPDIR": str(tmp)}

    def ranks(self) -> list[tuple[int, str]]:
        """(rank, its GPUs) of every rank that was started since the last call."""
        path = self.standins / "ranks.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted((row["rank"], row["gpus"]) for row in rows)

    def left(self) -> list[str]:
        """Containers, processes, shared memory and locks that should be gone."""
        found = [str(path) for path in (self.standins / "containers").iterdir()]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            found += [str(words)] if any(str(self.standins).encode() in word for word in words) else []
        return found
