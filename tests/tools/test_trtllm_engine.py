"""Building an engine: the build is heard, the engine is what was asked for, and the end of memory has a name."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rules.release import versions
from tests.fakes import PROJECT
from tests.standins import trtllm_build

TOOL = PROJECT / "rules" / "tools" / "trtllm_engine.py"
LENGTHS = {"0.8.0": "max_output_len", "0.9.0": "max_output_len", "0.10.0": "max_output_len"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the stand-in reads of a checkpoint for tp4 pp2."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    mapping = {"world_size": 8, "tp_size": 4, "pp_size": 2}
    (folder / "config.json").write_text(json.dumps({"mapping": mapping}))
    for rank in range(8):
        (folder / f"rank{rank}.safetensors").write_bytes(b"weights")
    return folder


def _build(
    checkpoint: Path,
    out: Path,
    *more: str,
    release: str = "0.10.0",
    build: tuple[str, ...] = (),
    fails: str = "",
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    program = trtllm_build.install(checkpoint.parent, release)
    command = [str(program), f"--checkpoint_dir={checkpoint}", f"--output_dir={out}", "--max_batch_size=8", *build]
    wanted = [f"--release={release}", "--tp-size=4", "--pp-size=2", "--limit=max_batch_size=8", f"--out={out}", *more]
    argv = [sys.executable, "-I", str(TOOL), *wanted, "--", *command]
    env = {**os.environ, "STANDIN_FAILS": fails}
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=300, env=env, cwd=cwd or checkpoint.parent
    )


@pytest.mark.parametrize("release", versions())
def test_an_engine_of_every_release_is_built_and_verified(checkpoint: Path, out: Path, release: str) -> None:
    length = LENGTHS.get(release, "max_seq_len")
    done = _build(checkpoint, out, f"--limit={length}=96", release=release, build=(f"--{length}=96",))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Engine generation completed, rank 7" in done.stdout
    assert done.stdout.endswith(f"verified: TensorRT-LLM {release}, 8 ranks\n")
    assert {path.name for path in out.iterdir()} == {"config.json", *(f"rank{rank}.engine" for rank in range(8))}


def test_every_violation_is_named_at_once(checkpoint: Path, out: Path) -> None:
    more = ("--release=0.11.0", "--tp-size=2", "--limit=max_input_len=7", "--limit=max_seq_len=7")
    done = _build(checkpoint, out, *more)
    assert done.returncode == 1
    assert done.stderr == (
        "error: the engine is not what was asked for\n"
        "    version is 0.10.0, not 0.11.0: another toolchain than declared built it\n"
        "    mapping.tp_size is 4, not 2\n"
        "    mapping.world_size is 8, not 4\n"
        "    build_config.max_input_len is 1024, not 7\n"
        "    build_config.max_seq_len is not there, not 7\n"
        "    rank4.engine is one too many\n"
        "    rank5.engine is one too many\n"
        "    rank6.engine is one too many\n"
        "    rank7.engine is one too many\n"
    )


def test_a_rank_that_was_left_out_in_silence_is_named(checkpoint: Path, out: Path) -> None:
    done = _build(checkpoint, out, fails="quiet")
    assert done.returncode == 1
    assert "\n    rank0.engine is missing\n    host memory    " in done.stderr
    assert "GiB available while it ran" in done.stderr
    assert "leaves no word; fewer workers need less memory" in done.stderr


def test_a_failing_rank_fails_the_build_with_its_output(checkpoint: Path, out: Path) -> None:
    done = _build(checkpoint, out, fails="rank3")
    assert done.returncode == 1
    assert "Failed to build the engine of rank 3" in done.stdout
    assert done.stderr == (
        "error: trtllm-build failed with exit code 1\n    wrote  rank0.engine, rank1.engine, rank2.engine\n"
    )


@pytest.mark.parametrize(("fails", "ended"), [("killed", "signal 9"), ("oom", "exit code 1")])
def test_the_end_of_host_memory_is_told_with_numbers(checkpoint: Path, out: Path, fails: str, ended: str) -> None:
    done = _build(checkpoint, out, fails=fails)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: trtllm-build ran out of host memory ({ended})\n    host memory    ")
    assert "GiB available while it ran" in done.stderr
    assert "workers = 1" in done.stderr


def test_the_end_of_gpu_memory_is_another_error(checkpoint: Path, out: Path) -> None:
    done = _build(checkpoint, out, fails="gpu")
    assert done.stderr.startswith("error: trtllm-build ran out of GPU memory (exit code 1)\n")
    assert "max_num_tokens" in done.stderr


def test_a_flag_of_another_release_is_refused_by_the_stand_in_too(checkpoint: Path, out: Path) -> None:
    done = _build(checkpoint, out, release="0.12.0", build=("--use_custom_all_reduce=enable",))
    assert done.returncode == 1
    assert "unrecognized arguments: --use_custom_all_reduce" in done.stdout


def test_a_program_that_there_is_not_is_told(tmp_path: Path, out: Path) -> None:
    wanted = ["--release=0.10.0", "--tp-size=1", "--pp-size=1", f"--out={out}", "--", str(tmp_path / "trtllm-build")]
    done = subprocess.run([sys.executable, "-I", str(TOOL), *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "trtllm-build cannot be started\n    reason  No such file" in done.stderr


TIMED = ("--input_timing_cache=model.cache", "--output_timing_cache=model.cache")


def _timed(checkpoint: Path, folder: Path, warm: Path, fails: str = "") -> subprocess.CompletedProcess[str]:
    """A build in a folder of its own, as the workbench runs it."""
    (folder / "out").mkdir(parents=True)
    shared = f"--timing-cache={warm / 'model.cache'}"
    return _build(checkpoint, folder / "out", shared, build=TIMED, fails=fails, cwd=folder)


def test_what_one_build_timed_the_next_does_not_time_again(checkpoint: Path, tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    warm.mkdir()
    first, second = (_timed(checkpoint, tmp_path / name, warm) for name in ("1", "2"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "0 timings loaded" in first.stdout
    assert "1 timings loaded" in second.stdout
    assert (warm / "model.cache").read_text() == 2 * "timings for a batch of 8\n"
    assert [path.name for path in warm.iterdir()] == ["model.cache"], "and nothing half-written"
    config = (tmp_path / "2/out/config.json").read_text()
    assert "warm" not in config, "an engine's bytes do not say where its timings were"
    assert not list((tmp_path / "2/out").glob("*cache*"))


def test_builds_side_by_side_leave_the_timings_of_one_of_them_whole(checkpoint: Path, tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    warm.mkdir()
    (warm / "model.cache").write_text(1000 * "before\n")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda name: _timed(checkpoint, tmp_path / name, warm), "12"))
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    *before, last = (warm / "model.cache").read_text().splitlines()
    assert before[:1000] == 1000 * ["before"]
    assert set(before[1000:]) <= {"timings for a batch of 8"} >= {last}
    assert [path.name for path in warm.iterdir()] == ["model.cache"]


@pytest.mark.parametrize("fails", ["killed", "rank7", "quiet"])
def test_a_build_that_fails_leaves_the_timings_as_they_were(checkpoint: Path, tmp_path: Path, fails: str) -> None:
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm/model.cache").write_text("before\n")
    assert _timed(checkpoint, tmp_path / "1", tmp_path / "warm", fails).returncode == 1
    assert {path.name: path.read_text() for path in (tmp_path / "warm").iterdir()} == {"model.cache": "before\n"}


def test_timings_that_cannot_be_kept_cost_no_engine(checkpoint: Path, tmp_path: Path) -> None:
    done = _timed(checkpoint, tmp_path / "1", tmp_path / "gone")
    assert done.returncode == 0, done.stderr
    assert "the timing cache is not kept: No such file" in done.stdout


@pytest.mark.parametrize(
    ("memory_gib", "workers"), [(1000, "8"), (240, "8"), (200, "6"), (40, "1"), (10, "1"), (0, "8")]
)
def test_no_more_workers_than_host_memory_holds(project: Path, tmp_path: Path, memory_gib: int, workers: str) -> None:
    """Ranks of 10 GiB: a worker takes three times as much. What the memory is may be unknown: 0."""
    for rank in range(8):
        with (tmp_path / f"rank{rank}.safetensors").open("wb") as file:
            file.truncate(10 << 30)
    tool = runpy.run_path(str(project / "rules" / "tools" / "trtllm_engine.py"))
    command = ["trtllm-build", "--checkpoint_dir", str(tmp_path), "--workers", "8", "--max_batch_size", "4"]
    fitted = tool["fitted"](command, memory_gib << 30)
    assert fitted == [*command[:4], workers, *command[5:]]


def test_host_memory_can_be_told(project: Path) -> None:
    assert runpy.run_path(str(project / "rules" / "tools" / "trtllm_engine.py"))["free"]() > 1 << 20
