"""A figure, its baseline from the same run and its goal; and the one table that shows them all."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Unit = Literal["ns", "ms", "MiB", "%"]


@dataclass(frozen=True, slots=True)
class Goal:
    """At most this: as a ratio to the baseline, or as a value in the figure's own unit."""

    most: float
    of: Literal["ratio", "value"] = "ratio"


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, and against what. Without a goal it is for the record."""

    name: str
    value: float
    unit: Unit
    against: str
    baseline: float  # in the same unit
    trials: int
    goal: Goal | None = None

    @property
    def ratio(self) -> float:
        """Give the value as a multiple of the baseline; infinite where the baseline came out as nothing."""
        return self.value / self.baseline if self.baseline > 0 else float("inf")

    @property
    def met(self) -> bool | None:
        """Tell whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        return (self.ratio if self.goal.of == "ratio" else self.value) <= self.goal.most

    def document(self, family: str) -> dict[str, Any]:
        """Give the figure for JSON; numbers are not rounded."""
        goal = {"most": self.goal.most, "of": self.goal.of} if self.goal else None
        return {
            "family": family,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "against": self.against,
            "baseline": self.baseline,
            "ratio": self.ratio,
            "trials": self.trials,
            "goal": goal,
            "met": self.met,
        }

    def row(self) -> tuple[str, ...]:
        """Give the figure's cells: name, measured, baseline's name, baseline, ratio, goal, met."""
        goal = ""
        if self.goal:
            goal = f"≤ {self.goal.most:g}x" if self.goal.of == "ratio" else f"≤ {self.goal.most:g} {self.unit}"
        met = {True: "yes", False: "NO", None: ""}[self.met]
        return (
            self.name,
            _rounded(self.value, self.unit),
            self.against,
            _rounded(self.baseline, self.unit),
            f"{self.ratio:.2f}x",
            goal,
            met,
        )


def _rounded(value: float, unit: str) -> str:
    """Three digits are more than such a measurement holds."""
    digits = 0 if abs(value) >= 100 or unit == "ns" else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


@dataclass(frozen=True, slots=True)
class Section:
    """The figures of one family, and in a line what they are."""

    title: str
    figures: tuple[Figure, ...]


def render(sections: Iterable[Section]) -> str:
    """Lay the figures out as one table; of what was tried a different number of times, the least is told."""
    sections = list(sections)
    heading = ("", "measured", "baseline", "", "ratio", "goal", "met")
    cells = [heading, *(figure.row() for section in sections for figure in section.figures)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heading))]

    def line(row: tuple[str, ...]) -> str:
        numbers = (1, 3, 4)
        sides = [
            cell.rjust(width) if at in numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(["", *sides]).rstrip()

    lines = [line(heading)]
    for section in sections:
        trials = min(figure.trials for figure in section.figures)
        lines += ["", section.title + (f" ({trials:,} trials)" if trials > 1 else "")]
        lines += [line(figure.row()) for figure in section.figures]
    return "\n".join(lines)


def progress(text: str) -> None:
    """Say on stderr what a long wait is for."""
    print(text, file=sys.stderr, flush=True)
