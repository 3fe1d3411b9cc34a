"""The build graph as an SVG drawing: a column per stage on the way from source to smoke test, a box per action."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rules.outlook import Outlook

__all__ = ["Box", "boxes", "svg"]

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 176, 44, 24, 10, 2
_LETTERS = 25  # of a name that fit into a box


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
    """The actions of a model, whose stages follow one another from left to right, in the order of the plan.

    An action that needs another one of its own stage stands a column behind it.
    """
    depths = _depths(looked)
    columns = {place: number for number, place in enumerate(sorted(set(depths.values())))}
    used: dict[int, int] = {}
    found = []
    for look in looked:
        name = look.action.name
        column = columns[depths[name]]
        line = used[column] = used.get(column, -1) + 1
        label = name.partition(":")[2].removeprefix(f"{model}_")
        found.append(Box(look=look, label=label, column=column, line=line, seconds=seconds.get(name)))
    return found


def _depths(looked: Sequence[Outlook]) -> dict[str, tuple[int, int]]:
    """Action -> (how far its stage is from the first, how many of its own stage it stands behind)."""
    stages: dict[str, int] = {}
    depths: dict[str, tuple[int, int]] = {}
    for look in looked:
        needs = [depths[need] for need in look.action.needs() if need in depths]
        stage = stages.setdefault(look.action.stage, len(stages))
        depths[look.action.name] = stage, max((inner + 1 for outer, inner in needs if outer == stage), default=0)
    return depths


def svg(drawn: Sequence[Box]) -> str:
    """The drawing; colours are the page's, by the class `state-<status>`; a title has the name, key and reasons."""
    places = {box.name: box for box in drawn}
    width = max((box.left for box in drawn), default=0) + _WIDTH + _MARGIN
    height = max((box.top for box in drawn), default=0) + _HEIGHT + _MARGIN
    edges = [_edge(places[start], places[end]) for start, end in _direct(drawn)]
    body = "\n".join([*edges, *map(_box, drawn)])
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg class="graph" role="img" aria-label="build graph" {size}>\n{body}\n</svg>'


def _direct(drawn: Sequence[Box]) -> Iterator[tuple[str, str]]:
    """The needs that no other need implies: a repository has its tokenizer from the source, but also its engine."""
    behind: dict[str, set[str]] = {}
    for box in drawn:
        needs = [need for need in dict.fromkeys(box.look.action.needs()) if need in behind]
        behind[box.name] = {box.name}.union(*(behind[need] for need in needs))
        for need in needs:
            if not any(need in behind[other] for other in needs if other != need):
                yield need, box.name


def _edge(start: Box, end: Box) -> str:
    x, y = start.left + _WIDTH, start.top + _HEIGHT // 2
    to_x, to_y = end.left, end.top + _HEIGHT // 2
    bend = (to_x - x) // 2
    return f'<path d="M{x} {y} C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"/>'


def _box(box: Box) -> str:
    stage, name = box.look.action.stage, box.label
    short = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 19]}…{name[-18:]}"
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
