"""What every part is given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import ClientProcess
from benchmarks.models import publish
from benchmarks.runs import Effort, Findings


@dataclass
class Bench:
    """The surroundings of a run."""

    models: Path
    """A model repository to write into."""
    effort: Effort
    client: ClientProcess
    findings: Findings

    def __post_init__(self) -> None:
        self.small = publish(self.models, "lstm-128", 128)
        self.large = publish(self.models, "lstm-512x2", 512, layers=2)


Part = Callable[[Bench], None]
