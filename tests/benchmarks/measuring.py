"""Alternating measurements, and the table of the results."""

import dataclasses
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_ms(work: Callable[[], object], calls: int = 15) -> float:
    """The median time of some calls, in milliseconds."""
    return 1000 * statistics.median(seconds(work) for _ in range(calls))


def alternate(jobs: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Run all jobs in turn, several times, so that what slows the machine slows all of them.

    A job does the work and returns what it measured. One round warms up; every other one goes
    backwards. Returns name -> one value per round.
    """
    for job in jobs.values():
        job()
    found = {name: [] for name in jobs}
    for number in range(repetitions):
        for name in list(jobs)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(jobs[name]())
    return found


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a target, and what was measured; lists have one value per round."""

    name: str
    unit: str  # of `ours` and `usual`
    ours: list[float]
    judged: list[float]  # the figures that the target is about
    target: float  # the least median, or the largest
    at_least: bool = True
    scale: str = "x"  # unit of `judged`
    usual: list[float] = dataclasses.field(default_factory=list)  # what it is compared with, if any
    note: str = ""

    @property
    def median(self) -> float:
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
        return bool(self.median >= self.target if self.at_least else self.median <= self.target)

    @property
    def verdict(self) -> str:
        return "met" if self.met else f"missed by {abs(self.median / self.target - 1):.0%}"

    def to_json(self) -> dict:
        results = {"median": self.median, "quartiles": list(self.spread)}
        return {**dataclasses.asdict(self), **results, "met": self.met, "verdict": self.verdict}


def faster(name: str, unit: str, found: dict, target: float, ours="ours", note="") -> Row:
    """A row that compares two rates (more is better); the target is their ratio."""
    judged = ratios(found[ours], found["usual"])
    return Row(name, unit, found[ours], judged, target, usual=found["usual"], note=note)


def figure(value: float) -> str:
    """A number with three significant digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def table(rows: list[Row]) -> str:
    """The rows as text in columns, and their notes."""
    lines = [("", "usual", "ours", "", "judged (quartiles)", "target", "")]
    for row in rows:
        usual = figure(statistics.median(row.usual)) if row.usual else ""
        judged = f"{figure(row.median)} {row.scale} ({'-'.join(map(figure, row.spread))})"
        target = f"{'>=' if row.at_least else '<='} {row.target:g} {row.scale}"
        ours = figure(statistics.median(row.ours))
        lines.append((row.name, usual, ours, row.unit, judged, target, row.verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    layout = "  ".join(f"{{:{'<>><<<<'[i]}{width}}}" for i, width in enumerate(widths))
    text = [layout.format(*line).rstrip() for line in lines]
    notes = [f"  {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*text, *(["", "Notes", *notes] if notes else [])])
