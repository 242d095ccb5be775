"""The steps of a session that may have to be sent again to the server that takes it over."""

from collections import deque
from typing import Final

import grpc
from recurra.v1 import inference_pb2

from recurra_client.errors import SessionLostError, StepGapError

MAX_STEPS: Final = 4096
MAX_BYTES: Final = 64 << 20

_Request = inference_pb2.StreamStepsRequest


class Replay:
    """The messages of one session that were answered and are not durable yet, the oldest first.

    Bounded: where there are too many, as when the server cannot reach its store for long, the oldest are dropped.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[_Request, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, request: _Request, size: int, durable_step: int) -> None:
        """A message of so many bytes was answered; drop what needs no keeping any more."""
        self._kept.append((request, size))
        self._bytes += size
        # What begins at or before a durable step ends there, too: messages are applied as a whole.
        while self._kept and (self._kept[0][0].step <= durable_step or self._is_too_much()):
            self._bytes -= self._kept.popleft()[1]

    def clear(self) -> None:
        """The session is durable as it stands, or its steps were numbered anew."""
        self._kept.clear()
        self._bytes = 0

    def since(self, gap: StepGapError) -> list[_Request]:
        """What the server lacks.

        Raises:
            SessionLostError: It lacks more than is kept.
        """
        expected = int(gap.metadata.get("expected_step", 0))
        lacking = [request for request, _ in self._kept if request.step >= expected]
        if not lacking or lacking[0].step != expected:
            raise SessionLostError(
                f"the session is back at step {expected - 1}, and the steps from {expected} on are not kept here to be "
                "sent again: open a new session",
                reason="SESSION_LOST",
                code=grpc.StatusCode.FAILED_PRECONDITION,
                metadata=gap.metadata,
            )
        return lacking

    def _is_too_much(self) -> bool:
        return len(self._kept) > MAX_STEPS or self._bytes > MAX_BYTES
