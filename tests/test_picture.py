"""The drawing of the build graph: columns by need, and names that cannot break out of it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from rules.action import Action, Output
from rules.outlook import Outlook
from rules.picture import boxes, svg


def _look(name: str, *needs: str, reasons: tuple[str, ...] = ()) -> Outlook:
    inputs = tuple((f"i{number}", Output(action=need)) for number, need in enumerate(needs))
    action = Action(name=name, stage=name.partition(":")[0], argv=(), inputs=inputs)
    return Outlook(action=action, status="fresh", key="k" * 64, reasons=reasons, seconds=None, size=None)


CHAIN = [
    _look("source:m"),
    _look("checkpoint:m_fp32", "source:m"),
    _look("checkpoint:m_int8", "checkpoint:m_fp32"),
    _look("engine:m_fp32_a", "checkpoint:m_fp32"),
    _look("engine:m_int8_a", "checkpoint:m_int8"),
]


def test_stages_follow_one_another_and_no_two_actions_stand_in_one_place() -> None:
    drawn = boxes(CHAIN, "m", {})
    assert [box.column for box in drawn] == [0, 1, 2, 3, 3]
    assert len({(box.left, box.top) for box in drawn}) == len(drawn)
    assert [box.label for box in drawn] == ["m", "fp32", "int8", "fp32_a", "int8_a"]


def test_a_need_that_another_need_implies_is_not_drawn() -> None:
    build = _look("build:m_fp32_a", "engine:m_fp32_a", "source:m")
    assert svg(boxes([*CHAIN, build], "m", {})).count("<path") == 5


def test_the_drawing_is_well_formed_with_an_edge_per_need_and_a_title_per_box() -> None:
    drawn = boxes([*CHAIN, _look("engine:m_<b>", reasons=('- arg --x="<&>"',))], "m", {"source:m": 75.0})
    root = ET.fromstring(svg(drawn))
    tags = [element.tag for element in root.iter()]
    assert tags.count("path") == 4
    assert tags.count("title") == 6
    texts = [element.text for element in root.iter("text")]
    assert "<b>" in texts
    assert "1.2 min" in texts


def test_a_long_name_is_cut_in_its_middle_and_whole_in_the_title() -> None:
    name = f"engine:m_{'x' * 40}_isl256_osl64_bs8"
    (box,) = boxes([_look(name)], "m", {})
    root = ET.fromstring(svg([box]))
    (short,) = [element.text for element in root.iter("text") if "…" in str(element.text)]
    assert str(short).endswith("_isl256_osl64_bs8")
    assert len(str(short)) <= 26
    assert name in next(str(element.text) for element in root.iter("title"))
