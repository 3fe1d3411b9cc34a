"""`doit report`."""

from __future__ import annotations

import json

import pytest

from tests.measured import bench, point
from tests.space import SPEC, Space

INT8, FP32 = (f"m_{precision}_isl256_osl64_bs8" for precision in ("int8_wo", "fp32"))


@pytest.fixture
def measured(workspace: Space) -> Space:
    """Two variants of models.toml, and a server that is not ours."""
    workspace.write("models.toml", SPEC.replace('["int8_wo"]', '["int8_wo", "fp32"]'))
    for number, name in enumerate((FP32, INT8), 1):
        bench(workspace.root / "artifacts", name, [point(1, 10.0, 2.0, 100.0)], number)
    bench(
        *(workspace.root / "artifacts", "url_host_8000_isl1_osl1_bs1", [point(2, 10.0, 2.0, 50.0)]), axes=None, keys={}
    )
    return workspace


def test_the_page_is_one_file_with_the_build_graph(measured: Space) -> None:
    pytest.importorskip("plotly")
    out = measured.build("report")
    text = measured.read("artifacts/report.html")
    assert out.strip().endswith("artifacts/report.html")
    assert text.count('<svg class="graph"') == 1
    assert 'class="state-blocked"' in text
    assert "http://" not in text.split('id="data"')[0].replace("http://www.w3.org", "")


def test_the_expected_memory_is_the_models_arithmetic(measured: Space) -> None:
    pytest.importorskip("plotly")
    measured.build("report")
    data = json.loads(measured.read("artifacts/report.html").split('id="data">')[1].split("</script>")[0])
    (int8, fp32), (elsewhere,) = (model["variants"] for model in data["models"])
    layers, kv_heads, head_size = 4, 2, 64
    assert fp32["budget"]["KV cache"] == 8 * (256 + 64) * 2 * layers * kv_heads * head_size * 2
    assert fp32["budget"]["weights"] > int8["budget"]["weights"] > 3_000_000
    assert elsewhere["budget"] == {}


def test_other_formats_go_to_standard_output_in_the_order_of_models_toml(measured: Space) -> None:
    rows = json.loads(measured.build("report", "--format", "json"))["points"]
    assert [row["variant"] for row in rows if row["model"]] == [INT8, FP32]
    assert [row["variant"] for row in rows if not row["model"]] == ["url_host_8000_isl1_osl1_bs1"]
    assert measured.build("report", "--format=md").startswith("### m\n")
    assert measured.build("report", "--format=csv").startswith("variant,model,precision,")


def test_a_name_takes_the_variants_below_it_and_out_takes_the_text(measured: Space) -> None:
    measured.build("report", "m_fp32", "--format", "json", "--out", "found.json")
    assert [row["variant"] for row in json.loads(measured.read("found.json"))["points"]] == [FP32]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--format", "htm"), "did you mean 'html'?"), (("m_fp3",), "did you mean 'm_fp32'?")],
)
def test_what_there_is_not_is_exit_3_with_the_nearest_name(
    measured: Space, arguments: tuple[str, ...], told: str
) -> None:
    result = measured.run("report", *arguments)
    assert result.rc == 3
    assert told in result.err
    assert "Traceback" not in result.err


def test_a_place_that_cannot_be_written_is_exit_3_and_a_new_folder_is_made(measured: Space) -> None:
    result = measured.run("report", "--format", "csv", "--out", "artifacts")
    assert result.rc == 3
    assert result.err.startswith("ERROR: artifacts cannot be written\n    reason  Is a directory")
    measured.build("report", "--format", "csv", "--out", "new/found.csv")
    assert measured.read("new/found.csv").startswith("variant,")


def test_nothing_measured_is_said_and_no_mistake(workspace: Space) -> None:
    assert "Nothing has been measured" in workspace.build("report", "--format", "md")
    assert "nothing has been measured yet: doit bench:NAME" in workspace.run("report").err
