"""What rebuilds what, with the real tools and the real OpenVINO: an untrained tiny checkpoint in a folder of ours.

One build is made, and each test changes a copy of it. Commands are poisoned at the runner, which is not part of a key.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.fakes import site
from tests.made import Made
from tests.space import HEAD, Space

pytestmark = pytest.mark.slow

SHAPE = "{ batch = 8, isl = 256, osl = 64 }"
SPEC = f"""{HEAD}
[cache]
dir = "kept"

[models.m]
source = "file:checkpoint"
toolchain = "cpu"
precisions = ["fp32"]
shapes = [{SHAPE}]
"""
CHECKPOINT, ENGINE, BUILD = "checkpoint:m_fp32", "engine:m_fp32_isl256_osl64_bs8", "build:m_fp32_isl256_osl64_bs8"
SMOKE = BUILD.replace("build", "smoke")
STAGES = ("source", "checkpoint", "engine", "build")


class Real(Space):
    """A workspace with real tools, whose site is its own: `make` gives what was made and what came from the store."""

    def make(self, *targets: str) -> tuple[set[str], set[str]]:
        process = self.start(*targets)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        return set(re.findall(r"(?m)^(\S+)  made in", out)), set(re.findall(r"(?m)^(\S+)  from the store", out))

    def outputs(self) -> dict[str, bytes]:
        """Path -> content of outputs and receipts."""
        artifacts = self.root / "artifacts"
        found = [path for stage in STAGES for path in (artifacts / stage).rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in found if not path.name.endswith(".record.json")}

    def poison_runner(self) -> None:
        """From now on every command fails, and no key is another."""
        (self.site / "rules/runners/leash.py").write_text("import sys\nsys.exit('poisoned')\n")


@pytest.fixture(scope="module")
def once_made(tmp_path_factory: pytest.TempPathFactory, source: Made) -> Path:
    """A folder with `site` and `space`, in which the repository is built."""
    folder = tmp_path_factory.mktemp("real")
    shutil.copytree(source("llama"), folder / "space" / "checkpoint")
    space = Real(folder / "space", site(folder / "site", real_tools=True))
    space.write("models.toml", SPEC)
    assert space.make("build") == ({"source:m", CHECKPOINT, ENGINE, BUILD}, set())
    return folder


@pytest.fixture
def space(once_made: Path, tmp_path: Path) -> Real:
    """A copy that a test may change."""
    copied = Path(shutil.copytree(once_made, tmp_path / "copy"))
    (copied / "space/models.toml").unlink()
    made = Real(copied / "space", copied / "site")
    made.write("models.toml", SPEC)
    return made


def test_touching_every_file_rebuilds_nothing(space: Real) -> None:
    for path in space.root.parent.rglob("*"):
        os.utime(path)
    space.poison_runner()
    assert "everything is up to date (4 actions)" in space.build("build")


def test_a_serving_option_renders_again_and_nothing_before(space: Real) -> None:
    space.write("models.toml", SPEC + "serving = { streaming = false }\n")
    plan = space.build("plan", "smoke")
    assert re.findall(r"(?m)^(run|blocked) +(\S+)", plan) == [("run", BUILD), ("blocked", SMOKE)]
    assert space.make("build") == ({BUILD}, set())


def test_a_shape_makes_an_engine_and_what_follows(space: Real) -> None:
    space.write("models.toml", SPEC.replace(SHAPE, "{ batch = 4, isl = 128, osl = 64 }"))
    changed = {name.replace("isl256_osl64_bs8", "isl128_osl64_bs4") for name in (ENGINE, BUILD)}
    assert space.make("build") == (changed, set())


def test_a_tokenizer_file_leaves_the_weights_alone(space: Real) -> None:
    config = space.root / "checkpoint/tokenizer_config.json"
    config.write_text(config.read_text().rstrip() + "\n\n")
    assert space.make("build") == ({"source:m", BUILD}, set())
    for model in ("preprocessing", "postprocessing"):
        place = space.root / "artifacts" / BUILD.replace(":", "/") / model / "1/tokenizer/tokenizer_config.json"
        assert place.read_text() == config.read_text()


def test_a_conversion_that_gives_equal_bytes_cuts_off_early(space: Real) -> None:
    before = space.outputs()
    with (space.site / "rules/tools/openvino_convert.py").open("a") as tool:
        tool.write("# a comment is another key\n")
    assert space.make("build") == ({CHECKPOINT}, set())
    assert space.outputs() == before


@pytest.mark.parametrize("harm", ["modify", "truncate", "delete", "add"])
def test_a_harmed_engine_is_made_good_without_a_command(space: Real, harm: str) -> None:
    before = space.outputs()
    weights = space.root / "artifacts" / ENGINE.replace(":", "/") / "openvino_model.bin"
    if harm == "add":
        (weights.parent / "added").write_text("x")
    elif harm == "delete":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        weights.unlink()  # a hard link of the store's: an editor that writes in place is the store's own test
        content[len(content) // 2] ^= 1
        weights.write_bytes(content if harm == "modify" else content[:-1])
    space.poison_runner()
    assert space.make("build") == (set(), {ENGINE})
    assert space.outputs() == before


def test_wiped_artifacts_come_back_from_a_kept_store_without_a_command(space: Real) -> None:
    before = space.outputs()
    shutil.rmtree(space.root / "artifacts")
    space.poison_runner()
    assert space.make("build") == (set(), {"source:m", CHECKPOINT, ENGINE, BUILD})
    assert space.outputs() == before


def test_the_poison_works(space: Real) -> None:
    shutil.rmtree(space.root / "kept")
    shutil.rmtree(space.root / "artifacts")
    space.poison_runner()
    result = space.run("build")
    assert result.rc == 1
    assert "poisoned" in result.out
