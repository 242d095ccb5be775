"""What every part is given."""

import subprocess
import sys
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

    def serve_takes(self, option: str) -> bool:
        """Whether `recurra serve` has an option, in this version."""
        recurra = Path(sys.executable).with_name("recurra")
        told = subprocess.run([recurra, "serve", "--help"], capture_output=True, text=True, check=True)
        return option in told.stdout


Part = Callable[[Bench], None]
