"""The Python client of Recurra: `Client` for asyncio, `connect` for code that blocks.

async with Client("localhost:50051") as client, client.session("watch") as s:
y = await s.step(x)

with connect("localhost:50051") as client, client.session("watch") as s:
y = s.step(x)
"""

from recurra_client.blocking import BlockingClient, connect
from recurra_client.blocking_session import BlockingSession
from recurra_client.client import Client
from recurra_client.credentials import tls
from recurra_client.errors import (
    CapacityError,
    ClientClosedError,
    DeadlineExceededError,
    DrainingError,
    ForbiddenError,
    InputError,
    InternalError,
    ModelNotFoundError,
    ModelRefusedError,
    NoFeedbackError,
    RecurraError,
    SessionChangedError,
    SessionExistsError,
    SessionExpiredError,
    SessionLostError,
    SessionMovedError,
    SessionNotFoundError,
    SnapshotError,
    StateNotFiniteError,
    StepGapError,
    StepNotHeldError,
    StoreUnavailableError,
    UnauthenticatedError,
    UnavailableError,
)
from recurra_client.results import BatchResult, Generated, StepInfo
from recurra_client.session import Session
from recurra_client.tensors import to_array, to_tensor

__all__ = [
    "BatchResult",
    "BlockingClient",
    "BlockingSession",
    "CapacityError",
    "Client",
    "ClientClosedError",
    "DeadlineExceededError",
    "DrainingError",
    "ForbiddenError",
    "Generated",
    "InputError",
    "InternalError",
    "ModelNotFoundError",
    "ModelRefusedError",
    "NoFeedbackError",
    "RecurraError",
    "Session",
    "SessionChangedError",
    "SessionExistsError",
    "SessionExpiredError",
    "SessionLostError",
    "SessionMovedError",
    "SessionNotFoundError",
    "SnapshotError",
    "StateNotFiniteError",
    "StepGapError",
    "StepInfo",
    "StepNotHeldError",
    "StoreUnavailableError",
    "UnauthenticatedError",
    "UnavailableError",
    "connect",
    "tls",
    "to_array",
    "to_tensor",
]
