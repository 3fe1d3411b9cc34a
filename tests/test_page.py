"""The page of measurements: what it is given to draw, and that a real browser draws it, wide and narrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rules import page
from rules.findings import load
from rules.picture import boxes
from tests.browser import CHROMIUM, Browser
from tests.measured import bench, evaluated, point
from tests.test_picture import CHAIN

INT8, INT4 = (f"m_{precision}_isl256_osl64_bs8" for precision in ("int8_wo", "int4_wo"))
HOSTILE = "</script><script>throw 'up'</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("measured")
    points = [point(1, 10.0, 2.0, 100.0), point(8, 40.0, 4.0, 500.0), point(4, 30.0, 3.0, 300.0, mode="request_rate")]
    bench(root, INT8, points, number=1)
    bench(root, INT8, points, number=2, host=HOSTILE)
    bench(root, INT4, [point(1, 9.0, 1.0, 150.0), point(8, 45.0, 3.0, 800.0)], number=3)
    evaluated(root, INT4, {"agreement": 0.97, "exact_match": 0.9})
    commits = lambda since, until: [("abc1234", "2026-11-21", f"{since[-1]} to {until[-1]} {HOSTILE}")]  # noqa: E731
    return page.content(load(root), [INT8, INT4], {INT8: {"engine files": 1 << 30}}, commits)


def test_a_model_has_its_variants_in_the_order_asked_with_their_keys_and_points(made: dict[str, Any]) -> None:
    (model,) = made["models"]
    assert [variant["name"] for variant in model["variants"]] == [INT8, INT4]
    assert [variant["engine"][:6] for variant in model["variants"]] == [b"int".hex()] * 2
    assert [point["name"] for point in model["variants"][0]["points"]] == [
        "concurrency 1",
        "concurrency 8",
        "request_rate 4",
    ]
    assert all(point["engine"] and point["run"] for variant in model["variants"] for point in variant["points"])


def test_the_front_is_marked_per_latency(made: dict[str, Any]) -> None:
    points = {(v["name"], p["name"]): p["front"] for v in made["models"][0]["variants"] for p in v["points"]}
    assert "ttft_p50_ms" in points[INT8, "concurrency 8"]
    assert "itl_p50_ms" not in points[INT8, "concurrency 8"]
    assert "itl_p50_ms" in points[INT4, "concurrency 8"]


def test_history_is_every_run_with_the_commits_since_the_one_before(made: dict[str, Any]) -> None:
    runs = made["models"][0]["variants"][0]["history"]
    assert [run["figures"]["output_tokens_per_s"] for run in runs] == [500.0, 500.0]
    assert [[commit[2][:6] for commit in run["commits"]] for run in runs] == [[], ["1 to 2"]]


def test_quantiles_are_numpys() -> None:
    values = [5.0, 1.0, 9.0, 2.5, 7.0]
    assert page.quantiles(values) == pytest.approx(np.quantile(values, np.linspace(0, 1, 51)).tolist())
    assert page.quantiles([]) == []


def test_samples_are_those_of_every_request(made: dict[str, Any]) -> None:
    curve = made["models"][0]["variants"][0]["points"][0]["curves"]["ttft"]
    assert curve == sorted(curve)
    assert curve[0] < 10.0 < curve[-1]


@pytest.fixture(scope="module")
def file(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.html(made, {"m": boxes(CHAIN, "m", {})}, f"title {HOSTILE}"), encoding="utf-8")
    return path


def test_the_page_names_nothing_outside_itself_and_nothing_breaks_out_of_its_data(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert 'src="' not in text.split("<script", 1)[0]
    assert '<link rel="icon" href="data:,">' in text
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["version"] == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no chromium here")
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_every_plot_without_complaint_and_within_its_width(
    browser: Browser, file: Path, width: int
) -> None:
    browser.open(file, width)
    assert browser.said == []
    plots = "[...document.querySelectorAll('.plot')]"
    drawn = browser.ask(f"{plots}.map((it) => [it.dataset.plot, it.querySelectorAll('.main-svg').length])")
    wanted = {"curves", "ttft", "itl", "accuracy", "memory", "history"}
    assert {kind for kind, layers in drawn if layers} == wanted
    assert browser.ask("document.documentElement.scrollWidth") == width
    boxes = "[...document.querySelectorAll('.plot .main-svg')].map((it) => it.getBoundingClientRect().right)"
    assert max(browser.ask(boxes)) <= width


def test_the_plots_are_of_the_theme_that_the_user_prefers(browser: Browser, file: Path) -> None:
    paper = "getComputedStyle(document.querySelector('figure')).backgroundColor"
    drawn = "document.querySelector('[data-plot=curves] .main-svg').style.background"
    found = {}
    for scheme in ("dark", "light"):
        browser.prefer(scheme)
        browser.open(file, 1280)
        found[scheme] = browser.ask(paper)
        assert browser.ask(drawn) == found[scheme]
        assert browser.said == []
    assert found == {"dark": "rgb(23, 28, 35)", "light": "rgb(255, 255, 255)"}


def test_a_choice_redraws_its_plot_and_a_variant_can_be_taken_out(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    axis = "document.querySelector('[data-plot=curves]').layout.yaxis.title.text"
    assert browser.ask(axis) == "ITL p50, ms"
    browser.ask(
        "(() => { const it = document.querySelector('.latency'); it.value = 'ttft_p99_ms'; "
        "it.dispatchEvent(new Event('change')); })()"
    )
    assert browser.ask(axis) == "TTFT p99, ms"
    lines = "document.querySelector('[data-plot=history]').data.length"
    assert browser.ask(lines) == 2
    browser.ask("document.querySelector('.chips button').click()")
    assert browser.ask(lines) == 1
    assert browser.said == []


def test_scores_that_hardly_differ_look_alike(browser: Browser, made: dict[str, Any], tmp_path: Path) -> None:
    close = json.loads(json.dumps(made))
    for variant, agreement in zip(close["models"][0]["variants"], (0.96223, 0.96226), strict=True):
        variant["scores"] = {"agreement": agreement}
    path = tmp_path / "report.html"
    path.write_text(page.html(close, {}, "close"), encoding="utf-8")
    browser.open(path, 1280)
    low, high = browser.ask("document.querySelector('[data-plot=accuracy]').layout.yaxis.range")
    assert high - low > 0.03


def test_of_many_commits_the_newest_is_shown_and_the_others_when_it_is_opened(
    browser: Browser, made: dict[str, Any], tmp_path: Path
) -> None:
    subjects = ("third; and last", "second", "first")
    several = json.loads(json.dumps(made))
    several["models"][0]["variants"][0]["history"][1]["commits"] = [["abc1234", "2026-11-21", it] for it in subjects]
    path = tmp_path / "report.html"
    path.write_text(page.html(several, {}, "many"), encoding="utf-8")
    browser.open(path, 1280)
    assert browser.ask("document.querySelector('[data-table=history] summary').textContent") == (
        "abc1234 third; and last, and 2 before"
    )
    listed = "[...document.querySelectorAll('[data-table=history] details div')].map((it) => it.textContent)"
    assert browser.ask(listed) == ["abc1234 second", "abc1234 first"]
    assert browser.said == []


def test_a_table_is_sorted_by_a_click_and_back_by_another(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    table = "document.querySelector('[data-table=points]')"
    column = f"[...{table}.querySelectorAll('tbody tr')].map((row) => row.cells[2].textContent)"
    click = f"[...{table}.querySelectorAll('th button')].find((it) => it.textContent.includes('tokens')).click()"
    browser.ask(click)
    assert browser.ask(column) == ["100", "150", "300", "500", "800"]
    browser.ask(click)
    assert browser.ask(column) == ["800", "500", "300", "150", "100"]


def test_a_table_is_copied_as_tab_separated_text_with_whole_keys(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    browser.ask("document.execCommand = () => { window.copied = document.activeElement.value; }; null")
    browser.ask("Object.defineProperty(navigator, 'clipboard', {value: undefined}); null")
    browser.ask("document.querySelector('[data-table=points] .head button').click()")
    first, second, *_ = browser.ask("window.copied").split("\n")
    assert first.split("\t")[:2] == ["variant", "load"]
    assert second.split("\t")[:2] == [INT8, "concurrency 1"]
    assert b"int8_wo256".hex().ljust(64, "0") in second
