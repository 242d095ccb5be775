"""What both kinds of load share, and the closed loop: a lane's next message is sent once the one before is answered."""

import asyncio
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from recurra_client.load.lanes import Lane, RefusedError
from recurra_client.load.outcome import PATIENCE, Outcome

_AT_ONCE: Final = 64  # sessions that are opened or closed together
CAPACITY: Final = "CAPACITY"
UNANSWERED: Final = "UNANSWERED"
_now = time.perf_counter


def nothing() -> None:
    """Nobody asks when measuring begins."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When is measured. Times are in seconds."""

    warmup: float
    """Before measuring begins."""
    seconds: float
    """For which is measured: what is sent or, in an open loop, due in them."""
    patience: float = PATIENCE
    """After that, for what is not answered yet."""
    began: Callable[[], None] = nothing
    """Called when measuring begins."""


class Load:
    """A load on lanes, from its begin to its end.

    Attributes:
        begin: When measuring begins, by `time.perf_counter`; infinite until then.
        end: When it ends.
    """

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.begin = self.end = float("inf")
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self) -> None:
        """All that was sent is answered."""
        if not self._finished.done():
            self._finished.set_result(None)

    def fail(self, error: Exception) -> None:
        """A lane has failed, and with it the load."""
        if not self._finished.done():
            self._finished.set_exception(error)

    def give_up(self) -> None:
        """Count what was not answered."""
        raise NotImplementedError

    def record_unanswered(self, lane: Lane, sent: float) -> None:
        """A message that was given up: it has taken at least as long as until now."""
        if sent >= self.begin:
            self.outcome.latencies.append(_now() - sent)
            self.outcome.errors[UNANSWERED] += lane.sessions

    async def measure(self, timing: Timing) -> None:
        """Measure what runs already, and wait until it has ended.

        Raises:
            Exception: A lane failed, with its reason.
        """
        if timing.warmup:
            await asyncio.wait([self._finished], timeout=timing.warmup)
        timing.began()
        cpu = time.process_time()
        self.begin = _now()
        self.end = self.begin + timing.seconds
        try:
            async with asyncio.timeout(timing.seconds + timing.patience):
                await self._finished
        except TimeoutError:
            self.give_up()
        self.outcome.cpu += time.process_time() - cpu
        self.outcome.seconds += max(_now(), self.end) - self.begin


async def open_or_count(lane: Lane, outcome: Outcome) -> bool:
    """Open a lane's sessions. Where the server has no capacity for them, count them as refused: False.

    Raises:
        RefusedError: It refused them for another reason.
        UnansweredError: It did not answer in time.
        Exception: The lane failed, with its reason.
    """
    try:
        await lane.open()
    except RefusedError as error:
        if error.reason != CAPACITY:
            raise
        outcome.refused[error.reason] += lane.sessions
        return False
    return True


async def open_all(lanes: Sequence[Lane], outcome: Outcome) -> list[Lane]:
    """Open the sessions of all lanes: those lanes that the server has the capacity for.

    Raises:
        RefusedError: It has the capacity for none, or refused some for another reason.
        UnansweredError: It did not answer in time.
        Exception: A lane failed, with its reason.
    """
    taken: list[Lane] = []
    for begin in range(0, len(lanes), _AT_ONCE):
        some = lanes[begin : begin + _AT_ONCE]
        try:
            async with asyncio.TaskGroup() as group:
                opening = [group.create_task(open_or_count(lane, outcome)) for lane in some]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        taken += [lane for lane, task in zip(some, opening, strict=True) if task.result()]
    if not taken:
        raise RefusedError(CAPACITY)
    return taken


async def close_all(lanes: Sequence[Lane], patience: float = PATIENCE) -> None:
    """Close the sessions of all lanes, as far as the server still answers within so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            for begin in range(0, len(lanes), _AT_ONCE):
                closing = (lane.close() for lane in lanes[begin : begin + _AT_ONCE])
                await asyncio.gather(*closing, return_exceptions=True)


async def run_closed(lanes: Sequence[Lane], timing: Timing, outcome: Outcome, *, in_flight: int = 1) -> None:
    """Load a server: each lane sends its next message as soon as one before is answered.

    Args:
        lanes: What sends; open, and at least one.
        timing: When is measured.
        outcome: What comes of it is added here while the load runs (all but the number of steps).
        in_flight: How many messages of a lane are sent and not yet answered.

    Raises:
        Exception: A lane failed, with its reason.
    """
    load = _Closed(lanes, outcome)
    load.start(in_flight)
    await load.measure(timing)


class _Closed(Load):
    def __init__(self, lanes: Sequence[Lane], outcome: Outcome) -> None:
        super().__init__(outcome)
        self._running = {_ClosedLane(self, lane): lane for lane in lanes}

    def start(self, in_flight: int) -> None:
        for lane in list(self._running):
            for _ in range(in_flight):
                lane.send()

    def ended(self, lane: "_ClosedLane") -> None:
        """A lane's time is up."""
        self._running.pop(lane, None)
        if not self._running:
            self.finish()

    def give_up(self) -> None:
        for running, lane in self._running.items():
            for sent in running.sent:
                self.record_unanswered(lane, sent)


class _ClosedLane:
    """A lane of a closed loop.

    Attributes:
        sent: When each message was sent that is not answered, the oldest first.
    """

    __slots__ = ("_errors", "_lane_send", "_latencies", "_load", "sent")

    def __init__(self, load: _Closed, lane: Lane) -> None:
        self._load = load
        self._lane_send: Callable[[], None] = lane.send
        self._latencies: array[float] = load.outcome.latencies
        self._errors: Counter[str] = load.outcome.errors
        self.sent: deque[float] = deque()
        lane.answered = self._answered
        lane.failed = load.fail

    def send(self) -> None:
        self.sent.append(_now())
        self._lane_send()

    def _answered(self, reasons: Sequence[str]) -> None:
        now = _now()
        load = self._load
        sent = self.sent.popleft()
        if sent >= load.begin:
            self._latencies.append(now - sent)
            if reasons:
                self._errors.update(reasons)
        if now >= load.end:
            load.ended(self)
        else:
            self.sent.append(now)
            self._lane_send()
