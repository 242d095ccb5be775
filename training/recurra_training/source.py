"""Where one's own data are. A file of its own, so that the command line can ask for it without loading PyTorch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter


def _words(_kind: Any, tokens: Any) -> tuple[str, ...]:
    """Take a,b,c for three words."""
    return tuple(word for token in tokens for word in token.value.split(","))


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class TableSource:
    """Where one's own data are, and what their columns are."""

    data: Path | None = None
    """CSV, Parquet or NPY file with a row for each step, to learn from instead of a task."""
    sequence: str = ""
    """Column that says which sequence a row belongs to; the rows of one stand in the order of time."""
    inputs: Annotated[tuple[str, ...], Parameter(converter=_words, negative="")] = ()
    """Columns of numbers that a step reads, separated by commas."""
    target: str = ""
    """Column of what is to be answered at each step."""
    target_kind: Literal["class", "value"] | None = None
    """What the target is; else a class if it is text or at most 20 different whole numbers."""
    group: str = ""
    """Column whose groups (people, machines) are never split; else each sequence is one."""

    def as_dict(self) -> dict[str, Any]:
        """For a run's configuration: what is needed to read the same again."""
        return asdict(self) | {"data": str(self.data), "inputs": list(self.inputs)}
