"""The build graph as an SVG drawing: a column per stage on the way from source to smoke test, a box per action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rules.outlook import Outlook

__all__ = ["Box", "boxes", "svg"]

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 214, 44, 46, 12, 2
_LETTERS = 31  # of a name that fit into a box


@dataclass(frozen=True, kw_only=True)
class Box:
    """An action in the drawing: `column` and `line` are places in the grid, `seconds` what it took when it last ran."""

    look: Outlook
    label: str
    column: int
    line: int
    seconds: float | None

    @property
    def name(self) -> str:
        """The action's."""
        return self.look.action.name

    @property
    def left(self) -> int:
        """Pixels."""
        return _MARGIN + self.column * (_WIDTH + _GAP_X)

    @property
    def top(self) -> int:
        """Pixels."""
        return _MARGIN + self.line * (_HEIGHT + _GAP_Y)


def boxes(looked: Sequence[Outlook], model: str, seconds: Mapping[str, float]) -> list[Box]:
    """Each action of a model one column behind the last of what it needs, in the order of the plan."""
    columns: dict[str, int] = {}
    used: dict[int, int] = {}
    found = []
    for look in looked:
        name = look.action.name
        column = max((columns[need] + 1 for need in look.action.needs() if need in columns), default=0)
        columns[name], line = column, used.get(column, 0)
        used[column] = line + 1
        label = name.partition(":")[2].removeprefix(f"{model}_")
        found.append(Box(look=look, label=label, column=column, line=line, seconds=seconds.get(name)))
    return found


def svg(drawn: Sequence[Box]) -> str:
    """The drawing; colours are the page's, by the class `state-<status>`; a title has the name, key and reasons."""
    places = {box.name: box for box in drawn}
    width = max((box.left for box in drawn), default=0) + _WIDTH + _MARGIN
    height = max((box.top for box in drawn), default=0) + _HEIGHT + _MARGIN
    edges = [_edge(places[need], box) for box in drawn for need in box.look.action.needs() if need in places]
    body = "\n".join([*edges, *map(_box, drawn)])
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg class="graph" role="img" aria-label="build graph" {size}>\n{body}\n</svg>'


def _edge(start: Box, end: Box) -> str:
    x, y = start.left + _WIDTH, start.top + _HEIGHT // 2
    to_x, to_y = end.left, end.top + _HEIGHT // 2
    bend = (to_x - x) // 2
    return f'<path d="M{x} {y} C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"/>'


def _box(box: Box) -> str:
    stage, name = box.look.action.stage, box.label
    short = name if len(name) <= _LETTERS else f"{name[:12]}…{name[13 - _LETTERS :]}"
    took = "" if box.seconds is None else _duration(box.seconds)
    title = "\n".join([box.name, box.look.status, *(filter(None, [box.look.key])), *box.look.reasons[:8]])
    return (
        f'<g class="state-{box.look.status}" transform="translate({box.left} {box.top})"><title>{escape(title)}</title>'
        f'<rect class="body" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/><rect class="bar" width="4" height="{_HEIGHT}"'
        f' rx="2"/><text x="12" y="18" class="stage">{stage}</text><text x="{_WIDTH - 8}" y="18" class="took">{took}'
        f'</text><text x="12" y="34">{escape(short)}</text></g>'
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
