"""docs/ci.md as it stands there: a main branch that builds and shares, a pull request that reads, and bad lines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rules.sign import public_key
from tests.fakes import PROJECT
from tests.proxy import Fault, proxy
from tests.servers import nginx, s3rver
from tests.space import HEAD, SPEC, Result, Space, of_the_build

pytestmark = pytest.mark.server

SEED = "5e" * 32
OTHER = SPEC.removeprefix(HEAD).replace("models.m", "models.other").replace("qwen2", "llama")
TEAM = SPEC + OTHER + '[cache]\nremote = "s3://engines/team"\ntrusted = ["TRUSTED"]\n'
BUILD = ["tiny", "openvino_convert", "openvino_quantize", "openvino_compile", "render", "probe"]
DOCUMENT = (PROJECT / "docs" / "ci.md").read_text(encoding="utf-8")
MAIN, PULL_REQUEST = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
LARGE = """
import sys
from pathlib import Path
out = Path(next(word[6:] for word in sys.argv if word.startswith("--out=")))
(out / "weights").write_bytes(bytes(range(256)) * 32768)
"""


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class Machine:
    """A clone of `origin`, and the environment that its CI job has."""

    space: Space
    env: dict[str, str]

    def job(self, script: str) -> Result:
        """Runs a script of docs/ci.md, where doit is installed already."""
        doit = f'"{sys.executable}" -m doit'
        base = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(self.space.root)}
        command = ["sh", "-ec", script.replace("./doitw", doit)]
        env = {**base, **self.env}
        ran = subprocess.run(command, cwd=self.space.root, env=env, capture_output=True, text=True, check=False)
        return Result(ran.returncode, ran.stdout, ran.stderr)

    def plan(self) -> dict[str, str]:
        """Action -> status of everything."""
        result = self.job("./doitw plan --json smoke")
        return {row["name"]: row["status"] for row in json.loads(result.out)["actions"]}


class Team:
    """A project in git whose tools are stand-ins, and machines that clone it."""

    def __init__(self, folder: Path, port: int, bucket: Path) -> None:
        self.folder = folder
        self.bucket = bucket
        self.origin = folder / "origin"
        login = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "S3RVER")
        self._env = {**login, "AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        git(folder, "clone", "-q", str(PROJECT), str(self.origin))
        git(self.origin, "checkout", "-q", "-B", "main")
        for tool in (self.origin / "rules/tools").glob("*.py"):
            shutil.copyfile(PROJECT / "tests" / "fake_tool.py", tool)
        Space(self.origin, self.origin).write("models.toml", TEAM.replace("TRUSTED", public_key(SEED)))
        git(self.origin, "commit", "-qam", "our models")

    def machine(self, name: str, mode: str) -> Machine:
        root = self.folder / name
        git(self.folder, "clone", "-q", str(self.origin), str(root))
        space = Space(root, root)
        git(root, "checkout", "-q", ".")
        key = {"ENGINES_SIGNING_KEY": SEED} if mode == "write" else {}
        return Machine(space, {**self._env, **key, "ENGINES_REMOTE": mode})

    def merge(self, machine: Machine) -> None:
        git(self.origin, "fetch", "-q", str(machine.space.root), "HEAD")
        git(self.origin, "merge", "-q", "--ff-only", "FETCH_HEAD")

    def shared(self) -> set[str]:
        return {str(path) for path in self.bucket.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The main branch has run once."""
    folder = tmp_path_factory.mktemp("team")
    with s3rver(folder / "s3") as port:
        made = Team(folder, port, folder / "s3" / "data")
        main = made.machine("main", "write")
        result = main.job(MAIN)
        assert result.rc == 0, result.out + result.err
        assert sorted(main.space.ran()) == sorted(BUILD * 2)
        yield made


def pull_request(team: Team, name: str, path: str, old: str, new: str) -> tuple[Machine, Result]:
    """A reader with a committed change, and its job."""
    machine = team.machine(name, "read")
    text = machine.space.read(path)
    assert old in text
    machine.space.write(path, text.replace(old, new))
    git(machine.space.root, "commit", "-qam", name)
    before = team.shared()
    result = machine.job(PULL_REQUEST)
    assert result.rc == 0, result.out + result.err
    assert "warning" not in of_the_build(result.err)
    assert team.shared() == before, "a pull request writes nothing"
    return machine, result


def test_the_yaml_runs_the_scripts() -> None:
    for text in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL):
        lines = {line.strip().removeprefix("- ") for line in text.splitlines()}
        assert {line.strip() for line in (MAIN + PULL_REQUEST).splitlines()} <= lines


def test_a_pull_request_that_touches_no_variant_builds_nothing(team: Team) -> None:
    machine, result = pull_request(team, "comment", "models.toml", HEAD, f"# a comment\n{HEAD}")
    assert "no variant is touched" in result.out
    assert machine.space.ran() == []


def test_the_second_machine_builds_nothing(team: Team) -> None:
    machine = team.machine("second", "read")
    machine.space.poison()
    assert set(machine.plan().values()) == {"remote"}
    result = machine.job("./doitw smoke")
    assert (result.rc, machine.space.ran()) == (0, []), result.out + result.err


def test_a_pull_request_builds_what_it_touches_and_main_shares_it(team: Team) -> None:
    old, new = 'source = "tiny:llama"', 'serving = { streaming = false }\nsource = "tiny:llama"'
    machine, result = pull_request(team, "option", "models.toml", old, new)
    assert machine.space.ran() == ["render", "probe"]
    assert "run      build:other_int8_wo_isl256_osl64_bs8" in result.out
    team.merge(machine)
    main = team.machine("main-again", "write")
    assert main.job(MAIN).rc == 0
    assert main.space.ran() == ["render", "probe"], "what a pull request made is not believed"
    later = team.machine("later", "read")
    assert set(later.plan().values()) == {"remote"}


def test_a_pull_request_that_changes_a_tool_builds_from_there_on(team: Team) -> None:
    machine, _ = pull_request(team, "tool", "rules/tools/openvino_compile.py", "import hashlib", "import hashlib  # x")
    assert Counter(machine.space.ran()) == {"openvino_compile": 2}, "equal engines: the rest comes from the cache"


def test_results_that_main_has_not_signed_are_built_again(team: Team) -> None:
    """Somebody with the bucket's keys, but not the signing key, cannot make the team serve their engine."""
    mallory = team.machine("mallory", "write")
    mallory.env["ENGINES_SIGNING_KEY"] = "66" * 32
    mallory.space.write("models.toml", mallory.space.read("models.toml").replace("osl = 64", "osl = 65"))
    assert mallory.job("./doitw engine").rc == 0
    reader = team.machine("victim", "read")
    reader.space.write("models.toml", mallory.space.read("models.toml"))
    result = reader.job("./doitw engine")
    assert result.rc == 0
    assert Counter(reader.space.ran()) == {"openvino_compile": 2}
    assert "not signed by a trusted key" in result.err


@pytest.fixture(scope="module")
def dav(tmp_path_factory: pytest.TempPathFactory, shared_site: Path) -> Iterator[tuple[int, Path, Space]]:
    """nginx's port and folder with the results of a build whose engine has 8 MiB, and that build."""
    folder = tmp_path_factory.mktemp("dav")
    with nginx(folder / "nginx") as port:
        (folder / "first").mkdir()
        first = Space(folder / "first", shared_site)
        first.write("control/openvino_compile.py", LARGE)
        first.write("models.toml", SPEC + f'[cache]\nremote = "http://127.0.0.1:{port}/team"\n')
        first.build("smoke")
        yield port, folder / "nginx" / "data", first


def engine(space: Space) -> dict[str, bytes]:
    folder = space.root / "artifacts/engine/m_int8_wo_isl256_osl64_bs8"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reader(folder: Path, site: Path, port: int) -> Space:
    folder.mkdir()
    space = Space(folder, site)
    space.write("control/openvino_compile.py", LARGE)
    space.write("models.toml", SPEC + f'[cache]\nremote = "http://127.0.0.1:{port}/team"\n')
    return space


@pytest.mark.parametrize(
    ("kind", "tools", "warning"),
    [
        ("cut", [], ""),
        ("close", [], ""),
        ("corrupt", ["openvino_compile"], "is not what its name says"),
    ],
)
def test_a_bad_line_never_makes_a_bad_engine(
    dav: tuple[int, Path, Space], tmp_path: Path, shared_site: Path, kind: str, tools: list[str], warning: str
) -> None:
    port, _, first = dav
    with proxy(port, Fault(kind, "down", 3 << 20)) as line:  # type: ignore[arg-type]
        space = reader(tmp_path / "second", shared_site, line.port)
        result = space.run("engine", ENGINES_REMOTE="read")
        assert line.faults[0].times == 0, "the fault took place"
    assert result.rc == 0, result.out + result.err
    assert engine(space) == engine(first)
    assert space.ran() == tools
    assert result.err.count("warning: ") == (1 if warning else 0)
    assert warning in result.err
    assert "everything is up to date" in space.run("engine", ENGINES_REMOTE="off").out


@pytest.mark.parametrize("harm", ["truncate", "delete", "swap"])
def test_a_harmed_blob_on_the_server_is_a_miss(
    dav: tuple[int, Path, Space], tmp_path: Path, shared_site: Path, harm: str
) -> None:
    port, data, first = dav
    blob = next(path for path in (data / "team" / "cas").iterdir() if path.stat().st_size == 8 << 20)
    whole = blob.read_bytes()
    try:
        blob.unlink()
        if harm != "delete":
            blob.write_bytes(whole[:1000] if harm == "truncate" else bytes(len(whole)))
        space = reader(tmp_path / "second", shared_site, port)
        result = space.run("engine", ENGINES_REMOTE="read")
    finally:
        blob.write_bytes(whole)
    assert result.rc == 0, result.out + result.err
    assert space.ran() == ["openvino_compile"]
    assert engine(space) == engine(first)
    assert result.err.count("warning: ") == (1 if harm == "swap" else 0)
