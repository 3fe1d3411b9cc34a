"""`doit render`: the repository that the build would make, in a folder of the user's that is treated with respect."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rules import tree
from rules.action import Receipt
from rules.commands.render import MARK, refusal, write
from tests.fakes import PROJECT
from tests.lane import toml
from tests.space import SPEC, Space

NAME = "m_int8_wo_isl256_osl64_bs8"
CONFIGS = [f"{model}/config.pbtxt" for model in ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm")]
TWO = SPEC.replace('precisions = ["int8_wo"]', 'precisions = ["fp16", "int8_wo"]')


@pytest.fixture(scope="module")
def rendering_site(tmp_path_factory: pytest.TempPathFactory, shared_site: Path) -> Path:
    """Fake tools but for the renderer."""
    folder = Path(shutil.copytree(shared_site, tmp_path_factory.mktemp("site") / "site"))
    shutil.copyfile(PROJECT / "rules/tools/render.py", folder / "rules/tools/render.py")
    return folder


@pytest.fixture
def space(tmp_path: Path, rendering_site: Path) -> Space:
    """Nothing is built in it."""
    (tmp_path / "space").mkdir()
    return Space(tmp_path / "space", rendering_site)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_what_the_build_makes_but_for_the_engine(space: Space) -> None:
    space.build()
    space.build("render", "m", "--out", "r")
    built, rendered = _files(space.root / "artifacts/build" / NAME), _files(space.root / "r")
    del rendered[MARK]
    gone = {path for path in built if path.startswith("tensorrt_llm/1/engine/")}
    assert gone
    assert rendered == {path: content for path, content in built.items() if path not in gone}
    assert "preprocessing/1/tokenizer/tokenizer.json" in rendered


def test_nothing_is_needed_and_what_is_missing_is_told(space: Space) -> None:
    out = space.build("render", "m", "--out", "r")
    assert space.ran() == [], "no source, no engine"
    assert f"{NAME}: rendered in r\n" in out
    assert f"tensorrt_llm/1/engine, which doit build:{NAME} makes" in out
    assert "MODEL/1/tokenizer: run doit source:m and render again" in out
    assert not list(space.root.glob("r/**/tokenizer"))


def test_both_lanes_are_rendered_with_nothing_unfilled(space: Space) -> None:
    space.write("models.toml", toml("0.11.0"))
    out = space.build("render", "m", "--out", "r", "--engine-dir", "/engines/qwen")
    assert "engine     /engines/qwen\n" in out
    assert "mount      this folder at /repository" in out
    texts = {path: space.read(f"r/{path}") for path in CONFIGS}
    assert not [path for path, text in texts.items() if "${" in text]
    assert 'string_value: "/engines/qwen"' in texts["tensorrt_llm/config.pbtxt"]
    assert 'string_value: "/repository/preprocessing/1/tokenizer"' in texts["preprocessing/config.pbtxt"]


def test_several_variants_lie_below_the_folder_once_all_of_them_may_be_written(space: Space) -> None:
    space.write("models.toml", TWO)
    space.write(f"r/{NAME}/notes.txt", "mine")
    refused = space.run("render", "m", "--out", "r")
    assert refused.rc == 3
    assert "is not empty, and not a repository that `doit render` wrote" in refused.err
    assert _files(space.root / "r") == {f"{NAME}/notes.txt": b"mine"}, "nor is any other written"
    space.build("render", "m", "--out", "r", "--force")
    assert space.read(f"r/{NAME}/notes.txt") == "mine"
    assert {path.name for path in (space.root / "r").iterdir()} == {NAME, NAME.replace("int8_wo", "fp16")}
    assert (space.root / "r" / NAME / "ensemble/config.pbtxt").exists()


def test_a_value_that_triton_would_not_take_is_told_and_nothing_is_written(space: Space) -> None:
    space.write("models.toml", toml("0.11.0", serving="{ max_queue_delay_microseconds = -1 }"))
    failed = space.run("render", "m", "--out", "r")
    assert failed.rc == 1
    assert "a rendered config is not a Triton model config" in failed.err
    assert not (space.root / "r").exists()


def test_a_folder_is_needed(space: Space) -> None:
    assert space.run("render", "m").rc == 3


# --- the folder, without doit


def _made(folder: Path, **files: str) -> tuple[Path, Receipt]:
    """What an action made: read-only files, and their receipt."""
    for name, text in files.items():
        path = folder / name / "config.pbtxt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o444)
    return folder, tree.read(folder, {})


def test_rendering_again_replaces_what_was_rendered_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(*_made(tmp_path / "1", ensemble="a", old="b"), out)
    (out / "ensemble/engine").write_text("mine")
    assert refusal(out) is None
    write(*_made(tmp_path / "2", ensemble="c"), out)
    assert {path: text for path, text in _files(out).items() if path != MARK} == {
        "ensemble/config.pbtxt": b"c",
        "ensemble/engine": b"mine",
    }
    assert not (out / "old").exists()


def test_an_edit_is_not_lost_and_a_removed_file_is_no_edit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(*_made(tmp_path / "1", ensemble="a", other="b"), out)
    (out / "other/config.pbtxt").unlink()
    assert refusal(out) is None
    (out / "ensemble/config.pbtxt").write_text("mine")
    assert "was edited since it was rendered\n    edited  ensemble/config.pbtxt" in str(refusal(out))


def test_a_new_or_empty_folder_may_be_written_and_a_file_may_not(tmp_path: Path) -> None:
    assert refusal(tmp_path / "new") is None
    assert refusal(tmp_path) is None
    (tmp_path / "file").write_text("mine")
    assert "is not a folder" in str(refusal(tmp_path / "file", force=True))
    assert f"{tmp_path / 'file'} is not a folder" in str(refusal(tmp_path / "file/below/it"))
    assert "is not empty" in str(refusal(tmp_path))
    assert refusal(tmp_path, force=True) is None


def test_what_was_rendered_is_the_users_to_edit_without_harm_to_the_store(tmp_path: Path) -> None:
    made, receipt = _made(tmp_path / "1", ensemble="a")
    write(made, receipt, tmp_path / "out")
    found = (tmp_path / "out/ensemble/config.pbtxt").stat()
    assert (found.st_mode & 0o200, found.st_nlink) == (0o200, 1)
