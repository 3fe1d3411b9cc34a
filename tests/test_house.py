"""The rules of the house, read off the source: who may import whom, how large things are, what is never committed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tomli

from rules import DOIT, HOW, ROWS, WHAT, WORDS

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "rules"
TOOLS = sorted(RULES.glob("tools/**/*.py"))
LINES = 400
BYTES = 250_000

# Together with `os.environ` all that lets a module see more than its arguments and the files in git.
WORLD = {
    "subprocess",
    "time",
    "datetime",
    "random",
    "secrets",
    "uuid",
    "socket",
    "urllib",
    "http",
    "platform",
    "obstore",
}
VAGUE = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
# Split, so that this file does not name what it forbids.
HOSTS = ("py" + "pi.org", "python" + "hosted", "py" + "torch.org", "npm" + "js", "crates" + ".io", "debian" + ".org")


def module(path: Path) -> str:
    """Dotted name below rules/: `backends.openvino`; a package's own file is named for its folder."""
    parts = path.relative_to(RULES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module of rules/ but the map itself and the tools, which are programs."""
    paths = [path for path in RULES.rglob("*.py") if path not in TOOLS and path != RULES / "__init__.py"]
    return {module(path): path for path in sorted(paths)}


@cache
def imports(path: Path) -> frozenset[str]:
    """Absolute names that a file imports anywhere in it: `rules.spec` for `from rules.spec import X`."""
    return frozenset(imported(ast.parse(path.read_text(encoding="utf-8"))))


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all import statements; `from a import b` counts as `a.b` where that is a module of ours, else as `a`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = [name for name in names if name.removeprefix("rules.") in modules()]
            yield from ours or [node.module]


def ours(path: Path) -> set[str]:
    """Modules of rules/ that a file imports, as the map names them; `from rules import ROWS` is no module."""
    return {name.removeprefix("rules.") for name in imports(path) if name.startswith("rules.")}


def roots(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def column(rows: tuple[tuple[str, ...], ...]) -> list[str]:
    """The modules of some rows that exist."""
    return [name for row in rows for name in row if name in modules()]


@cache
def tracked() -> list[Path]:
    """Files that git tracks and that are there."""
    out = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [path for path in (ROOT / name for name in out.split("\0") if name) if path.is_file()]


def test_the_map_names_every_module_once() -> None:
    named = [name for row in ROWS for name in row]
    assert sorted(named) == sorted(modules())


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_from_rows_above_its_own(name: str) -> None:
    above: set[str] = set()
    for row in ROWS:
        if name in row:
            break
        above |= set(row)
    assert ours(modules()[name]) <= above, "move it down in rules/__init__.py, or let it depend on less"


@pytest.mark.parametrize("name", column(WHAT))
def test_what_never_imports_how(name: str) -> None:
    assert not ours(modules()[name]) & {*column(HOW), *column(DOIT)}


@pytest.mark.parametrize("name", column(HOW))
def test_how_never_imports_what(name: str) -> None:
    assert not ours(modules()[name]) & {*column(WHAT), *column(DOIT)}


@pytest.mark.parametrize("name", column(WORDS + WHAT))
def test_what_sees_no_environment_clock_network_or_process(name: str) -> None:
    source = modules()[name].read_text(encoding="utf-8")
    assert not roots(modules()[name]) & WORLD
    assert not re.search(r"\b(environ|getenv|gethostname|getpid|cpu_count)\b", source)


def test_only_tasks_report_state_and_commands_import_doit() -> None:
    users = {name for name, path in modules().items() if "doit" in roots(path)}
    assert {name for name in users if name.split(".")[0] not in {"tasks", "report", "state", "commands"}} == set()


def test_only_runners_gpu_and_git_start_processes() -> None:
    users = {name for name, path in modules().items() if "subprocess" in roots(path)}
    assert {name for name in users if name.split(".")[0] not in {"runners", "gpu", "git"}} == set()


def offered(tree: ast.Module) -> set[str]:
    """What a module's `__all__` names."""
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return {word for one in lists for word in ast.literal_eval(one)}


@pytest.mark.parametrize("path", modules().values(), ids=modules())
def test_what_is_taken_of_a_module_is_in_its_all(path: Path) -> None:
    taken = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    of = {node: modules()[name] for node in taken if (name := str(node.module).removeprefix("rules.")) in modules()}
    for node, place in of.items():
        names = {one.name for one in node.names if f"{node.module}.{one.name}".removeprefix("rules.") not in modules()}
        assert names <= offered(ast.parse(place.read_text("utf-8"))), node.module


@pytest.mark.parametrize("path", sorted(RULES.glob("backends/*.py")), ids=lambda path: path.stem)
def test_backends_do_not_know_one_another(path: Path) -> None:
    assert not {name for name in ours(path) if name.startswith("backends")} - {"backends"}


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_a_tool_imports_nothing_of_ours(path: Path) -> None:
    """But the files of a tool that is a folder import one another: the folder is the tool."""
    folder = set() if path.parent == RULES / "tools" else {tool.stem for tool in path.parent.glob("*.py")}
    siblings = {tool.stem for tool in TOOLS} - sys.stdlib_module_names - folder
    assert not roots(path) & {"rules", "tests", "scripts", "dodo", *siblings}


def test_nothing_imports_a_tool() -> None:
    assert not [name for name, path in modules().items() if any("rules.tools" in one for one in imports(path))]


@pytest.mark.parametrize("path", [*modules().values(), *TOOLS], ids=module)
def test_every_module_has_its_test(path: Path) -> None:
    if path.name != "__init__.py":
        mirror = path.relative_to(RULES).with_name(f"test_{path.name}")
        assert (ROOT / "tests" / mirror).exists(), f"tests/{mirror} is missing"


def test_every_command_stands_in_both_tables_of_pyproject() -> None:
    """doit reads the first in a clone, and the second from a wheel."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    plugins, points = project["tool"]["doit"]["plugins"], project["project"]["entry-points"]
    assert plugins["command"] == points["doit.COMMAND"]
    assert plugins["backend"] == points["doit.BACKEND"]
    names = {name.partition(".")[2] for name in modules() if name.startswith("commands.")}
    assert {place.partition(":")[0] for place in plugins["command"].values()} == {
        f"rules.commands.{it}" for it in names
    }
    assert set(plugins["command"]) == names


def test_no_source_file_is_longer_than_400_lines() -> None:
    sources = [path for path in tracked() if path.suffix in {".py", ".j2", ".toml", ".md", ""}]
    long = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert {path: lines for path, lines in long.items() if lines > LINES} == {}


def test_no_file_is_named_for_nothing_in_particular() -> None:
    parts = {part.split(".")[0].removeprefix("test_") for path in tracked() for part in path.relative_to(ROOT).parts}
    assert not parts & VAGUE


def test_no_large_file_is_committed() -> None:
    assert [path for path in tracked() if path.stat().st_size > BYTES] == []


def test_no_path_of_one_machine_and_no_registry_is_named() -> None:
    forbidden = re.compile(r"(?<![\w.$}])/(?:root|work|home|Users)/\w|" + "|".join(map(re.escape, HOSTS)))
    found = []
    for path in tracked():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{n}: {line[:80]}" for n, line in enumerate(lines, 1) if forbidden.search(line)
        ]
    assert found == []
