"""models.toml and a two-line dodo.py under the real doit: what runs, what does not, and what is rebuilt by what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.space import HEAD, SPEC, Space, texts

BUILD = ["tiny", "openvino_convert", "openvino_quantize", "openvino_compile", "render"]
SHAPE = "{ batch = 8, isl = 256, osl = 64 }"


def test_a_folder_with_a_models_toml_and_a_two_line_dodo_builds(workspace: Space) -> None:
    assert sorted(path.name for path in workspace.root.iterdir()) == ["dodo.py", "models.toml"]
    assert len(workspace.read("dodo.py").splitlines()) == 2
    workspace.build()
    assert workspace.ran() == BUILD
    assert (workspace.root / "artifacts/build/m_int8_wo_isl256_osl64_bs8/ensemble/config.pbtxt").is_file()


def test_a_second_build_runs_nothing_and_says_so(built: Space) -> None:
    assert built.build("smoke") == "everything is up to date (6 actions)\n"
    assert built.ran() == []


def test_touching_every_file_rebuilds_nothing(built: Space) -> None:
    for path in built.root.rglob("*"):
        os.utime(path)
    assert "everything is up to date" in built.build("smoke")
    assert built.ran() == []


def test_forgetting_what_doit_knows_rebuilds_nothing(built: Space) -> None:
    built.build("forget")
    assert "everything is up to date" in built.build("smoke")
    (built.root / "artifacts/.doit.db").unlink()
    assert "everything is up to date" in built.build("smoke")
    assert built.ran() == []


def test_each_stage_makes_what_it_needs_and_no_more(workspace: Space) -> None:
    for target, tools in (
        ("source:m", BUILD[:1]),
        ("checkpoint:m_int8_wo", BUILD[1:3]),
        ("engine:m_int8_wo_isl256_osl64_bs8", BUILD[3:4]),
        ("build:m", BUILD[4:]),
    ):
        workspace.build(target)
        assert workspace.ran() == tools


CHANGES = {
    "a serving option": (SPEC + "serving = { streaming = false }\n", ["render", "probe"]),
    "the batch": (SPEC.replace("batch = 8", "batch = 4"), ["openvino_compile", "render", "probe"]),
    "an option of the engine": (SPEC + "build = { max_num_tokens = 9 }\n", ["openvino_compile", "render", "probe"]),
    "the precision": (SPEC.replace("int8", "int4"), [*BUILD[2:], "probe"]),
    "the source": (SPEC.replace("tiny:qwen2", "tiny:llama"), [*BUILD, "probe"]),
    "a comment": (SPEC + "# a comment\n", []),
    "the default set": (SPEC + '[serve]\ndefault = ["m"]\n', []),
    "the model's name": (SPEC.replace("models.m", "models.n"), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_rebuilds_only_what_depends_on_it(built: Space, what: str) -> None:
    text, tools = CHANGES[what]
    built.write("models.toml", text)
    built.build("smoke")
    assert built.ran() == tools


def test_going_back_runs_nothing(built: Space) -> None:
    built.write("models.toml", CHANGES["the batch"][0])
    built.build()
    built.ran()
    built.write("models.toml", SPEC)
    built.build()
    assert built.ran() == []


def test_an_edit_of_a_tool_that_yields_equal_bytes_cuts_off_early(built: Space, own_site: Path) -> None:
    built.site = own_site
    with (own_site / "rules/tools/openvino_convert.py").open("a") as tool:
        tool.write("# a comment\n")
    assert "1 made, 0 from the store, 5 up to date" in built.build("smoke")
    assert built.ran() == ["openvino_convert"]


def test_an_edit_of_a_template_renders_again(built: Space, own_site: Path) -> None:
    built.site = own_site
    with (own_site / "rules/templates/triton/ensemble/config.pbtxt.j2").open("a") as template:
        template.write("# a comment\n")
    built.build("smoke")
    assert built.ran() == ["render", "probe"]


def test_where_the_project_is_installed_rebuilds_nothing(built: Space, own_site: Path) -> None:
    built.site = own_site
    assert "everything is up to date" in built.build("smoke")


def test_a_tokenizer_file_rebuilds_what_sees_it_only(workspace: Space) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        workspace.write(f"ckpt/{name}", "{}")
    workspace.write("models.toml", SPEC.replace("tiny:qwen2", "file:ckpt"))
    workspace.build("smoke")
    workspace.ran()
    workspace.write("ckpt/tokenizer.json", '{"a": 1}')
    workspace.build("smoke")
    assert workspace.ran() == ["fetch", "render", "probe"]
    workspace.write("ckpt/README.md", "other")
    workspace.build("smoke")
    assert workspace.ran() == ["fetch"]


def test_twelve_shapes_are_made_from_one_checkpoint(workspace: Space) -> None:
    shapes = ", ".join(f"{{ batch = {b}, isl = {i}, osl = 64 }}" for b in (1, 2, 4) for i in (32, 64, 128, 256))
    workspace.write("models.toml", SPEC.replace(SHAPE, shapes))
    workspace.build()
    tools = workspace.ran()
    assert [tools.count(tool) for tool in BUILD] == [1, 1, 1, 12, 12]


def test_precisions_share_source_and_conversion_and_a_prefix_builds_its_group(workspace: Space) -> None:
    workspace.write("models.toml", SPEC.replace('"int8_wo"', '"fp32", "int8_wo", "int4_wo"'))
    workspace.build("build:m_int8_wo")
    assert workspace.ran() == BUILD
    workspace.build("build:m")
    assert sorted(workspace.ran()) == sorted([BUILD[2], *BUILD[3:] * 2])


def test_two_models_of_one_source_make_it_once(workspace: Space) -> None:
    workspace.write("models.toml", SPEC + SPEC.removeprefix(HEAD).replace("models.m", "models.n"))
    workspace.build()
    assert workspace.ran() == BUILD


def test_wiped_artifacts_are_restored_from_a_kept_store_without_a_command(workspace: Space) -> None:
    """The poisoned build: every command fails."""
    workspace.write("models.toml", SPEC + '[cache]\ndir = "kept"\n')
    workspace.build("smoke")
    before = _outputs(workspace)
    shutil.rmtree(workspace.root / "artifacts")
    workspace.poison()
    workspace.ran()
    assert "0 made, 6 from the store" in workspace.build("smoke")
    assert workspace.ran() == []
    assert _outputs(workspace) == before


def _outputs(space: Space) -> dict[str, str]:
    kept = ("source", "checkpoint", "engine", "build", "smoke")
    found = dict(texts(space.root / "artifacts"))
    return {p: text for p, text in found.items() if p.split("/")[0] in kept and not p.endswith(".record.json")}


def test_the_poison_works(workspace: Space) -> None:
    workspace.poison()
    result = workspace.run()
    assert result.rc == 1
    assert "poisoned" in result.out


@pytest.mark.parametrize("harm", ["modify", "delete", "truncate", "add"])
def test_a_harmed_artifact_is_made_good_without_a_command(built: Space, harm: str) -> None:
    before = _outputs(built)
    file = built.root / "artifacts/engine/m_int8_wo_isl256_osl64_bs8/openvino_model.bin"
    if harm == "add":
        (file.parent / "extra").write_text("extra")
    else:
        file.chmod(0o644)
        file.unlink() if harm == "delete" else file.write_text("" if harm == "truncate" else "other")
    built.poison()
    assert "0 made, 1 from the store, 5 up to date" in built.build("smoke")
    assert _outputs(built) == before


def test_cleaning_removes_outputs_which_come_back_from_the_store(built: Space) -> None:
    built.build("clean", "-a")
    assert not [path for path in _outputs(built) if "receipt" in path or "model" in path]
    assert "0 made, 6 from the store" in built.build("smoke")


def test_cleaning_a_group_cleans_what_it_stands_for_and_nothing_else(built: Space) -> None:
    built.build("clean", "build:m_int8_wo")
    assert not list((built.root / "artifacts/build").iterdir())
    assert list((built.root / "artifacts/engine").iterdir())


def test_a_secret_reaches_neither_log_nor_key_nor_record(workspace: Space) -> None:
    workspace.write("control/tiny.py", "import os\nprint(dict(os.environ))\n")
    assert workspace.run("build", HF_TOKEN="hf_secret", AWS_SECRET_ACCESS_KEY="hf_secret").rc == 0
    log = workspace.read("artifacts/logs/source/m.log")
    assert "HF_HUB_OFFLINE" in log, "the environment was printed"
    assert not [path for path, text in texts(workspace.root) if "hf_secret" in text]
    workspace.ran()
    assert "everything is up to date" in workspace.build()


@pytest.mark.parametrize("text", ["models = [", '[models.m]\nsource = "tiny:qwen2', "a = 1\na = 2", "\ufeff[models]"])
def test_a_file_that_is_not_toml_is_one_error_without_a_traceback(workspace: Space, text: str) -> None:
    workspace.write("models.toml", text)
    result = workspace.run("list")
    assert result.rc == 3
    assert "models.toml is not TOML: " in result.err
    assert "Traceback" not in result.err


def test_a_file_that_is_not_utf_8_is_one_error_without_a_traceback(workspace: Space) -> None:
    (workspace.root / "models.toml").write_bytes(b"a = '\xff'")
    result = workspace.run("list")
    assert result.rc == 3
    assert "models.toml cannot be read" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("command", [["list"], ["build"], ["why", "build:m"], []])
def test_a_missing_models_toml_is_one_error_with_a_hint(workspace: Space, command: list[str]) -> None:
    (workspace.root / "models.toml").unlink()
    result = workspace.run(*command)
    assert result.rc == 3
    assert "models.toml cannot be read" in result.err
    assert "hint: " in result.err
    assert "Traceback" not in result.err


def test_an_unknown_target_is_an_error_without_a_traceback(workspace: Space) -> None:
    result = workspace.run("build:nothing")
    assert result.rc == 3
    assert "build:nothing" in result.err
    assert "Traceback" not in result.err


def test_an_empty_models_toml_has_the_stages_and_nothing_in_them(workspace: Space) -> None:
    workspace.write("models.toml", "")
    assert [line.split()[0] for line in workspace.build("list").splitlines()] == [
        "bench",
        "build",
        "checkpoint",
        "engine",
        "eval",
        "k8s",
        "smoke",
        "source",
    ]
    workspace.build()


def test_doit_alone_builds_the_default_groups_and_nothing_else(workspace: Space) -> None:
    other = SPEC.replace(HEAD, "").replace("[models.m]", "[models.n]")
    workspace.write("models.toml", f'default = ["m"]\n{SPEC}{other}')
    workspace.build()
    assert (workspace.root / "artifacts/build/m_int8_wo_isl256_osl64_bs8").is_dir()
    assert not (workspace.root / "artifacts/build/n_int8_wo_isl256_osl64_bs8").exists()
    assert "_default" not in workspace.build("list", "--all")


def test_a_default_group_must_exist(workspace: Space) -> None:
    workspace.write("models.toml", f'default = ["mm"]\n{SPEC}')
    result = workspace.run()
    assert result.rc == 3
    assert "default: there is no 'mm'\n    hint: did you mean 'm'?" in result.err
