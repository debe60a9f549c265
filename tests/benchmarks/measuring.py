"""Alternating measurements, and the table of the results."""

import dataclasses
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_ms(work: Callable[[], object], calls: int = 15) -> float:
    """The median time of some calls, in milliseconds."""
    return 1000 * statistics.median(seconds(work) for _ in range(calls))


def alternate(
    jobs: dict[str, Callable[[], float]], repetitions: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run all jobs in turn, several times, so that what slows the machine slows all of them.

    Args:
        jobs: name -> a function that does the work and returns what it measured.
        repetitions: rounds that count; every other one goes backwards.
        warm_up: run one round first that does not count: caches fill, graphs are compiled.

    Returns:
        name -> one value per round; values of the same round can be compared.
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
    """One line of the table: a target, and what was measured.

    Attributes:
        name: what was done.
        unit: of `ours` and `usual`.
        ours: this project's way, one value per round.
        judged: the figures that the target is about, one per round.
        target: the least median, or the largest if not `at_least`.
        scale: unit of `judged`.
        usual: what it is compared with, one value per round; may be empty.
        note: what else matters.
        skipped: why nothing was measured, if so.
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
    skipped: str = ""

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
        return bool(self.median >= self.target if self.at_least else self.median <= self.target)

    @property
    def verdict(self) -> str:
        """Met, or by how much of the target it was missed."""
        return "met" if self.met else f"missed by {abs(self.median / self.target - 1):.0%}"

    def to_json(self) -> dict:
        """The fields, and what follows from them."""
        described = dataclasses.asdict(self)
        if not self.skipped:
            described |= {"median": self.median, "quartiles": list(self.spread)}
            described |= {"met": self.met, "verdict": self.verdict}
        return described

    def cells(self) -> tuple[str, ...]:
        """The row as text: name, usual, ours, unit, judged, target, verdict."""
        target = f"{'>=' if self.at_least else '<='} {self.target:g} {self.scale}"
        if self.skipped:
            return self.name, "", "", "", "", target, f"skipped: {self.skipped}"
        usual = figure(statistics.median(self.usual)) if self.usual else ""
        low, high = map(figure, self.spread)
        judged = f"{figure(self.median)} {self.scale} ({low}-{high})"
        ours = figure(statistics.median(self.ours))
        return self.name, usual, ours, self.unit, judged, target, self.verdict


def skipped(name: str, reason: str, target: float, at_least: bool = True) -> Row:
    """A row that was not measured."""
    return Row(name, "", [], [], target, at_least, skipped=reason)


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
    lines += [row.cells() for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    layout = "{:<{}}  {:>{}}  {:>{}}  {:<{}}  {:<{}}  {:<{}}  {}"
    text = []
    for line in lines:
        sizes = [part for pair in zip(line, widths, strict=True) for part in pair]
        text.append(layout.format(*sizes).rstrip())
    notes = [f"  {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*text, *(["", "Notes", *notes] if notes else [])])
