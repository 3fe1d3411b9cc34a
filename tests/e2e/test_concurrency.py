"""Many doits at once, in one checkout and in several on one store; full and read-only disks; an unplugged remote."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.proxy import proxy
from tests.serving import until
from tests.shelf import shelf
from tests.space import SPEC, Space, of_the_build, texts

MANY = 8
STAGES = ("source", "checkpoint", "engine", "build", "smoke")
TOOLS = ["tiny", "openvino_convert", "openvino_quantize", "openvino_compile", "render", "probe"]
SHAPE = "{ batch = 8, isl = 256, osl = 64 }"
SHAPES = ", ".join(f"{{ batch = {batch}, isl = 256, osl = 64 }}" for batch in range(1, MANY + 1))
SLEEP = "import time\ntime.sleep({})\n"
GATE = "import time\nfrom pathlib import Path\nPath({0!r}).touch()\nwhile not Path({1!r}).exists(): time.sleep(0.02)\n"


def together(*spaces: Space, targets: list[list[str]], **env: str) -> list[str]:
    """Runs a doit in each space at once, all of which must succeed in two minutes; what they printed."""
    running = [space.start(*words, **env) for space, words in zip(spaces, targets, strict=True)]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said
    assert not [text for pair in said for text in pair if "Traceback" in text]
    return [out for out, _ in said]


def outputs(space: Space) -> dict[str, str]:
    """Path -> content of every output and receipt."""
    found = dict(texts(space.root / "artifacts"))
    return {p: text for p, text in found.items() if p.split("/")[0] in STAGES and not p.endswith(".record.json")}


def checkout(folder: Path, site: Path, spec: str) -> Space:
    folder.mkdir()
    space = Space(folder, site)
    space.write("models.toml", spec)
    return space


def nothing_left(space: Space) -> None:
    """No half-made file, no work folder, and a history of whole lines."""
    artifacts = space.root / "artifacts"
    assert list(artifacts.glob("work/*")) == []
    assert [path for path in artifacts.rglob(".*") if path.name != ".doit.db"] == []
    json.loads((artifacts / ".doit.db").read_text())
    for line in (artifacts / "history.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
def test_eight_doits_in_one_checkout_build_each_key_once_and_the_waiting_say_for_whom(workspace: Space) -> None:
    """The source is made when the seven others have said that they wait for it, however long that takes them."""
    go, waiting = workspace.root / "go", re.compile(r"waiting for process \d+ on \S+, which makes source:m$")
    workspace.write("control/tiny.py", GATE.format(str(workspace.root / "begun"), str(go)))
    running = [workspace.start("-n", "2", "smoke") for _ in range(MANY)]
    told = threading.Semaphore(0)

    def hear(process: subprocess.Popen[str]) -> list[str]:
        said: list[str] = []
        for line in process.stdout or ():
            if waiting.search(line) and not any(map(waiting.search, said)):
                told.release()
            said.append(line)
        return said

    with ThreadPoolExecutor(MANY) as ears:
        heard = [ears.submit(hear, process) for process in running]
        everybody = all(told.acquire(timeout=60) for _ in range(MANY - 1))
        go.touch()
    assert everybody, [one.result() for one in heard]
    ends = [(of_the_build(process.communicate()[1]), process.returncode) for process in running]
    assert ends == [("", 0)] * MANY
    assert sorted(workspace.ran()) == sorted(TOOLS)
    assert "everything is up to date (6 actions)" in workspace.build("smoke")
    nothing_left(workspace)


@pytest.mark.slow
def test_eight_checkouts_on_one_store_build_each_key_once_and_alike(tmp_path: Path, shared_site: Path) -> None:
    spec = SPEC + f'[cache]\ndir = "{tmp_path}/store"\n'
    spaces = [checkout(tmp_path / str(number), shared_site, spec) for number in range(MANY)]
    for space in spaces:
        space.write("control/openvino_convert.py", SLEEP.format(1))
    together(*spaces, targets=[["-n", "2", "smoke"]] * MANY)
    assert sorted(tool for space in spaces for tool in space.ran()) == sorted(TOOLS)
    assert all(outputs(space) == outputs(spaces[0]) for space in spaces)
    for space in spaces:
        assert "everything is up to date" in space.build("smoke")


@pytest.mark.slow
def test_eight_doits_with_a_variant_each_lose_no_update(workspace: Space) -> None:
    workspace.write("models.toml", SPEC.replace(SHAPE, SHAPES))
    targets = [[f"build:m_int8_wo_isl256_osl64_bs{batch}"] for batch in range(1, MANY + 1)]
    together(*[workspace] * MANY, targets=targets)
    shared = dict.fromkeys(("tiny", "openvino_convert", "openvino_quantize"), 1)
    assert Counter(workspace.ran()) == {**shared, "openvino_compile": MANY, "render": MANY}
    assert "everything is up to date (19 actions)" in workspace.build()
    nothing_left(workspace)
    assert len(workspace.read("artifacts/history.jsonl").splitlines()) == 19


@pytest.mark.slow
def test_bytes_that_eight_engines_need_at_once_travel_once(tmp_path: Path, shared_site: Path) -> None:
    """A remote hit came without its bytes; then eight commands of four doits want them."""
    with shelf() as team:
        spec = SPEC.replace(SHAPE, SHAPES) + f'[cache]\nremote = "{team.url}/team"\n'
        checkout(tmp_path / "first", shared_site, spec).build("checkpoint")
        space = checkout(tmp_path / "second", shared_site, spec)
        together(*[space] * 4, targets=[["-n", "8", "engine"]] * 4, ENGINES_REMOTE="read")
    assert Counter(space.ran()) == {"openvino_compile": MANY}
    assert set(Counter(path for path in team.got if "/cas/" in path).values()) == {1}
    nothing_left(space)


def mounting(commands: str) -> tuple[str, ...]:
    """The words before a command that runs it where these mounts are, seen by nobody else; skips where none may."""
    words = ("unshare", "-rm", "sh", "-ec", f'{commands}\nexec "$0" "$@"')
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no mounts here: {tried.stderr.strip()}")
    return words


@pytest.mark.parametrize("kib", [4, 32, 64, 150])
def test_a_full_disk_is_one_error_and_the_next_run_is_right(workspace: Space, kib: int) -> None:
    (workspace.root / "artifacts").mkdir()
    workspace.under = mounting(f"mount -t tmpfs -o size={kib}k none artifacts")
    result = workspace.run("build", "--no-check")  # which sees it coming
    assert result.rc == 1
    assert result.out.count("ERROR: ") == 1
    assert "No space left on device" in result.out
    assert "Traceback" not in re.sub(r"(?s)    log  .*?    hint: ", "", result.out) + result.err
    workspace.under = ()
    workspace.ran()
    workspace.build()
    assert sorted(workspace.ran()) == sorted(TOOLS[:-1])


def test_a_disk_that_fills_and_is_freed_holds_no_half_result(workspace: Space) -> None:
    """The same small disk both times: what the failed run left there must not be believed, nor be in the way."""
    (workspace.root / "artifacts").mkdir()
    fill = "mount -t tmpfs -o size=400k none artifacts; head -c 300K /dev/zero >artifacts/ballast 2>&-"
    doit = '("$0" "$@" || echo "first run failed"); rm artifacts/ballast'
    workspace.under = mounting(f"{fill}; {doit}")
    out = workspace.build("build", "--no-check")
    assert "first run failed" in out
    assert "ERROR: " not in out.partition("first run failed")[2]
    assert "build:m_int8_wo_isl256_osl64_bs8  made" in out


def test_a_file_that_may_not_grow_is_one_error_and_the_next_run_is_right(workspace: Space) -> None:
    workspace.write("control/openvino_compile.py", "import os\nprint('x' * 300_000)\n")
    workspace.under = ("prlimit", "--fsize=200000")
    result = workspace.run("build")
    assert result.rc == 1
    assert "engine:m_int8_wo_isl256_osl64_bs8 could not be kept\n    reason  [Errno 27] File too large" in result.out
    assert "Traceback" not in result.out + result.err
    workspace.under = ()
    workspace.ran()
    workspace.build()
    assert workspace.ran() == ["openvino_compile", "render"]


def test_a_full_store_on_a_disk_of_its_own_is_one_warning_and_the_build_succeeds(workspace: Space) -> None:
    workspace.write("models.toml", SPEC + '[cache]\ndir = "store"\n')
    (workspace.root / "store").mkdir()
    workspace.under = mounting("mount -t tmpfs -o size=40k none store")
    result = workspace.run("build")
    assert result.rc == 0
    assert result.err.count("warning: the store cannot be written") == 1
    workspace.under = ()
    assert "everything is up to date" in workspace.build()


def test_a_read_only_store_is_used_and_not_written(workspace: Space) -> None:
    workspace.write("models.toml", SPEC + '[cache]\ndir = "store"\n')
    workspace.build("checkpoint")
    shutil.rmtree(workspace.root / "artifacts")
    workspace.ran()
    workspace.under = mounting("mount --bind store store; mount -o remount,bind,ro store")
    result = workspace.run("build")
    assert result.rc == 0
    assert "2 made, 3 from the store" in result.out
    assert result.err.count("warning: ") == 1
    workspace.under = ()
    assert workspace.ran() == ["openvino_compile", "render"]
    assert "everything is up to date" in workspace.build()


def test_a_remote_behind_a_read_only_store_is_no_traceback(tmp_path: Path, shared_site: Path) -> None:
    spec = SPEC + f'[cache]\ndir = "store"\nremote = "file://{tmp_path}/team"\n'
    checkout(tmp_path / "first", shared_site, spec).build()
    space = checkout(tmp_path / "second", shared_site, spec)
    (space.root / "store").mkdir()
    space.under = mounting("mount --bind store store; mount -o remount,bind,ro store")
    assert "5 remote" in space.run("plan").out
    result = space.run("build")
    assert result.rc == 1
    assert "could not be kept" in result.out
    assert "Traceback" not in result.out + result.err
    space.under = ()
    assert "from the team" in space.build()


def test_a_remote_that_is_unplugged_while_a_build_runs_is_one_warning(workspace: Space) -> None:
    """What was made meanwhile is sent when it is there again."""
    begun, go = workspace.root / "begun", workspace.root / "go"
    workspace.write("control/openvino_quantize.py", GATE.format(str(begun), str(go)))
    with shelf() as team:
        with proxy(team.port) as line:
            spec = SPEC + f'[cache]\nremote = "http://127.0.0.1:{line.port}/team"\n'
            workspace.write("models.toml", spec)
            process = workspace.start("build")
            assert until(begun.exists)
        go.touch()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        assert err.count("warning: ") == err.count("the remote cache is off for this run") == 1
        assert len([name for name in team.objects if "/ac/" in name]) == 2
        workspace.write("models.toml", spec.replace(str(line.port), str(team.port)))
        workspace.ran()
        assert "everything is up to date" in workspace.build()
        assert "5 results pushed" in workspace.build("cache", "push")
        assert len([name for name in team.objects if "/ac/" in name]) == 5
    assert workspace.ran() == []
