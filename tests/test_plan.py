"""The plan: a pure function from text to a graph in which nothing is made twice."""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from rules import plan
from rules.action import Action, Output
from rules.errors import Misconfigured
from tests.space import HEAD, SPEC

TWELVE = ", ".join(f"{{ batch = {batch}, isl = {isl}, osl = 64 }}" for batch in (1, 2, 4, 8) for isl in (64, 128, 256))


def _entry(name: str, precisions: str, shapes: str = "{ batch = 8, isl = 256, osl = 64 }", rest: str = "") -> str:
    return (
        f'[models.{name}]\nsource = "tiny:qwen2"\ntoolchain = "cpu"\n'
        f"precisions = [{precisions}]\nshapes = [{shapes}]\n{rest}\n"
    )


def _plan(*entries: str) -> plan.Plan:
    return plan.load(HEAD + "".join(entries), Path("/nowhere"))


def _of_stage(made: plan.Plan, stage: str) -> list[str]:
    return [name for name, action in made.actions.items() if action.stage == stage]


def test_one_entry_is_a_chain_of_five_stages_and_the_conversion() -> None:
    assert list(_plan(_entry("m", '"int8_wo"')).actions) == [
        "source:m",
        "checkpoint:m_fp32",
        "checkpoint:m_int8_wo",
        "engine:m_int8_wo_isl256_osl64_bs8",
        "build:m_int8_wo_isl256_osl64_bs8",
        "smoke:m_int8_wo_isl256_osl64_bs8",
    ]


def test_twelve_shapes_share_one_checkpoint() -> None:
    made = _plan(_entry("m", '"int8_wo"', TWELVE))
    assert _of_stage(made, "checkpoint") == ["checkpoint:m_fp32", "checkpoint:m_int8_wo"]
    assert len(_of_stage(made, "engine")) == len(_of_stage(made, "build")) == 12


def test_precisions_share_the_source_and_the_conversion() -> None:
    made = _plan(_entry("m", '"fp32", "fp16", "int8_wo", "int4_wo"', TWELVE))
    assert _of_stage(made, "source") == ["source:m"]
    assert len(_of_stage(made, "checkpoint")) == 4
    assert len(_of_stage(made, "engine")) == 48


def test_no_two_actions_of_an_entry_are_the_same_work() -> None:
    made = _plan(_entry("m", '"fp32", "fp16", "int8_wo", "int4_wo"', TWELVE))
    work = {(action.stage, action.argv, action.inputs) for action in made.actions.values()}
    assert len(work) == len(made.actions)


def test_a_checkpoint_never_sees_the_shape() -> None:
    one, other = (_plan(_entry("m", '"int4_wo"', f"{{ batch = {n}, isl = {n}, osl = {n} }}")) for n in (1, 2))
    for name in ("source:m", "checkpoint:m_fp32", "checkpoint:m_int4_wo"):
        assert one.actions[name] == other.actions[name]


def _changed(one: plan.Plan, other: plan.Plan) -> list[str]:
    assert list(one.actions) == list(other.actions)
    return [action.stage for name, action in one.actions.items() if action != other.actions[name]]


def test_a_serving_option_changes_only_the_repository() -> None:
    """Its smoke test follows by the digest of its input."""
    with_option = _entry("m", '"int8_wo"', rest="serving = { streaming = false }")
    assert _changed(_plan(_entry("m", '"int8_wo"')), _plan(with_option)) == ["build"]


def test_a_build_option_of_the_engine_changes_only_the_engine() -> None:
    with_option = _entry("m", '"int8_wo"', rest="build = { max_num_tokens = 512 }")
    assert _changed(_plan(_entry("m", '"int8_wo"')), _plan(with_option)) == ["engine"]


def test_the_group_size_changes_int4_weights_only() -> None:
    for precision, stages in (("int4_wo", ["checkpoint"]), ("int8_wo", [])):
        with_option = _entry("m", f'"{precision}"', rest="build = { group_size = 32 }")
        assert _changed(_plan(_entry("m", f'"{precision}"')), _plan(with_option)) == stages


def test_every_input_is_made_before_it_is_needed() -> None:
    made = _plan(_entry("m", '"fp32", "int4_wo"', TWELVE), _entry("n", '"fp16"'))
    seen: set[str] = set()
    for name, action in made.actions.items():
        assert name == action.name
        assert set(action.needs()) <= seen
        seen.add(name)


def test_only_the_source_the_repository_and_the_smoke_test_see_a_tokenizer() -> None:
    made = _plan(_entry("m", '"fp32", "int8_wo"'))
    for action in made.actions.values():
        if _sees(action, "source:m", "tokenizer.json"):
            assert action.stage in ("build", "smoke")


def _sees(action: Action, made_by: str, file: str) -> bool:
    views = [source for _, source in action.inputs if isinstance(source, Output) and source.action == made_by]
    return any(not view.only or any(fnmatch(file, pattern) for pattern in view.only) for view in views)


def test_a_prefix_is_a_group_at_every_stage() -> None:
    names = _plan(_entry("m", '"fp32", "int8_wo"', TWELVE)).names
    assert len(names["build"]["m"]) == len(names["engine"]["m"]) == len(names["smoke"]["m"]) == 24
    assert len(names["build"]["m_fp32"]) == 12
    assert names["checkpoint"]["m"] == ("checkpoint:m_fp32", "checkpoint:m_int8_wo")
    assert names["checkpoint"]["m_int8_wo_isl64_osl64_bs1"] == ("checkpoint:m_int8_wo",)
    assert names["source"] == {"m": ("source:m",)}


def test_two_models_of_one_source_are_two_plans_of_one_work() -> None:
    made = _plan(_entry("m", '"int8_wo"'), _entry("n", '"int8_wo"'))
    assert made.actions["source:m"].argv == made.actions["source:n"].argv


def test_a_group_named_like_an_action_of_another_model_is_told() -> None:
    with pytest.raises(Misconfigured) as error:
        _plan(_entry("m", '"int8_wo"'), _entry("m_fp32", '"int8_wo"'))
    assert "checkpoint:m_fp32 would be two things" in str(error.value)
    assert "hint: rename" in str(error.value)


def test_the_same_mistake_is_told_once() -> None:
    with pytest.raises(Misconfigured) as error:
        _plan(_entry("m", '"int8"', TWELVE))
    assert len(error.value.problems) == 1


PURE = """
import os, socket, subprocess, sys, time
from pathlib import Path
from rules import backend, plan
[backend.find(name) for name in backend.names()]
text = sys.stdin.read()

class Forbidden:
    def __getattribute__(self, name):
        raise AssertionError(name + " was used")

def audit(event, args):
    if event.split(".")[0] in ("socket", "subprocess", "shutil", "fcntl") or event in ("os.putenv", "os.system"):
        raise AssertionError(event)
    if event == "open":
        assert isinstance(args[0], (str, bytes, os.PathLike)) and args[2] & (os.O_WRONLY | os.O_RDWR) == 0, args
        opened.append(os.path.realpath(args[0]))

opened = []
time.time = time.monotonic = time.perf_counter = time.time_ns = None
os.environ = Forbidden()
os.getenv = None
sys.addaudithook(audit)
made = plan.load(text, Path("/nowhere"))
assert made.actions
print("\\n".join(sorted(set(opened))))
"""


def test_the_plan_reads_git_files_only_and_neither_environment_clock_network_nor_processes(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PURE], input=SPEC, cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    read = [Path(line).relative_to(project) for line in done.stdout.splitlines()]
    assert Path("rules/tools/render.py") in read
    assert {path.parts[:2] for path in read} == {
        ("rules", "tools"),
        ("rules", "releases"),
        ("templates", "triton"),
        ("templates", "openvino"),
    }


def test_the_plan_does_not_depend_on_where_the_project_lies(shared_site: Path) -> None:
    """A checkout and an installed wheel have one set of keys, tools aside."""
    code = (
        "import sys; from pathlib import Path; from rules import plan; made = plan.load(sys.stdin.read(), Path('.'));"
    )
    code += "print([(n, a.argv, a.outputs, a.toolchain, [i for i, _ in a.inputs]) for n, a in made.actions.items()])"
    done = subprocess.run(
        [sys.executable, "-c", code], input=SPEC, cwd=shared_site, capture_output=True, text=True, check=True
    )
    here = plan.load(SPEC, Path())
    rows = [(n, a.argv, a.outputs, a.toolchain, [i for i, _ in a.inputs]) for n, a in here.actions.items()]
    assert done.stdout == f"{rows}\n"
