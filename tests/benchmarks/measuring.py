"""Measurements that alternate, and the rows of the report they end in."""

import dataclasses
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(
    jobs: dict[str, Callable[[], float]], repetitions: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run all jobs, then all again, so that what slows the machine slows them alike.

    Args:
        jobs: name -> a function that does the work and gives what it measured.
        repetitions: rounds that count; every other one goes backwards.
        warm_up: whether a round goes before that does not count: caches fill, graphs are compiled.

    Returns:
        name -> one value a round, so that values at one place belong together.
    """
    found = {name: [] for name in jobs}
    if warm_up:
        for job in jobs.values():
            job()
    for number in range(repetitions):
        for name in list(jobs)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(jobs[name]())
    return found


def ratios(above: list[float], below: list[float]) -> list[float]:
    """The ratio of the two values of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report: a target, and what was measured.

    Attributes:
        name: what was done.
        unit: of `ours` and `usual`.
        ours: this project's way, a value a round.
        judged: the figures that the target speaks of, a value a round.
        target: at least this, or at most, if not `at_least`.
        scale: unit of `judged`: "x", "%", or that of `ours`.
        usual: what it is compared with, a value a round; may be empty.
        note: what else must be known.
        left_out: why nothing was measured, if so.
    """

    name: str
    unit: str
    ours: list[float]
    judged: list[float]
    target: float
    at_least: bool = True
    scale: str = "x"
    usual: list[float] = dataclasses.field(default_factory=list)
    note: str = ""
    left_out: str = ""

    @property
    def median(self) -> float:
        """The judged figure."""
        return statistics.median(self.judged)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the judged figures; the extremes where there are fewer than four."""
        if len(self.judged) < 4:
            return min(self.judged), max(self.judged)
        low, _, high = statistics.quantiles(self.judged, n=4, method="inclusive")
        return low, high

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        met = self.median >= self.target if self.at_least else self.median <= self.target
        return bool(met)  # JSON knows none of NumPy's

    @property
    def verdict(self) -> str:
        """Met, or by how much of the target it was missed."""
        return "met" if self.met else f"missed by {abs(self.median / self.target - 1):.0%}"

    def to_json(self) -> dict:
        """All of it, and what follows from it."""
        described = dataclasses.asdict(self)
        if not self.left_out:
            low, high = self.spread
            described |= {"median": self.median, "quartiles": [low, high]}
            described |= {"interquartile_range": high - low, "met": self.met}
            described |= {"verdict": self.verdict}
        return described


def left_out(name: str, reason: str, target: float, at_least: bool = True) -> Row:
    """A row of which nothing was measured."""
    return Row(name, "", [], [], target, at_least, left_out=reason)


def faster(name: str, unit: str, found: dict, target: float, ours="ours", usual="usual") -> Row:
    """A row that compares two rates (more is better); the target is their ratio."""
    judged = ratios(found[ours], found[usual])
    return Row(name, unit, found[ours], judged, target, usual=found[usual])


def figure(value: float) -> str:
    """A number with three digits that say something."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def table(rows: list[Row]) -> str:
    """The rows as text in columns."""
    lines = [("", "usual", "ours", "", "judged (quartiles)", "target", "")]
    for row in rows:
        sign = ">=" if row.at_least else "<="
        target = f"{sign} {row.target:g} {row.scale}"
        if row.left_out:
            lines.append((row.name, "", "", "", "", target, f"left out: {row.left_out}"))
            continue
        usual = figure(statistics.median(row.usual)) if row.usual else ""
        low, high = map(figure, row.spread)
        judged = f"{figure(row.median)} {row.scale} ({low}-{high})"
        ours = figure(statistics.median(row.ours))
        lines.append((row.name, usual, ours, row.unit, judged, target, row.verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    right = (1, 2)  # columns of numbers
    text = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    notes = [f"  {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*text, *(["", "Notes", *notes] if notes else [])])
