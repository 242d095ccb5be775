"""Rounds: A B C A B C ..., each server alone on the machine, begun afresh each time; medians and their spread."""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.check import check_answers
from benchmarks.client import ClientProcess, Job, Values
from benchmarks.contenders import Contender
from benchmarks.models import LocalModel
from benchmarks.processes import free_port
from benchmarks.venvs import UnavailableError


@dataclass(frozen=True)
class Effort:
    """How long and how often is measured."""

    rounds: int = 5
    seconds: float = 2.0
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


def compare(
    part: str,
    contenders: Iterable[Contender],
    sessions: Sequence[int],
    model: Path,
    effort: Effort,
    client: ClientProcess,
    findings: Findings,
) -> None:
    """Measure contenders side by side, in a closed loop, at numbers of sessions."""
    local = LocalModel(model)
    remaining = list(contenders)
    for turn in range(effort.rounds):
        for contender in list(remaining):
            port = free_port()
            target = f"127.0.0.1:{port}"
            try:
                with contender.running(port) as pid:
                    if contender.checked:
                        await_answers(target, contender, local)
                    for count in sessions:
                        job = Job(target, pid, contender.dialect, count, effort.seconds)
                        findings.add(part, contender.name, count, turn, client.measure(job))
            except (UnavailableError, OSError) as error:
                findings.missing(part, contender.name, str(error))
                remaining.remove(contender)
            except Exception as error:
                findings.missing(part, contender.name, f"{type(error).__name__}: {error}")
                remaining.remove(contender)


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
