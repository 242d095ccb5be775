"""What a load generator has seen of servers: what their dashboards must agree with."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from recurra_client import StepInfo

_SERVERS_FAULT = ("capacity", "deadline", "internal", "store_unavailable")


class SeenStep(NamedTuple):
    """A step or chunk that was applied; times in seconds.

    Attributes:
        model: Its model.
        latency: From when it was sent until its answer was there.
        queue, compute: Of that, as the answer says.
        batch_size: Sessions in its model call.
    """

    model: str
    latency: float
    queue: float
    compute: float
    batch_size: int


@dataclass
class Seen:
    """Counted by the callers."""

    steps: list[SeenStep] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    timesteps: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)  # by reason and fault
    opened: int = 0
    durable_opened: int = 0
    sync_steps: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    taken_over: int = 0
    asked_store: int = 0

    def applied(self, model: str, info: StepInfo, timesteps: int = 1) -> None:
        """A step was applied, or a chunk."""
        self.steps.append(SeenStep(model, info.latency, info.queue, info.compute, info.batch_size))
        self.outcomes["ok"] += 1
        self.timesteps[model] += timesteps

    def failed(self, reason: str, *, step: bool, own_bound: bool = False) -> None:
        """A call, or a step that came to its turn, was answered with an error, perhaps for a caller's own bound."""
        servers = reason in _SERVERS_FAULT and not own_bound
        self.errors[reason, "server" if servers else "other"] += 1
        if step:
            self.outcomes[reason] += 1

    @property
    def faults(self) -> int:
        """What no caller could have avoided."""
        return sum(count for (_, fault), count in self.errors.items() if fault == "server")

    def calls(self, *models: str) -> Counter[int]:
        """How many model calls of which size there must have been: each of B sessions answered B steps."""
        steps = Counter(step.batch_size for step in self.steps if not models or step.model in models)
        calls = Counter({size: count // size for size, count in steps.items()})
        if not models or "counter" in models:
            calls[1] += self.computed_in_vain
        return calls

    @property
    def computed_in_vain(self) -> int:
        """Steps that a counter's model computed, and whose callers got an error: too large, or moved meanwhile."""
        return self.outcomes["state_not_finite"] + self.outcomes["session_moved"]


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of an error, as metrics have it."""
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    metadata: Any = error.trailing_metadata()
    status.ParseFromString(dict(metadata)["grpc-status-details-bin"])
    assert status.details[0].Unpack(info)
    return str(info.reason).lower()
