"""What calls answer besides plain arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from numpy.typing import NDArray

from recurra_client.errors import RecurraError

Out = TypeVar("Out", bound=NDArray[Any] | dict[str, NDArray[Any]])


@dataclass(frozen=True, slots=True)
class StepInfo:
    """How a step went. Times are in seconds; those of the server are 0 in a replayed reply."""

    step: int
    """Number of the session's last step applied: this step, or the last of the chunk."""
    replayed: bool
    """Whether the step had been applied before, and this was the kept reply."""
    latency: float
    """From the call to the answer, as seen here."""
    queue: float
    """Part of it spent waiting in the server."""
    compute: float
    """Part of it spent in the model."""
    batch_size: int
    """Sessions in the same call of the model."""
    durable_step: int = 0
    """The session's last step that outlives the server; 0 where nothing does."""


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Out]):
    """The answer to `Client.step_batch`, row by row."""

    outputs: Out
    """Of shape [B, dims] or [B, T, dims]; where a row failed, zeros."""
    steps: Sequence[int]
    """Number of each row's last step applied; where it failed, 0."""
    errors: Mapping[int, RecurraError]
    """The rows that failed, and why."""
    replayed: frozenset[int]
    """The rows whose reply was kept from before."""
    durable_steps: Sequence[int]
    """Each row's last step that outlives the server; 0 where nothing does."""


class Generated(NamedTuple):
    """One step that `Client.generate` yields."""

    output: Any
    """The model's output, of its [dims]; a dict by name where the input was one."""
    next_input: NDArray[Any]
    """What was made of it, and is fed in next: the class drawn, or the output itself."""
    step: int
    """The session's step number; without a session, counted from the beginning."""
