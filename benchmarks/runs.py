"""Rounds: in each, every server is begun afresh and measured beside the others; medians and their spread."""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.check import check_answers
from benchmarks.client import ClientProcess, Job, Values, measure_in_turns
from benchmarks.contenders import Contender
from benchmarks.models import LocalModel
from benchmarks.processes import free_port
from benchmarks.venvs import UnavailableError

_ATTEMPTS: Final = 3  # to measure servers, before they are left out


@dataclass(frozen=True)
class Effort:
    """How long and how often is measured."""

    rounds: int = 5
    seconds: float = 0.9
    quick: bool = False


@dataclass
class Sample:
    """What one measurement found. Times in seconds, memory in bytes."""

    part: str
    name: str
    case: str
    """What was varied, such as the number of sessions."""
    round: int
    values: Values


@dataclass
class Findings:
    """All that a run has found so far."""

    samples: list[Sample] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why what could not be measured could not."""

    def add(self, part: str, name: str, case: object, turn: int, values: Values) -> None:
        """Add a measurement."""
        self.samples.append(Sample(part, name, str(case), turn, values))
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"[{part}] round {turn + 1}: {name}, {case}: {shown}", file=sys.stderr, flush=True)

    def missing(self, part: str, name: str, why: str) -> None:
        """Say that something could not be measured."""
        self.unavailable[f"{part}: {name}"] = why
        print(f"[{part}] {name}: {why}", file=sys.stderr, flush=True)

    def of(self, part: str) -> dict[tuple[str, str], dict[str, "Spread"]]:
        """The figures of a part, by name and case."""
        groups: dict[tuple[str, str], list[Values]] = defaultdict(list)
        for sample in self.samples:
            if sample.part == part:
                groups[sample.name, sample.case].append(sample.values)
        return {
            key: {
                metric: Spread.of([v[metric] for v in values if metric in v])
                for metric in dict.fromkeys(metric for v in values for metric in v)
            }
            for key, values in groups.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"samples": [asdict(sample) for sample in self.samples], "unavailable": self.unavailable}


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


Figures = Mapping[tuple[str, str], Mapping[str, Spread]]
"""By name and case."""


def compare(
    part: str,
    contenders: Iterable[Contender],
    sessions: Sequence[int],
    model: Path,
    effort: Effort,
    client: ClientProcess,
    findings: Findings,
    *,
    together: bool,
) -> None:
    """Measure contenders side by side, in a closed loop, at numbers of sessions.

    Args:
        part: The name of what is measured.
        contenders: Who is.
        sessions: The numbers of sessions.
        model: What their answers are held against.
        effort: How long and how often.
        client: What makes the load.
        findings: Is added to.
        together: All run at once and are measured in turns of half a second. For those that are still while nobody
            asks them; else each runs alone.
    """
    local = LocalModel(model)
    remaining = list(contenders)

    def leave(contender: Contender, error: Exception) -> None:
        known = isinstance(error, (UnavailableError, OSError))
        findings.missing(part, contender.name, str(error) if known else f"{type(error).__name__}: {error}")
        remaining.remove(contender)

    def start(group: Sequence[Contender], stack: ExitStack) -> list[tuple[Contender, str, int]]:
        """Start servers, and find the address and the process of those that answer right."""
        up = []
        for contender in group:
            port = free_port()
            target = f"127.0.0.1:{port}"
            try:
                pid = stack.enter_context(contender.running(port))
                if contender.checked:
                    await_answers(target, contender, local)
            except Exception as error:
                leave(contender, error)
            else:
                up.append((contender, target, pid))
        return up

    def measure(group: Sequence[Contender], turn: int, attempts: int = _ATTEMPTS) -> None:
        with ExitStack() as stack:
            up = start(group, stack)
            try:
                found = []
                for count in sessions:
                    jobs = [Job(target, pid, contender.dialect, count) for contender, target, pid in up]
                    measured = client.run(measure_in_turns, jobs, effort.seconds)
                    found += [(one[0].name, count, values) for one, values in zip(up, measured, strict=True)]
            except Exception as error:
                failed = error
            else:
                for name, count, values in found:
                    findings.add(part, name, count, turn, values)
                return
        if attempts > 1:  # one of them may have crashed
            measure([contender for contender, _, _ in up], turn, attempts - 1)
        else:
            for contender, _, _ in up:
                leave(contender, failed)

    for turn in range(effort.rounds):
        for group in [list(remaining)] if together else [[contender] for contender in remaining]:
            measure(group, turn)


def await_answers(target: str, contender: Contender, model: LocalModel) -> None:
    """Check the answers; a server that listens may still need a while until it serves.

    Raises:
        UnavailableError: They do not come, or are wrong.
    """
    deadline = time.monotonic() + 60
    while True:
        try:
            check_answers(target, contender.dialect, model)
        except UnavailableError as error:
            if "differ" in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return
